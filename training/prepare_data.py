"""Build the training mixture from Debian packages: Parquet shards that `datasets` and the Hub read as they are.

    python -m f3_training.prepare_data --output_dir data/f3mix --cache_dir data/cache

Steps: download and check the packages, plan every row's split from names and transcripts alone, then decode,
cut and write one source after the other. A finished source is one folder moved into place in one step, so a
killed run goes on with the sources that are missing. The audio column holds FLAC bytes and is read with
`Audio(decode=False)`, which needs no audio library inside `datasets`.
"""

import argparse
import hashlib
import io
import json
import logging
import os
import shutil
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile as sf
import soxr
from datasets import Audio, Features, Value
from tqdm import tqdm

from .audio_sources import SOURCES, TEST_LANGUAGES, Source, Utterance
from .debian_packages import DataError, PackageCorruptError, unpack


logger = logging.getLogger(__name__)

MAX_RATE = 24_000  # Hz; lower native rates are kept
MAX_SECONDS = 20.0  # of a clip cut from a recording without text; texts can't be cut, so their audio isn't either
MIN_SECONDS = 0.1
SILENCE = 1e-3  # peak below -60 dBFS
MAX_CHARACTERS_PER_SECOND = 30.0  # nobody reads faster: such a text isn't what was recorded
ROWS_PER_GROUP = 256  # small row groups let a reader shuffle and stream without loading a shard
SHARD_BYTES = 256 * 2**20
SPLITS = ("test", "validation", "train")  # from the one that keeps a text to the one that gives way
RULES = repr((MAX_RATE, MAX_SECONDS, MIN_SECONDS, SILENCE, MAX_CHARACTERS_PER_SECOND))  # a change rebuilds all sources

FEATURES = Features(
    {
        "audio": Audio(decode=False),
        "sampling_rate": Value("int32"),
        "duration": Value("float32"),
        "text": Value("string"),
        "caption": Value("string"),
        "speaker": Value("string"),
        "language": Value("string"),
        "kind": Value("string"),
        "source": Value("string"),
        "licence": Value("string"),
        "split": Value("string"),
    }
)


def normalise(text: str) -> str:
    """Letters, marks and digits of a text in lower case, so that two spellings of one sentence compare equal."""
    letters = (c if unicodedata.category(c)[0] in "LMN" else " " for c in unicodedata.normalize("NFKC", text))
    return " ".join("".join(letters).casefold().split())


def split_of(utterance: Utterance, name: str, source: Source) -> str:
    """The split fixed for a recording: by language, by speaker, else by a hash of its words (or of its name)."""
    speech = utterance.kind == "speech"
    if (speech and utterance.language in TEST_LANGUAGES) or utterance.speaker in source.test_speakers:
        return "test"
    if utterance.speaker in source.validation_speakers:
        return "validation"
    # Held-out texts are the same whichever source says them: test takes the low hashes, validation the high ones.
    position = int.from_bytes(hashlib.sha256("\n".join(_group(utterance, name)).encode()).digest()[:8], "big") / 2**64
    if position < source.test_fraction:
        return "test"
    return "validation" if position >= 1 - source.validation_fraction else "train"


def _group(utterance: Utterance, name: str) -> tuple[str, str]:
    """What must not straddle two splits: the words in their language, or the recording where no words are known."""
    words = normalise(utterance.text)
    return (utterance.language, words) if words else (name, utterance.group or utterance.id)


def _labels(utterance: Utterance, name: str) -> dict[str, str]:
    """The columns that the parser knows; speaker labels are made unique across sources, unknown ones stay empty."""
    return {
        "text": utterance.text,
        "caption": utterance.caption,
        "speaker": utterance.speaker and f"{name}/{utterance.speaker}",
        "language": utterance.language,
        "kind": utterance.kind,
    }


@dataclass
class Plan:
    """Rows of one source with their splits, and how many recordings gave way."""

    rows: list[tuple[Utterance, str]] = field(default_factory=list)
    dropped: Counter = field(default_factory=Counter)
    digest: str = ""


def plan(sources: dict[str, Source], cache: Path) -> dict[str, Plan]:
    """Assign every recording of all `sources` to a split; rows come out test first, then validation, then train.

    A text of a stronger split is dropped from the weaker ones (test > validation > train), and a file that comes
    twice is kept once, in the strongest split it is in. This looks across sources, so plan them in one call.
    """
    by_split = defaultdict(list)
    for name, source in sources.items():
        folders = [unpack(package, cache) for package in source.packages]
        utterances = list(source.parse(*folders))
        if not utterances:
            names = ", ".join(package.name for package in source.packages)
            raise PackageCorruptError(f"{names}: no recording found in {folders[0]}. Delete the folder and run again.")
        for utterance in utterances:
            by_split[split_of(utterance, name, source)].append((name, utterance))

    plans = {name: Plan() for name in sources}
    digests = {name: hashlib.sha256((RULES + source.licence).encode()) for name, source in sources.items()}
    taken, recordings = {}, set()
    for split in SPLITS:
        for name, utterance in by_split[split]:
            recording = hashlib.sha256(utterance.read()).digest()
            if taken.setdefault(_group(utterance, name), split) != split:
                plans[name].dropped["text of another split"] += 1
            elif recording in recordings:
                plans[name].dropped["duplicate"] += 1
            else:
                recordings.add(recording)
                plans[name].rows.append((utterance, split))
                digests[name].update(repr((utterance.id, split, _labels(utterance, name))).encode() + recording)
    for name, digest in digests.items():
        plans[name].digest = digest.hexdigest()
    return plans


def decode(data: bytes, codec: str = "") -> tuple[np.ndarray, int]:
    """Encoded bytes -> mono float32 waveform (samples,) and its rate in Hz, at most `MAX_RATE`."""
    if codec == "g722":  # has no header, so soundfile can't know it
        with av.open(io.BytesIO(data), format="g722") as container:
            rate = container.streams.audio[0].rate
            frames = [frame.to_ndarray()[0] for frame in container.decode(audio=0)]
        wave = np.concatenate(frames).astype(np.float32) / 2**15
    else:
        wave, rate = sf.read(io.BytesIO(data), dtype="float32", always_2d=True)
        wave = wave.mean(axis=1)
    if rate > MAX_RATE:
        wave, rate = soxr.resample(wave, rate, MAX_RATE), MAX_RATE
    return wave, rate


def cut(wave: np.ndarray, rate: int, whole: bool) -> Iterator[np.ndarray]:
    """Consecutive clips of at most `MAX_SECONDS`, or the wave as it is when `whole`; an empty wave is one clip."""
    length = len(wave) if whole else int(MAX_SECONDS * rate)
    for start in range(0, max(len(wave), 1), max(length, 1)):
        yield wave[start : start + length]


def rows_of(utterance: Utterance, split: str, name: str, source: Source) -> tuple[list[dict], Counter]:
    """Dataset rows of one recording, and the clips that were left out by reason."""
    skipped = Counter()
    try:
        wave, rate = decode(utterance.read(), utterance.codec)
    except (sf.SoundFileError, av.error.FFmpegError, ValueError) as error:
        logger.warning("%s: can't decode %s: %s", name, utterance.id, error)
        return [], Counter(corrupt=1)
    rows = []
    if len(utterance.text) > MAX_CHARACTERS_PER_SECOND * len(wave) / rate:
        return [], Counter({"text too long for its audio": 1})
    for index, clip in enumerate(cut(wave, rate, whole=bool(utterance.text))):
        if len(clip) < MIN_SECONDS * rate:
            skipped["short"] += 1
        elif np.abs(clip).max() < SILENCE:
            skipped["silent"] += 1
        else:
            row = audio_columns(clip, rate, f"{name}/{utterance.id}-{index:03d}.flac")
            rows.append(row | _labels(utterance, name) | {"source": name, "licence": source.licence, "split": split})
    return rows, skipped


def audio_columns(clip: np.ndarray, rate: int, path: str) -> dict:
    """The clip as 16-bit FLAC, with its rate in Hz and duration in seconds."""
    flac = io.BytesIO()
    samples = np.round(np.clip(clip, -1, 1) * (2**15 - 1)).astype(np.int16)
    sf.write(flac, samples, rate, format="FLAC", subtype="PCM_16")
    return {
        "audio": {"bytes": flac.getvalue(), "path": path},
        "sampling_rate": rate,
        "duration": len(clip) / rate,
    }


def shard_name(split: str, number: str, plan: str) -> str:
    """File name of a shard, or a pattern where `number` is a star."""
    return f"{split}-{number}-{plan[:8]}.parquet"


class ShardWriter:
    """Writes rows into `FOLDER/SPLIT-NNNNN-PLAN.parquet`, a new file when one has reached `SHARD_BYTES`.

    Names and the card's patterns carry the plan's digest, because `datasets` caches a folder by the text of its card:
    rows that changed behind the same patterns would never be read.
    """

    def __init__(self, folder: Path, split: str, plan: str):
        self.folder, self.split, self.plan = folder, split, plan
        self.shards, self.size, self.rows, self.writer = 0, 0, [], None

    def add(self, row: dict) -> None:
        self.rows.append(row)
        if len(self.rows) == ROWS_PER_GROUP:
            self._flush()

    def _flush(self) -> None:
        if self.rows:
            schema = FEATURES.arrow_schema
            if self.writer is None:
                name = shard_name(self.split, f"{self.shards:05d}", self.plan)
                self.writer = pq.ParquetWriter(self.folder / name, schema)
                self.shards, self.size = self.shards + 1, 0
            self.writer.write_table(pa.Table.from_pylist(self.rows, schema=schema))
            self.size += sum(len(row["audio"]["bytes"]) for row in self.rows)
            self.rows = []
            if self.size >= SHARD_BYTES:
                self.close()

    def close(self) -> None:
        self._flush()
        if self.writer is not None:
            self.writer.close()
            self.writer = None


def build_source(name: str, source: Source, planned: Plan, output: Path, num_workers: int) -> dict:
    """Write one source below `output/data` unless it is finished already; return its report."""
    folder = output / "data" / name
    report_file = folder / "report.json"
    if report_file.is_file():
        report = json.loads(report_file.read_text())
        if report["plan"] == planned.digest:
            return report
    partial_folder = output / f".{name}.partial"
    shutil.rmtree(partial_folder, ignore_errors=True)
    partial_folder.mkdir(parents=True)

    counts, left_out = _write_source(name, source, planned, partial_folder, num_workers)
    report = {"plan": planned.digest, "splits": {k: v for k, v in counts.items() if v}, "left_out": left_out}
    (partial_folder / "report.json").write_text(json.dumps(report, indent=2))
    folder.parent.mkdir(exist_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(partial_folder, folder)
    return report


def _write_source(
    name: str, source: Source, planned: Plan, folder: Path, num_workers: int
) -> tuple[dict[str, Counter], Counter]:
    """Shards of one source; returns clips, seconds and transcribed clips by split, and what was left out by reason."""
    counts, left_out = {split: Counter() for split in SPLITS}, Counter(planned.dropped)
    writers = {split: ShardWriter(folder, split, planned.digest) for split in SPLITS}
    written = set()
    with ThreadPoolExecutor(num_workers) as pool:  # decoders and encoders release the interpreter lock
        results = pool.map(lambda row: rows_of(*row, name, source), planned.rows)
        for rows, skipped in tqdm(results, desc=name, total=len(planned.rows), unit="recording"):
            left_out += skipped
            for row in rows:
                # Files that differ can hold the same samples; test rows come first, so training gives way.
                samples = hashlib.sha256(row["audio"]["bytes"]).digest()
                if samples in written:
                    left_out["duplicate"] += 1
                    continue
                written.add(samples)
                writers[row["split"]].add(row)
                counts[row["split"]].update(clips=1, seconds=row["duration"], with_text=bool(row["text"]))
    for writer in writers.values():
        writer.close()
    return counts, left_out


def table(reports: dict[str, dict]) -> str:
    """Markdown table of clips, hours and transcribed clips by source and split."""
    lines = ["| source | split | clips | hours | with text | left out |", "|---|---|---:|---:|---:|---|"]
    total = Counter()
    for name, report in reports.items():
        left_out = ", ".join(f"{count} {reason}" for reason, count in report["left_out"].items())
        for split, count in report["splits"].items():
            hours = count["seconds"] / 3600
            lines.append(f"| {name} | {split} | {count['clips']} | {hours:.2f} | {count['with_text']} | {left_out} |")
            total.update(count)
            left_out = ""
    lines.append(f"| all | | {total['clips']} | {total['seconds'] / 3600:.2f} | {total['with_text']} | |")
    return "\n".join(lines)


CARD_TEXT = """
# F3 training mixture

Speech, music and sound effects from Debian packages, mono, 16-bit FLAC, at most 24 kHz.

    import io, soundfile
    from datasets import load_dataset

    row = load_dataset("PATH", split="train")[0]
    wave, rate = soundfile.read(io.BytesIO(row["audio"]["bytes"]))

`text` is what is said and `caption` what an effect sounds like; both are "" when unknown. `kind` is speech, music or
effect. No text and no recording of the test split is in training: speakers, languages and texts are held out whole.
"""


def write_card(output: Path, sources: dict[str, Source], reports: dict[str, dict]) -> None:
    """Dataset card: one configuration for all sources and one for each, so that `load_dataset` needs no code."""
    lines = ["---", "license: other", "task_categories: [automatic-speech-recognition, text-to-speech]", "configs:"]
    lines += _card_config("default", reports)
    for name in sources:
        lines += _card_config(name, {name: reports[name]})
    lines += ["---", CARD_TEXT, "| source | packages | licence |", "|---|---|---|"]
    for name, source in sources.items():
        packages = ", ".join(f"{package.name} {package.version}" for package in source.packages)
        lines.append(f"| {name} | {packages} | {source.licence} |")
    lines += ["", table(reports), ""]
    (output / "README.md").write_text("\n".join(lines), encoding="utf-8")


def _card_config(config: str, reports: dict[str, dict]) -> list[str]:
    """YAML lines of one configuration; splits without a row aren't named, since their pattern would match nothing."""
    lines = [f"- config_name: {config}", "  data_files:"]
    for split in reversed(SPLITS):
        chosen = {name: report["plan"] for name, report in reports.items() if split in report["splits"]}
        if chosen:
            lines += [f"  - split: {split}", "    path:"]
            lines += [f"    - data/{name}/{shard_name(split, '*', plan)}" for name, plan in chosen.items()]
    return lines


def prepare(sources: dict[str, Source], output: Path, cache: Path, num_workers: int = 2) -> dict[str, dict]:
    """Build `sources` below `output` and write the card; returns the report of each source."""
    output.mkdir(parents=True, exist_ok=True)
    cache.mkdir(parents=True, exist_ok=True)
    plans = plan(sources, cache)
    reports = {name: build_source(name, sources[name], plans[name], output, num_workers) for name in sources}
    write_card(output, sources, reports)
    return reports


def main() -> None:
    """Command line entry."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, required=True, help="the dataset is written here")
    parser.add_argument("--cache_dir", type=Path, required=True, help="packages are downloaded and unpacked here")
    parser.add_argument(
        "--sources", default=",".join(SOURCES), help="comma-separated names, all in one call (default: all)"
    )
    parser.add_argument("--num_workers", type=int, default=2, help="threads that decode and encode")
    args = parser.parse_args()
    names = args.sources.split(",")
    if unknown := set(names) - set(SOURCES):
        parser.error(f"unknown sources {sorted(unknown)}; choose from {', '.join(SOURCES)}")
    try:
        reports = prepare({name: SOURCES[name] for name in names}, args.output_dir, args.cache_dir, args.num_workers)
    except DataError as error:
        parser.exit(1, f"{error}\n")
    print(table(reports))


if __name__ == "__main__":
    main()
