"""What the models of the family return."""

from dataclasses import dataclass

import torch
from transformers.cache_utils import Cache
from transformers.utils import ModelOutput


@dataclass
class F3AutoencoderEncoderOutput(ModelOutput):
    """
    Args:
        latents (`torch.FloatTensor` of shape `(batch, frames, latent_dim)`):
            Normalised latents (Eq. 1), `frames = ceil(samples / hop_length)` of the longest item.
        latents_mask (`torch.BoolTensor` of shape `(batch, frames)`):
            True on the frames that hold audio of the item.
        audio_lengths (`torch.LongTensor` of shape `(batch,)`):
            Samples of each item, what `decode` needs to return exactly that many.
    """

    latents: torch.FloatTensor | None = None
    latents_mask: torch.BoolTensor | None = None
    audio_lengths: torch.LongTensor | None = None


@dataclass
class F3AutoencoderDecoderOutput(ModelOutput):
    """
    Args:
        audio_values (`torch.FloatTensor` of shape `(batch, 1, samples)`):
            Waveforms in fp32, zero after the end of each item.
        audio_lengths (`torch.LongTensor` of shape `(batch,)`):
            Samples of each item.
    """

    audio_values: torch.FloatTensor | None = None
    audio_lengths: torch.LongTensor | None = None


@dataclass
class F3AutoencoderOutput(ModelOutput):
    """
    Args:
        audio_values (`torch.FloatTensor` of shape `(batch, 1, samples)`):
            Reconstruction, as long as the input; in training mode the reconstruction of the noisy latents (Eq. 2).
        latents (`torch.FloatTensor` of shape `(batch, frames, latent_dim)`):
            Normalised latents (Eq. 1), always without noise.
        latents_mask (`torch.BoolTensor` of shape `(batch, frames)`):
            True on the frames that hold audio of the item.
        audio_lengths (`torch.LongTensor` of shape `(batch,)`):
            Samples of each item.
    """

    audio_values: torch.FloatTensor | None = None
    latents: torch.FloatTensor | None = None
    latents_mask: torch.BoolTensor | None = None
    audio_lengths: torch.LongTensor | None = None


@dataclass
class F3Output(ModelOutput):
    """
    Args:
        last_hidden_state (`torch.FloatTensor` of shape `(batch, frames, hidden_size)`):
            Representations, zero on padding.
        latents (`torch.FloatTensor` of shape `(batch, frames, latent_dim)`):
            Normalised latents (Eq. 1) of the same frames, zero on padding.
        latents_mask (`torch.BoolTensor` of shape `(batch, frames)`):
            True on the frames that hold audio of the item.
        audio_lengths (`torch.LongTensor` of shape `(batch,)`, *optional*):
            Samples of each item, when the input was a waveform.
        past_key_values (`Cache`, *optional*):
            What the representation encoder remembers, with `use_cache=True`.
        hidden_states (`tuple(torch.FloatTensor)`, *optional*):
            Input of every layer and output of the last one, with `output_hidden_states=True`.
        attentions (`tuple(torch.FloatTensor)`, *optional*):
            Attention weights of every layer, with `output_attentions=True` and eager attention.
    """

    last_hidden_state: torch.FloatTensor | None = None
    latents: torch.FloatTensor | None = None
    latents_mask: torch.BoolTensor | None = None
    audio_lengths: torch.LongTensor | None = None
    past_key_values: Cache | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None


@dataclass
class F3ForPreTrainingOutput(ModelOutput):
    """
    Args:
        loss (`torch.FloatTensor` of shape `()`, *optional*):
            Eq. 5, in nat.
        logits (`torch.FloatTensor` of shape `(batch, frames, num_future_frames, num_codebooks, codebook_size)`):
            Predictions of the codes 1, 2, ... frames ahead.
        code_losses (`tuple(torch.FloatTensor)`, *optional*):
            The terms of Eq. 5 by distance.
        codes (`torch.LongTensor` of shape `(batch, frames, num_codebooks)`):
            Codes of the clean latents.
        hidden_states, attentions (`tuple(torch.FloatTensor)`, *optional*):
            As in [`F3Output`].
    """

    loss: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None
    code_losses: tuple[torch.FloatTensor, ...] | None = None
    codes: torch.LongTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None


@dataclass
class F3AudioLMOutput(ModelOutput):
    """
    Args:
        loss (`torch.FloatTensor` of shape `()`, *optional*):
            The losses below, each by its weight, when there are labels.
        logits (`torch.FloatTensor` of shape `(batch, tokens, vocabulary)`):
            Of the language model.
        past_key_values (`Cache`, *optional*):
            Of the language model.
        hidden_states, attentions (`tuple(torch.FloatTensor)`, *optional*):
            Of the language model.
        text_loss (`torch.FloatTensor` of shape `()`, *optional*):
            Cross-entropy of the text (Eq. 7), in nat.
        code_loss (`torch.FloatTensor` of shape `()`, *optional*):
            RQ-MTP (Eq. 5), in nat.
        code_losses (`tuple(torch.FloatTensor)`, *optional*):
            Its terms by distance.
        flow_loss (`torch.FloatTensor` of shape `()`, *optional*):
            Squared error of the flow head's velocity (Eq. 9).
        stop_loss (`torch.FloatTensor` of shape `()`, *optional*):
            Cross-entropy of the end of speech, in nat.
        representation_loss (`torch.FloatTensor` of shape `()`, *optional*):
            Squared error of the representations of the next patch, as the hidden states tell them.
    """

    loss: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None
    past_key_values: Cache | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None
    text_loss: torch.FloatTensor | None = None
    code_loss: torch.FloatTensor | None = None
    code_losses: tuple[torch.FloatTensor, ...] | None = None
    flow_loss: torch.FloatTensor | None = None
    stop_loss: torch.FloatTensor | None = None
    representation_loss: torch.FloatTensor | None = None


@dataclass
class F3SpeechOutput(ModelOutput):
    """
    Args:
        audio (`list(torch.FloatTensor)`):
            The waveform `[samples]` of each row, without the prompt.
        audio_lengths (`torch.LongTensor` of shape `(batch,)`):
            Their samples.
        latents (`list(torch.FloatTensor)`):
            Their latents `[frames, latent_dim]`, to be decoded again or elsewhere.
        finish_reasons (`list(str)`):
            `"stop"` for rows that ended by themselves, `"length"` for those that were cut off.
    """

    audio: list[torch.FloatTensor] | None = None
    audio_lengths: torch.LongTensor | None = None
    latents: list[torch.FloatTensor] | None = None
    finish_reasons: list[str] | None = None
