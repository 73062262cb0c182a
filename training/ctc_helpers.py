"""
Helpers of stage 1: CTC on the texts of speech, by heads that are thrown away afterwards. Through the frozen language model
alone, the first thousands of steps teach the encoder little about what is said. Letters teach the encoder at once; the
language model's own tokens, scored by its input embeddings, let the connector write what it hears in the language model's own
code: given the embeddings of a sentence's tokens in the places of audio, among those of `FILLER`, a language model that never
heard anything repeats the sentence.
"""

import re
from collections.abc import Callable, Iterable
from operator import attrgetter

import torch
import torch.nn.functional as F
from modeling_f3.connector import token_mask
from modeling_f3.model_outputs import F3Output
from modeling_f3.modeling_audio_lm import F3AudioLMForConditionalGeneration
from modeling_f3.modeling_f3 import F3Model
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from .helper import Helper


FILLER = "_"  # where there is no token; zeros or the vectors around audio confuse the language model far more
NOTHING = -100
SURENESS = 20.0  # score of a text token, above all others, for an audio token that equals its embedding


def spelled(text: str) -> str:
    """Letters, digits and apostrophes in lower case, words apart by single spaces."""
    return " ".join(re.sub(r"[^\w']|_", " ", text.lower()).split())


class CTCUnits:
    """
    What texts are made of, and the numbers of it, from 1 on: 0 is the blank.

    Args:
        name: in batches and losses.
        split: a text into its units.
        texts: all that is to be learned; units that are in none of them are left out of others.
    """

    def __init__(self, name: str, split: Callable[[str], Iterable], texts: Iterable[str]):
        self.name, self.split = name, split
        self.vocabulary = sorted({unit for text in set(texts) for unit in split(text)})
        self.numbers = {unit: number for number, unit in enumerate(self.vocabulary, start=1)}

    def __call__(self, text: str) -> list[int]:
        return [self.numbers[unit] for unit in self.split(text) if unit in self.numbers]


class CTCCollator:
    """
    Adds the units of each text, `[B, L]`, to the batches of another collator, padded with -100; none for rows without speech
    or of more than `max_frames`, which are cut.
    """

    def __init__(self, collator: Callable[[list[dict]], dict], units: CTCUnits, max_frames: int):
        self.collator, self.units, self.max_frames = collator, units, max_frames

    def __call__(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        wanted = pad_sequence(list(map(self._wanted, rows)), batch_first=True, padding_value=NOTHING)
        return {**self.collator(rows), self.units.name: wanted}

    def _wanted(self, row: dict) -> torch.Tensor:
        known = row["kind"] == "speech" and row["frames"] <= self.max_frames
        return torch.tensor(self.units(row["text"]) if known else [], dtype=torch.long)


class EmbeddingHead(nn.Module):
    """
    Scores [..., V] of audio tokens [..., width]: their products with the embeddings [V, width] of V text tokens, which stay as
    they are. The first of these is one that says nothing, the blank.
    """

    def __init__(self, embeddings: torch.Tensor):
        super().__init__()
        embeddings = embeddings.detach().clone()
        centred = embeddings - embeddings.mean(0)  # what all of them share tells none from another
        self.spread = centred.float().square().sum(1).mean().item()
        self.register_buffer("embeddings", embeddings, persistent=False)
        # an audio token that equals an embedding shall be sure of it
        self.register_buffer("distinct", SURENESS / self.spread * centred, persistent=False)
        self.bias = nn.Parameter(torch.zeros(len(embeddings)))

    def forward(self, audio_tokens: torch.Tensor) -> torch.Tensor:
        return F.linear(audio_tokens.to(self.distinct.dtype), self.distinct) + self.bias

    def distance(self, audio_tokens: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """
        Squared distances [...] of audio tokens to the mean of the embeddings under their scores, relative to how far
        embeddings lie apart: the language model can read what lies among them.
        """
        meant = (scores.detach().softmax(-1).to(self.embeddings.dtype) @ self.embeddings).float()
        return (audio_tokens.float() - meant).square().sum(-1) / self.spread


class CTCHelper(Helper):
    """
    The units that a [`CTCCollator`] adds to batches. The head is a child of the model, so that checkpoints hold it, and is gone
    after `detach`.

    Args:
        model: calls of it take the units.
        tokenizer: the part of the model whose representations are scored.
        name: of the units.
        head: from features to scores, first the blank's.
        weight: of the loss.
        own_weight: as of [`Helper`].
        features: what is scored, of the output of the tokenizer; by default its representations.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: F3Model,
        name: str,
        head: nn.Module,
        weight: float,
        own_weight: float = 1.0,
        features: Callable[[F3Output], torch.Tensor] = attrgetter("last_hidden_state"),
    ):
        super().__init__(model, tokenizer, name, weight, own_weight)
        self.features = features
        model.add_module(self.head_name, head)

    @property
    def head_name(self) -> str:
        return f"{self.name}_head"

    @property
    def loss_names(self) -> tuple[str, ...]:
        return (f"{self.name}_loss",)

    def detach(self) -> None:
        super().detach()
        delattr(self.model, self.head_name)

    def losses(self, heard: F3Output) -> tuple[torch.Tensor, ...]:
        return (self._ctc(self._scores(self.features(heard)), heard.latents_mask.sum(1)),)

    def _scores(self, features: torch.Tensor) -> torch.Tensor:
        return getattr(self.model, self.head_name)(features).float()

    def _ctc(self, scores: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """CTC per unit: first of each row that has units, then the mean of all rows."""
        kept = self.given != NOTHING
        losses = F.ctc_loss(
            scores.log_softmax(-1).transpose(0, 1),
            self.given[kept],
            lengths,
            kept.sum(1),
            reduction="none",
            zero_infinity=True,  # more units than the features have places for
        )
        return torch.where(kept.any(1), losses / kept.sum(1).clamp(min=1), 0.0).mean()


class TokensHelper(CTCHelper):
    """
    The same for the audio tokens of the connector and the language model's own tokens; audio tokens are drawn to the
    embeddings of what they mean as well, which the language model can read.

    Args:
        model: an audio language model.
        embeddings: `[1 + V, width]` of the language model, first that of the blank.
        weight: of the losses.
    """

    def __init__(self, model: F3AudioLMForConditionalGeneration, name: str, embeddings: torch.Tensor, weight: float):
        super().__init__(model, model.audio_model, name, EmbeddingHead(embeddings), weight)

    @property
    def loss_names(self) -> tuple[str, ...]:
        return (*super().loss_names, "embedding_distance")

    def losses(self, heard: F3Output) -> tuple[torch.Tensor, ...]:
        audio_tokens, kept = self.model.connector(heard.last_hidden_state), token_mask(heard.latents_mask)
        scores = self._scores(audio_tokens)
        distances = getattr(self.model, self.head_name).distance(audio_tokens, scores)
        return self._ctc(scores, kept.sum(1)), distances[kept].mean()
