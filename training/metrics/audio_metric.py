"""What the metrics on waveforms have in common; each script next to it adds one score."""

import math
from abc import ABC, abstractmethod

import evaluate
import numpy as np
from datasets import Features, Sequence, Value
from f3_training.reconstruction_metrics import UndefinedScoreError


KWARGS_DESCRIPTION = """
Args:
    predictions (`list` of `list[float]`): reconstructed mono waveforms.
    references (`list` of `list[float]`): the original waveforms, each aligned with its prediction and as long.
    sampling_rate (`int`): of all waveforms, in Hz.
    per_item (`bool`): also return every item's score, `None` where it is not defined.
Returns:
    the mean under the metric's name, `undefined` (how many items were too short or silent and are not in the mean; the
    mean is NaN when no item is left) and, with `per_item`, `per_item`.
"""


class AudioMetric(evaluate.Metric, ABC):
    """Mean over items of `score`."""

    description = ""
    citation = ""
    needs_references = True

    @abstractmethod
    def score(self, prediction: np.ndarray, reference: np.ndarray | None, sampling_rate: int) -> float:
        """The score of one item `[N]`.

        Raises:
            `UndefinedScoreError`: when it has none.
        """

    def _info(self):
        inputs = ["predictions", "references"] if self.needs_references else ["predictions"]
        return evaluate.MetricInfo(
            description=self.description,
            citation=self.citation,
            inputs_description=KWARGS_DESCRIPTION,
            features=Features({column: Sequence(Value("float32")) for column in inputs}),
        )

    def _compute(self, predictions, references=None, *, sampling_rate: int, per_item: bool = False) -> dict:
        scores = [
            self._score_or_none(prediction, reference, sampling_rate)
            for prediction, reference in zip(predictions, references or [None] * len(predictions), strict=True)
        ]
        defined = [score for score in scores if score is not None]
        result = {self.name: float(np.mean(defined)) if defined else math.nan, "undefined": scores.count(None)}
        return result | ({"per_item": scores} if per_item else {})

    def _score_or_none(self, prediction: list[float], reference: list[float] | None, sampling_rate: int):
        if reference is not None:
            reference = np.asarray(reference, dtype=np.float32)
        try:
            return self.score(np.asarray(prediction, dtype=np.float32), reference, sampling_rate)
        except UndefinedScoreError:
            return None
