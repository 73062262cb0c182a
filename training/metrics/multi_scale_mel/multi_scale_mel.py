"""Log-mel distance over several window lengths."""

try:
    from f3_training.metrics.audio_metric import AudioMetric
    from f3_training.reconstruction_metrics import multi_scale_mel
except ImportError as error:
    raise ImportError(f"{error}: this metric needs `pip install f3-tokenizer[evaluation]`") from error


class MultiScaleMel(AudioMetric):
    description = """
Mean absolute difference of log10 mel magnitudes over STFTs of 64 to 2048 samples, 0 for equal magnitudes. Works
for any sound; compare only scores at one sampling rate. Needs 1,025 samples.
"""
    citation = """
R. Kumar, P. Seetharaman, A. Luebs, I. Kumar, K. Kumar: High-Fidelity Audio Compression with Improved RVQGAN.
NeurIPS 2023.
"""

    def score(self, prediction, reference, sampling_rate):
        return multi_scale_mel(reference, prediction, sampling_rate)
