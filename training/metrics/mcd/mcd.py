"""Mel-cepstral distance without time warping."""

try:
    from f3_training.metrics.audio_metric import AudioMetric
    from f3_training.reconstruction_metrics import mel_cepstral_distance
except ImportError as error:
    raise ImportError(f"{error}: this metric needs `pip install f3-tokenizer[evaluation]`") from error


class Mcd(AudioMetric):
    description = """
Mean Euclidean distance of mel cepstra (coefficients 1 to 15 of 20 bands' log10 energies, 32 ms windows, 8 ms hop) of
frames at the same time: no dynamic time warping, since a codec keeps the timing. 0 for equal spectra, blind to level.
Energies are over a floor of white noise at -80 dBFS, so that empty bands count as equal.
"""
    citation = """
R. Kubichek: Mel-cepstral distance measure for objective speech quality assessment. IEEE Pacific Rim Conference on
Communications, Computers and Signal Processing, 1993. Computed by the package mel-cepstral-distance.
"""

    def score(self, prediction, reference, sampling_rate):
        return mel_cepstral_distance(reference, prediction, sampling_rate)
