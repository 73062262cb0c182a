"""Perceptual evaluation of speech quality, wideband."""

try:
    from f3_training.metrics.audio_metric import AudioMetric
    from f3_training.reconstruction_metrics import pesq_wideband
except ImportError as error:
    raise ImportError(f"{error}: this metric needs `pip install f3-tokenizer[evaluation]`") from error


class Pesq(AudioMetric):
    description = """
PESQ-WB (ITU-T P.862.2) predicts the mean opinion score of listeners, from 1.04 (bad) to 4.64 (no audible difference).
Waveforms are resampled to 16 kHz; above 16 s the score is the mean over equal pieces.
"""
    citation = """
ITU-T Recommendation P.862.2: Wideband extension to Recommendation P.862 for the assessment of wideband telephone
networks and speech codecs, 2007.
"""

    def score(self, prediction, reference, sampling_rate):
        return pesq_wideband(reference, prediction, sampling_rate)
