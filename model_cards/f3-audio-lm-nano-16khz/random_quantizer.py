"""The random-projection quantiser of RQ-MTP: frozen projections and codebooks, learned by nobody."""

import torch
import torch.nn.functional as F
from .configuration_f3 import F3Config
from torch import nn


class F3RandomQuantizer(nn.Module):
    """
    Latent frames to codes q[t, g] = argmin_v || norm(P_g^T z^_t) - C_gv ||, where z^ is z standardised per channel. The
    statistics come from [`~F3RandomQuantizer.calibrate`]; everything is a buffer, so that a checkpoint holds it.
    """

    def __init__(self, config: F3Config):
        super().__init__()
        self.seed = config.codebook_seed
        width = config.autoencoder_config.latent_dim
        self.shape = (config.num_codebooks, config.codebook_size, width, config.codebook_dim)
        projections, codebooks = self.random_tensors()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("deviation", torch.ones(width))
        self.register_buffer("projections", projections)
        self.register_buffer("codebooks", codebooks)

    def random_tensors(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Projections (Xavier uniform) and codebooks (directions of Gaussian vectors), always the same for a seed."""
        books, size, width, codebook_dim = self.shape
        draw = {"generator": torch.Generator().manual_seed(self.seed), "device": "cpu"}
        bound = (6 / (width + codebook_dim)) ** 0.5
        projections = bound * (2 * torch.rand(books, width, codebook_dim, **draw) - 1)
        codebooks = F.normalize(torch.randn(books, size, codebook_dim, **draw), dim=-1)
        return projections, codebooks

    @torch.no_grad()
    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        """Clean latents [B, T, D] to codes [B, T, G]."""
        standardised = (latents.float() - self.mean) / self.deviation
        projected = torch.einsum("btd,gdc->btgc", standardised, self.projections.float())
        # Of vectors of unit length the nearest one has the largest product; the length of what is compared is no matter.
        return torch.einsum("btgc,gvc->btgv", projected, self.codebooks.float()).argmax(-1)

    @property
    def is_calibrated(self) -> bool:
        """Whether `calibrate` has been called, here or before the checkpoint was saved."""
        return not bool((self.deviation == 1).all())

    @torch.no_grad()
    def calibrate(self, latents: torch.Tensor) -> None:
        """
        Takes mean and deviation of every channel from latent frames [N, D]. Without it, channels with an offset of their
        own would send most frames to few codes.

        Raises:
            `ValueError`: for fewer frames than channels, or a channel that never changes.
        """
        if latents.shape[0] <= latents.shape[1]:
            raise ValueError(f"{latents.shape[0]} frames are too few to calibrate {latents.shape[1]} channels")
        deviation, mean = torch.std_mean(latents.float(), dim=0)
        if bool((deviation == 0).any()):
            raise ValueError(f"channels {(deviation == 0).nonzero().flatten().tolist()} of the latents never change")
        self.mean.copy_(mean)
        self.deviation.copy_(deviation)


def code_counts(codes: torch.Tensor, mask: torch.Tensor | None, codebook_size: int) -> torch.Tensor:
    """How often every code [G, V] occurs in codes [B, T, G], on frames that `mask` [B, T] keeps."""
    kept = codes.flatten(0, 1) if mask is None else codes[mask != 0]
    return torch.stack([torch.bincount(column, minlength=codebook_size) for column in kept.unbind(-1)])


def code_usage(counts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of counts [..., V]: the share of codes that occur at all, and the entropy of their distribution in nat."""
    shares = counts / counts.sum(-1, keepdim=True).clamp(min=1)
    return (counts > 0).float().mean(-1), torch.special.entr(shares).sum(-1)
