"""Which scores an item gets: one record of numbers and, where there is no number, the reason."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .audio_dataset import resample
from .judges import Judges
from .reconstruction_metrics import (
    JUDGE_RATE,
    UndefinedScoreError,
    mel_cepstral_distance,
    multi_scale_mel,
    pesq_wideband,
    predicted_mos,
    si_sdr,
    speaker_similarity,
    stft_phase_error,
    stoi,
    word_errors,
)


ASR_LANGUAGE = "en"  # the only one whose transcripts the judge is trusted with
SPEECH_SCORES = {"pesq": pesq_wideband, "stoi": stoi, "mcd": mel_cepstral_distance}
SOUND_SCORES = {
    "si_sdr": lambda original, decoded, rate: si_sdr(original, decoded),
    "multi_scale_mel": multi_scale_mel,
    "stft_phase_error": stft_phase_error,
}


@dataclass
class Scores:
    """Values by name, `None` where a score is not defined, and why it is not."""

    values: dict[str, Any] = field(default_factory=dict)
    undefined: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, score: Callable, *arguments) -> None:
        """Compute one score."""
        try:
            self.values[name] = score(*arguments)
            if isinstance(self.values[name], float) and not math.isfinite(self.values[name]):
                raise UndefinedScoreError("not a finite number")
        except UndefinedScoreError as error:
            self.values[name], self.undefined[name] = None, str(error)


def score_systems(
    original: np.ndarray,
    systems: dict[str, np.ndarray],
    rate: int,
    kind: str,
    language: str,
    text: str,
    judges: Judges,
) -> dict:
    """
    `scores` and `undefined` by system and score, `word_errors` and `transcripts` by system, `words` of the text. The
    system `"original"` is only judged where no reference is needed.
    """
    record = {"scores": {}, "undefined": {}, "words": 0, "word_errors": {}, "transcripts": {}}
    for system, samples in systems.items():
        scores = Scores()
        if system != "original":
            _compare(scores, original, samples, rate, kind, judges)
        if kind == "speech" and judges.predict_mos is not None:
            scores.add("distill_mos", predicted_mos, samples, rate, judges.predict_mos)
        record["scores"][system], record["undefined"][system] = scores.values, scores.undefined
    if kind == "speech" and language == ASR_LANGUAGE and text and judges.transcribe is not None:
        record |= _transcribe(systems, rate, text, judges.transcribe)
    return record


def _compare(scores: Scores, original: np.ndarray, decoded: np.ndarray, rate: int, kind: str, judges: Judges) -> None:
    """The scores of a pair of waveforms."""
    for name, score in (SPEECH_SCORES | SOUND_SCORES if kind == "speech" else SOUND_SCORES).items():
        scores.add(name, score, original, decoded, rate)
    if kind == "speech" and judges.embed_speaker is not None:
        scores.add("speaker_similarity", speaker_similarity, original, decoded, rate, judges.embed_speaker)


def _transcribe(systems: dict[str, np.ndarray], rate: int, text: str, transcribe: Callable) -> dict:
    """Transcripts of all systems and their word errors; nothing where the text has no words."""
    try:
        _, words = word_errors(text, "")
    except UndefinedScoreError:
        return {}
    transcripts = {
        name: transcribe(resample(samples, rate, JUDGE_RATE), ASR_LANGUAGE) for name, samples in systems.items()
    }
    errors = {name: word_errors(text, heard)[0] for name, heard in transcripts.items()}
    return {"words": words, "word_errors": errors, "transcripts": transcripts}
