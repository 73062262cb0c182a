"""
The latents of a whole dataset, encoded once for every training that reads them.

    python -m f3_training.latents_cache --model model_cards/f3-autoencoder-nano-16khz --dataset data/f3mix \\
        --output_dir data/latents
    torchrun --nproc_per_node 2 -m f3_training.latents_cache ...    # several processes; or `accelerate launch` on GPUs

    rows = load_latents("data/latents", "train", autoencoder)       # or datasets.load_dataset, which checks nothing
    latents = latents_of(rows[0])                                   # [frames, D]

Every row keeps its place and its columns; `audio` is replaced by `latents` (fp16, [frames, D]), `frames` and
`audio_length` (samples at the autoencoder's rate). Shards appear whole and do not depend on the number of processes, so
a run that was killed goes on with any number. Splits may be added later.
"""

import argparse
import hashlib
import json
import logging
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from accelerate import Accelerator
from configuration_f3.configuration_audio_lm import F3AudioLMConfig
from datasets import Array2D, Dataset, Features, Value, load_dataset
from feature_extraction_f3.feature_extraction_f3 import F3FeatureExtractor
from modeling_f3.modeling_autoencoder import F3AutoencoderModel
from safetensors import SafetensorError
from safetensors.torch import load_file
from tqdm import tqdm
from transformers import AutoConfig, AutoModel
from transformers.utils import SAFE_WEIGHTS_NAME, cached_file

from .audio_dataset import AudioDecodeError, decode_audio, load_audio_dataset
from .malloc_settings import restart_with_malloc_settings
from .model_parts import autoencoder_prefix
from .processes import leave_together


logger = logging.getLogger(__name__)

RECORD = "latents.json"

# All that latents depend on beside the encoder's weights.
ENCODER_FIELDS = (
    "sampling_rate",
    "stft_window",
    "stft_hop",
    "spectrum_exponent",
    "stem_kernel",
    "stem_stride",
    "encoder_channels",
    "encoder_stages",
    "encoder_projection",
    "projection_kernel",
    "latent_dim",
    "normalization_eps",
    "hidden_act",
    "shortcut",
)


class LatentsCacheError(ValueError):
    """The folder does not hold the latents that are asked for; the message names the fix."""


@dataclass(frozen=True)
class Shard:
    """Rows of a split and the file that their latents go to."""

    split: str
    rows: range
    path: Path


def load_latents(path: str | Path, split: str, autoencoder: F3AutoencoderModel | None = None) -> Dataset:
    """
    A finished split, in which `latents` is an fp32 array `[frames, D]` and all other columns are plain values.

    Args:
        path: the `--output_dir` that they were written to.
        split: `"train"`, `"test"`, ...
        autoencoder: the model, in fp32, that the latents must come from.

    Raises:
        `LatentsCacheError`: without a record, for a split that is missing or unfinished, or for another autoencoder.
    """
    folder = Path(path)
    record = _record_in(folder)
    if split not in record["splits"]:
        raise LatentsCacheError(
            f"{folder} has the splits {', '.join(record['splits'])}, not {split!r}: add it with "
            f"`python -m f3_training.latents_cache --splits {split}`"
        )
    lost = any(not shard.path.is_file() for shard in shards_of(folder, record, split))
    if lost or not record["splits"][split]["finished"]:
        raise LatentsCacheError(
            f"split {split!r} of {folder} is unfinished: run the command that writes it again, it goes on where it stopped"
        )
    if autoencoder is not None and (given := autoencoder_fingerprint(autoencoder)) != record["autoencoder"]:
        raise LatentsCacheError(
            f"{folder} holds latents of another autoencoder, {record['model']} ({record['autoencoder'][:12]}), not of "
            f"the one given ({given[:12]}): load that one, in fp32, or write the latents of this one to another folder"
        )
    return load_dataset(str(folder), split=split).with_format("numpy", columns=["latents"], output_all_columns=True)


def splits_in(path: str | Path) -> list[str]:
    """
    The names of the splits.

    Raises:
        `LatentsCacheError`: without a record.
    """
    return list(_record_in(Path(path))["splits"])


def _record_in(folder: Path) -> dict[str, Any]:
    if not (folder / RECORD).is_file():
        raise LatentsCacheError(
            f"{folder} holds no {RECORD}: write the latents with `python -m f3_training.latents_cache --output_dir {folder}`"
        )
    return json.loads((folder / RECORD).read_text("utf-8"))


def latents_of(row: dict[str, Any]) -> np.ndarray:
    """The latents `[frames, D]` of a row in fp32, whatever the format of its dataset."""
    return np.asarray(row["latents"], dtype=np.float32)


def autoencoder_fingerprint(autoencoder: F3AutoencoderModel) -> str:
    """SHA-256 of what decides about latents: fields of the configuration and the weights of the encoder, in fp32."""
    fields = {name: getattr(autoencoder.config, name) for name in ENCODER_FIELDS}
    digest = hashlib.sha256(json.dumps(fields).encode())
    for name, weight in sorted(autoencoder.encoder.state_dict().items()):
        digest.update(name.encode() + weight.float().cpu().numpy().tobytes())
    return digest.hexdigest()


def load_autoencoder(path_or_name: str) -> F3AutoencoderModel:
    """
    The autoencoder of a folder or a Hub name, in fp32, alone or out of an [`F3Model`] or an audio language model, whose
    language model is not needed for it.

    Raises:
        `LatentsCacheError`: when it holds another model, or not all weights.
    """
    config = AutoConfig.from_pretrained(path_or_name)
    if isinstance(config, F3AudioLMConfig):
        autoencoder = F3AutoencoderModel(config.audio_config.autoencoder_config)
        try:
            weights = load_file(cached_file(path_or_name, SAFE_WEIGHTS_NAME))
            prefix = autoencoder_prefix(weights)
            autoencoder.load_state_dict({name: weights[prefix + name] for name in autoencoder.state_dict()})
        except (SafetensorError, KeyError) as error:
            raise LatentsCacheError(
                f"the weights in {path_or_name} are damaged or incomplete ({error}): download or save them again"
            ) from error
        return autoencoder.eval()
    model = AutoModel.from_pretrained(path_or_name, dtype=torch.float32)
    autoencoder = getattr(model, "autoencoder", model)
    if not isinstance(autoencoder, F3AutoencoderModel):
        raise LatentsCacheError(
            f"{path_or_name} holds a {type(model).__name__}: pass the folder of an F3AutoencoderModel, an F3Model or an "
            "F3AudioLMForConditionalGeneration"
        )
    return autoencoder.eval()


def cache_latents(arguments: argparse.Namespace, accelerator: Accelerator) -> None:
    """
    Does the share of this process; the main one writes card and record at the end.

    Raises:
        `LatentsCacheError`: when the output folder was begun with another autoencoder or dataset, or holds something
            else; nothing is written then.
    """
    output = Path(arguments.output_dir)
    autoencoder = load_autoencoder(arguments.model).to(accelerator.device)
    with accelerator.main_process_first():
        datasets = {split: _load_split(arguments.dataset, split) for split in arguments.splits}
        record = _begin(output, _new_record(arguments, autoencoder, datasets))
    shards = [shard for split in datasets for shard in shards_of(output, record, split)]
    missing = [shard for shard in shards if not shard.path.is_file()]
    accelerator.wait_for_everyone()  # all have seen the same shards missing
    started = time.monotonic()
    own = missing[accelerator.process_index :: accelerator.num_processes]
    rows = sum(len(shard.rows) for shard in own)
    with tqdm(total=rows, unit="row", disable=not accelerator.is_main_process) as progress:
        for shard in own:
            table = encode_shard(autoencoder, datasets[shard.split], shard, arguments.batch_seconds, progress)
            _write_shard(table, shard.path)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        _finish(output, record, arguments.splits)
        print(_summary(record, missing, time.monotonic() - started))


def shards_of(folder: Path, record: dict[str, Any], split: str) -> list[Shard]:
    """All shards of a split, in the order of its rows."""
    rows, size = record["splits"][split]["rows"], record["shard_rows"]
    return [
        Shard(split, range(start, min(start + size, rows)), folder / _shard_name(record, split, f"{start // size:05d}"))
        for start in range(0, rows, size)
    ]


def encode_shard(
    autoencoder: F3AutoencoderModel, dataset: Dataset, shard: Shard, batch_seconds: float, progress: tqdm
) -> pa.Table:
    """
    What goes into the file of a shard. Its audio is held in memory meanwhile. Rows whose audio cannot be read are left
    out and listed as JSON under `"skipped"` in the metadata of the schema: the file itself tells what it lacks.
    """
    source = dataset.select(shard.rows)
    waveforms, kept, skipped = [], [], []
    for index, cell in enumerate(source["audio"]):
        try:
            waveforms.append(decode_audio(cell, autoencoder.config.sampling_rate))
            kept.append(index)
        except AudioDecodeError as error:
            logger.warning("row %d of %s is left out: %s", shard.rows[index], shard.split, error)
            skipped.append({"row": shard.rows[index], "error": str(error)})
            progress.update()
    latents = encode_waveforms(autoencoder, waveforms, batch_seconds, progress)
    columns = {
        "latents": latents,
        "frames": [len(item) for item in latents],
        "audio_length": [len(samples) for samples in waveforms],
    }
    features = Features(
        {
            "latents": Array2D((None, autoencoder.config.latent_dim), "float16"),
            "frames": Value("int32"),
            "audio_length": Value("int64"),
        }
    )
    encoded = Dataset.from_dict(columns, features=features).with_format("arrow")[:]
    others = {name: feature for name, feature in source.features.items() if name not in ("audio", *features)}
    unchanged = source.with_format("arrow")[kept]
    schema = Features({**features, **others}).arrow_schema
    schema = schema.with_metadata({**schema.metadata, b"skipped": json.dumps(skipped).encode()})
    return pa.table([*(encoded[name] for name in features), *(unchanged[name] for name in others)], schema=schema)


@torch.inference_mode()
def encode_waveforms(
    autoencoder: F3AutoencoderModel, waveforms: list[np.ndarray], batch_seconds: float, progress: tqdm
) -> list[np.ndarray]:
    """The fp16 latents `[frames, D]` of each waveform `[N]`, in their order."""
    rate = autoencoder.config.sampling_rate
    feature_extractor = F3FeatureExtractor(sampling_rate=rate)
    latents = [None] * len(waveforms)
    for batch in batches_by_length([len(samples) for samples in waveforms], int(batch_seconds * rate)):
        inputs = feature_extractor([waveforms[index] for index in batch], sampling_rate=rate)
        encoded = autoencoder.encode(**inputs.to(autoencoder.device))
        frames = encoded.latents_mask.sum(1).tolist()
        for index, item, count in zip(batch, encoded.latents.to("cpu", torch.float16).numpy(), frames):
            latents[index] = item[:count]
        progress.update(len(batch))
    return latents


def batches_by_length(lengths: list[int], limit: int) -> Iterator[list[int]]:
    """Indices of items of similar length; with its padding a batch holds at most `limit` samples, or a single item."""
    batch = []
    for index in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batch and (len(batch) + 1) * lengths[index] > limit:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def _load_split(path_or_name: str, split: str) -> Dataset:
    if not re.fullmatch(r"\w+", split):
        raise LatentsCacheError(f"{split!r} is not the name of a split: latents are written for whole splits")
    dataset = load_audio_dataset(path_or_name, split)
    if len(dataset) == 0:
        raise LatentsCacheError(f"split {split!r} of {path_or_name} has no rows: leave it out of --splits")
    return dataset


def _new_record(
    arguments: argparse.Namespace, autoencoder: F3AutoencoderModel, datasets: dict[str, Dataset]
) -> dict[str, Any]:
    config = autoencoder.config
    return {
        "frame_rate": config.frame_rate,
        "latent_dim": config.latent_dim,
        "hop_length": config.hop_length,
        "sampling_rate": config.sampling_rate,
        "model": Path(arguments.model).resolve().name,  # names alone: the record is published with the latents
        "autoencoder": autoencoder_fingerprint(autoencoder),
        "dataset": Path(arguments.dataset).resolve().name,
        "shard_rows": arguments.shard_rows,
        "splits": {
            split: {"fingerprint": dataset._fingerprint, "rows": len(dataset), "finished": False, "skipped": []}
            for split, dataset in datasets.items()
        },
    }


def _begin(output: Path, record: dict[str, Any]) -> dict[str, Any]:
    """Puts the record in place, or adds its splits to the one that is there already if both go together."""
    path, found = output / RECORD, None
    if path.is_file():
        found = json.loads(path.read_text("utf-8"))
        _check_same(output, found, record)
        record = {**found, "splits": {**record["splits"], **found["splits"]}}
    elif output.is_dir() and any(not entry.name.startswith(".") for entry in output.iterdir()):
        raise LatentsCacheError(f"{output} holds files but no {RECORD}: pass a new or an empty folder as --output_dir")
    if record != found:
        (output / "data").mkdir(parents=True, exist_ok=True)
        _write_text(path, json.dumps(record, indent=2))
    return record


def _check_same(output: Path, found: dict[str, Any], record: dict[str, Any]) -> None:
    compared = {name: (found[name], record[name]) for name in ("autoencoder", "dataset", "shard_rows")}
    for split, entry in record["splits"].items():
        there = found["splits"].get(split, entry)
        compared[f"rows of {split}"] = (there["fingerprint"], entry["fingerprint"])
    differences = [
        f"{name} ({str(there)[:12]} there, {str(now)[:12]} now)"
        for name, (there, now) in compared.items()
        if there != now
    ]
    if differences:
        raise LatentsCacheError(
            f"{output} was begun with {found['model']} on {found['dataset']} and differs in {', '.join(differences)}: "
            "pass another --output_dir, or delete this one to begin anew"
        )


def _shard_name(record: dict[str, Any], split: str, number: str) -> str:
    """
    Where a shard lies in the folder, or a pattern where `number` is a star. The digest tells caches apart: `datasets`
    takes two folders of one name for the same when the patterns in their cards are.
    """
    contents = record["autoencoder"] + record["splits"][split]["fingerprint"]
    return f"data/{split}-{number}-{hashlib.sha256(contents.encode()).hexdigest()[:8]}.parquet"


def _write_shard(table: pa.Table, path: Path) -> None:
    partial = path.with_name(f".{path.name}")  # hidden from the card's patterns
    with pq.ParquetWriter(partial, table.schema, compression="zstd") as writer:
        if len(table) > 0:  # a row group without rows is more than `datasets` can read
            writer.write_table(table)
    os.replace(partial, path)


def _write_text(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}")
    partial.write_text(text, "utf-8")
    os.replace(partial, path)


def _finish(output: Path, record: dict[str, Any], splits: list[str]) -> None:
    """The card, then the record, which says that the splits are finished."""
    for split in splits:
        schemas = [pq.read_schema(shard.path) for shard in shards_of(output, record, split)]
        skipped = [row for schema in schemas for row in json.loads(schema.metadata[b"skipped"])]
        record["splits"][split] |= {"finished": True, "skipped": skipped}
    _write_text(output / "README.md", _card(record))
    _write_text(output / RECORD, json.dumps(record, indent=2))


def _card(record: dict[str, Any]) -> str:
    """Metadata by which `load_dataset` finds the finished splits, and what a reader needs to know."""
    splits = {split: entry for split, entry in record["splits"].items() if entry["finished"]}
    lines = ["---", "configs:", "- config_name: default", "  data_files:"]
    for split in splits:
        lines += [f"  - split: {split}", f"    path: {_shard_name(record, split, '*')}"]
    lines += [
        "---",
        f"# Latents of {record['dataset']}",
        "",
        f"Encoded with {record['model']}, whose fingerprint is in `{RECORD}`: {record['latent_dim']} values a frame, "
        f"{record['frame_rate']:g} frames a second. `latents` is [frames, {record['latent_dim']}] in fp16, `audio_length` "
        f"counts samples at {record['sampling_rate']} Hz, and the columns after it are those of the dataset.",
        "",
        "| split | rows | left out |",
        "|---|---:|---:|",
    ]
    for split, entry in splits.items():
        lines.append(f"| {split} | {entry['rows'] - len(entry['skipped'])} | {len(entry['skipped'])} |")
    return "\n".join(lines) + "\n"


def _summary(record: dict[str, Any], shards: list[Shard], elapsed: float) -> str:
    samples = sum(pq.read_table(shard.path, columns=["audio_length"])[0].to_numpy().sum() for shard in shards)
    seconds = samples / record["sampling_rate"]
    skipped = sum(len(entry["skipped"]) for entry in record["splits"].values())
    return (
        f"{seconds:.0f} s of audio in {elapsed:.0f} s: {seconds / elapsed:.1f} seconds of audio per second; "
        f"{skipped} rows left out"
    )


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder or Hub name of an autoencoder, or of what contains one")
    parser.add_argument("--dataset", required=True, help="Hub name, saved dataset or folder of sound files")
    parser.add_argument("--output_dir", required=True, help="the latents are written here, or go on here")
    parser.add_argument("--splits", nargs="+", default=["train", "validation", "test"])
    parser.add_argument("--batch_seconds", type=float, default=60.0, help="audio encoded at once, padding included")
    parser.add_argument("--shard_rows", type=int, default=1000, help="rows per file, decoded together into memory")
    return parser


def main() -> None:
    """Command line entry."""
    restart_with_malloc_settings("f3_training.latents_cache")
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    parser = build_parser()
    arguments = parser.parse_args()
    if arguments.batch_seconds <= 0 or arguments.shard_rows <= 0:
        parser.error("--batch_seconds and --shard_rows must be positive")
    # processes on CPUs do not know of each other unless Accelerate is told that there is nothing else
    accelerator = Accelerator(cpu=not torch.accelerator.is_available())
    cache_latents(arguments, accelerator)
    leave_together()


if __name__ == "__main__":
    main()
