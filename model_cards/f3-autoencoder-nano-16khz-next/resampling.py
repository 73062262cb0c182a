"""Sampling-rate conversion with a windowed sinc, one short convolution per output phase."""

import math

import torch


def resample(
    samples: torch.Tensor, source_rate: int, target_rate: int, zero_crossings: int = 32, rolloff: float = 0.97
) -> torch.Tensor:
    """
    Band-limited interpolation of `samples [..., N]` from `source_rate` to `target_rate`, both in hertz.

    Args:
        zero_crossings: of the sinc on each side of its centre; more make the filter steeper.
        rolloff: cut-off as a share of the lower Nyquist frequency.

    Returns:
        `[..., ceil(N * target_rate / source_rate)]` in fp32.
    """
    divisor = math.gcd(source_rate, target_rate)
    source, target = source_rate // divisor, target_rate // divisor
    samples = samples.float()
    if source == target:
        return samples
    kernels, reach = _sinc_kernels(source, target, zero_crossings, rolloff)
    flat = samples.reshape(-1, 1, samples.shape[-1])
    padded = torch.nn.functional.pad(flat, (reach, reach + source))
    phases = torch.nn.functional.conv1d(padded, kernels.to(flat.device), stride=source)  # [*, target, periods]
    length = -(-samples.shape[-1] * target // source)
    return phases.transpose(1, 2).flatten(1)[:, :length].reshape(*samples.shape[:-1], length)


def _sinc_kernels(source: int, target: int, zero_crossings: int, rolloff: float) -> tuple[torch.Tensor, int]:
    """
    One filter for each of the `target` output samples that fall on `source` input samples, `[target, 1, taps]`, and
    the number of input samples that they reach back.
    """
    cutoff = rolloff * min(source, target)  # in zero crossings per period
    reach = math.ceil(zero_crossings * source / cutoff)
    inputs = torch.arange(-reach, reach + source, dtype=torch.float64) / source
    outputs = torch.arange(target, dtype=torch.float64) / target
    distance = ((inputs - outputs[:, None]) * cutoff).clamp(-zero_crossings, zero_crossings)
    hann = torch.cos(distance * math.pi / (2 * zero_crossings)).square()
    kernels = torch.sinc(distance) * hann * (cutoff / source)
    return kernels[:, None].float(), reach
