"""Promises of the changed copies of recordings."""

import io
from pathlib import Path

import numpy as np
import pytest
import soundfile
from datasets import Audio, Dataset, DatasetDict
from f3_training import augment as module
from f3_training.audio_dataset import AudioDatasetError, decode_audio, load_audio_dataset
from f3_training.augment import RATE, augment, chosen_rows


WORDS = ("one", "two", "three", "four", "five", "six", "")
SPEAKERS = ("ann", "ann", "ann", "bob", "bob", "cat", "ann")


def recording(index, seconds=0.5):
    """A tone of its own as an audio cell."""
    times, file = np.arange(int(seconds * RATE)) / RATE, io.BytesIO()
    soundfile.write(file, 0.3 * np.sin(2 * np.pi * (200 + 50 * index) * times), RATE, format="FLAC")
    return {"bytes": file.getvalue(), "path": None}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recordings") / "dataset"
    columns = {
        "audio": [recording(index) for index in range(len(WORDS))],
        "text": list(WORDS),
        "speaker": list(SPEAKERS),
        "source": ["phone"] * 5 + ["game"] * 2,
    }
    splits = {"train": Dataset.from_dict(columns), "test": Dataset.from_dict(columns)}
    DatasetDict(splits).cast_column("audio", Audio(decode=False)).save_to_disk(folder)
    return str(folder)


def made(dataset, output, copies=3, sources=(), max_seconds=10.0, workers=1):
    augment(dataset, list(sources), copies, Path(output), max_seconds, seed=0, num_workers=workers)
    return load_audio_dataset(output, "train")


@pytest.fixture(scope="module")
def copies(dataset, tmp_path_factory):
    return made(dataset, tmp_path_factory.mktemp("augmented") / "whole")


def test_copies_depend_on_neither_workers_nor_interruptions(dataset, copies, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SHARD_ROWS", 4)
    made(dataset, tmp_path / "cut", workers=2)
    shards = sorted((tmp_path / "cut" / "data").glob("*.parquet"))
    assert len(shards) == 6
    shards[2].unlink()
    again = made(dataset, tmp_path / "cut")
    assert again["audio"] == copies["audio"] and again["text"] == copies["text"]


def test_every_copy_is_another(copies):
    sounds = {cell["bytes"] for cell in copies["audio"]}
    assert len(sounds) == len(copies) == 3 * len(WORDS)


def test_copies_of_other_arguments_in_the_same_folder_are_not_read(dataset, tmp_path):
    made(dataset, tmp_path, copies=2, sources=["game"])
    rows = made(dataset, tmp_path, copies=1, sources=["phone"])
    assert set(rows["source"]) == {"phone"} and len(rows) == 5


def test_copies_are_sound_that_can_be_read(copies):
    for row in copies:
        samples = decode_audio(row["audio"], RATE)
        assert len(samples) == pytest.approx(row["duration"] * RATE, abs=1)
        assert 0.01 < np.abs(samples).max() <= 1


def test_a_joined_copy_says_both_texts_of_one_speaker(copies):
    speaker_of = dict(zip(WORDS, SPEAKERS))
    joined = [row for row in copies if " " in row["text"]]
    assert joined
    for row in joined:
        assert [speaker_of[word] for word in row["text"].split()] == [row["speaker"]] * 2
        assert row["duration"] > 2 * 0.5 / 1.2  # the fastest tempo


def test_nothing_follows_a_recording_without_text_or_beyond_the_limit(dataset, copies, tmp_path):
    assert sum(row["text"] == "" for row in copies) == 3
    short = made(dataset, tmp_path / "short", max_seconds=1.2)
    assert all(" " not in text for text in short["text"])


def test_training_recordings_of_the_chosen_sources_alone(dataset, tmp_path):
    rows = made(dataset, tmp_path / "game", copies=1, sources=["game"])
    assert rows["source"] == ["game", "game"]
    with pytest.raises(AudioDatasetError, match="radio"):
        chosen_rows(dataset, ["radio"])


def test_datasets_of_sound_and_text_alone_are_enough(tmp_path):
    folder = tmp_path / "sounds" / "train"
    folder.mkdir(parents=True)
    for name in ("a", "b"):
        (folder / f"{name}.flac").write_bytes(recording(0)["bytes"])
        (folder / f"{name}.txt").write_text(name)
    rows = made(str(folder.parent), tmp_path / "copies", copies=2)
    assert len(rows) == 4 and set("".join(rows["text"])) <= {"a", "b", " "}
