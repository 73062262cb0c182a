from transformers import AutoConfig

from .configuration_audio_lm import F3AudioLMConfig
from .configuration_autoencoder import F3AutoencoderConfig
from .configuration_f3 import F3Config
from .configuration_flow_head import F3FlowHeadConfig


for config_class in (F3AutoencoderConfig, F3Config, F3FlowHeadConfig, F3AudioLMConfig):
    AutoConfig.register(config_class.model_type, config_class, exist_ok=True)

__all__ = ["F3AudioLMConfig", "F3AutoencoderConfig", "F3Config", "F3FlowHeadConfig"]
