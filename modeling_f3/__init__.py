"""The models of the F3 family. Importing this package registers all of them with the Auto classes of Transformers."""

from configuration_f3 import F3AutoencoderConfig
from feature_extraction_f3 import F3FeatureExtractor
from transformers import AutoModel, AutoModelForAudioTokenization

from .modeling_autoencoder import F3AutoencoderModel
from .streaming_state import F3StreamingState


AutoModel.register(F3AutoencoderConfig, F3AutoencoderModel, exist_ok=True)
AutoModelForAudioTokenization.register(F3AutoencoderConfig, F3AutoencoderModel, exist_ok=True)

__all__ = ["F3AutoencoderConfig", "F3AutoencoderModel", "F3FeatureExtractor", "F3StreamingState"]
