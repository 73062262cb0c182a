"""Promises of `load_audio_dataset` and `decode_audio`."""

import io

import av
import numpy as np
import pytest
import soundfile
from datasets import Audio, Dataset, DatasetDict, IterableDataset
from f3_training.audio_dataset import AudioDatasetError, AudioDecodeError, decode_audio, load_audio_dataset


RATE = 16_000


def sine(seconds: float, rate: int = RATE, hertz: float = 440.0) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate)) / rate).astype(np.float32)


def encoded(samples: np.ndarray, rate: int = RATE, kind: str = "FLAC") -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=kind)
    return file.getvalue()


def rows(count: int = 3) -> Dataset:
    cells = [{"bytes": encoded(sine(0.1 * (i + 1))), "path": f"{i}.flac"} for i in range(count)]
    return Dataset.from_dict({"audio": cells, "text": [str(i) for i in range(count)]})


@pytest.fixture
def sound_folder(tmp_path):
    for split, seconds in (("train", 0.1), ("test", 0.2)):
        (tmp_path / split / "d").mkdir(parents=True)
        soundfile.write(tmp_path / split / "b.wav", sine(seconds), RATE)
        soundfile.write(tmp_path / split / "d" / "c.flac", sine(seconds), RATE)
        (tmp_path / split / "b.txt").write_text("what is said\n")
    return tmp_path


def test_a_folder_of_sounds_is_a_dataset_with_the_texts_beside_the_files(sound_folder):
    dataset = load_audio_dataset(sound_folder, "test")
    assert dataset["text"][:] == ["what is said", ""]
    assert [len(decode_audio(row["audio"], RATE)) for row in dataset] == [3200, 3200]


def test_a_split_that_a_folder_of_sounds_lacks_is_refused(sound_folder):
    with pytest.raises(AudioDatasetError, match="no sub-folder 'dev'"):
        load_audio_dataset(sound_folder, "dev")
    (sound_folder / "empty").mkdir()
    with pytest.raises(AudioDatasetError, match="holds no sound files"):
        load_audio_dataset(sound_folder / "empty", "train")


@pytest.mark.parametrize(
    "name, listing",
    [
        ("metadata.csv", "file_name,speaker\nd/c.flac,ann\nb.wav,bob\n"),
        (
            "metadata.jsonl",
            '{"file_name": "d/c.flac", "speaker": "ann"}\n{"file_name": "b.wav", "speaker": "bob"}\n',
        ),
    ],
)
def test_a_metadata_file_decides_rows_and_columns(sound_folder, name, listing):
    (sound_folder / "test" / name).write_text(listing)
    dataset = load_audio_dataset(sound_folder, "test")
    assert dataset["speaker"][:] == ["ann", "bob"]
    assert len(decode_audio(dataset[0]["audio"], RATE)) == 3200


@pytest.mark.parametrize("streaming", [False, True])
def test_every_form_of_a_dataset_gives_the_same_rows(tmp_path, streaming):
    saved, split, parquet = tmp_path / "saved", tmp_path / "one", tmp_path / "parquet"
    DatasetDict({"test": rows()}).save_to_disk(saved)
    rows().save_to_disk(split)
    parquet.mkdir()
    rows().to_parquet(parquet / "test-00000-of-00001.parquet")
    for folder in (saved, split, parquet):
        dataset = load_audio_dataset(folder, "test", streaming=streaming)
        assert isinstance(dataset, IterableDataset) is streaming
        assert [(row["text"], len(decode_audio(row["audio"], RATE))) for row in dataset] == [
            ("0", 1600),
            ("1", 3200),
            ("2", 4800),
        ]


def test_a_dataset_that_is_not_there_or_lacks_the_split_is_refused_by_name(tmp_path):
    DatasetDict({"train": rows()}).save_to_disk(tmp_path / "saved")
    with pytest.raises(AudioDatasetError, match="no split 'test'; its splits: train"):
        load_audio_dataset(tmp_path / "saved", "test")
    (tmp_path / "parquet").mkdir()
    rows().to_parquet(tmp_path / "parquet" / "train.parquet")
    with pytest.raises(AudioDatasetError, match="Its splits: train"):
        load_audio_dataset(tmp_path / "parquet", "test")


def test_an_audio_column_of_another_name_is_found_and_a_missing_one_is_refused(tmp_path):
    rows().rename_column("audio", "recording").cast_column("recording", Audio(decode=False)).save_to_disk(
        tmp_path / "a"
    )
    assert "audio" in load_audio_dataset(tmp_path / "a", "test").column_names
    rows().remove_columns("audio").save_to_disk(tmp_path / "b")
    with pytest.raises(AudioDatasetError, match="no column 'audio' among text"):
        load_audio_dataset(tmp_path / "b", "test")


def test_channels_are_averaged():
    left, right = sine(0.1), 0.5 * sine(0.1, hertz=1000)
    samples = decode_audio({"bytes": encoded(np.stack([left, right], axis=1)), "path": None}, RATE)
    assert samples.dtype == np.float32
    assert np.abs(samples - (left + right) / 2).max() < 1e-4


def test_another_rate_is_resampled_without_moving_or_scaling_the_sound():
    samples = decode_audio({"bytes": encoded(sine(1.0, 44_100), 44_100), "path": None}, RATE)
    assert len(samples) == RATE
    assert np.abs(samples - sine(1.0))[200:-200].max() < 1e-3


def test_formats_beyond_soundfile_are_read_with_pyav():
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=RATE, layout="mono")
        frame = av.AudioFrame.from_ndarray(sine(1.0)[None], format="fltp", layout="mono")
        frame.sample_rate = RATE
        for source in (frame, None):
            container.mux(stream.encode(source))
    with pytest.raises(soundfile.SoundFileError):
        soundfile.read(io.BytesIO(file.getvalue()))
    samples = decode_audio({"bytes": file.getvalue(), "path": "a.m4a"}, RATE)
    assert RATE - 1024 <= len(samples) <= RATE + 2 * 1024
    spectrum = np.abs(np.fft.rfft(samples[:RATE]))
    assert spectrum.argmax() == 440  # one bin is one hertz
    assert 0.45 < np.abs(samples[4000:12_000]).max() < 0.55


@pytest.mark.parametrize(
    "cell, fault",
    [
        ({"bytes": b"no sound at all", "path": "x.wav"}, "can read x.wav"),
        ({"bytes": encoded(np.zeros(0), kind="WAV"), "path": "e.wav"}, "e.wav holds no samples"),
        ({"bytes": None, "path": "does/not/exist.wav"}, "can't open does/not/exist.wav"),
        ({"array": np.zeros(3), "sampling_rate": RATE}, "load_audio_dataset"),
    ],
)
def test_a_cell_that_is_no_sound_is_refused_by_name(cell, fault):
    with pytest.raises(AudioDecodeError, match=fault):
        decode_audio(cell, RATE)


def test_samples_that_are_not_finite_are_refused():
    file = io.BytesIO()
    soundfile.write(file, np.array([0.0, np.nan], dtype=np.float32), RATE, format="WAV", subtype="FLOAT")
    with pytest.raises(AudioDecodeError, match="not finite"):
        decode_audio({"bytes": file.getvalue(), "path": "n.wav"}, RATE)
