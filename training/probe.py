"""
What features know: linear probes of frozen models on held-out recordings, with log-mel and the latents z beside them.

    python -m f3_training.probe --dataset data/f3mix --output_dir results/probe \\
        --features "RQ + LLM=model_cards/f3-nano-16khz" "RQ only=runs/rq/model"

The dataset is the mixture of `prepare_data`. A recording (its first ten seconds) is the mean of its frames; a layer norm
and a linear layer are trained on it as X-ARES does, three times, with other weights and, where a task has several, another
split. Writes `probe.json` (every run with its sizes) and `probe.md` (the tables, also printed).
"""

import argparse
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

import torch
import torch.nn.functional as F
from datasets import Dataset
from modeling_f3.modeling_f3 import F3Model
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from .audio_dataset import decode_audio, load_audio_dataset
from .latents_cache import autoencoder_fingerprint
from .losses import MultiScaleSpectralLoss, log_mel, stft
from .probe_tasks import COLUMNS, TASKS, Example, ProbeTask, select_examples, split_examples


LOG_MEL, LATENTS = "log-mel", "z"  # rows of the table that need no representation encoder
MEL_WINDOW = 1024  # samples, four times the hop: 62.5 frames a second at 16 kHz
MAX_SECONDS = 10
ENCODING_BATCH = 16
RUNS = 3

EPOCHS, BATCH_SIZE, LEARNING_RATE = 10, 32, 1e-3  # the MLP track of X-ARES
# Some of our tasks are so small that ten epochs would end before narrow features are learned from; this is what X-ARES
# takes for ESC-50.
MIN_STEPS = 500


def probe(arguments: argparse.Namespace, tasks: Sequence[ProbeTask] = TASKS) -> dict:
    """
    Runs all probes, writes the files and returns what `probe.json` holds.

    Raises:
        `ValueError`: when the dataset lacks a column or has no rows for any task, or names of features are not unique.
    """
    dataset = load_audio_dataset(arguments.dataset, "train+validation+test")
    rows = metadata(dataset)
    seeds = range(arguments.seed, arguments.seed + RUNS)
    chosen, splits = {}, {}
    for task in tasks:
        if examples := select_examples(task, rows, arguments.max_items_per_task):
            chosen[task] = examples
            splits[task] = [split_examples(examples, seed) for seed in seeds]
    if not chosen:
        raise ValueError(f"{arguments.dataset} has no rows for any task: build the mixture with prepare_data")
    used = {index for examples in chosen.values() for index in examples}
    features = pooled_features(
        load_models(arguments.features), dataset, sorted(used, key=lambda i: rows[i]["duration"])
    )
    results = {}
    for task in tqdm(chosen, desc="probing", unit="task"):
        runs = [run(chosen[task], *split, features, seed) for split, seed in zip(splits[task], seeds)]
        for record, (_, test) in zip(runs, splits[task]):
            record["test_in_training_split"] = sum(rows[index]["split"] == "train" for index in test)
        results[task.name] = {"apart": task.apart, "runs": runs}
    report = {"conditions": conditions(arguments, features), "tasks": results}
    arguments.output_dir.mkdir(parents=True, exist_ok=True)
    (arguments.output_dir / "probe.json").write_text(json.dumps(report, indent=2, ensure_ascii=False), encoding="utf-8")
    (arguments.output_dir / "probe.md").write_text(markdown(report), encoding="utf-8")
    print(markdown(report))
    return report


def metadata(dataset: Dataset) -> list[dict]:
    """The columns that tasks read, row by row; audio stays where it is."""
    flat = dataset.flatten().rename_column("audio.path", "path")
    missing = sorted(set(COLUMNS) - set(flat.column_names))
    if missing:
        raise ValueError(f"the dataset has no column {', '.join(missing)}: build it with prepare_data")
    return flat.select_columns(list(COLUMNS)).to_list()


def load_models(features: Sequence[tuple[str, str]]) -> dict[str, F3Model]:
    """The models by the names of their rows."""
    names = Counter([LOG_MEL, LATENTS, *(name for name, _ in features)])
    if names.total() > len(names):
        raise ValueError(f"several features are called {names.most_common(1)[0][0]!r}: choose other names")
    return {name: F3Model.from_pretrained(folder).eval() for name, folder in features}


@torch.inference_mode()
def pooled_features(
    models: Mapping[str, F3Model], dataset: Dataset, indices: Sequence[int]
) -> dict[str, dict[int, torch.Tensor]]:
    """
    The mean over the frames of each recording, `[D]`, by features and row: log-mel and latents as the first model hears
    and makes them, and the representations of every model. Models with the same autoencoder share its work. Give `indices`
    by length to waste little on padding.
    """
    pooled = {name: {} for name in (LOG_MEL, LATENTS, *models)}
    first = next(iter(models.values()))
    autoencoders = {name: autoencoder_fingerprint(model.autoencoder) for name, model in models.items()}
    spectra = MultiScaleSpectralLoss(first.config.sampling_rate)
    for start in tqdm(range(0, len(indices), ENCODING_BATCH), desc="encoding", unit="batch"):
        batch, encoded = indices[start : start + ENCODING_BATCH], {}
        for name, model in models.items():
            if autoencoders[name] not in encoded:
                samples, mask = decoded(dataset, batch, model.config.sampling_rate)
                encoded[autoencoders[name]] = model.autoencoder.encode(samples[:, None], mask)
            known = encoded[autoencoders[name]]
            output = model.encode(latents=known.latents, latents_mask=known.latents_mask)
            vectors = {name: masked_mean(output.last_hidden_state, output.latents_mask)}
            if model is first:
                vectors[LOG_MEL] = pooled_log_mel(samples, mask, spectra)
                vectors[LATENTS] = masked_mean(output.latents, output.latents_mask)
            for features, values in vectors.items():
                pooled[features].update(zip(batch, values))
    return pooled


def decoded(dataset: Dataset, indices: Sequence[int], sampling_rate: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The first ten seconds of rows, `[B, N]`, and what of it is audio, `[B, N]`."""
    cells = [dataset[index]["audio"] for index in indices]
    waves = [torch.from_numpy(decode_audio(cell, sampling_rate)[: MAX_SECONDS * sampling_rate]) for cell in cells]
    samples = pad_sequence(waves, batch_first=True)
    lengths = torch.tensor([len(wave) for wave in waves])
    return samples, torch.arange(samples.shape[1]) < lengths[:, None]


def pooled_log_mel(samples: torch.Tensor, mask: torch.Tensor, spectra: MultiScaleSpectralLoss) -> torch.Tensor:
    """Means `[B, 64]` of the log-mel frames that are centred on the audio of `[B, N]` samples."""
    taper, filters = (spectra.get_buffer(f"{name}_{MEL_WINDOW}") for name in ("taper", "mel"))
    # silence after the longest item as after all others, or its end would be mirrored
    frames = log_mel(stft(F.pad(samples, (0, MEL_WINDOW)), MEL_WINDOW, taper), filters)
    centred = mask[:, :: MEL_WINDOW // 4]
    return masked_mean(frames[:, : centred.shape[1]], centred)


def masked_mean(frames: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """`[B, T, D]` frames to the means `[B, D]` of those that `mask` `[B, T]` keeps."""
    return (frames * mask.unsqueeze(-1)).sum(1) / mask.sum(1, keepdim=True)


def run(
    examples: Mapping[int, Example],
    train: list[int],
    test: list[int],
    features: Mapping[str, Mapping[int, torch.Tensor]],
    seed: int,
) -> dict:
    """Sizes of one split, the share of its largest class, and the accuracy of a probe on each of the features."""
    classes = sorted({examples[index].label for index in train})
    labels = [torch.tensor([classes.index(examples[index].label) for index in part]) for part in (train, test)]
    accuracy = {}
    for name, vectors in features.items():
        inputs = [torch.stack([vectors[index] for index in part]) for part in (train, test)]
        accuracy[name] = probe_accuracy(inputs[0], labels[0], inputs[1], labels[1], seed)
    return {
        "seed": seed,
        "classes": len(classes),
        "train": len(train),
        "test": len(test),
        "chance": labels[1].bincount().max().item() / len(test),
        "accuracy": accuracy,
    }


def probe_accuracy(
    train_inputs: torch.Tensor,
    train_labels: torch.Tensor,
    test_inputs: torch.Tensor,
    test_labels: torch.Tensor,
    seed: int,
) -> float:
    """
    Trains a layer norm and a linear layer on `[n, D]` features with class numbers `[n]`; the share of `[m, D]` others
    that they get right. First weights and batches depend on `seed` alone.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        width, classes = train_inputs.shape[1], int(train_labels.max()) + 1
        layers = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, classes))
        optimizer = torch.optim.Adam(layers.parameters(), lr=LEARNING_RATE)
        steps_per_epoch = -(-len(train_inputs) // BATCH_SIZE)
        for _ in range(max(EPOCHS, -(-MIN_STEPS // steps_per_epoch))):
            for batch in torch.randperm(len(train_inputs)).split(BATCH_SIZE):
                loss = F.cross_entropy(layers(train_inputs[batch]), train_labels[batch])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
    with torch.inference_mode():
        return (layers(test_inputs).argmax(1) == test_labels).float().mean().item()


def conditions(arguments: argparse.Namespace, features: Mapping[str, Mapping[int, torch.Tensor]]) -> dict:
    """Under which conditions the figures hold; folders by their own names, since reports are published."""
    return {
        "dataset": Path(arguments.dataset).resolve().name,
        "models": {name: Path(folder).resolve().name for name, folder in arguments.features},
        "dimensions": {name: len(next(iter(vectors.values()))) for name, vectors in features.items()},
        "recordings": len(features[LATENTS]),
        "max_seconds": MAX_SECONDS,
        "max_items_per_task": arguments.max_items_per_task,
        "seed": arguments.seed,
        "epochs": EPOCHS,
        "min_steps": MIN_STEPS,
        "batch_size": BATCH_SIZE,
        "learning_rate": LEARNING_RATE,
        "torch": torch.__version__,
    }


def markdown(report: dict) -> str:
    """What was done, the accuracies and the sizes of the tasks."""
    text = (
        "Accuracy in percent on held-out recordings of {dataset}, mean of {runs} runs, each with its own split and weights "
        "(seeds from {seed}). Features are frozen and averaged over the frames of a recording, first {max_seconds} s; "
        "a layer norm and a linear layer are trained on them (Adam, {learning_rate:g}, batch {batch_size}, {epochs} epochs "
        "and at least {min_steps} steps). Chance is the share of the largest class in the test."
    ).format(**report["conditions"], runs=RUNS)
    return "\n".join(["# Probing", "", text, "", *accuracy_table(report), "", *task_table(report), ""])


def accuracy_table(report: dict) -> list[str]:
    """A row for chance and one for each of the features; a column for each task, and their mean."""
    tasks, dimensions = report["tasks"], report["conditions"]["dimensions"]
    figures = {"chance": [_mean(task, "chance") for task in tasks.values()]}
    for name in dimensions:
        figures[name] = [fmean(run["accuracy"][name] for run in task["runs"]) for task in tasks.values()]
    lines = [f"| features | D | {' | '.join(tasks)} | mean |", f"|{'---|' * (3 + len(tasks))}"]
    for name, values in figures.items():
        cells = [f"{100 * value:.1f}" for value in (*values, fmean(values))]
        lines.append(f"| {name} | {dimensions.get(name, '')} | {' | '.join(cells)} |")
    return lines


def task_table(report: dict) -> list[str]:
    """Sizes of the tasks, means over the runs."""
    lines = [
        "| task | classes | train | test | of these in the training split | apart |",
        f"|{'---|' * 6}",
    ]
    for name, task in report["tasks"].items():
        sizes = [f"{_mean(task, key):.0f}" for key in ("classes", "train", "test", "test_in_training_split")]
        lines.append(f"| {name} | {' | '.join(sizes)} | {task['apart']} |")
    note = (
        "A model trained on the training split has heard those test items before, without the labels of the probe; one "
        "trained with texts, too, has also read what the letters and syllables among them say."
    )
    return [*lines, "", note]


def _mean(task: dict, key: str) -> float:
    return fmean(run[key] for run in task["runs"])


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", required=True, help="the mixture of prepare_data")
    parser.add_argument("--features", type=named_folder, nargs="+", required=True, metavar="NAME=MODEL",
                        help="F3Models by name; the first one's autoencoder makes z")  # fmt: skip
    parser.add_argument("--max_items_per_task", type=int, default=2000, help="rows, train and test (default 2000)")
    parser.add_argument("--seed", type=int, default=0, help="of the first run; those after it count up")
    parser.add_argument("--output_dir", type=Path, required=True)
    return parser


def named_folder(text: str) -> tuple[str, str]:
    """NAME=MODEL of the command line."""
    name, _, folder = text.partition("=")
    if not (name and folder):
        raise argparse.ArgumentTypeError(f"must be NAME=MODEL, got {text!r}")
    return name, folder


def main() -> None:
    """Command line entry."""
    probe(build_parser().parse_args())


if __name__ == "__main__":
    main()
