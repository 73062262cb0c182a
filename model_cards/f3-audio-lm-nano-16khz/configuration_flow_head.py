"""Configuration of the flow head, which turns a hidden state of the language model into the next latent patch."""

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from .hub_code import HubCodeMixin


@strict
class F3FlowHeadConfig(HubCodeMixin, PreTrainedConfig):
    r"""
    Args:
        latent_dim (`int`): channels of a latent frame.
        patch_size (`int`): latent frames that are made at once.
        condition_size (`int`): width of the language model's hidden states.
        representation_size (`int`): width of the downsampled representation of the previous patch.
        hidden_size (`int`): width of the transformer.
        intermediate_size (`int`): width of its feed-forward layers.
        num_hidden_layers (`int`): its layers.
        num_attention_heads (`int`): its attention heads.
        time_mean, time_std (`float`): of the logit of the time, which is normal in training.
        condition_dropout (`float`): share of the training draws without the hidden state, for guidance.
        representation_dropout (`float`): share without the representation of the previous patch.
        draws_per_patch (`int`): times and noises that every patch is trained with at once.
        rms_norm_eps (`float`): epsilon of the norms.
        initializer_range (`float`): standard deviation of the first weights.

    Raises:
        `StrictDataclassError`: when a value has the wrong type or is out of range.
    """

    model_type = "f3_flow_head"
    auto_classes = ("AutoConfig",)

    latent_dim: int = 64
    patch_size: int = 2
    condition_size: int = 1024
    representation_size: int = 1024
    hidden_size: int = 1024
    intermediate_size: int = 4096
    num_hidden_layers: int = 4
    num_attention_heads: int = 16
    time_mean: float = 0.0
    time_std: float = 1.0
    condition_dropout: float = 0.1
    representation_dropout: float = 0.1
    draws_per_patch: int = 4
    rms_norm_eps: float = 1e-6
    initializer_range: float = 0.02

    def validate_architecture(self):
        """Refuses values out of range (called by `@strict`)."""
        for name in ("latent_dim", "patch_size", "condition_size", "representation_size", "hidden_size",
                     "intermediate_size", "num_hidden_layers", "num_attention_heads", "draws_per_patch"):  # fmt: skip
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.hidden_size % (2 * self.num_attention_heads):
            raise ValueError(
                f"hidden_size ({self.hidden_size}) must be an even multiple of num_attention_heads "
                f"({self.num_attention_heads})"
            )
        for name in ("condition_dropout", "representation_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be in [0, 1), got {getattr(self, name)}")
        if self.time_std <= 0:
            raise ValueError(f"time_std must be positive, got {self.time_std}")
