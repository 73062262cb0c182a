"""Phase error of the short-time spectrum."""

try:
    from f3_training.metrics.audio_metric import AudioMetric
    from f3_training.reconstruction_metrics import stft_phase_error
except ImportError as error:
    raise ImportError(f"{error}: this metric needs `pip install f3-tokenizer[evaluation]`") from error


class StftPhaseError(AudioMetric):
    description = """
Mean absolute phase difference in rad of STFT bins (32 ms windows, 8 ms hop), weighted by the magnitudes of the
original: 0 for equal phases, pi/2 = 1.571 for unrelated ones.
"""

    def score(self, prediction, reference, sampling_rate):
        return stft_phase_error(reference, prediction, sampling_rate)
