from configuration_f3 import F3AutoencoderConfig, F3Config
from transformers import AutoFeatureExtractor

from .feature_extraction_f3 import F3FeatureExtractor


for config_class in (F3AutoencoderConfig, F3Config):
    AutoFeatureExtractor.register(config_class, F3FeatureExtractor, exist_ok=True)

__all__ = ["F3FeatureExtractor"]
