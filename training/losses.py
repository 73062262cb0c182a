"""Reconstruction and adversarial losses of the autoencoder (stage 0): tensors in, fp32 scalars out."""

import torch
import torch.nn.functional as F
from modeling_f3.spectrogram import compress
from torch import nn
from transformers.audio_utils import mel_filter_bank


MEL_WINDOWS = (128, 256, 512, 1024, 2048)
COMPLEX_WINDOWS = (256, 512, 1024)
COMPLEX_EXPONENT = 0.3


class MultiScaleSpectralLoss(nn.Module):
    """
    Two distances from one set of STFTs (hop = window / 4): the L1 distance of log10 mel magnitudes, and the L1 distance
    of power-compressed complex spectra. The second is the only reconstruction loss that sees the phase: without it, phase
    is learned from the discriminators alone, which small models never manage.
    """

    def __init__(self, sampling_rate: int, num_mels: int = 64):
        super().__init__()
        for window in MEL_WINDOWS:
            # no more filters than an eighth of the window, so that none of them is empty
            filters = mel_filter_bank(
                window // 2 + 1, min(num_mels, window // 8), 0.0, sampling_rate / 2, sampling_rate, norm="slaney"
            )
            self.register_buffer(f"mel_{window}", torch.from_numpy(filters).float(), persistent=False)
            self.register_buffer(f"taper_{window}", torch.hann_window(window), persistent=False)

    def forward(self, estimate: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mel and complex distance of [B, N] samples, each averaged over its windows."""
        mel, complex_ = [], []
        for window in MEL_WINDOWS:
            taper = getattr(self, f"taper_{window}")
            estimated = stft(estimate, window, taper)
            with torch.no_grad():
                wanted = stft(target, window, taper)
            mel.append(F.l1_loss(*(log_mel(parts, getattr(self, f"mel_{window}")) for parts in (estimated, wanted))))
            if window in COMPLEX_WINDOWS:
                complex_.append(
                    F.l1_loss(*(compress(parts, COMPLEX_EXPONENT, -1, 1e-8) for parts in (estimated, wanted)))
                )
        return torch.stack(mel).mean(), torch.stack(complex_).mean()


def stft(samples: torch.Tensor, window: int, taper: torch.Tensor) -> torch.Tensor:
    """Real and imaginary parts [B, bins, frames, 2] of [B, N] samples, on a scale that does not depend on the window."""
    spectrum = torch.stft(samples, window, window // 4, window=taper, return_complex=True)
    return torch.view_as_real(spectrum) / window**0.5


def log_mel(parts: torch.Tensor, filters: torch.Tensor) -> torch.Tensor:
    """log10 mel magnitudes [B, frames, mels] of an STFT, floored at -5."""
    magnitude = (parts.square().sum(-1) + 1e-10).sqrt()
    return (magnitude.transpose(1, 2) @ filters).clamp(min=1e-5).log10()


def discriminator_loss(real_scores: list[torch.Tensor], fake_scores: list[torch.Tensor]) -> torch.Tensor:
    """Hinge loss of the discriminators, averaged over scales."""
    return torch.stack(
        [F.relu(1 - real).mean() + F.relu(1 + fake).mean() for real, fake in zip(real_scores, fake_scores)]
    ).mean()


def adversarial_loss(fake_scores: list[torch.Tensor]) -> torch.Tensor:
    """Hinge loss of the generator, averaged over scales."""
    return torch.stack([-fake.mean() for fake in fake_scores]).mean()


def feature_matching_loss(
    real_features: list[list[torch.Tensor]], fake_features: list[list[torch.Tensor]]
) -> torch.Tensor:
    """
    L1 distance of the discriminators' activations, each item's relative to the mean size of its real ones, averaged over
    layers and scales. Item by item, so that a batch split over processes has the loss of the whole.
    """
    distances = []
    for reals, fakes in zip(real_features, fake_features):
        for real, fake in zip(reals, fakes):
            real, fake = real.detach().float().flatten(1), fake.float().flatten(1)
            distances.append(((fake - real).abs().mean(1) / (real.abs().mean(1) + 1e-5)).mean())
    return torch.stack(distances).mean()
