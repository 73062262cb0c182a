"""Score the reconstructions of an autoencoder on a dataset, with Opus beside it as a yardstick.

    python -m f3_training.evaluate_reconstruction --model checkpoints/autoencoder --dataset data/f3mix \\
        --split test --max_items 100 --output_dir results

Writes `metrics.json` (every mean with its conditions and counts), `items.jsonl` (scores and transcripts item by item),
`report.md` (the tables, also printed) and `spectrograms.png`; with `--noise_levels` also `noise.png`. Speech gets all
scores; music and effects those that mean something for any sound. English speech with a text is transcribed.
"""

import argparse
import logging
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset, IterableDataset
from modeling_f3.modeling_autoencoder import F3AutoencoderModel
from tqdm import tqdm

from .audio_dataset import AudioDecodeError, decode_audio, load_audio_dataset
from .judges import JUDGE_NAMES, Judges, load_judges
from .opus_reference import opus_round_trip
from .reconstruction_metrics import pesq_wideband, stoi
from .reconstruction_report import write_report
from .reconstruction_scores import Scores, score_systems


logger = logging.getLogger(__name__)

MODEL = "F3"
OPUS_BIT_RATES = (6_000, 12_000)
SHUFFLE_BUFFER = 1_000  # rows a stream is shuffled within
EXAMPLES_PER_KIND = 2


@dataclass(frozen=True)
class Item:
    """One recording: mono samples `[N]` at the model's rate and what is known about it."""

    name: str
    samples: np.ndarray
    kind: str
    source: str
    language: str
    text: str


def choose_rows(arguments: argparse.Namespace) -> Dataset | IterableDataset:
    """A random, reproducible choice of the rows asked for."""
    dataset = load_audio_dataset(arguments.dataset, arguments.split, arguments.streaming, arguments.dataset_name)
    for column in ("kind", "language"):
        wanted = getattr(arguments, column)
        if wanted is not None and column in (dataset.column_names or [column]):
            dataset = dataset.filter(lambda value, wanted=wanted: value == wanted, input_columns=column)
    if arguments.streaming:
        return dataset.shuffle(arguments.seed, buffer_size=SHUFFLE_BUFFER).take(arguments.max_items)
    return dataset.shuffle(arguments.seed).select(range(min(arguments.max_items, len(dataset))))


def load_items(
    rows: Dataset | IterableDataset, arguments: argparse.Namespace, sampling_rate: int, skipped: Counter
) -> Iterator[Item]:
    """Decoded rows; those that can't be decoded are counted in `skipped`."""
    for index, row in enumerate(rows):
        try:
            samples = decode_audio(row["audio"], sampling_rate)
        except AudioDecodeError as error:
            logger.warning("left out: %s", error)
            skipped["not decodable"] += 1
            continue
        yield Item(
            name=Path(row["audio"]["path"] or f"row {index}").name,
            samples=samples,
            kind=row.get("kind") or arguments.kind or "speech",
            source=row.get("source") or "",
            language=row.get("language") or arguments.language or "",
            text=row.get("text") or "",
        )


@torch.no_grad()
def reconstruct(
    model: F3AutoencoderModel, samples: np.ndarray, noise_levels: list[float], seed: int
) -> tuple[np.ndarray, dict[float, np.ndarray], float]:
    """
    The decoded waveform `[N]`, those decoded from z + alpha * eps (Eq. 2) for each alpha with one eps drawn from
    `seed`, and the seconds that encoding and decoding without noise took.
    """
    started = time.perf_counter()
    encoded = model.encode(torch.from_numpy(samples)[None, None].to(model.device))
    decoded = _decode(model, encoded, encoded.latents)
    elapsed = time.perf_counter() - started
    noise = torch.randn(encoded.latents.shape, generator=torch.Generator().manual_seed(seed)).to(encoded.latents)
    noisy = {alpha: _decode(model, encoded, encoded.latents + alpha * noise) for alpha in noise_levels}
    return decoded, noisy, elapsed


def _decode(model: F3AutoencoderModel, encoded, latents: torch.Tensor) -> np.ndarray:
    decoded = model.decode(latents, encoded.latents_mask, encoded.audio_lengths)
    return decoded.audio_values[0, 0].float().cpu().numpy()


def evaluate_item(
    model: F3AutoencoderModel, item: Item, judges: Judges, noise_levels: list[float], seed: int
) -> tuple[dict, dict[str, np.ndarray]]:
    """The record of one item for `items.jsonl`, and the waveforms by system."""
    rate = model.config.sampling_rate
    noise_levels = noise_levels if item.kind == "speech" else []
    decoded, noisy, elapsed = reconstruct(model, item.samples, noise_levels, seed)
    systems, bits = {"original": item.samples, MODEL: decoded}, {}
    for bit_rate in OPUS_BIT_RATES:
        name = f"Opus {bit_rate // 1000} kbit/s"
        systems[name], bits[name] = opus_round_trip(item.samples, rate, bit_rate)
    seconds = len(item.samples) / rate
    record = {
        "name": item.name,
        "kind": item.kind,
        "source": item.source,
        "language": item.language,
        "text": item.text,
        "seconds": round(seconds, 3),
        "model_seconds": round(elapsed, 4),
        "kbit_per_second": {name: round(sent / seconds / 1000, 2) for name, sent in bits.items()},
    }
    record |= score_systems(item.samples, systems, rate, item.kind, item.language, item.text, judges)
    record["noise"] = [{"alpha": alpha} | _noise_scores(item.samples, noisy[alpha], rate) for alpha in noise_levels]
    return record, systems


def _noise_scores(original: np.ndarray, decoded: np.ndarray, rate: int) -> dict[str, float | None]:
    scores = Scores()
    scores.add("pesq", pesq_wideband, original, decoded, rate)
    scores.add("stoi", stoi, original, decoded, rate)
    return scores.values


def evaluate_dataset(arguments: argparse.Namespace, judges: Judges | None = None) -> dict:
    """Run the whole evaluation, write the files and return what `metrics.json` holds."""
    output = Path(arguments.output_dir)
    output.mkdir(parents=True, exist_ok=True)
    rows = choose_rows(arguments)
    judges = load_judges(arguments.judges, arguments.judge_cache) if judges is None else judges
    model = F3AutoencoderModel.from_pretrained(arguments.model).to(arguments.device).eval()
    records, examples, skipped = [], [], Counter()
    items = load_items(rows, arguments, model.config.sampling_rate, skipped)
    for index, item in enumerate(tqdm(items, total=arguments.max_items, unit="item")):
        record, systems = evaluate_item(model, item, judges, arguments.noise_levels, arguments.seed + index)
        records.append(record)
        if sum(kind == item.kind for kind, *_ in examples) < EXAMPLES_PER_KIND:
            examples.append((item.kind, item.name, systems["original"], systems[MODEL]))
    if not records:
        raise ValueError(
            f"nothing to evaluate in split {arguments.split!r} of {arguments.dataset} "
            f"(kind {arguments.kind}, language {arguments.language}; skipped: {dict(skipped)})"
        )
    return write_report(output, records, examples, conditions(arguments, model, records, skipped))


def conditions(arguments: argparse.Namespace, model: F3AutoencoderModel, records: list[dict], skipped: Counter) -> dict:
    """Under which conditions the figures hold."""
    seconds = sum(record["seconds"] for record in records)
    return {
        "model": public_name(arguments.model),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "sampling_rate": model.config.sampling_rate,
        "latent_rate_hz": model.config.frame_rate,
        "latent_dim": model.config.latent_dim,
        "dataset": public_name(arguments.dataset),
        "dataset_name": arguments.dataset_name,
        "split": arguments.split,
        "filters": {"kind": arguments.kind, "language": arguments.language},
        "items": len(records),
        "seconds": round(seconds, 1),
        "skipped": dict(skipped),
        "seed": arguments.seed,
        "model_seconds_per_second": round(sum(record["model_seconds"] for record in records) / seconds, 4),
        "device": str(model.device),
        "threads": torch.get_num_threads(),
    }


def public_name(path_or_name: str) -> str:
    """A Hub name as it is, of a local folder its own name: reports are published, paths of a machine are not."""
    return Path(path_or_name).resolve().name if Path(path_or_name).exists() else path_or_name


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder or Hub name of an F3AutoencoderModel")
    parser.add_argument("--dataset", required=True, help="Hub name, saved dataset or folder of sound files")
    parser.add_argument("--dataset_name", help="configuration of the dataset, where it has several")
    parser.add_argument("--split", default="test")
    parser.add_argument("--streaming", action="store_true", help="read the dataset as a stream")
    parser.add_argument("--max_items", type=_positive(int), default=100, help="randomly chosen items (default 100)")
    parser.add_argument("--kind", help="keep these rows; without a column 'kind': what all rows are (default speech)")
    parser.add_argument("--language", help="keep these rows; without a column 'language': what all rows speak")
    parser.add_argument("--noise_levels", type=_not_negative, nargs="*", default=[], metavar="ALPHA",
                        help="also decode z + ALPHA * noise, e.g. 0 0.1 0.2 0.5 1.0")  # fmt: skip
    parser.add_argument("--judges", nargs="*", choices=JUDGE_NAMES, default=list(JUDGE_NAMES),
                        help="pretrained judges to fetch and run (default all; a bare --judges runs none)")  # fmt: skip
    parser.add_argument("--judge_cache", type=Path, help="where their weights are kept (default $HF_HOME/f3_wheels)")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of items and of the noise")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output_dir", required=True)
    return parser


def _positive(kind: type):
    def parse(text: str):
        if kind(text) <= 0:
            raise argparse.ArgumentTypeError(f"must be positive, got {text}")
        return kind(text)

    return parse


def _not_negative(text: str) -> float:
    if not float(text) >= 0:
        raise argparse.ArgumentTypeError(f"must not be negative, got {text}")
    return float(text)


def main() -> None:
    """Command line entry."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    evaluate_dataset(build_parser().parse_args())


if __name__ == "__main__":
    main()
