from transformers import AutoConfig

from .configuration_autoencoder import F3AutoencoderConfig


AutoConfig.register(F3AutoencoderConfig.model_type, F3AutoencoderConfig, exist_ok=True)

__all__ = ["F3AutoencoderConfig"]
