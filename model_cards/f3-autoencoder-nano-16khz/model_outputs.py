"""What the models of the family return."""

from dataclasses import dataclass

import torch
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
