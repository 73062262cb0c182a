"""Rows of a latents cache to batches: latents alone for RQ-MTP, or with questions and answers for the language model."""

import torch
from feature_extraction_f3.processing_f3 import F3Processor
from torch.nn.utils.rnn import pad_sequence

from .latents_cache import latents_of
from .prompts import conversation


class LatentsCollator:
    """
    `latents [B, T, D]` and `latents_mask [B, T]`. Rows of more than `max_frames` are cut, in training at a random place,
    which torch's global generator decides, so that a resumed `Trainer` cuts as an uninterrupted one.
    """

    def __init__(self, max_frames: int, random_crops: bool):
        self.max_frames, self.random_crops = max_frames, random_crops

    def __call__(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        crops = [self._crop(torch.as_tensor(latents_of(row))) for row in rows]
        latents = pad_sequence(crops, batch_first=True)
        lengths = torch.tensor([len(crop) for crop in crops])
        return {"latents": latents, "latents_mask": torch.arange(latents.shape[1]) < lengths[:, None]}

    def _crop(self, latents: torch.Tensor) -> torch.Tensor:
        spare = len(latents) - self.max_frames
        start = int(torch.randint(spare + 1, ())) if self.random_crops and spare > 0 else 0
        return latents[start : start + self.max_frames]


class QuestionCollator:
    """What [`F3AudioLMForConditionalGeneration`] trains on: one question about each row and its answer as labels."""

    def __init__(self, processor: F3Processor, random_prompts: bool):
        self.processor, self.random_prompts = processor, random_prompts

    def __call__(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        choices = torch.randint(2**16, (len(rows),)).tolist() if self.random_prompts else [0] * len(rows)
        conversations = []
        for index, (row, choice) in enumerate(zip(rows, choices)):
            try:
                conversations.append(conversation(row, latents_of(row), choice))
            except ValueError as error:
                raise ValueError(f"row {index} of the batch: {error}") from error
        return dict(self.processor.apply_chat_template(conversations, return_labels=True))
