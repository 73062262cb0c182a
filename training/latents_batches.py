"""Rows of a latents cache to batches: latents alone for RQ-MTP, or tasks, questions with their answers, for a language model."""

from collections.abc import Collection

import numpy as np
import torch
from feature_extraction_f3.processing_f3 import F3Processor
from torch.nn.utils.rnn import pad_sequence
from transformers import TrainerCallback

from .latents_cache import latents_of
from .prompts import TASKS, Task, conversation


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
        crops = [crop(torch.as_tensor(latents_of(row)), self.max_frames, generator) for row in rows]
        latents = pad_sequence(crops, batch_first=True)
        lengths = torch.tensor([len(crop) for crop in crops])
        return {"latents": latents, "latents_mask": torch.arange(latents.shape[1]) < lengths[:, None]}


def crop(latents: torch.Tensor, max_frames: int, generator: torch.Generator | None) -> torch.Tensor:
    """Of `[T, D]` the first `max_frames`, or as many at a random place."""
    spare = max(0, len(latents) - max_frames)
    start = int(torch.randint(spare + 1, (), generator=generator)) if generator is not None else 0
    return latents[start : start + max_frames]


class TaskMix:
    """
    What [`F3AudioLMForConditionalGeneration`] trains on: each row as one task, drawn by weight among those that fit it.
    Without `randomness`, the first that fits, in its first wording.

    Args:
        weights: how often each task of `f3_training.prompts` is drawn, relative to the others, by name.
        max_frames: longer rows are cut for tasks that a part is enough for, and fit no others.
        voices: sources of the speech to be spoken, all if empty; the others are listened to.

    Raises:
        `ValueError`: for a name that no task has.
    """

    def __init__(
        self,
        processor: F3Processor,
        weights: dict[str, float],
        max_frames: int,
        randomness: BatchRandomness | None = None,
        voices: Collection[str] = (),
    ):
        unknown = sorted(weights.keys() - TASKS.keys())
        if unknown:
            raise ValueError(f"unknown tasks {', '.join(unknown)}: choose from {', '.join(TASKS)}")
        self.processor, self.max_frames, self.randomness, self.voices = processor, max_frames, randomness, voices
        self.weights = {TASKS[name]: weight for name, weight in weights.items() if weight > 0}

    def tasks_of(self, row: dict) -> list[Task]:
        """Those that fit a row."""
        short = row["frames"] <= self.max_frames
        other_voice = self.voices and row["kind"] == "speech" and row["source"] not in self.voices
        return [
            task
            for task in self.weights
            if task.text(row).strip() and (short or not task.whole) and not (task.spoken and other_voice)
        ]

    def __call__(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        generator = self.randomness and self.randomness.generator()
        conversations = []
        for row in rows:
            task = self.task_for(row, generator)
            choice = int(torch.randint(2**16, (), generator=generator)) if generator is not None else 0
            latents = crop(torch.as_tensor(latents_of(row)), self.max_frames, generator)
            conversations.append(conversation(task, row, latents, choice))
        batch = dict(self.processor.apply_chat_template(conversations, return_labels=True))
        if any(task.spoken for task in self.weights):  # then other processes may speak, and all need the same gradients
            batch.setdefault("spoken", torch.zeros(len(rows), dtype=torch.bool))
        return batch

    def task_for(self, row: dict, generator: torch.Generator | None) -> Task:
        """
        One of `tasks_of(row)`.

        Raises:
            `ValueError`: when none fits.
        """
        fitting = self.tasks_of(row)
        if not fitting:
            raise ValueError(
                f"no task fits a row of kind {row['kind']!r}, language {row['language']!r}, text {row['text']!r} and "
                f"{row['frames']} frames: leave out rows of which nothing can be said"
            )
        if generator is None:
            return fitting[0]
        weights = torch.tensor([float(self.weights[task]) for task in fitting])
        return fitting[int(torch.multinomial(weights, 1, generator=generator))]
