"""What stage 1 is judged by: cross-entropies of held-out codes beside their unigram, use of the codes, sense of the audio."""

import json
from collections import defaultdict
from pathlib import Path

import torch
from datasets import Dataset
from modeling_f3.random_quantizer import code_counts, code_usage
from transformers import PreTrainedModel, TrainerCallback


LEAST_USAGE = 0.1  # of the codes; fewer are no target to learn from


class CodeCollapseError(RuntimeError):
    """Nearly all frames have the same few codes."""


class HeldOutReport(TrainerCallback):
    """Scores held-out rows whenever `Trainer` saves, keeps the history, and stops a training whose codes have collapsed."""

    def __init__(self, collator, rows: Dataset, batch_size: int, path: Path):
        self.collator, self.rows, self.batch_size, self.path = collator, rows, batch_size, path
        self.history: list[dict] = json.loads(path.read_text()) if path.is_file() else []

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        if state.global_step == 0:
            self._report(state, model)

    def on_save(self, args, state, control, model=None, **kwargs):
        self._report(state, model)

    def _report(self, state, model: PreTrainedModel) -> None:
        if not state.is_world_process_zero or (self.history and self.history[-1]["step"] == state.global_step):
            return
        scores = held_out_scores(model, self.collator, self.rows, self.batch_size)
        self.history = [row for row in self.history if row["step"] < state.global_step]
        self.history.append({"step": state.global_step, **scores})
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps(self.history, indent=2))
        state.log_history.append(
            {"step": state.global_step, **{f"eval_{name}": value for name, value in scores.items()}}
        )
        print("held-out " + json.dumps({name: round(value, 4) for name, value in self.history[-1].items()}), flush=True)
        check_codes(scores)


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


@torch.inference_mode()
def held_out_scores(model: PreTrainedModel, collator, rows: Dataset, batch_size: int) -> dict[str, float]:
    """
    Means over the rows: `code_ce_k` for k frames ahead, `code_unigram`, the entropy of the codes, `code_usage` and
    `code_perplexity` (relative to V) of the worst codebook; beside a language model also `text_ce`, and `text_ce_swapped`,
    what the text costs when the audio is that of the next row in the batch.
    """
    was_training = model.training
    model.eval()
    sums, counts = defaultdict(float), None
    for start in range(0, len(rows), batch_size):
        batch = collator([rows[index] for index in range(start, min(start + batch_size, len(rows)))])
        batch = {name: value.to(model.device) for name, value in batch.items()}
        size = len(batch["latents"])
        output = _autocast(model, batch)
        if output.code_losses is not None:
            for ahead, loss in enumerate(output.code_losses, start=1):
                sums[f"code_ce_{ahead}"] += size * loss.item()
            quantizer = model.prediction.quantizer
            codes = quantizer(batch["latents"])
            found = code_counts(codes, batch["latents_mask"], quantizer.codebooks.shape[1])
            counts = found if counts is None else counts + found
        if "labels" in batch:
            sums["text_ce"] += size * output.text_loss.item()
            other_audio = {**batch, "latents": swapped(batch["latents"], batch["latents_mask"])}
            sums["text_ce_swapped"] += size * _autocast(model, other_audio).text_loss.item()
    model.train(was_training)
    scores = {name: total / len(rows) for name, total in sums.items()}
    if counts is not None:
        usage, entropy = code_usage(counts)
        scores["code_unigram"] = entropy.mean().item()
        scores["code_usage"] = usage.min().item()
        scores["code_perplexity"] = entropy.min().exp().item() / counts.shape[1]
    return scores


def swapped(latents: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Each item of `latents` [B, T, D] replaced by the next one, repeated or cut to the item's own length in `mask` [B, T]."""
    lengths, others = mask.sum(1).tolist(), torch.zeros_like(latents)
    for item, length in enumerate(lengths):
        other = (item + 1) % len(lengths)
        given = latents[other, : lengths[other]]
        others[item, :length] = given.repeat(-(-length // len(given)), 1)[:length]
    return others


def _autocast(model: PreTrainedModel, batch: dict[str, torch.Tensor]):
    """As it trains: in bf16."""
    with torch.autocast(model.device.type, torch.bfloat16):
        return model(**batch)
