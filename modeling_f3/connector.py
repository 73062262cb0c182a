"""From representations at 25 Hz to what the language model reads at 12.5 Hz."""

import torch
import torch.nn.functional as F
from configuration_f3.configuration_audio_lm import FRAMES_PER_TOKEN
from torch import nn


class F3Connector(nn.Module):
    """
    Representations [B, T, d] to audio tokens [B, ceil(T / 2), width of the language model]; token i sees the frames 2i and
    2i + 1 alone, so it is as causal as they are. `start` and `end` are the vectors around audio.
    """

    def __init__(self, hidden_size: int, connector_hidden_size: int, text_hidden_size: int):
        super().__init__()
        self.downsample = nn.Conv1d(hidden_size, hidden_size, FRAMES_PER_TOKEN, FRAMES_PER_TOKEN)
        self.expand = nn.Linear(hidden_size, connector_hidden_size)
        self.output = nn.Linear(connector_hidden_size, text_hidden_size)
        self.start = nn.Parameter(torch.zeros(text_hidden_size))
        self.end = nn.Parameter(torch.zeros(text_hidden_size))

    def downsampled(self, representations: torch.Tensor) -> torch.Tensor:
        """r_i [B, ceil(T / 2), connector_hidden_size], what audio tokens are made of; an odd last frame is completed with zeros."""
        pairs = self.downsample(in_pairs(representations).flatten(1, 2).transpose(1, 2)).transpose(1, 2)
        return F.gelu(self.expand(F.gelu(pairs)))

    def forward(self, representations: torch.Tensor) -> torch.Tensor:
        """a_i, the audio tokens."""
        return self.output(self.downsampled(representations))


def in_pairs(frames: torch.Tensor) -> torch.Tensor:
    """Frames [A, T, d], two for each audio token [A, ceil(T / 2), 2, d]; an odd last one is completed with zeros."""
    return F.pad(frames, (0, 0, 0, -frames.shape[1] % FRAMES_PER_TOKEN)).unflatten(1, (-1, FRAMES_PER_TOKEN))


def token_mask(latents_mask: torch.Tensor) -> torch.Tensor:
    """[A, ceil(T / 2)], true on audio tokens, of a mask of latent frames [A, T]."""
    counts = token_counts(latents_mask.sum(1))
    return torch.arange(int(token_counts(latents_mask.shape[1])), device=counts.device) < counts[:, None]


def token_counts(frames: torch.Tensor) -> torch.Tensor:
    """Audio tokens of items of so many latent frames."""
    return -(-frames // FRAMES_PER_TOKEN)
