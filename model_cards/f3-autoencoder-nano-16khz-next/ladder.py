"""The residual stages between spectrogram and latent, built from the rows of the configuration's tables."""

import torch
from torch import nn

from .causal_conv import CausalConv1d, CausalConv2d, CausalConvTranspose2d
from .streaming_state import F3StreamingState


ACTIVATIONS = {"elu": nn.ELU, "gelu": nn.GELU, "silu": nn.SiLU}


class DownStage(nn.Module):
    """[B, C, T, F] to [B, C', T / time stride, F / frequency stride]: a residual branch beside a shortcut."""

    def __init__(self, in_channels: int, row: tuple[int, int, int], hidden_act: str, shortcut: str):
        super().__init__()
        *stride, out_channels = row
        self.act = ACTIVATIONS[hidden_act]()
        self.refine = CausalConv2d(in_channels, in_channels, (3, 3))
        self.resample = CausalConv2d(in_channels, out_channels, resampling_kernel(stride), stride)
        self.shortcut = _down_shortcut(in_channels, out_channels, stride, shortcut)

    def forward(self, maps: torch.Tensor, state: F3StreamingState | None = None) -> torch.Tensor:
        branch = self.refine(self.act(maps), state)
        branch = self.resample(self.act(branch), state)
        return self.shortcut(maps) + branch


class UpStage(nn.Module):
    """[B, C, T, F] to [B, C', T * time stride, F * frequency stride]: a residual branch beside a shortcut."""

    def __init__(self, in_channels: int, row: tuple[int, int, int], hidden_act: str, shortcut: str):
        super().__init__()
        *stride, out_channels = row
        self.act = ACTIVATIONS[hidden_act]()
        conv = CausalConv2d if stride == [1, 1] else CausalConvTranspose2d  # equal at stride 1, and faster
        self.resample = conv(in_channels, out_channels, resampling_kernel(stride), stride)
        self.refine = CausalConv2d(out_channels, out_channels, (3, 3))
        self.shortcut = _up_shortcut(in_channels, out_channels, stride, shortcut)

    def forward(self, maps: torch.Tensor, state: F3StreamingState | None = None) -> torch.Tensor:
        branch = self.resample(self.act(maps), state)
        branch = self.refine(self.act(branch), state)
        return self.shortcut(maps) + branch


def _down_shortcut(in_channels: int, out_channels: int, stride: list[int], kind: str) -> nn.Module:
    """Folds what a stride skips into channels (`"fold"`) or averages it (`"average"`); stateless either way."""
    if stride == [1, 1] and in_channels == out_channels:
        return nn.Identity()
    if kind == "fold":
        return nn.Conv2d(in_channels, out_channels, tuple(stride), tuple(stride))
    widen = nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)
    return nn.Sequential(nn.AvgPool2d(tuple(stride)), widen)


def _up_shortcut(in_channels: int, out_channels: int, stride: list[int], kind: str) -> nn.Module:
    """The mirror of `_down_shortcut`: unfolds channels, or repeats."""
    if stride == [1, 1] and in_channels == out_channels:
        return nn.Identity()
    if kind == "fold":
        return nn.ConvTranspose2d(in_channels, out_channels, tuple(stride), tuple(stride))
    narrow = nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)
    return nn.Sequential(narrow, nn.Upsample(scale_factor=tuple(stride), mode="nearest"))


class EncoderProjection(nn.Module):
    """[B, T, features] to [B, T, D]: a linear shortcut beside a perceptron whose taps in time are at the narrow end."""

    def __init__(self, features: int, hidden: int, latent_dim: int, kernel: int, hidden_act: str):
        super().__init__()
        self.act = ACTIVATIONS[hidden_act]()
        self.shortcut = nn.Linear(features, latent_dim)
        self.hidden = nn.Linear(features, hidden)
        self.output = CausalConv1d(hidden, latent_dim, kernel)

    def forward(self, sequence: torch.Tensor, state: F3StreamingState | None = None) -> torch.Tensor:
        return self.shortcut(sequence) + self.output(self.act(self.hidden(sequence)), state)


class DecoderProjection(nn.Module):
    """
    [B, T, D] to [B, T, features], the mirror of [`EncoderProjection`]. Its shortcut has the taps too: what is decoded at
    one frame was encoded `decoder_lookahead` frames before.
    """

    def __init__(self, latent_dim: int, hidden: int, features: int, kernel: int, hidden_act: str):
        super().__init__()
        self.act = ACTIVATIONS[hidden_act]()
        self.shortcut = CausalConv1d(latent_dim, features, kernel)
        self.hidden = CausalConv1d(latent_dim, hidden, kernel)
        self.output = nn.Linear(hidden, features)

    def forward(self, sequence: torch.Tensor, state: F3StreamingState | None = None) -> torch.Tensor:
        return self.shortcut(sequence, state) + self.output(self.act(self.hidden(sequence, state)))


def resampling_kernel(stride: list[int]) -> tuple[int, int]:
    """Taps that overlap by one stride, so that no input is skipped and none is favoured."""
    return max(3, 2 * stride[0]), max(3, 2 * stride[1])
