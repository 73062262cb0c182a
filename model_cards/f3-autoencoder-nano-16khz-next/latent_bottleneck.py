"""The bottleneck of the paper: normalisation (Eq. 1) and noise (Eq. 2), no KL term."""

import torch


def normalize_latents(latents: torch.Tensor, eps: float) -> torch.Tensor:
    """Eq. 1: z_n = (z_0 - mean) / (std + eps) over the channels of each frame, in fp32. Shape [..., D] is kept."""
    latents = latents.float()
    centred = latents - latents.mean(-1, keepdim=True)
    # the square root has no gradient at zero, which is where digital silence starts
    return centred / (centred.square().mean(-1, keepdim=True).clamp(min=1e-12).sqrt() + eps)


def draw_noise(
    shape: tuple[int, int, int], noise_scale: float, clean_probability: float, generator: torch.Generator | None = None
) -> torch.Tensor:
    """
    The noise alpha * e of Eq. 2 for latents of `shape` [B, T, D], on the CPU: e ~ N(0, I), one alpha ~ U(0, noise_scale)
    per item. A share `clean_probability` of the items gets alpha = 0, so that the decoder also knows the latents it is
    given at inference.
    """
    alpha = noise_scale * torch.rand(shape[0], 1, 1, generator=generator)
    noisy = torch.rand(shape[0], 1, 1, generator=generator) >= clean_probability
    return noisy * alpha * torch.randn(shape, generator=generator)
