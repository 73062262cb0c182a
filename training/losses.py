"""Reconstruction and adversarial losses of the autoencoder (stage 0): tensors in, fp32 out, one value for each item."""

import torch
import torch.nn.functional as F
from modeling_f3.spectrogram import compress
from torch import nn
from transformers.audio_utils import mel_filter_bank


MEL_WINDOWS = (128, 256, 512, 1024, 2048)
COMPLEX_WINDOWS = (256, 512, 1024)
COMPLEX_EXPONENT = 0.3

# of STOI: seconds of a window, centres of the bands in hertz, windows a correlation looks at, what counts as silent and how much
# louder than the original a band may get before it is cut off
STOI_WINDOW = 0.0256
STOI_BANDS = tuple(150 * 2 ** (third / 3) for third in range(15))
STOI_SEGMENT = 30
STOI_SILENCE_DB = -40.0
STOI_CEILING_DB = 15.0
STOI_STRIDE = 3  # windows from one correlation to the next; STOI has 1, and says the same

# of PESQ: seconds of a window, bands, hertz whose power is brought to a level in dB, what counts as silent there (full scale is 0),
# exponent of loudness, share of it that may be off unnoticed, windows that are heard as one and the exponent of their mean
PESQ_WINDOW = 0.032
PESQ_BANDS = 49
PESQ_LEVEL_BAND = (325.0, 3250.0)
PESQ_LEVEL_DB = 90.0
PESQ_SILENCE_DB = -70.0
PESQ_EXPONENT = 0.23
PESQ_DEADZONE = 0.25
PESQ_SEGMENT = 20
PESQ_SEGMENT_EXPONENT = 6


class MultiScaleSpectralLoss(nn.Module):
    """
    Three distances from one set of STFTs (hop = window / 4), each an L1 distance averaged over its windows:

    - `mel`: log10 mel magnitudes.
    - `complex_spectrum`: power-compressed complex spectra. The only one that sees the phase: without it, phase is learned
      from the discriminators alone, which small models never manage.
    - `magnitude_spectrum`: moduli of the same spectra, bin by bin. It keeps the energy where the phase can't be predicted
      and the complex distance alone would shrink it, and spreads it where a mel band would take it all in one bin.
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

    def forward(self, estimate: torch.Tensor, target: torch.Tensor) -> dict[str, torch.Tensor]:
        """The distances of [B, N] samples by name, [B] each."""
        distances = {"mel": [], "complex_spectrum": [], "magnitude_spectrum": []}
        for window in MEL_WINDOWS:
            taper, filters = getattr(self, f"taper_{window}"), getattr(self, f"mel_{window}")
            estimated = stft(estimate, window, taper)
            with torch.no_grad():
                wanted = stft(target, window, taper)
            distances["mel"].append(distance(log_mel(estimated, filters), log_mel(wanted, filters)))
            if window in COMPLEX_WINDOWS:
                estimated, wanted = (compress(parts, COMPLEX_EXPONENT, -1, 1e-8) for parts in (estimated, wanted))
                distances["complex_spectrum"].append(distance(estimated, wanted))
                distances["magnitude_spectrum"].append(distance(modulus(estimated), modulus(wanted)))
        return {name: torch.stack(values).mean(0) for name, values in distances.items()}


class IntelligibilityLoss(nn.Module):
    """
    1 - STOI (Taal et al., 2011), at the sampling rate as it is instead of 10 kHz: envelopes of third-octave bands are correlated
    over 0.4 s. The spectral distances ask how far each bin is off; this asks whether what rises and falls in speech still does.
    """

    def __init__(self, sampling_rate: int):
        super().__init__()
        window = round(STOI_WINDOW * sampling_rate)
        self.hop, self.fft_size = window // 2, 2 ** (window.bit_length() + 1)
        frequencies = torch.linspace(0, sampling_rate / 2, self.fft_size // 2 + 1)
        edge = 2 ** (1 / 6)
        bands = [
            (frequencies >= centre / edge) & (frequencies < centre * edge)
            for centre in STOI_BANDS
            if centre < sampling_rate / 2
        ]
        self.register_buffer("bands", torch.stack(bands).float(), persistent=False)
        self.register_buffer("taper", torch.hann_window(window), persistent=False)

    def forward(self, estimate: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """[B] of [B, N] samples; an item with less than a segment that is not silent has none."""
        with torch.no_grad():
            wanted, power = self.envelopes(target)
            heard = power > power.amax(1, keepdim=True) * 10 ** (STOI_SILENCE_DB / 10)
            order = torch.sort(~heard, dim=1, stable=True).indices[:, None].expand_as(wanted)  # silence goes to the end
        estimated, _ = self.envelopes(estimate)
        segment = min(STOI_SEGMENT, wanted.shape[2])
        # [B, bands, segments, windows]
        wanted, estimated = (parts.gather(2, order).unfold(2, segment, STOI_STRIDE) for parts in (wanted, estimated))
        estimated = estimated * (norm(wanted) / norm(estimated))
        estimated = torch.minimum(estimated, wanted * (1 + 10 ** (STOI_CEILING_DB / 20)))
        wanted, estimated = (parts - parts.mean(-1, keepdim=True) for parts in (wanted, estimated))
        correlations = ((wanted / norm(wanted)) * (estimated / norm(estimated))).sum(-1).mean(1)
        ends = segment + STOI_STRIDE * torch.arange(correlations.shape[1], device=estimate.device)
        counted = ends <= heard.sum(1, keepdim=True)
        return ((1 - correlations) * counted).sum(1) / counted.sum(1).clamp(min=1)

    def envelopes(self, samples: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Magnitudes of the bands [B, bands, windows] and the power of each window [B, windows]."""
        spectrum = torch.stft(samples, self.fft_size, self.hop, len(self.taper), self.taper, return_complex=True)
        power = torch.view_as_real(spectrum).square().sum(-1)
        return (self.bands @ power + 1e-9).sqrt(), power.sum(1)


class LoudnessLoss(nn.Module):
    """
    How loud the error is, as PESQ (ITU-T P.862) hears it: power in Bark bands, both signals at the same level, becomes loudness
    above the threshold of hearing; differences below a share of it go unnoticed, and what was added disturbs more than what is
    missing. The worst of 0.3 s stands for them. What PESQ does about delays, filters and levels that change is left out.
    """

    def __init__(self, sampling_rate: int):
        super().__init__()
        window = round(PESQ_WINDOW * sampling_rate)
        frequencies = torch.linspace(0, sampling_rate / 2, window // 2 + 1)
        bark = 26.81 * frequencies / (1960 + frequencies) - 0.53  # Traunmueller, 1990
        band = ((bark - bark[2]) / (bark[-1] - bark[2]) * PESQ_BANDS).floor().clamp(max=PESQ_BANDS - 1)
        bands = (band == torch.arange(PESQ_BANDS)[:, None]).float()
        bands = bands[bands.sum(1) > 0]  # some at the bottom are narrower than a bin
        kilohertz = (bands @ frequencies) / bands.sum(1) / 1000
        # Terhardt, 1979
        threshold = 3.64 * kilohertz**-0.8 - 6.5 * torch.exp(-0.6 * (kilohertz - 3.3) ** 2) + 0.001 * kilohertz**4
        self.register_buffer("bands", bands, persistent=False)
        self.register_buffer("threshold", 10 ** (threshold / 10), persistent=False)
        low, high = PESQ_LEVEL_BAND
        self.register_buffer("level_bins", ((frequencies > low) & (frequencies < high)).float(), persistent=False)
        self.register_buffer("taper", torch.hann_window(window), persistent=False)

    def forward(self, estimate: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """[B] of [B, N] samples; a silent item has none. About what PESQ takes off before it makes a MOS of it."""
        with torch.no_grad():
            wanted, heard = self.power(target)
        estimated, _ = self.power(estimate)
        loud, wanted_loud = self.loudness(estimated), self.loudness(wanted)
        difference = ((loud - wanted_loud).abs() - PESQ_DEADZONE * torch.minimum(loud, wanted_loud)).clamp(min=0)
        added = ((estimated + 50) / (wanted + 50)) ** 1.2
        added = (added * (added >= 3)).clamp(max=12)
        quiet = ((wanted.sum(-1) + 1e5) / 1e7) ** -0.04
        disturbance = worst_of_segments(quiet * (difference.square().mean(-1) + 1e-6).sqrt())
        disturbance_added = worst_of_segments(quiet * (difference * added).mean(-1))
        return (disturbance + 0.09 * disturbance_added) * heard

    def power(self, samples: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Of the bands [B, windows, bands] at the level of PESQ, and which items are not silent [B]."""
        spectrum = torch.stft(samples, len(self.taper), len(self.taper) // 2, window=self.taper, return_complex=True)
        power = torch.view_as_real(spectrum).square().sum(-1)
        level = (self.level_bins @ power).mean(1)
        silence = 10 ** (PESQ_SILENCE_DB / 10) * self.taper.square().sum() * len(self.taper) / 2
        gain = 10 ** (PESQ_LEVEL_DB / 10) / level.clamp(min=silence)
        return (self.bands @ power).transpose(1, 2) * gain[:, None, None], level > silence

    def loudness(self, power: torch.Tensor) -> torch.Tensor:
        """Sone-like, zero at the threshold of hearing and below."""
        above = (0.5 + 0.5 * power / self.threshold) ** PESQ_EXPONENT - 1
        return 0.187 * (2 * self.threshold) ** PESQ_EXPONENT * above.clamp(min=0)


def worst_of_segments(disturbance: torch.Tensor) -> torch.Tensor:
    """Of [B, windows], a mean with a high exponent over overlapping segments, then their root mean square [B]."""
    segments = disturbance.unfold(1, min(PESQ_SEGMENT, disturbance.shape[1]), PESQ_SEGMENT // 2)
    worst = (segments**PESQ_SEGMENT_EXPONENT).mean(-1) + 1e-12
    return (worst ** (2 / PESQ_SEGMENT_EXPONENT)).mean(1).sqrt()


def distance(estimate: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Mean absolute difference of each item [B] of [B, ...] values."""
    return (estimate - target).abs().flatten(1).mean(1)


def norm(envelopes: torch.Tensor) -> torch.Tensor:
    """Length of the last dimension, which stays, with a gradient at zero."""
    return (envelopes.square().sum(-1, keepdim=True) + 1e-9).sqrt()


def modulus(parts: torch.Tensor) -> torch.Tensor:
    """Magnitudes of (real, imaginary) pairs in the last dimension, with a gradient at zero."""
    return (parts.square().sum(-1) + 1e-8).sqrt()


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
    """Hinge loss of the generator for each item [B], averaged over scales."""
    return -torch.stack([fake.flatten(1).mean(1) for fake in fake_scores]).mean(0)


def feature_matching_loss(
    real_features: list[list[torch.Tensor]], fake_features: list[list[torch.Tensor]]
) -> torch.Tensor:
    """
    L1 distance of the discriminators' activations, relative to the mean size of the item's real ones, averaged over layers
    and scales: [B].
    """
    distances = []
    for reals, fakes in zip(real_features, fake_features):
        for real, fake in zip(reals, fakes):
            real, fake = real.detach().float(), fake.float()
            distances.append(distance(fake, real) / (real.abs().flatten(1).mean(1) + 1e-5))
    return torch.stack(distances).mean(0)
