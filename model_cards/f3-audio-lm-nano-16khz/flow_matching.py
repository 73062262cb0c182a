"""Flow matching on straight paths from noise at t = 0 to data at t = 1: what is learned, without the network."""

import torch


def sample_times(
    shape: tuple[int, ...], mean: float, std: float, generator: torch.Generator | None = None
) -> torch.Tensor:
    """Times in (0, 1) whose logit is normal, most of them where the velocity is hardest to tell; drawn on the CPU."""
    return torch.sigmoid(mean + std * torch.randn(shape, generator=generator))


def interpolate(noise: torch.Tensor, data: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
    """x_t = (1 - t) e + t x, with one time for each item of the first dimension."""
    times = times.view(-1, *[1] * (data.ndim - 1)).to(data)
    return (1 - times) * noise + times * data


def target_velocity(noise: torch.Tensor, data: torch.Tensor) -> torch.Tensor:
    """v = dx_t / dt = x - e."""
    return data - noise
