"""Causal short-time Fourier transform and its inverse as real maps, with the magnitude compressed by a power."""

import torch
import torch.nn.functional as F
from torch import nn

from .streaming_state import F3StreamingState


def compress(spectrum: torch.Tensor, exponent: float, dim: int = 1, eps: float = 1e-12) -> torch.Tensor:
    """Raises the magnitude of a (real, imaginary) pair along `dim` to `exponent` and keeps its phase."""
    if exponent == 1.0:
        return spectrum
    power = spectrum.square().sum(dim, keepdim=True) + eps
    return spectrum * power.pow((exponent - 1.0) / 2)


class Spectrogram(nn.Module):
    """
    Frame t of the analysis covers samples [t * hop - overlap, (t + 1) * hop), so it is known as soon as its last hop
    has arrived. The synthesis adds one frame and hands out the hop that no later frame touches, which makes its output
    `overlap` = window - hop samples late; who calls it drops or waits for them.
    """

    def __init__(self, window: int, hop: int, exponent: float):
        super().__init__()
        self.window, self.hop, self.exponent = window, hop, exponent
        self.overlap = window - hop
        self.state_name = ""  # set once by the model: the module's path
        for name, taper in zip(("analysis_window", "synthesis_window"), self.windows()):
            self.register_buffer(name, taper, persistent=False)

    def windows(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The Hann window, and the one that undoes it when overlapping frames are added."""
        taper = torch.hann_window(self.window, dtype=torch.float32)  # also when the model is built in half precision
        overlapped = taper.square().view(-1, self.hop).sum(0).repeat(self.window // self.hop)
        return taper, taper / overlapped

    def analyze(self, samples: torch.Tensor, state: F3StreamingState | None = None) -> torch.Tensor:
        """Samples [B, N], N a multiple of the hop, to maps [B, 2, N / hop, window / 2] in fp32."""
        samples = samples.float()
        if state is not None:
            samples = state.extend(self.state_name, samples, self.overlap, dim=1)
        else:
            samples = F.pad(samples, (self.overlap, 0))
        frames = samples.unfold(-1, self.window, self.hop) * self.analysis_window
        spectrum = torch.fft.rfft(frames)[..., :-1]  # the Nyquist bin is dropped
        return compress(torch.stack([spectrum.real, spectrum.imag], dim=1), self.exponent)

    def synthesize(self, maps: torch.Tensor, state: F3StreamingState | None = None) -> torch.Tensor:
        """Maps [B, 2, T, window / 2] to samples [B, T * hop] in fp32, `overlap` samples late."""
        maps = F.pad(compress(maps.float(), 1.0 / self.exponent), (0, 1))
        frames = torch.fft.irfft(torch.complex(maps[:, 0], maps[:, 1]), n=self.window) * self.synthesis_window
        if state is not None:
            frames = state.extend(self.state_name, frames, self.window // self.hop - 1, dim=1)
        else:
            frames = F.pad(frames, (0, 0, self.window // self.hop - 1, 0))
        # hop t of the output is the sum of part p of frame t - p, counted from the newest frame
        parts = frames.unflatten(-1, (-1, self.hop)).unbind(-2)
        total = frames.shape[1] - len(parts) + 1
        pieces = [part[:, len(parts) - 1 - p : len(parts) - 1 - p + total] for p, part in enumerate(parts)]
        return torch.stack(pieces).sum(0).flatten(1)
