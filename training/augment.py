"""
Changed copies of recordings, for trainings that have too few of them: other pitch, tempo, timbre, loudness and noise, and
sentences that follow each other.

    python -m f3_training.augment --dataset data/f3mix --sources asterisk_en --copies 24 --output_dir data/augmented

The columns stay those of the dataset, so `latents_cache` and all trainings take the result beside it. A copy depends on the
seed, its recording and its number alone. A shard appears whole, and a run that was killed goes on. Needs the extra
`augmentation`.
"""

import argparse
import hashlib
import multiprocessing
import os
import random
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from audiomentations import AddGaussianSNR, Compose, Gain, LowPassFilter, PitchShift, SevenBandParametricEQ, TimeStretch
from datasets import Dataset, Features, Value
from tqdm import tqdm

from .audio_dataset import AudioDatasetError, decode_audio, load_audio_dataset
from .prepare_data import audio_columns, shard_name


RATE = 16_000  # Hz, of the copies
SHARD_ROWS = 500
JOINED = 0.5  # of the copies that a second recording can follow
PAUSE = (0.1, 0.6)  # seconds between the two

CARD = """---
license: other
configs:
- config_name: default
  data_files:
  - split: train
    path: {files}
---
# Changed copies of recordings

{copies} of each recording of {sources} in {dataset}, changed in pitch, tempo, timbre, loudness and noise; some are followed by
another of the same speaker. Made by `python -m f3_training.augment`, seed {seed}.
"""

_rows: Dataset | None = None  # that a worker process reads from
_said: dict[tuple, list[int]] = {}  # by speaker, those with a text


def augment(
    dataset: str, sources: list[str], copies: int, output_dir: Path, max_seconds: float, seed: int, num_workers: int
) -> None:
    """
    Writes `copies` of each training recording of the `sources`, all if empty.

    Raises:
        `AudioDatasetError`: when there is no recording of theirs.
    """
    rows = chosen_rows(dataset, sources)
    folder = output_dir / "data"
    folder.mkdir(parents=True, exist_ok=True)
    contents = repr((rows._fingerprint, copies, max_seconds, seed))
    # what other arguments left in the folder is neither gone on with nor read
    digest = hashlib.sha256(contents.encode()).hexdigest()
    numbers = [(index, copy) for copy in range(copies) for index in range(len(rows))]
    starts = range(0, len(numbers), SHARD_ROWS)
    schema = Features({**rows.features, "sampling_rate": Value("int32"), "duration": Value("float32")}).arrow_schema
    task = partial(_copy, max_seconds=max_seconds, seed=seed)
    with multiprocessing.get_context("spawn").Pool(num_workers, _load, (dataset, sources)) as pool:
        for start in tqdm(starts, unit="shard"):
            path = folder / shard_name("train", f"{start // SHARD_ROWS:05d}", digest)
            if not path.is_file():
                made = pool.starmap(task, numbers[start : start + SHARD_ROWS], chunksize=10)
                pq.write_table(pa.Table.from_pylist(made, schema=schema), f"{path}.partial")
                os.replace(f"{path}.partial", path)
    names = ", ".join(sources) or "all sources"
    told = {"copies": copies, "sources": names, "dataset": Path(dataset).resolve().name, "seed": seed}
    card = CARD.format(files=f"data/{shard_name('train', '*', digest)}", **told)
    (output_dir / "README.md").write_text(card, encoding="utf-8")


def chosen_rows(dataset: str, sources: list[str]) -> Dataset:
    """
    The training rows of the sources, all if empty.

    Raises:
        `AudioDatasetError`: when there is none.
    """
    rows = load_audio_dataset(dataset, "train")
    if sources:
        rows = rows.select(np.flatnonzero(np.isin(rows["source"], sources)))
    if len(rows) == 0:
        raise AudioDatasetError(f"{dataset} has no training recordings of {', '.join(sources)}: check --sources")
    return rows.remove_columns([name for name in rows.column_names if name == "word_ends"])  # other ones in the copies


def changes() -> Compose:
    """What may happen to a recording at `RATE`, each with a chance of its own."""
    return Compose(
        [
            TimeStretch(min_rate=0.85, max_rate=1.2, leave_length_unchanged=False, p=0.7),
            PitchShift(min_semitones=-3, max_semitones=3, p=0.6),
            SevenBandParametricEQ(min_gain_db=-6, max_gain_db=6, p=0.5),
            LowPassFilter(min_cutoff_freq=3_000, max_cutoff_freq=7_600, p=0.2),
            AddGaussianSNR(min_snr_db=12, max_snr_db=40, p=0.5),
            Gain(min_gain_db=-12, max_gain_db=6, p=0.8),
        ]
    )


def joined(first: np.ndarray, second: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Two recordings `[N]` and `[M]` at `RATE` with a pause between them."""
    return np.concatenate([first, np.zeros(int(rng.uniform(*PAUSE) * RATE), dtype=np.float32), second])


def _load(dataset: str, sources: list[str]) -> None:
    """In a worker process, once."""
    global _rows
    _rows = chosen_rows(dataset, sources)
    for index, row in enumerate(_rows.remove_columns("audio")):
        if row.get("text"):
            _said.setdefault(_speaker(row), []).append(index)


def _speaker(row: dict) -> tuple[str, str]:
    return row.get("source", ""), row.get("speaker", "")


def _copy(index: int, number: int, max_seconds: float, seed: int) -> dict:
    rng = np.random.default_rng((seed, index, number))
    row = dict(_rows[index])
    samples = decode_audio(row["audio"], RATE)
    if row.get("text") and rng.random() < JOINED:
        partner = _rows[int(rng.choice(_said[_speaker(row)]))]
        following = decode_audio(partner["audio"], RATE)
        if (len(samples) + len(following)) / RATE + PAUSE[1] < max_seconds:
            samples = joined(samples, following, rng)
            row["text"] = f"{row['text']} {partner['text']}"
    # the library draws from the global generators
    random.seed(int(rng.integers(2**31)))
    np.random.seed(int(rng.integers(2**31)))
    samples = changes()(samples, sample_rate=RATE)
    samples /= max(1.0, np.abs(samples).max())
    return row | audio_columns(samples, RATE, f"{number}-{index}.flac")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", required=True, help="Hub name, saved dataset or folder")
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--sources", nargs="+", default=[], help="of the dataset, all if not given")
    parser.add_argument("--copies", type=int, default=4, help="of each recording")
    parser.add_argument("--max_seconds", type=float, default=10.0, help="of two recordings that follow each other")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--num_workers", type=int, default=os.cpu_count())
    augment(**vars(parser.parse_args()))


if __name__ == "__main__":
    main()
