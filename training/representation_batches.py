"""Rows of a latents cache to batches: latents alone for RQ-MTP, or with questions and answers for the language model."""

import numpy as np
import torch
from feature_extraction_f3.processing_f3 import F3Processor
from torch.nn.utils.rnn import pad_sequence
from transformers import TrainerCallback

from .latents_cache import latents_of
from .prompts import conversation


class BatchRandomness(TrainerCallback):
    """
    The random numbers of a collator. They depend on the seed and the number of the batch alone: batches are collated ahead
    of the step that uses them, so the state of a global generator would not be the same again in a resumed `Trainer`.
    """

    def __init__(self, seed: int):
        self.seed, self.batch, self.process = seed, 0, 0

    def on_train_begin(self, args, state, control, **kwargs):
        self.batch, self.process = state.global_step * args.gradient_accumulation_steps, args.process_index

    def generator(self) -> torch.Generator:
        """For the next batch."""
        self.batch += 1
        numbers = np.random.SeedSequence((self.seed, self.process, self.batch)).generate_state(1)
        return torch.Generator().manual_seed(int(numbers[0]))


class LatentsCollator:
    """
    `latents [B, T, D]` and `latents_mask [B, T]`. Rows of more than `max_frames` are cut, at a random place if `randomness`
    is given, else after their start.
    """

    def __init__(self, max_frames: int, randomness: BatchRandomness | None = None):
        self.max_frames, self.randomness = max_frames, randomness

    def __call__(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        generator = self.randomness and self.randomness.generator()
        crops = [self._crop(torch.as_tensor(latents_of(row)), generator) for row in rows]
        latents = pad_sequence(crops, batch_first=True)
        lengths = torch.tensor([len(crop) for crop in crops])
        return {"latents": latents, "latents_mask": torch.arange(latents.shape[1]) < lengths[:, None]}

    def _crop(self, latents: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
        spare = max(0, len(latents) - self.max_frames)
        start = int(torch.randint(spare + 1, (), generator=generator)) if generator is not None else 0
        return latents[start : start + self.max_frames]


class QuestionCollator:
    """
    What [`F3AudioLMForConditionalGeneration`] trains on: one question about each row and its answer as labels. Without
    `randomness`, in the first wording.
    """

    def __init__(self, processor: F3Processor, randomness: BatchRandomness | None = None):
        self.processor, self.randomness = processor, randomness

    def __call__(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        choices = [0] * len(rows)
        if self.randomness is not None:
            choices = torch.randint(2**16, (len(rows),), generator=self.randomness.generator()).tolist()
        conversations = []
        for index, (row, choice) in enumerate(zip(rows, choices)):
            try:
                conversations.append(conversation(row, latents_of(row), choice))
            except ValueError as error:
                raise ValueError(f"row {index} of the batch: {error}") from error
        return dict(self.processor.apply_chat_template(conversations, return_labels=True))
