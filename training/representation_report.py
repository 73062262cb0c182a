"""What stage 1 is judged by: cross-entropies of held-out codes beside their unigram, use of the codes, sense of the audio."""

from collections import defaultdict
from collections.abc import Sequence

import torch
from datasets import Dataset
from modeling_f3.random_quantizer import code_counts, code_usage
from transformers import PreTrainedModel


LEAST_USAGE = 0.1  # of the codes; fewer are no target to learn from


class CodeCollapseError(RuntimeError):
    """Nearly all frames have the same few codes."""


def check_codes(scores: dict[str, float]) -> None:
    """
    Raises:
        `CodeCollapseError`: when a codebook uses less than a tenth of its codes.
    """
    if scores.get("code_usage", 1.0) < LEAST_USAGE:
        raise CodeCollapseError(
            f"only {scores['code_usage']:.1%} of the codes of a codebook occur: the latents vary in too few directions for "
            "the quantiser. Check that they are those of a trained autoencoder and that the quantiser was calibrated on "
            "them, or use a smaller codebook_size"
        )


def held_out_scores(
    model: PreTrainedModel, collator, rows: Dataset, batch_size: int, losses: Sequence[str] = ()
) -> dict[str, float]:
    """
    Means over the rows: `code_ce_k` for k frames ahead, `code_unigram`, the entropy of the codes, `code_usage` and
    `code_perplexity` (relative to V) of the worst codebook; beside a language model also `text_ce`, and `text_ce_swapped`,
    what the text costs when the audio is that of the next row in the batch. `losses` are others that the model's output has.

    Raises:
        `CodeCollapseError`: when the codes are no target to learn from.
    """
    sums, counts = defaultdict(float), None
    for start in range(0, len(rows), batch_size):
        batch = collator([rows[index] for index in range(start, min(start + batch_size, len(rows)))])
        batch = {name: value.to(model.device) for name, value in batch.items()}
        size = len(batch["latents"])
        output = model(**batch)
        if output.code_losses is not None:
            for ahead, loss in enumerate(output.code_losses, start=1):
                sums[f"code_ce_{ahead}"] += size * loss.item()
            quantizer = model.prediction.quantizer
            codes = quantizer(batch["latents"])
            found = code_counts(codes, batch["latents_mask"], quantizer.codebooks.shape[1])
            counts = found if counts is None else counts + found
        for name in losses:
            sums[name] += size * getattr(output, name).item()
        if "labels" in batch:
            sums["text_ce"] += size * output.text_loss.item()
            other_audio = {**batch, "latents": swapped(batch["latents"], batch["latents_mask"])}
            sums["text_ce_swapped"] += size * model(**other_audio).text_loss.item()
    scores = {name: total / len(rows) for name, total in sums.items()}
    if counts is not None:
        usage, entropy = code_usage(counts)
        scores["code_unigram"] = entropy.mean().item()
        scores["code_usage"] = usage.min().item()
        scores["code_perplexity"] = entropy.min().exp().item() / counts.shape[1]
        check_codes(scores)
    return scores


def swapped(latents: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Each item of `latents` [B, T, D] replaced by the next one, repeated or cut to the item's own length in `mask` [B, T]."""
    lengths, others = mask.sum(1).tolist(), torch.zeros_like(latents)
    for item, length in enumerate(lengths):
        other = (item + 1) % len(lengths)
        given = latents[other, : lengths[other]]
        others[item, :length] = given.repeat(-(-length // len(given)), 1)[:length]
    return others
