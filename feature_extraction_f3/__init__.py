from configuration_f3 import F3AutoencoderConfig
from transformers import AutoFeatureExtractor

from .feature_extraction_f3 import F3FeatureExtractor


AutoFeatureExtractor.register(F3AutoencoderConfig, F3FeatureExtractor, exist_ok=True)

__all__ = ["F3FeatureExtractor"]
