"""The discriminators of stage 0: small 2-D convolutional networks on complex STFTs of several window lengths."""

import torch
import torch.nn.functional as F
from modeling_f3.spectrogram import compress
from torch import nn

from .losses import COMPLEX_EXPONENT, stft


class SpectrogramDiscriminator(nn.Module):
    """
    Scores patches of one STFT (real part, imaginary part and modulus as three maps). Strides halve the frequency at
    every layer and the time at every other one; widths are kept narrow because maps are large.
    """

    def __init__(self, window: int, channels: int):
        super().__init__()
        self.window = window
        self.register_buffer("taper", torch.hann_window(window), persistent=False)
        widths = [3, channels, channels, 2 * channels, 2 * channels, 4 * channels]
        strides = [(1, 2), (2, 2), (1, 2), (2, 2), (1, 2)]
        self.layers = nn.ModuleList(
            nn.utils.parametrizations.weight_norm(nn.Conv2d(i, o, (3, 5), stride, (1, 2)))
            for i, o, stride in zip(widths, widths[1:], strides)
        )
        self.score = nn.utils.parametrizations.weight_norm(nn.Conv2d(widths[-1], 1, 3, padding=1))

    def forward(self, samples: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Samples [B, N] to patch scores [B, 1, frames', bins'] in fp32 and the activations of every layer."""
        parts = stft(samples.float(), self.window, self.taper)[:, :-1]  # [B, bins, frames, 2], Nyquist dropped
        parts = compress(parts.permute(0, 3, 2, 1), COMPLEX_EXPONENT, 1, 1e-8)  # quiet regions count too
        maps = torch.cat([parts, (parts.square().sum(1, keepdim=True) + 1e-8).sqrt()], dim=1)
        features = []
        for layer in self.layers:
            maps = F.leaky_relu(layer(maps), 0.2)
            features.append(maps)
        return self.score(maps).float(), features


class MultiScaleDiscriminator(nn.Module):
    """One [`SpectrogramDiscriminator`] per window length."""

    def __init__(self, windows: tuple[int, ...] = (256, 512, 1024), channels: int = 16):
        super().__init__()
        self.scales = nn.ModuleList(SpectrogramDiscriminator(window, channels) for window in windows)

    def forward(self, samples: torch.Tensor) -> tuple[list[torch.Tensor], list[list[torch.Tensor]]]:
        """Samples [B, N] to the scores and the activations of every scale."""
        results = [scale(samples) for scale in self.scales]
        return [scores for scores, _ in results], [features for _, features in results]
