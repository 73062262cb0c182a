"""Audio language models with other parts than their checkpoints have, which of them learn, and where an autoencoder is."""

from collections.abc import Iterable
from typing import Any

from configuration_f3.configuration_audio_lm import F3AudioLMConfig
from modeling_f3.modeling_audio_lm import F3AudioLMForConditionalGeneration
from torch import nn
from transformers import LlamaConfig


OPTIONAL = ("prediction", "listener", "residual_lm", "flow_head", "stop_head", "representation_head")
ENCODER_STEM = "encoder.stem.weight"  # every autoencoder has it, in whatever model it is a part of


def with_parts_of(model: F3AudioLMForConditionalGeneration, **values: Any) -> F3AudioLMForConditionalGeneration:
    """
    The model, changed in place, with other `values` of its configuration: a part that it has only now is new, one that it has
    no longer is gone, and all others are as they were.
    """
    other = F3AudioLMForConditionalGeneration(F3AudioLMConfig(**{**model.config.to_dict(), **values}))
    for name in OPTIONAL:
        if (getattr(model, name) is None) != (getattr(other, name) is None):
            setattr(model, name, getattr(other, name))
    for name in values:
        setattr(model.config, name, getattr(other.config, name))
    return model


def autoencoder_prefix(names: Iterable[str]) -> str:
    """
    What the names of an autoencoder's weights begin with among the `names` of all weights of a model, which it may be all of.

    Raises:
        `KeyError`: when there is none.
    """
    for name in names:
        if name.endswith(ENCODER_STEM):
            return name.removesuffix(ENCODER_STEM)
    raise KeyError(ENCODER_STEM)


def inner_transformer(size: int, layers: int, positions: int) -> dict:
    """Configuration of a transformer beside the language model, that of a listener or of a residual language model."""
    return LlamaConfig(
        vocab_size=1,  # it reads no tokens
        hidden_size=size,
        intermediate_size=size * 8 // 3,
        num_hidden_layers=layers,
        num_attention_heads=max(1, size // 64),
        max_position_embeddings=positions,
        bos_token_id=None,
        eos_token_id=None,
    ).to_dict()


def learn(parts: dict[str, nn.Module | None], frozen: str) -> tuple[str, ...]:
    """
    Lets those of the `parts` that there are learn, but for the comma-separated `frozen` ones, whose names are returned.

    Raises:
        `ValueError`: for another name among these.
    """
    names = tuple(frozen.split(",")) if frozen else ()
    if unknown := [name for name in names if name not in parts]:
        raise ValueError(f"--frozen names {', '.join(unknown)}: choose from {', '.join(parts)}")
    for name, part in parts.items():
        if part is not None:
            part.requires_grad_(name not in names)  # a model that comes with an adapter has all of them frozen
    return names
