import io
from collections import Counter
from itertools import islice

import numpy as np
import pytest
import soundfile
import torch
from datasets import Audio, Dataset
from f3_training import crops
from f3_training.audio_dataset import AudioDatasetError, with_source_weights
from f3_training.crops import RandomCrops


RATE, CROP = 8000, 1600


@pytest.fixture(scope="module")
def dataset():
    """Twelve clips of 0.05 to 0.6 s, each a constant that names it."""
    rows = {"audio": [], "duration": []}
    for index in range(12):
        samples = np.full(int(RATE * 0.05 * (index + 1)), (index + 1) / 20, dtype=np.float32)
        buffer = io.BytesIO()
        soundfile.write(buffer, samples, RATE, format="FLAC")
        rows["audio"].append({"bytes": buffer.getvalue(), "path": f"{index}.flac"})
        rows["duration"].append(len(samples) / RATE)
    return Dataset.from_dict(rows).cast_column("audio", Audio(decode=False))


def batches(dataset, count, **options):
    return list(islice(RandomCrops(dataset, RATE, CROP, **{"batch_size": 4, "seed": 3, **options}), count))


@pytest.mark.parametrize("streaming", [False, True])
def test_a_run_that_starts_later_sees_what_an_uninterrupted_one_sees(dataset, streaming):
    source = dataset.to_iterable_dataset() if streaming else dataset
    whole, later = batches(source, 8), batches(source, 3, first_step=5)
    assert all(torch.equal(a, b) for a, b in zip(whole[5:], later))


@pytest.mark.parametrize("streaming", [False, True])
def test_two_processes_share_the_batch_of_one(dataset, streaming):
    source = dataset.to_iterable_dataset() if streaming else dataset
    whole = batches(source, 4, batch_size=6)
    shares = [batches(source, 4, batch_size=3, rank=rank, world_size=2) for rank in (0, 1)]
    assert all(torch.equal(a, torch.cat(parts)) for a, parts in zip(whole, zip(*shares)))


@pytest.fixture
def at_natural_speed(monkeypatch):
    monkeypatch.setattr(crops, "CHANGED_SPEED_SHARE", 0.0)


def test_crops_have_no_silence_added_when_clips_are_short(dataset, at_natural_speed):
    for batch in batches(dataset, 4):
        assert batch.shape == (4, CROP) and batch.dtype == torch.float32
        assert (batch.abs() > 1e-4).all()


def test_clips_are_drawn_in_proportion_to_their_duration(dataset, monkeypatch, at_natural_speed):
    drawn = Counter()
    monkeypatch.setattr(RandomCrops, "_clip", lambda self, index: drawn.update([index]) or np.ones(CROP, np.int16))
    batches(dataset, 300)
    shares = np.array([drawn[index] for index in range(12)]) / drawn.total()
    np.testing.assert_allclose(shares, np.asarray(dataset["duration"]) / sum(dataset["duration"]), atol=0.03)


def test_the_seed_decides(dataset):
    assert not torch.equal(batches(dataset, 1, seed=1)[0], batches(dataset, 1, seed=2)[0])


def test_gain_never_clips(dataset):
    assert max(batch.abs().max().item() for batch in batches(dataset, 6)) <= 1.0


def test_some_crops_are_played_at_another_speed(monkeypatch):
    """Of a tone, whose pitch tells the speed."""
    tone = (np.sin(2 * np.pi * 400 * np.arange(4 * CROP) / RATE) * 20000).astype(np.int16)
    monkeypatch.setattr(RandomCrops, "_clip", lambda self, index: tone)
    played = torch.cat(batches(Dataset.from_dict({"audio": [None]}), 20))
    pitches = torch.fft.rfft(played * torch.hann_window(CROP)).abs().argmax(1) * RATE / CROP
    assert pitches.min() >= 400 * 0.8 - 5 and pitches.max() <= 400 * 1.25 + 5
    assert 0.3 < (pitches - 400).abs().gt(5).float().mean() < 0.7


def test_a_source_is_drawn_as_often_as_its_weight_says(dataset, monkeypatch, at_natural_speed):
    sources = ["game" if index < 6 else "prompts" for index in range(12)]
    weighted = with_source_weights(dataset.add_column("source", sources), {"game": 3.0})
    drawn = Counter()
    monkeypatch.setattr(RandomCrops, "_clip", lambda self, index: drawn.update([index]) or np.ones(CROP, np.int16))
    batches(weighted, 300)
    seconds = np.asarray(dataset["duration"])
    wanted = 3 * seconds[:6].sum() / (3 * seconds[:6].sum() + seconds[6:].sum())
    assert abs(sum(drawn[index] for index in range(6)) / drawn.total() - wanted) < 0.03


def test_a_weight_for_a_source_that_is_not_there_is_refused(dataset):
    with pytest.raises(AudioDatasetError, match="no rows of radio: the sources are game"):
        with_source_weights(dataset.add_column("source", ["game"] * 12), {"radio": 2.0})
    with pytest.raises(AudioDatasetError, match="column `source`"):
        with_source_weights(dataset, {"game": 2.0})
