"""Configuration of the F3 autoencoder (stage 0): waveform to continuous latents and back."""

import math
from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from .hub_code import HubCodeMixin


@strict
class F3AutoencoderConfig(HubCodeMixin, PreTrainedConfig):
    r"""
    The two halves of the autoencoder are *ladders* of stages over a complex spectrogram. A stage is one row
    `[time stride, frequency stride, channels]`; a row with strides `[1, 1]` is a plain residual unit. The encoder's
    rows go down from the spectrogram to the latent rate, the decoder's go up again, so both tables must multiply to
    the same strides. A smaller or larger model is another table, never another network: see [`~F3AutoencoderConfig.preset`].

    Args:
        sampling_rate (`int`): samples per second of the mono waveform, in hertz.
        stft_window (`int`): samples under the Hann window; a multiple of `stft_hop`, at least twice as long.
        stft_hop (`int`): samples between spectrogram frames.
        spectrum_exponent (`float`): magnitudes enter and leave the network raised to this power, in (0, 1].
        stem_kernel (`list[int]`): time and frequency taps of the first convolution and of the last one.
        stem_stride (`int`): frequency bins folded into one position by the first convolution.
        encoder_channels (`int`): channels after the first convolution.
        encoder_stages (`list[list[int]]`): rows of the encoder, spectrogram to latent.
        encoder_projection (`int`): hidden width of the projection to the latent.
        decoder_channels (`int`): channels of the map that the latent is projected to.
        decoder_stages (`list[list[int]]`): rows of the decoder, latent to spectrogram.
        decoder_projection (`int`): hidden width of the projection from the latent.
        projection_kernel (`int`): latent frames, the present one included, seen by both projections.
        decoder_lookahead (`int`): latent frames the decoder waits for before it emits a frame's samples; at least as
            long as the overlap of the STFT windows.
        latent_dim (`int`): channels of a latent frame, D in the paper.
        normalization_eps (`float`): epsilon of Eq. 1.
        noise_scale (`float`): gamma of Eq. 2, the largest standard deviation of the noise the decoder trains with.
        clean_probability (`float`): share of training items decoded without noise.
        hidden_act (`str`): activation, `"elu"`, `"gelu"` or `"silu"`.
        shortcut (`str`): how the shortcut of a stage passes a stride: `"fold"` turns positions into channels, so that a
            linear path carries the phase from one end to the other; `"average"` pools and repeats, as SpectroStream does.

    Raises:
        `StrictDataclassError`: when a value has the wrong type or the tables do not fit together.
    """

    model_type = "f3_autoencoder"
    auto_classes = ("AutoConfig",)

    sampling_rate: int = 24_000
    stft_window: int = 480
    stft_hop: int = 240
    spectrum_exponent: float = 0.3
    stem_kernel: list[int] | tuple[int, ...] = (3, 24)
    stem_stride: int = 12
    encoder_channels: int = 64
    encoder_stages: list[list[int]] | tuple[tuple[int, ...], ...] = ((2, 2, 192), (2, 2, 512), (1, 1, 512))
    encoder_projection: int = 1024
    decoder_channels: int = 512
    decoder_stages: list[list[int]] | tuple[tuple[int, ...], ...] = (
        (1, 1, 512),
        (1, 1, 512),
        (2, 2, 192),
        (1, 1, 192),
        (2, 2, 64),
        (1, 1, 64),
    )
    decoder_projection: int = 1024
    projection_kernel: int = 5
    decoder_lookahead: int = 1
    latent_dim: int = 64
    normalization_eps: float = 1e-5
    noise_scale: float = 1.0
    clean_probability: float = 0.1
    hidden_act: Literal["elu", "gelu", "silu"] = "silu"
    shortcut: Literal["fold", "average"] = "fold"

    @classmethod
    def preset(cls, name: str, **overrides: Any) -> "F3AutoencoderConfig":
        """One of the published tables: `"base"`, `"s24"` or `"nano"`, with single values replaced by `overrides`.

        Raises:
            `ValueError`: for any other name.
        """
        if name not in PRESETS:
            raise ValueError(f"unknown autoencoder preset {name!r}: choose one of {', '.join(PRESETS)}")
        return cls(**{**PRESETS[name], **overrides})

    @property
    def num_bins(self) -> int:
        """Frequency bins per frame; the Nyquist bin is dropped."""
        return self.stft_window // 2

    @property
    def time_stride(self) -> int:
        """Spectrogram frames per latent frame."""
        return math.prod(row[0] for row in self.encoder_stages)

    @property
    def hop_length(self) -> int:
        """Samples per latent frame."""
        return self.stft_hop * self.time_stride

    @property
    def frame_rate(self) -> float:
        """Latent frames per second."""
        return self.sampling_rate / self.hop_length

    @property
    def latent_bins(self) -> int:
        """Frequency positions left at the bottom of the ladder."""
        return self.num_bins // self.stem_stride // math.prod(row[1] for row in self.encoder_stages)

    def validate_architecture(self):
        """Refuses values out of range and tables that do not fit together (called by `@strict`)."""
        for name in ("sampling_rate", "stft_window", "stft_hop", "stem_stride", "latent_dim", "projection_kernel",
                     "encoder_channels", "decoder_channels", "encoder_projection", "decoder_projection",
                     "decoder_lookahead"):  # fmt: skip
            _require(getattr(self, name) >= 1, f"{name} must be at least 1, got {getattr(self, name)}")
        _require(self.latent_dim >= 2, f"latent_dim must be at least 2 to be normalised, got {self.latent_dim}")
        _require(0 < self.spectrum_exponent <= 1, f"spectrum_exponent must be in (0, 1], got {self.spectrum_exponent}")
        _require(self.normalization_eps > 0, f"normalization_eps must be positive, got {self.normalization_eps}")
        _require(self.noise_scale >= 0, f"noise_scale must not be negative, got {self.noise_scale}")
        _require(0 <= self.clean_probability <= 1, f"clean_probability must be in [0, 1], got {self.clean_probability}")
        self._validate_tables()

    def _validate_tables(self):
        window, hop = self.stft_window, self.stft_hop
        _require(
            window % hop == 0 and window >= 2 * hop, f"stft_window ({window}) must be 2, 3, ... x stft_hop ({hop})"
        )
        _require(window % 2 == 0, f"stft_window must be even, got {window}")
        _require(
            len(self.stem_kernel) == 2 and min(self.stem_kernel) >= 1 and self.stem_kernel[1] >= self.stem_stride,
            f"stem_kernel must be [time, frequency] taps, frequency >= stem_stride, got {list(self.stem_kernel)}",
        )
        for name in ("encoder_stages", "decoder_stages"):
            for row in getattr(self, name):
                fits = len(row) == 3 and all(isinstance(value, int) and value >= 1 for value in row)
                _require(fits, f"a row of {name} is [time stride, frequency stride, channels], all >= 1, got {row}")
        for axis, label in ((0, "time"), (1, "frequency")):
            down, up = (math.prod(row[axis] for row in rows) for rows in (self.encoder_stages, self.decoder_stages))
            _require(down == up, f"{label} strides of encoder_stages ({down}) and decoder_stages ({up}) must agree")
        folded = self.stem_stride * math.prod(row[1] for row in self.encoder_stages)
        _require(self.num_bins % folded == 0, f"{self.num_bins} bins are not divisible by the strides' {folded}")
        _require(
            self.decoder_lookahead * self.hop_length >= window - hop,
            f"decoder_lookahead ({self.decoder_lookahead} x {self.hop_length} samples) is shorter than the STFT overlap",
        )


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


# The ladder of SpectroStream at 24 kHz: full-resolution first convolution, stages of stride 2 and 3.
_S24 = {
    "spectrum_exponent": 1.0,
    "stem_kernel": (7, 7),
    "stem_stride": 1,
    "encoder_channels": 32,
    "encoder_stages": ((1, 2, 64), (1, 3, 128), (1, 2, 128), (1, 2, 128), (2, 2, 256), (2, 1, 256), (1, 1, 256)),
    "encoder_projection": 1280,
    "decoder_channels": 512,
    "decoder_stages": ((1, 1, 512), (2, 1, 512), (2, 2, 256), (1, 2, 256), (1, 2, 256), (1, 3, 128), (1, 2, 64)),
    "decoder_projection": 2560,
    "projection_kernel": 1,
    "hidden_act": "elu",
    "shortcut": "average",
}

_NANO = {
    "sampling_rate": 16_000,
    "stft_window": 320,
    "stft_hop": 160,
    "stem_kernel": (3, 16),
    "stem_stride": 8,
    "encoder_channels": 64,
    "encoder_stages": ((2, 2, 128), (2, 2, 256)),
    "encoder_projection": 512,
    "decoder_channels": 256,
    "decoder_stages": ((2, 2, 128), (2, 2, 64), (1, 1, 64)),
    "decoder_projection": 512,
    "projection_kernel": 5,
    "clean_probability": 0.4,  # more noise leaves less of a small network for the detail
}

PRESETS: dict[str, dict[str, Any]] = {"base": {}, "s24": _S24, "nano": _NANO}
