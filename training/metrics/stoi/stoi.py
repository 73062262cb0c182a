"""Short-time objective intelligibility."""

try:
    from f3_training.metrics.audio_metric import AudioMetric
    from f3_training.reconstruction_metrics import stoi
except ImportError as error:
    raise ImportError(f"{error}: this metric needs `pip install f3-tokenizer[evaluation]`") from error


class Stoi(AudioMetric):
    description = """
Correlation of short-time band envelopes with those of the original, from 0 to 1 (as intelligible as the original).
Needs 0.4 s that are not silent.
"""
    citation = """
C. H. Taal, R. C. Hendriks, R. Heusdens, J. Jensen: An Algorithm for Intelligibility Prediction of Time-Frequency
Weighted Noisy Speech. IEEE Transactions on Audio, Speech, and Language Processing, 2011.
"""

    def score(self, prediction, reference, sampling_rate):
        return stoi(reference, prediction, sampling_rate)
