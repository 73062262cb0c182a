"""Speech quality as a network predicts it from the reconstruction alone."""

try:
    from f3_training.judges import load_mos_judge
    from f3_training.metrics.audio_metric import AudioMetric
    from f3_training.reconstruction_metrics import predicted_mos
except ImportError as error:
    raise ImportError(f"{error}: this metric needs `pip install f3-tokenizer[evaluation]`") from error


class DistillMos(AudioMetric):
    """`judge` maps mono samples at 16 kHz to a score; set it to use another one than DistillMOS."""

    description = """
Mean opinion score, 1 to 5, that DistillMOS 0.9.1 predicts for a waveform. It needs no reference (pass `predictions`
alone): score the originals too, they are the level to reach.
"""
    citation = """
B. Stahl, H. Gamper: Distillation and Pruning for Scalable Self-Supervised Representation-Based Speech Quality
Assessment. ICASSP 2025.
"""
    needs_references = False
    judge = None

    def score(self, prediction, reference, sampling_rate):
        self.judge = self.judge or load_mos_judge()
        return predicted_mos(prediction, sampling_rate, self.judge)
