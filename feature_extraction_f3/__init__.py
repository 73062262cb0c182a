from configuration_f3 import F3AudioLMConfig, F3AutoencoderConfig, F3Config
from transformers import AutoFeatureExtractor, AutoProcessor

from .feature_extraction_f3 import F3FeatureExtractor
from .processing_f3 import F3Processor, split_sentences


for config_class in (F3AutoencoderConfig, F3Config, F3AudioLMConfig):
    AutoFeatureExtractor.register(config_class, F3FeatureExtractor, exist_ok=True)
AutoProcessor.register(F3AudioLMConfig, F3Processor, exist_ok=True)

__all__ = ["F3FeatureExtractor", "F3Processor", "split_sentences"]
