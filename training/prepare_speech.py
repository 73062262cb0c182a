"""
Builds synthetic English speech with exact texts: sentences of WordNet, or single words, said by Piper and flite.

    python -m f3_training.prepare_speech --output_dir data/speech --cache_dir data/cache --voices piper_joe --hours 20

The columns are those of `prepare_data` and `word_ends`, in seconds, where an engine tells them. No text of the
test or validation split is in training, in any voice. A shard appears whole, and a run that was killed goes on. Piper
needs the extra `synthesis`.
"""

import argparse
import multiprocessing
import os
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Features, List, Value
from tqdm import tqdm

from .prepare_data import FEATURES, audio_columns
from .synthetic_speech import TEXTS, VOICES


HELD_OUT = 300  # texts of the test split, and as many of the validation split
SHARD_TEXTS = 250
COLUMNS = Features({**FEATURES, "word_ends": List(Value("float32"))})

CARD = """---
license: other
task_categories: [automatic-speech-recognition, text-to-speech]
configs:
- config_name: default
  data_files:
{files}
---
# Synthetic English speech

Texts of WordNet 3.0, said by {voices}. Made by `python -m f3_training.prepare_speech`.
"""

_say = None  # of the voice that a worker process has loaded


def prepare(
    voices: list[str], hours: float, output_dir: Path, cache_dir: Path, num_workers: int, texts: str = "sentences"
) -> None:
    """
    Up to `hours` of training speech in each voice, and all held-out texts, of those that `TEXTS` names so. Each voice begins at
    another place, so that a few hours of several say more different ones.
    """
    found = TEXTS[texts](cache_dir)
    held_out = {"test": found[:HELD_OUT], "validation": found[HELD_OUT : 2 * HELD_OUT]}
    others = found[2 * HELD_OUT :]
    for voice in voices:
        first = list(VOICES).index(voice) * len(others) // len(VOICES)
        parts = {**held_out, "train": others[first:] + others[:first]}
        folder = output_dir / "data" / voice
        folder.mkdir(parents=True, exist_ok=True)
        with multiprocessing.get_context("spawn").Pool(num_workers, _load, (voice, cache_dir)) as pool:
            for split, chosen in parts.items():
                wanted = hours * 3600 if split == "train" else float("inf")
                _write_split(pool, voice, split, chosen, wanted, folder)
    _write_card(output_dir)


def _write_split(pool, voice: str, split: str, texts: list[str], wanted: float, folder: Path) -> None:
    """Shards of one voice until `wanted` seconds are reached."""
    seconds = 0.0
    with tqdm(total=None if wanted == float("inf") else round(wanted), desc=f"{voice}, {split}", unit="s") as progress:
        for start in range(0, len(texts), SHARD_TEXTS):
            path = folder / f"{split}-{start // SHARD_TEXTS:05d}.parquet"
            if not path.is_file():
                task = partial(_row, voice=voice, split=split)
                rows = pool.map(task, texts[start : start + SHARD_TEXTS], chunksize=5)
                pq.write_table(pa.Table.from_pylist(rows, schema=COLUMNS.arrow_schema), f"{path}.partial")
                os.replace(f"{path}.partial", path)
            added = sum(pq.read_table(path, columns=["duration"])["duration"].to_pylist())
            progress.update(round(added))
            seconds += added
            if seconds >= wanted:
                return


def _load(voice: str, cache_dir: Path) -> None:
    """In a worker process, once."""
    global _say
    _say = VOICES[voice].load(cache_dir)


def _row(text: str, voice: str, split: str) -> dict:
    said = _say(text)
    return audio_columns(said.samples, said.rate, f"{voice}/{text[:40]}.flac") | {
        "text": text,
        "word_ends": said.word_ends,
        "caption": "",
        "speaker": voice,
        "language": "en",
        "kind": "speech",
        "source": voice,
        "licence": VOICES[voice].licence,
        "split": split,
    }


def _write_card(output_dir: Path) -> None:
    """So that `load_dataset` needs no code. It names every file: what more files match a pattern, `datasets` doesn't notice."""
    paths = sorted(path.relative_to(output_dir) for path in output_dir.glob("data/*/*.parquet"))
    lines = []
    for split in ("train", "validation", "test"):
        named = [f"    - {path.as_posix()}" for path in paths if path.name.startswith(f"{split}-")]
        lines += [f"  - split: {split}", "    path:", *named]
    voices = ", ".join(sorted({path.parent.name for path in paths}))
    (output_dir / "README.md").write_text(CARD.format(files="\n".join(lines), voices=voices), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--cache_dir", type=Path, required=True, help="packages are downloaded and unpacked here")
    parser.add_argument("--voices", nargs="+", choices=list(VOICES), default=list(VOICES))
    parser.add_argument("--texts", choices=list(TEXTS), default="sentences", help="each in a folder of its own")
    parser.add_argument("--hours", type=float, default=5.0, help="of training speech in each voice")
    parser.add_argument("--num_workers", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    arguments.cache_dir.mkdir(parents=True, exist_ok=True)
    prepare(**vars(arguments))


if __name__ == "__main__":
    main()
