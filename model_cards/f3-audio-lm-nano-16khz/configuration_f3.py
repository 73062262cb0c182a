"""Configuration of the F3 tokenizer: autoencoder, representation encoder and its pre-training (RQ-MTP)."""

from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig

from .configuration_autoencoder import F3AutoencoderConfig
from .hub_code import CompositeConfigMixin


# The body of the representation encoder: rotary positions, SwiGLU, a window of ten seconds.
_MISTRAL = {
    "model_type": "mistral",
    "vocab_size": 1,  # it reads latents, so its table of embeddings is taken away
    "hidden_size": 768,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_key_value_heads": 12,
    "sliding_window": 250,
    "bos_token_id": None,
    "eos_token_id": None,
}


@strict
class F3Config(CompositeConfigMixin, PreTrainedConfig):
    r"""
    Args:
        autoencoder_config (`dict` or [`F3AutoencoderConfig`]): the autoencoder, which is always frozen; by default the
            base preset.
        encoder_config (`dict` or `PreTrainedConfig`): the body of the representation encoder, any causal decoder of
            Transformers; by default a Mistral of 12 layers x 768.
        num_codebooks (`int`): random quantisers whose codes are predicted, G in the paper.
        codebook_size (`int`): codes of each, V.
        codebook_dim (`int`): dimensions that a quantiser projects a latent frame to.
        codebook_seed (`int`): the random numbers that projections and codebooks are made of.
        num_future_frames (`int`): frames ahead that are predicted, K.
        latent_noise_scale (`float`): largest standard deviation of the noise on the latents that the representation
            encoder reads in training. Codes are always those of clean latents.
        latent_noise_probability (`float`): share of the training items that get such noise.
        vocab_size (`int`, *optional*): tokens of [`F3ForCTC`].
        pad_token_id (`int`): of them, the blank of CTC.
        ctc_loss_reduction (`str`): `"mean"` over items, each divided by its number of tokens, or `"sum"`.

    Raises:
        `StrictDataclassError`: when a value has the wrong type or is out of range.
    """

    model_type = "f3"
    auto_classes = ("AutoConfig",)
    sub_configs = {"autoencoder_config": F3AutoencoderConfig, "encoder_config": AutoConfig}

    autoencoder_config: dict | PreTrainedConfig | None = None
    encoder_config: dict | PreTrainedConfig | None = None
    num_codebooks: int = 4
    codebook_size: int = 8192
    codebook_dim: int = 16
    codebook_seed: int = 2026
    num_future_frames: int = 5
    latent_noise_scale: float = 0.5
    latent_noise_probability: float = 0.5
    vocab_size: int | None = None
    pad_token_id: int | None = 0
    ctc_loss_reduction: Literal["mean", "sum"] = "mean"

    def __post_init__(self, **kwargs):
        if self.autoencoder_config is None or isinstance(self.autoencoder_config, dict):
            self.autoencoder_config = F3AutoencoderConfig(**(self.autoencoder_config or {}))
        if self.encoder_config is None or isinstance(self.encoder_config, dict):
            values = (
                {**_MISTRAL, **(self.encoder_config or {})} if _is_mistral(self.encoder_config) else self.encoder_config
            )
            self.encoder_config = CONFIG_MAPPING[values["model_type"]](**values)
        super().__post_init__(**kwargs)

    @classmethod
    def preset(cls, name: str, **overrides: Any) -> "F3Config":
        """`"base"` or `"nano"`, with single values replaced by `overrides`.

        Raises:
            `ValueError`: for any other name.
        """
        if name not in PRESETS:
            raise ValueError(f"unknown preset {name!r}: choose one of {', '.join(PRESETS)}")
        autoencoder = F3AutoencoderConfig.preset(name)
        return cls(**{"autoencoder_config": autoencoder, **PRESETS[name], **overrides})

    @property
    def sampling_rate(self) -> int:
        """Samples per second of the waveform."""
        return self.autoencoder_config.sampling_rate

    @property
    def hidden_size(self) -> int:
        """Width of the representations."""
        return self.encoder_config.hidden_size

    def validate_architecture(self):
        """Refuses values out of range (called by `@strict`)."""
        for name in ("num_codebooks", "codebook_size", "codebook_dim", "num_future_frames"):
            _require(getattr(self, name) >= 1, f"{name} must be at least 1, got {getattr(self, name)}")
        _require(
            self.latent_noise_scale >= 0, f"latent_noise_scale must not be negative, got {self.latent_noise_scale}"
        )
        share = self.latent_noise_probability
        _require(0 <= share <= 1, f"latent_noise_probability must be in [0, 1], got {share}")
        if self.vocab_size is not None:
            blank = self.pad_token_id
            _require(
                blank is not None and 0 <= blank < self.vocab_size,
                f"pad_token_id, the blank of CTC, must be one of the {self.vocab_size} tokens, got {blank}",
            )


def _is_mistral(values: dict | None) -> bool:
    return (values or {}).get("model_type", "mistral") == "mistral"


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


PRESETS: dict[str, dict[str, Any]] = {
    "base": {},
    "nano": {
        "encoder_config": {
            "hidden_size": 256,
            "intermediate_size": 1024,
            "num_hidden_layers": 6,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
        },
        "num_codebooks": 2,
        "codebook_size": 1024,
        "num_future_frames": 4,
    },
}
