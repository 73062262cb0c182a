"""
What each teacher of the representation gives it: three encoders from the same weights, one taught by RQ-MTP (Eq. 5), one by
the frozen language model (Eq. 7), one by both; linear probes of them, and transcripts of the language model that reads them.

    python -m f3_training.ablate_representation --latents data/f3mix-latents data/flite-latents data/joe-latents \\
        --autoencoder model_cards/f3-autoencoder-nano-16khz --language_model data/smollm2 --dataset data/f3mix \\
        --speech_datasets data/flite data/joe --output_dir runs/teachers

Every encoder gets the same steps of the same size, in two runs of stage 1: the language model first teaches by its embeddings
and by letters alone, which is fast, and in the last tenth of the steps by its answers. Writes what `probe` and
`probe_transcription` write, where the encoder that learned from nobody has a row in the first, and `ablation.md`, the tables
with what was done. Started again, it goes on.
"""

import argparse
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from statistics import fmean

import torch

from .latents_training import load_rows
from .malloc_settings import restart_with_malloc_settings
from .probe import accuracy_table, probe
from .probe_transcription import accuracy, probe_transcription, transcription_table
from .probe_transcription import build_parser as reading_parser
from .representation import RepresentationArguments
from .representation_training import calibrate, initial_model, save, train_representation


UNTRAINED = "untrained"
TEACHERS = {  # of each row of the table: RQ-MTP, the language model
    "RQ only": (True, False),
    "LLM only": (False, True),
    "RQ + LLM": (True, True),
}
ANSWERS_SHARE = 10  # one step in so many is of the language model's answers
WORDS = {"text_loss_weight": 0.0, "token_loss_weight": 1.0, "letter_loss_weight": 1.0}
ANSWERS = {"text_loss_weight": 1.0, "token_loss_weight": 0.3, "letter_loss_weight": 0.5}
TASKS = '{"transcribe": 1, "caption": 1, "kind": 0.3, "language": 0.3}'


def lessons(max_steps: int) -> Iterator[tuple[str, dict[str, float], dict[str, float]]]:
    """The name, the schedule and the weights of the losses of the two, as [`RepresentationArguments`] has them."""
    answers = max_steps // ANSWERS_SHARE
    yield "words", {"max_steps": max_steps - answers, "learning_rate": 2e-3}, WORDS
    yield "answers", {"max_steps": answers, "learning_rate": 1e-3}, ANSWERS


def ablate(arguments: argparse.Namespace) -> dict[str, Path]:
    """Trains what is not trained yet and returns the folders of the encoders by the names of their rows."""
    start = arguments.output_dir / UNTRAINED
    stage = partial(
        RepresentationArguments,
        latents=arguments.latents,
        preset=arguments.preset,
        tasks=TASKS,
        languages=arguments.languages,
        batch_size=arguments.batch_size,
        warmup_steps=arguments.warmup_steps,
        evaluation_steps=arguments.evaluation_steps,
        evaluation_items=arguments.evaluation_items,
        bf16=arguments.bf16,
    )
    if not (start / "model").is_dir():
        write_untrained(stage(autoencoder=arguments.autoencoder, output_dir=str(start)))
    encoders = {UNTRAINED: start / "model"}
    for name, (codes, listens) in TEACHERS.items():
        folder, source = arguments.output_dir / name.replace(" ", ""), start
        weight = arguments.language_model_weight if codes else 1.0
        for lesson, schedule, losses in lessons(arguments.max_steps):
            taught = {loss: weight * full for loss, full in losses.items()}
            train_representation(
                stage(
                    init_from=str(source / "model"),
                    output_dir=str(folder / lesson),
                    code_loss_weight=float(codes),
                    **schedule,
                    **({"language_model": arguments.language_model, **taught} if listens else {}),
                )
            )
            source = folder / lesson
        encoders[name] = source / ("tokenizer" if listens else "model")
    return encoders


def write_untrained(arguments: RepresentationArguments) -> None:
    """A tokenizer with a new encoder, and a quantiser that knows its latents."""
    torch.manual_seed(arguments.seed)
    model, _ = initial_model(arguments)
    calibrate(model, load_rows(arguments, "train", model.model.autoencoder), arguments.seed)
    save(model, None, Path(arguments.output_dir))


def reading(arguments: argparse.Namespace) -> argparse.Namespace:
    """What `probe_transcription` is asked about the encoders that somebody taught."""
    taught = [f"{name}={folder}" for name, folder in arguments.features if name != UNTRAINED]
    given = {
        "features": taught,
        "latents": arguments.latents,
        "datasets": [arguments.dataset, *arguments.speech_datasets],
        "language_model": [arguments.language_model],
        "output_dir": [str(arguments.output_dir / "transcription")],
        "language": arguments.languages.split(",")[:1],
        "max_steps": [str(arguments.reading_steps)],
    }
    options = [part for name, values in given.items() for part in (f"--{name}", *values)]
    return reading_parser().parse_args([*options, *([] if arguments.bf16 else ["--no-bf16"])])


def markdown(arguments: argparse.Namespace, probed: dict, read: dict) -> str:
    """What was done, the accuracies of `probe`, those of `probe_transcription`, and the means of all of them."""
    steps, answers = arguments.max_steps, arguments.max_steps // ANSWERS_SHARE
    text = (
        f"Encoders of the preset {arguments.preset} that began with the same weights, in percent as above. Each had {steps} steps "
        f"of {arguments.batch_size} rows. The language model taught {steps - answers} of them by its embeddings and by letters, "
        f"without being run, and {answers} by its answers; texts were those of the languages {arguments.languages}. Beside "
        f"RQ-MTP, its losses were weighed {arguments.language_model_weight:g}."
    )
    means = [
        f"| features | linear probes | transcripts, 1 - WER | mean of all {len(probed['tasks']) + 1} |",
        "|---|---|---|---|",
    ]
    for name, found in read["features"].items():
        tasks = [fmean(run["accuracy"][name] for run in task["runs"]) for task in probed["tasks"].values()]
        values = (fmean(tasks), accuracy(found), fmean([*tasks, accuracy(found)]))
        means.append(f"| {name} | {' | '.join(f'{100 * value:.1f}' for value in values)} |")
    probes = ["# What the teachers give", "", text, "", *accuracy_table(probed)]
    return "\n".join([*probes, "", *transcription_table(read), "", *means, ""])


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--latents", nargs="+", required=True, help="what f3_training.latents_cache wrote")
    parser.add_argument("--autoencoder", required=True, help="that made them")
    parser.add_argument("--language_model", required=True)
    parser.add_argument("--dataset", required=True, help="the mixture of prepare_data, to probe on")
    parser.add_argument("--speech_datasets", nargs="*", default=[], help="more recordings to be transcribed")
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--preset", default="nano")
    parser.add_argument("--languages", default="en", help="comma-separated, of the texts to learn")
    parser.add_argument("--max_steps", type=int, default=500, help="of each encoder")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument(
        "--language_model_weight", type=float, default=0.3, help="of all that the language model teaches, beside RQ-MTP"
    )
    parser.add_argument("--reading_steps", type=int, default=250, help="of each connector of `probe_transcription`")
    parser.add_argument("--warmup_steps", type=int, default=20)
    parser.add_argument("--evaluation_steps", type=int, default=150)
    parser.add_argument("--evaluation_items", type=int, default=128)
    parser.add_argument("--no-bf16", dest="bf16", action="store_false")
    parser.add_argument("--max_items_per_task", type=int, default=2000, help="of the probes")
    parser.add_argument("--seed", type=int, default=0, help="of the probes")
    return parser


def main() -> None:
    """Command line entry."""
    arguments = build_parser().parse_args()
    arguments.features = [(name, str(folder)) for name, folder in ablate(arguments).items()]
    probed = probe(arguments)
    read = probe_transcription(reading(arguments))
    (arguments.output_dir / "ablation.md").write_text(markdown(arguments, probed, read), encoding="utf-8")


if __name__ == "__main__":
    restart_with_malloc_settings("f3_training.ablate_representation")
    main()
