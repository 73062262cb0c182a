"""Scale-invariant signal-to-distortion ratio."""

try:
    from f3_training.metrics.audio_metric import AudioMetric
    from f3_training.reconstruction_metrics import si_sdr
except ImportError as error:
    raise ImportError(f"{error}: this metric needs `pip install f3-tokenizer[evaluation]`") from error


class SiSdr(AudioMetric):
    description = """
Energy of the part of the reconstruction that is a scaled original over that of the rest, in dB, after removing the
means. Higher is better, 100 at most. It sees waveforms, phase included: codecs that sound well may score low.
"""
    citation = """
J. Le Roux, S. Wisdom, H. Erdogan, J. R. Hershey: SDR - Half-baked or Well Done? ICASSP 2019.
"""

    def score(self, prediction, reference, sampling_rate):
        return si_sdr(reference, prediction)
