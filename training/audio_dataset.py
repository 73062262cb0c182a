"""Audio datasets of any origin, read one way: rows with an undecoded `audio` cell, and a decoder for that cell.

    dataset = load_audio_dataset("data/f3mix", "test")           # or a Hub name, a saved dataset, a folder of sounds
    samples = decode_audio(dataset[0]["audio"], sampling_rate=16_000)

Decoding stays outside of `datasets`, so no codec library is needed beyond soundfile (and PyAV for what it can't read).
"""

import io
from pathlib import Path
from typing import Any

import numpy as np
from datasets import (
    Audio,
    Dataset,
    IterableDataset,
    get_dataset_split_names,
    load_dataset,
    load_from_disk,
)
from datasets.exceptions import DatasetGenerationError


SOUND_SUFFIXES = frozenset({".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".m4a", ".aac", ".aif", ".aiff", ".wma"})
TABLE_SUFFIXES = frozenset({".parquet", ".arrow", ".jsonl", ".json", ".csv", ".tar"})


class AudioDatasetError(ValueError):
    """The dataset can't be read as audio; the message names the fix."""


class AudioDecodeError(ValueError):
    """One cell can't be decoded; the message names the file."""


def load_audio_dataset(
    path_or_name: str | Path, split: str, streaming: bool = False, name: str | None = None
) -> Dataset | IterableDataset:
    """
    One split with an undecoded `audio` column; the other columns stay as they are.

    Args:
        path_or_name: a Hub dataset, a folder of data files, a folder written by `save_to_disk`, or a folder of sound
            files. The latter has a sub-folder per split (or one `"train"` split without any), and in it either
            `metadata.csv` or `metadata.jsonl` with a column `file_name`, or `x.txt` with the words of `x.wav`.
        split: `"train"`, `"test"`, ...; slices such as `"train[:10%]"` where `datasets` takes them.
        streaming: give an `IterableDataset`, which does not download or map a whole Hub dataset first.
        name: configuration of the dataset, where it has several.

    Raises:
        `AudioDatasetError`: when the dataset, the split or an audio column is missing.
    """
    folder = Path(path_or_name)
    if folder.is_dir() and ((folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file()):
        dataset = _saved(folder, split)
    elif folder.is_dir() and not _has_tables(folder):
        dataset = _sound_folder(folder, split)
    else:
        return _undecoded(_loaded(str(path_or_name), split, streaming, name), path_or_name)
    dataset = _undecoded(dataset, path_or_name)
    return dataset.to_iterable_dataset() if streaming else dataset


def decode_audio(cell: dict[str, Any] | str | Path, sampling_rate: int) -> np.ndarray:
    """
    An undecoded cell (`{"bytes", "path"}` or a path) to a mono waveform `[N]` in float32 at `sampling_rate` Hz:
    channels are averaged, rates converted with soxr in high quality.

    Raises:
        `AudioDecodeError`: when nothing can read it, or it holds no samples or samples that are not finite.
    """
    data, label = _encoded(cell)
    samples, rate = _decode_bytes(data, label)
    samples = samples.mean(axis=0, dtype=np.float32)
    if samples.size == 0 or not np.isfinite(samples).all():
        fault = "no samples" if samples.size == 0 else "samples that are not finite"
        raise AudioDecodeError(f"{label} holds {fault}: leave it out of the dataset")
    return resample(samples, rate, sampling_rate)


def resample(samples: np.ndarray, rate: int, new_rate: int) -> np.ndarray:
    """`[N]` samples at `rate` Hz to `[ceil or floor of N * new_rate / rate]` at `new_rate` Hz, in float32."""
    if rate == new_rate:
        return np.ascontiguousarray(samples, dtype=np.float32)
    import soxr

    return soxr.resample(np.asarray(samples, dtype=np.float32), rate, new_rate, quality="HQ")


def _loaded(path_or_name: str, split: str, streaming: bool, name: str | None) -> Dataset | IterableDataset:
    """A Hub dataset or a folder of data files."""
    try:
        return load_dataset(path_or_name, name, split=split, streaming=streaming)
    except (ValueError, OSError) as error:  # unknown split, unknown configuration, not found, no network
        raise AudioDatasetError(
            f"can't load split {split!r} of {path_or_name!r}{f' ({name})' if name else ''}: {str(error).rstrip('.')}."
            f"{_splits_hint(path_or_name, name)} Pass the name of a Hub dataset, or an existing folder."
        ) from error
    except (DatasetGenerationError, ImportError) as error:
        reason = str(error.__cause__ or error).rstrip(".")
        raise AudioDatasetError(
            f"`datasets` can't build {path_or_name!r}: {reason}. Repositories of plain sound files need "
            "`pip install torchcodec` to be built; Parquet datasets and local folders of sound files don't."
        ) from error


def _splits_hint(path_or_name: str, name: str | None) -> str:
    try:
        return f" Its splits: {', '.join(get_dataset_split_names(path_or_name, name))}."
    except Exception:  # only decorates the error that is on its way
        return ""


def _saved(folder: Path, split: str) -> Dataset:
    """What `save_to_disk` wrote: a dictionary of splits, or one split that carries its name."""
    saved = load_from_disk(str(folder))
    if isinstance(saved, Dataset):
        held = str(saved.split) if saved.split else None
        if held not in (None, split):
            raise AudioDatasetError(f"{folder} holds the split {held!r} alone, not {split!r}")
        return saved
    if split not in saved:
        raise AudioDatasetError(f"{folder} has no split {split!r}; its splits: {', '.join(saved)}")
    return saved[split]


def _has_tables(folder: Path) -> bool:
    """Whether `datasets` finds data files below the folder; hidden ones and lists of sound files aside."""
    return any(
        path.suffix.lower() in TABLE_SUFFIXES
        and path.stem != "metadata"
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        for path in folder.rglob("*")
    )


def _sound_folder(folder: Path, split: str) -> Dataset:
    """The files that `metadata.csv` or `metadata.jsonl` lists, with its columns, else all files, ordered by path."""
    root = folder / split if (folder / split).is_dir() else folder
    if root == folder and split != "train":
        raise AudioDatasetError(f"{folder} has no sub-folder {split!r}; without sub-folders its only split is 'train'")
    if (root / "metadata.csv").is_file():
        # without the words that pandas takes for missing values: "None" is something that can be said
        return _listed(Dataset.from_csv(str(root / "metadata.csv"), keep_default_na=False), root)
    if (root / "metadata.jsonl").is_file():
        return _listed(Dataset.from_json(str(root / "metadata.jsonl")), root)
    paths = sorted(path for path in root.rglob("*") if path.suffix.lower() in SOUND_SUFFIXES and path.is_file())
    if not paths:
        raise AudioDatasetError(f"{root} holds no sound files ({', '.join(sorted(SOUND_SUFFIXES))}) and no data files")
    transcripts = [path.with_suffix(".txt") for path in paths]
    texts = [path.read_text("utf-8").strip() if path.is_file() else "" for path in transcripts]
    return Dataset.from_dict({"audio": [str(path) for path in paths], "text": texts})


def _listed(rows: Dataset, root: Path) -> Dataset:
    """`file_name`, relative to `root`, replaced by `audio`."""
    if "file_name" not in rows.column_names:
        raise AudioDatasetError(f"the metadata file of {root} needs a column 'file_name' with paths relative to it")
    paths = [str(root / file_name) for file_name in rows["file_name"]]
    return rows.remove_columns("file_name").add_column("audio", paths)


def _undecoded(dataset: Dataset | IterableDataset, path_or_name: str | Path) -> Dataset | IterableDataset:
    """The audio column named `audio` and left as bytes or path."""
    features = dataset.features or {}
    audio_columns = [column for column, feature in features.items() if isinstance(feature, Audio)]
    if "audio" not in features and len(audio_columns) == 1:
        dataset = dataset.rename_column(audio_columns[0], "audio")
    elif "audio" not in features and features:
        raise AudioDatasetError(
            f"{str(path_or_name)!r} has no column 'audio' among {', '.join(features)}: rename the one with the sound"
        )
    return dataset.cast_column("audio", Audio(decode=False))


def _encoded(cell: dict[str, Any] | str | Path) -> tuple[bytes, str]:
    """The encoded bytes of a cell and what to call it in errors."""
    if isinstance(cell, (str, Path)):
        cell = {"bytes": None, "path": str(cell)}
    if not isinstance(cell, dict) or not (cell.get("bytes") or cell.get("path")):
        raise AudioDecodeError(
            f"an audio cell is {{'bytes', 'path'}} or a path, got {type(cell).__name__}: load the dataset with "
            "`load_audio_dataset`, which leaves audio undecoded"
        )
    if cell.get("bytes"):
        return cell["bytes"], cell.get("path") or "audio without a name"
    import fsspec

    try:
        with fsspec.open(cell["path"], "rb") as opened:  # also hf:// and files inside archives, met when streaming
            return opened.read(), cell["path"]
    except (OSError, ValueError) as error:
        raise AudioDecodeError(f"can't open {cell['path']}: {error}") from error


def _decode_bytes(data: bytes, label: str) -> tuple[np.ndarray, int]:
    """`[channels, N]` in float32 and the rate in Hz."""
    import soundfile

    try:
        samples, rate = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)
        return samples.T, rate
    except soundfile.SoundFileError as error:
        reason = str(error)
    try:
        import av
    except ImportError:
        raise AudioDecodeError(
            f"soundfile can't read {label} ({reason}); `pip install av` reads more formats"
        ) from None
    try:
        with av.open(io.BytesIO(data)) as container:
            rate = container.streams.audio[0].rate
            to_float = av.AudioResampler(format="fltp")
            frames = [part for frame in container.decode(audio=0) for part in to_float.resample(frame)]
            frames += to_float.resample(None)
    except (av.error.FFmpegError, IndexError) as error:
        raise AudioDecodeError(f"neither soundfile ({reason}) nor PyAV ({error}) can read {label}") from error
    arrays = [frame.to_ndarray() for frame in frames]
    return (np.concatenate(arrays, axis=1) if arrays else np.zeros((1, 0), dtype=np.float32)), rate


def with_source_weights(dataset: Dataset, weights: dict[str, float]) -> Dataset:
    """
    The rows with a column `sampling_weight`: how often a second of their `source` is drawn, 1 for sources not named.

    Raises:
        `AudioDatasetError`: when the dataset is streamed, or has no rows of one of the sources.
    """
    if isinstance(dataset, IterableDataset) or "source" not in dataset.column_names:
        raise AudioDatasetError("weights of sources need a dataset on disk with a column `source`")
    sources = dataset["source"]
    unknown = sorted(weights.keys() - set(sources))
    if unknown:
        raise AudioDatasetError(f"no rows of {', '.join(unknown)}: the sources are {', '.join(sorted(set(sources)))}")
    return dataset.add_column("sampling_weight", [float(weights.get(source, 1.0)) for source in sources])
