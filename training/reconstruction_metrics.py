"""How close a reconstruction is to the original: pure functions, waveforms `[N]` in, a float out.

Both waveforms are time-aligned, of equal length and at `sampling_rate` Hz. A score that means nothing for a pair (too
short, silent) raises [`UndefinedScoreError`] instead of returning a number that would be averaged in.
"""

import math
import unicodedata
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache

import numpy as np

from .audio_dataset import resample


SILENCE = 1e-4  # -80 dBFS
PESQ_RATE = 16_000
JUDGE_RATE = 16_000
MEL_WINDOWS = (64, 128, 256, 512, 1024, 2048)
PESQ_SECONDS = 16.0  # the C code behind `pesq` overruns its tables beyond 50 stretches of speech


class UndefinedScoreError(ValueError):
    """The score has no meaning for this pair; the message says why."""


@contextmanager
def optional_import(package: str) -> Iterator[None]:
    """Imports inside name the package and the extra that bring them."""
    try:
        yield
    except ImportError as error:
        raise ImportError(f"{error}: install {package}, or `pip install f3-tokenizer[evaluation]`") from error


def pesq_wideband(reference: np.ndarray, estimate: np.ndarray, sampling_rate: int) -> float:
    """PESQ-WB (ITU-T P.862.2), 1.04 to 4.64, at 16 kHz; over 16 s the mean of equal pieces that hold speech."""
    with optional_import("pesq"):
        from pesq import PesqError, pesq

    _check(reference, estimate)
    pair = [resample(samples, sampling_rate, PESQ_RATE) for samples in (reference, estimate)]
    pieces = math.ceil(len(pair[0]) / (PESQ_SECONDS * PESQ_RATE))
    scores, reason = [], "PESQ finds no speech"
    for original, decoded in zip(*(np.array_split(samples, pieces) for samples in pair), strict=True):
        if np.abs(original).max() < SILENCE:
            continue
        try:
            scores.append(pesq(PESQ_RATE, original, decoded, "wb"))
        except PesqError as error:
            reason = f"PESQ: {_message(error)}"
    if not scores:
        raise UndefinedScoreError(reason)
    return float(np.mean(scores))


def stoi(reference: np.ndarray, estimate: np.ndarray, sampling_rate: int) -> float:
    """Short-time objective intelligibility, 0 to 1."""
    with optional_import("pystoi"):
        import pystoi

    _check(reference, estimate)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)  # how pystoi tells that its return value is a placeholder
        try:
            return float(pystoi.stoi(reference, estimate, sampling_rate))
        except (RuntimeWarning, ValueError) as error:
            raise UndefinedScoreError("STOI needs 0.4 s that are not silent") from error


def si_sdr(reference: np.ndarray, estimate: np.ndarray) -> float:
    """Scale-invariant signal-to-distortion ratio of the zero-mean signals, in dB, at most 100."""
    _check(reference, estimate)
    reference, estimate = (
        samples.astype(np.float64) - samples.mean(dtype=np.float64) for samples in (reference, estimate)
    )
    target = reference * (reference @ estimate) / (reference @ reference)
    signal, distortion = np.sum(target**2), np.sum((estimate - target) ** 2)
    return float(10 * np.log10(max(signal, 1e-10 * distortion) / max(distortion, 1e-10 * signal)))


def mel_cepstral_distance(reference: np.ndarray, estimate: np.ndarray, sampling_rate: int) -> float:
    """
    Mel-cepstral distance of frames at the same time, without warping, as `mel-cepstral-distance` computes it: 32 ms
    windows, 8 ms hop, 20 mel bands, coefficients 1 to 15 of log10 energies. The level drops out with coefficient 0.
    Energies are over a floor of white noise at -80 dBFS: without one, the distance is about how empty empty bands are.
    """
    with optional_import("mel-cepstral-distance"):
        from mel_cepstral_distance import compare_amplitude_spectrograms
        from mel_cepstral_distance.computation import get_X_km

    _check(reference, estimate)
    window, hop = (int(seconds * sampling_rate) for seconds in (0.032, 0.008))
    if len(reference) <= window:
        raise UndefinedScoreError("MCD needs 32 ms")
    floor = SILENCE**2 * np.sum(np.hanning(window) ** 2)
    spectra = [
        get_X_km(samples.astype(np.float64), window, window, hop, "hanning") for samples in (reference, estimate)
    ]
    floored = [np.sqrt(np.abs(spectrum) ** 2 + floor) for spectrum in spectra]
    return float(compare_amplitude_spectrograms(*floored, sampling_rate, 32, aligning="pad")[0])


def multi_scale_mel(reference: np.ndarray, estimate: np.ndarray, sampling_rate: int) -> float:
    """
    Mean absolute difference of log10 mel magnitudes (up to 64 bands, floored at 1e-5), averaged over windows of 64 to
    2,048 samples at a quarter's hop. A fixed yardstick: it does not follow the training loss when that is tuned.
    """
    _check(reference, estimate)
    if len(reference) <= MEL_WINDOWS[-1] // 2:
        raise UndefinedScoreError(f"the mel distance needs {MEL_WINDOWS[-1] // 2 + 1} samples")
    distances = []
    for window in MEL_WINDOWS:
        filters = _mel_filters(window, sampling_rate)
        log_mels = [
            np.log10(np.maximum(filters @ np.abs(stft(samples, window)) / window**0.5, 1e-5))
            for samples in (reference, estimate)
        ]
        distances.append(np.abs(log_mels[0] - log_mels[1]).mean())
    return float(np.mean(distances))


@lru_cache
def _mel_filters(window: int, sampling_rate: int) -> np.ndarray:
    """[bands, bins]; no more bands than an eighth of the window, so that none is empty."""
    from transformers.audio_utils import mel_filter_bank

    bands = min(64, window // 8)
    return mel_filter_bank(window // 2 + 1, bands, 0.0, sampling_rate / 2, sampling_rate, norm="slaney").T


def stft_phase_error(reference: np.ndarray, estimate: np.ndarray, sampling_rate: int) -> float:
    """
    Mean absolute phase difference in rad, weighted by the magnitudes of the reference, over 32 ms windows at a
    quarter's hop: 0 for equal phases, pi/2 for unrelated ones (or where the estimate has no energy at all).
    """
    _check(reference, estimate)
    window = int(0.032 * sampling_rate)
    if len(reference) <= window // 2:
        raise UndefinedScoreError("the phase error needs more than 16 ms")
    original, decoded = (stft(samples, window) for samples in (reference, estimate))
    difference = np.where(decoded == 0, math.pi / 2, np.abs(np.angle(original * decoded.conj())))
    return float((np.abs(original) * difference).sum() / np.abs(original).sum())


def stft(samples: np.ndarray, window: int) -> np.ndarray:
    """Complex spectrogram [bins, frames] of Hann windows at a quarter's hop, the ends mirrored."""
    padded = np.pad(samples.astype(np.float64), window // 2, mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(padded, window)[:: window // 4]
    taper = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / window)
    return np.fft.rfft(frames * taper, axis=1).T


def speaker_similarity(
    reference: np.ndarray, estimate: np.ndarray, sampling_rate: int, embed: Callable[[np.ndarray], np.ndarray]
) -> float:
    """Cosine of the speaker embeddings that `embed` makes of samples at 16 kHz."""
    _check(reference, estimate)
    first, second = (embed(resample(samples, sampling_rate, JUDGE_RATE)) for samples in (reference, estimate))
    return float(first @ second / (np.linalg.norm(first) * np.linalg.norm(second)))


def predicted_mos(samples: np.ndarray, sampling_rate: int, rate: Callable[[np.ndarray], float]) -> float:
    """The mean opinion score that `rate` predicts for samples at 16 kHz, without a reference."""
    _check(samples, samples)
    return float(rate(resample(samples, sampling_rate, JUDGE_RATE)))


def word_errors(reference: str, hypothesis: str) -> tuple[int, int]:
    """
    Substitutions + insertions + deletions that turn the hypothesis into the reference, and the words of the reference,
    both after [`normalize_words`]. The word error rate of a corpus is the sum of the first over that of the second.
    """
    words, heard = normalize_words(reference), normalize_words(hypothesis)
    if not words:
        raise UndefinedScoreError("the reference has no words")
    distances = list(range(len(heard) + 1))  # Levenshtein, one row of the table at a time
    for row, word in enumerate(words, start=1):
        diagonal, distances[0] = distances[0], row
        for column, other in enumerate(heard, start=1):
            cost = min(distances[column] + 1, distances[column - 1] + 1, diagonal + (word != other))
            diagonal, distances[column] = distances[column], cost
    return distances[-1], len(words)


def normalize_words(text: str) -> list[str]:
    """
    Words in lower case without punctuation. Apostrophes vanish ("don't" is one word), any other sign that is no letter,
    digit or combining mark separates words. Numbers and abbreviations stay as written: "2" and "two" differ.
    """
    text = (
        unicodedata.normalize("NFKC", text).casefold().replace("'", "").replace("\N{RIGHT SINGLE QUOTATION MARK}", "")
    )
    return "".join(sign if unicodedata.category(sign)[0] in "LMN" else " " for sign in text).split()


def _check(reference: np.ndarray, estimate: np.ndarray) -> None:
    if reference.ndim != 1 or reference.shape != estimate.shape:
        raise ValueError(
            f"original and reconstruction must be mono [N] of one length, got {reference.shape} and {estimate.shape}"
        )
    for label, samples in (("original", reference), ("reconstruction", estimate)):
        if samples.size == 0:
            raise UndefinedScoreError(f"the {label} is empty")
        if not np.isfinite(samples).all():
            raise ValueError(f"the {label} holds samples that are not finite")
        if np.abs(samples).max() < SILENCE:
            raise UndefinedScoreError(f"the {label} is silent")


def _message(error: Exception) -> str:
    """The text of an error of `pesq`, which gives bytes."""
    text = error.args[0] if error.args else type(error).__name__
    return text.decode() if isinstance(text, bytes) else str(text)
