"""Configuration of the F3 audio language model: the tokenizer, any causal language model, and what joins them."""

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig

from .configuration_f3 import F3Config
from .configuration_flow_head import F3FlowHeadConfig
from .hub_code import CompositeConfigMixin


FRAMES_PER_TOKEN = 2  # latent frames of a patch, which is one audio token to the language model


@strict
class F3AudioLMConfig(CompositeConfigMixin, PreTrainedConfig):
    r"""
    The three token ids are special tokens that the language model has and never uses; the defaults are those of Qwen.
    What the language model reads in their place are vectors of the connector and of the audio, so it is never resized.

    Args:
        audio_config (`dict` or [`F3Config`]): the tokenizer.
        text_config (`dict` or `PreTrainedConfig`): the language model, any causal one of Transformers.
        flow_config (`dict` or [`F3FlowHeadConfig`], *optional*): the flow head; without it the model listens and writes, but
            does not speak.
        residual_config (`dict` or `PreTrainedConfig`, *optional*): the residual language model between language model and flow
            head, any causal decoder of Transformers; without it the flow head follows the language model directly.
        listener_config (`dict` or `PreTrainedConfig`, *optional*): the transformer of the listener, which keeps
            transcripts to the letters that it hears, any decoder of Transformers; without it the likeliest one is written.
        text_model_name_or_path (`str`, *optional*): where its weights come from: checkpoints leave them out and
            `from_pretrained` fetches them from here, or from where a call of it says; `None` there changes nothing.
        text_model_revision (`str`, *optional*): revision of that repository.
        save_language_model (`bool`): put the language model's weights into checkpoints all the same.
        freeze_language_model (`bool`): train everything around the language model, but not the language model.
        connector_hidden_size (`int`): width of the downsampled representations inside the connector.
        audio_start_token_id, audio_end_token_id (`int`): tokens around audio.
        audio_token_id (`int`): the token that stands for one audio token, two latent frames.
        text_loss_weight (`float`): of the cross-entropy of text (Eq. 7).
        code_loss_weight (`float`): of RQ-MTP (Eq. 5); at zero the model has no heads for it.
        flow_loss_weight, stop_loss_weight (`float`): of the flow head (Eq. 9) and of the end of speech.
        representation_loss_weight (`float`): of what hidden states tell about the representations of the next patch, a shorter
            way to learn what is said next than that of the flow head; at zero the model has no head for it.
        previous_noise_scale (`float`): largest standard deviation of the noise on the previous patch that the flow head is
            trained with: at inference it will be one that it has made.
        own_history_share (`float`): share of the speech that is learned after patches which the model itself would say, in
            place of the recorded ones: at inference it hears no others. Above zero, batches of speech are read twice in
            training.

    Raises:
        `StrictDataclassError`: when a value has the wrong type or is out of range.
    """

    model_type = "f3_audio_lm"
    auto_classes = ("AutoConfig",)
    sub_configs = {
        "audio_config": F3Config,
        "text_config": AutoConfig,
        "flow_config": F3FlowHeadConfig,
        "residual_config": AutoConfig,
        "listener_config": AutoConfig,
    }

    audio_config: dict | PreTrainedConfig | None = None
    text_config: dict | PreTrainedConfig | None = None
    flow_config: dict | PreTrainedConfig | None = None
    residual_config: dict | PreTrainedConfig | None = None
    listener_config: dict | PreTrainedConfig | None = None
    text_model_name_or_path: str | None = None
    text_model_revision: str | None = None
    save_language_model: bool = False
    freeze_language_model: bool = True
    connector_hidden_size: int = 1024
    audio_start_token_id: int = 151652
    audio_end_token_id: int = 151653
    audio_token_id: int = 151654
    text_loss_weight: float = 1.0
    code_loss_weight: float = 1.0
    flow_loss_weight: float = 1.0
    stop_loss_weight: float = 0.5
    representation_loss_weight: float = 0.0
    previous_noise_scale: float = 0.3
    own_history_share: float = 0.0

    def __post_init__(self, **kwargs):
        if self.audio_config is None or isinstance(self.audio_config, dict):
            self.audio_config = F3Config(**(self.audio_config or {}))
        if self.text_config is None or isinstance(self.text_config, dict):
            values = {"model_type": "qwen3", **(self.text_config or {})}
            self.text_config = CONFIG_MAPPING[values["model_type"]](**values)
        if isinstance(self.flow_config, dict):
            self.flow_config = F3FlowHeadConfig(**self.flow_config)
        for name in ("residual_config", "listener_config"):
            if isinstance(getattr(self, name), dict):
                values = {"model_type": "llama", **getattr(self, name)}
                setattr(self, name, CONFIG_MAPPING[values["model_type"]](**values))
        self.tie_word_embeddings = self.text_config.tie_word_embeddings
        super().__post_init__(**kwargs)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any):
        """As in Transformers."""
        if kwargs.get("text_model_name_or_path") is None:
            kwargs.pop("text_model_name_or_path", None)  # nobody wants to forget the language model
        return super().from_dict(config_dict, **kwargs)

    @property
    def sampling_rate(self) -> int:
        """Samples per second of the waveform."""
        return self.audio_config.sampling_rate

    def validate_architecture(self):
        """Refuses values out of range (called by `@strict`)."""
        ids = {name: getattr(self, name) for name in ("audio_start_token_id", "audio_end_token_id", "audio_token_id")}
        size = self.text_config.vocab_size
        if len(set(ids.values())) < 3 or not all(0 <= token < size for token in ids.values()):
            raise ValueError(f"{ids} must be three different tokens of the language model's {size}")
        for name in ("text_loss_weight", "code_loss_weight", "flow_loss_weight", "stop_loss_weight",
                     "representation_loss_weight", "previous_noise_scale"):  # fmt: skip
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if not 0 <= self.own_history_share <= 1:
            raise ValueError(f"own_history_share must be in [0, 1], got {self.own_history_share}")
        if self.connector_hidden_size < 1:
            raise ValueError(f"connector_hidden_size must be at least 1, got {self.connector_hidden_size}")
        if self.residual_config is not None and self.flow_config is None:
            raise ValueError("residual_config is of a part before the flow head: give flow_config as well")
        if self.flow_config is not None:
            needed = {
                "condition_size": self.text_config.hidden_size,
                "representation_size": self.connector_hidden_size,
                "latent_dim": self.audio_config.autoencoder_config.latent_dim,
                "patch_size": FRAMES_PER_TOKEN,
            }
            given = {name: getattr(self.flow_config, name) for name in needed}
            if given != needed:
                raise ValueError(f"the flow head does not fit the rest: flow_config has {given}, needed is {needed}")
