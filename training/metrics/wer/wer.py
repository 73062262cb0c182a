"""Word error rate of transcripts."""

import math

import evaluate
from datasets import Features, Value


try:
    from f3_training.reconstruction_metrics import UndefinedScoreError, word_errors
except ImportError as error:
    raise ImportError(f"{error}: this metric needs `pip install f3-tokenizer[evaluation]`") from error

_DESCRIPTION = """
Substituted, inserted and missing words over the words of the references, summed over the corpus. Both texts are
normalised first: lower case, apostrophes dropped, other punctuation a space, numbers and abbreviations left as written.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions (`list[str]`): what was recognised.
    references (`list[str]`): what was said.
Returns:
    `wer` (1.0 is one error per word; NaN when no reference has words), `errors`, `words`, and `undefined`: how many
    references had no words and were left out.
"""


class Wer(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_KWARGS_DESCRIPTION,
            features=Features({"predictions": Value("string"), "references": Value("string")}),
        )

    def _compute(self, predictions, references):
        errors = words = undefined = 0
        for prediction, reference in zip(predictions, references, strict=True):
            try:
                counted = word_errors(reference, prediction)
            except UndefinedScoreError:
                undefined += 1
                continue
            errors, words = errors + counted[0], words + counted[1]
        return {"wer": errors / words if words else math.nan, "errors": errors, "words": words, "undefined": undefined}
