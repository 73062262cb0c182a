"""Does the reconstruction sound like the same person?"""

try:
    from f3_training.judges import load_speaker_judge
    from f3_training.metrics.audio_metric import AudioMetric
    from f3_training.reconstruction_metrics import speaker_similarity
except ImportError as error:
    raise ImportError(f"{error}: this metric needs `pip install f3-tokenizer[evaluation]`") from error


class SpeakerSimilarity(AudioMetric):
    """`judge` maps mono samples at 16 kHz to a speaker embedding; set it to use another one than Resemblyzer."""

    description = """
Cosine of the speaker embeddings (Resemblyzer 0.1.4) of original and reconstruction, silences trimmed: 1 for the same
voice. Two recordings of one speaker reach about 0.8, two speakers about 0.5. Needs 0.5 s of voice.
"""
    citation = """
L. Wan, Q. Wang, A. Papir, I. Lopez Moreno: Generalized End-to-End Loss for Speaker Verification. ICASSP 2018.
"""
    judge = None

    def score(self, prediction, reference, sampling_rate):
        self.judge = self.judge or load_speaker_judge()
        return speaker_similarity(reference, prediction, sampling_rate, self.judge)
