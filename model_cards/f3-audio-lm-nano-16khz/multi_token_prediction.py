"""RQ-MTP: the codes of the next K frames, predicted at once from one causal representation (Eq. 5)."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from .configuration_f3 import F3Config
from torch import nn

from .random_quantizer import F3RandomQuantizer


@dataclass
class CodePrediction:
    """
    Args:
        loss: Eq. 5, the mean over K and G of the cross-entropies.
        losses: [K] mean cross-entropy at every distance, in nat.
        logits: [B, T, K, G, V].
        codes: [B, T, G], those of the clean latents.
    """

    loss: torch.Tensor
    losses: torch.Tensor
    logits: torch.Tensor
    codes: torch.Tensor


class F3MultiTokenPrediction(nn.Module):
    """The quantiser that makes the targets, and K x G linear heads. Needed for pre-training only."""

    def __init__(self, config: F3Config):
        super().__init__()
        self.shape = (config.num_future_frames, config.num_codebooks, config.codebook_size)
        self.quantizer = F3RandomQuantizer(config)
        self.heads = nn.Linear(
            config.hidden_size, config.num_future_frames * config.num_codebooks * config.codebook_size
        )

    def forward(
        self, representations: torch.Tensor, latents: torch.Tensor, latents_mask: torch.Tensor | None = None
    ) -> CodePrediction:
        """Representations [B, T, d] and the clean latents [B, T, D] of the same frames."""
        logits = self.heads(representations).unflatten(-1, self.shape)
        codes = self.quantizer(latents)
        losses = multi_token_losses(logits, codes, latents_mask)
        return CodePrediction(losses.mean(), losses, logits, codes)


def multi_token_losses(logits: torch.Tensor, codes: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """
    The terms [K] of Eq. 5: cross-entropy of the logits [B, T, K, G, V] at frame t against the codes [B, T, G] at frame
    t + k, over the frames where `mask` [B, T] holds audio: first the mean of each item, then of the items, so that a batch
    cut into smaller ones has the same loss. An item shorter than k frames counts as zero.
    """
    losses = []
    kept = torch.ones(codes.shape[:2], dtype=torch.bool, device=codes.device) if mask is None else mask != 0
    for ahead, predicted in enumerate(logits.unbind(2), start=1):
        predicted, wanted = predicted[:, :-ahead].float().flatten(0, -2), codes[:, ahead:]
        entropies = F.cross_entropy(predicted, wanted.flatten(), reduction="none").view(wanted.shape)
        weights = kept[:, ahead:].float()
        losses.append(((entropies.mean(-1) * weights).sum(1) / weights.sum(1).clamp(min=1)).mean())
    return torch.stack(losses)
