"""The models of the F3 family. Importing this package registers all of them with the Auto classes of Transformers."""

import transformers
from configuration_f3 import F3AudioLMConfig, F3AutoencoderConfig, F3Config, F3FlowHeadConfig
from feature_extraction_f3 import F3FeatureExtractor, F3Processor

from .modeling_audio_lm import F3AudioLMForConditionalGeneration
from .modeling_autoencoder import F3AutoencoderModel
from .modeling_f3 import F3ForAudioClassification, F3ForCTC, F3ForPreTraining, F3Model
from .modeling_flow_head import F3FlowHead
from .speech_recognition_pipeline import F3SpeechRecognitionPipeline
from .streaming_state import F3StreamingState


for _model_class in (
    F3AutoencoderModel,
    F3Model,
    F3ForPreTraining,
    F3ForAudioClassification,
    F3ForCTC,
    F3FlowHead,
    F3AudioLMForConditionalGeneration,
):
    for _auto_class in _model_class.auto_classes:
        getattr(transformers, _auto_class).register(_model_class.config_class, _model_class, exist_ok=True)

__all__ = [
    "F3AudioLMConfig",
    "F3AudioLMForConditionalGeneration",
    "F3AutoencoderConfig",
    "F3AutoencoderModel",
    "F3Config",
    "F3FeatureExtractor",
    "F3FlowHead",
    "F3FlowHeadConfig",
    "F3ForAudioClassification",
    "F3ForCTC",
    "F3ForPreTraining",
    "F3Model",
    "F3Processor",
    "F3SpeechRecognitionPipeline",
    "F3StreamingState",
]
