"""
A helper of stage 1: CTC on the letters of the texts, by a head that is thrown away afterwards. Through the frozen language
model alone, the first thousands of steps teach the encoder little about what is said; letters teach it at once.
"""

import re
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from datasets import Dataset
from modeling_f3.modeling_f3 import F3Model
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel


NO_LETTER = -100


def spelled(text: str) -> str:
    """Letters, digits and apostrophes in lower case, words apart by single spaces."""
    return " ".join(re.sub(r"[^\w']|_", " ", text.lower()).split())


class LetterCollator:
    """
    Adds `letters` `[B, L]` to the batches of another collator: numbers of the characters of each text, padded with -100, none
    for rows without speech or of more than `max_frames`, which are cut.
    """

    def __init__(self, collator, texts: Iterable[str], max_frames: int):
        self.collator, self.max_frames = collator, max_frames
        characters = sorted(set("".join(map(spelled, texts))))
        self.numbers = {character: index for index, character in enumerate(characters, start=1)}  # 0 is the blank

    def __call__(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        letters = pad_sequence(list(map(self._letters, rows)), batch_first=True, padding_value=NO_LETTER)
        return {**self.collator(rows), "letters": letters}

    def _letters(self, row: dict) -> torch.Tensor:
        known = row["kind"] == "speech" and row["frames"] <= self.max_frames
        found = [self.numbers[character] for character in spelled(row["text"]) if character in self.numbers]
        return torch.tensor(found if known else [], dtype=torch.long)


class LetterHelper:
    """
    Lets a model learn letters as well, for as long as it is attached: calls of the model take `letters`, and their loss is
    added to its own. The head is a child of the model, so that checkpoints hold it, and is gone after `detach`.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: F3Model, count: int, weight: float):
        self.model, self.weight = model, weight
        self.letters = self.heard = None
        model.letter_head = nn.Linear(tokenizer.config.hidden_size, 1 + count)
        self.hooks = [
            model.register_forward_pre_hook(self._take_letters, with_kwargs=True),
            tokenizer.register_forward_hook(self._hear),
            model.register_forward_hook(self._add_loss),
        ]

    def detach(self) -> None:
        """Leaves the model as it was, but for what it has learned."""
        for hook in self.hooks:
            hook.remove()
        del self.model.letter_head

    def _take_letters(self, module, inputs: tuple, options: dict) -> tuple[tuple, dict]:
        self.letters = options.pop("letters", None)
        return inputs, options

    def _hear(self, module, inputs: tuple, output) -> None:
        self.heard = output

    def _add_loss(self, module, inputs: tuple, output) -> None:
        if self.letters is not None:
            output.letter_loss = self._loss(self.letters)
            output.loss = output.loss + self.weight * output.letter_loss
        self.letters = self.heard = None

    def _loss(self, letters: torch.Tensor) -> torch.Tensor:
        """CTC per letter: first of each row that has letters, then the mean of all rows."""
        head, kept = self.model.letter_head, letters != NO_LETTER
        logits = head(self.heard.last_hidden_state.to(head.weight.dtype)).float()
        losses = F.ctc_loss(
            logits.log_softmax(-1).transpose(0, 1),
            letters[kept],
            self.heard.latents_mask.sum(1),
            kept.sum(1),
            reduction="none",
            zero_infinity=True,  # more letters than frames
        )
        return torch.where(kept.any(1), losses / kept.sum(1).clamp(min=1), 0.0).mean()


def held_out_letter_loss(model: PreTrainedModel, collator: LetterCollator, rows: Dataset, batch_size: int) -> float:
    """The mean over held-out rows, of a model with a helper."""
    total = 0.0
    for start in range(0, len(rows), batch_size):
        part = [rows[index] for index in range(start, min(start + batch_size, len(rows)))]
        batch = {name: value.to(model.device) for name, value in collator(part).items()}
        total += len(part) * model(**batch).letter_loss.item()
    return total / len(rows)
