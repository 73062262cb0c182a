"""
What a frozen language model can read off frozen features: 1 - the word error rate of what it writes down.

    python -m f3_training.probe_transcription --latents data/latents data/speech-latents --datasets data/f3mix data/speech \\
        --language_model data/smollm2 --features "RQ + LLM=model_cards/f3-nano-16khz" "RQ only=runs/rq/model" \\
        --output_dir results/reading

As in the task of X-ARES for automatic speech recognition, nothing but an adapter between features and language model learns: a
connector of their own for the representations of each model and for the latents z of the first one, all in the same steps on the
same rows. Where that is too little for transcripts, the loss of held-out texts still tells what is read, and how far it rises
with the audio of another row how much of it is heard. Writes `transcription_probe.json` and `transcription_probe.md` (the table,
also printed). Started again, it goes on.
"""

import argparse
import json
from pathlib import Path

import torch
from feature_extraction_f3.processing_f3 import F3Processor
from modeling_f3.connector import F3Connector
from modeling_f3.modeling_audio_lm import F3AudioLMForConditionalGeneration
from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPast

from .evaluate_reconstruction import public_name
from .evaluate_transcription import by_source, totals, written_down
from .malloc_settings import restart_with_malloc_settings
from .probe import LATENTS, named_folder
from .representation import RepresentationArguments
from .representation_training import audio_language_model, teach


LEARNING_RATE = 1e-3
# From what the language model answers, and a little from its tokens by CTC: taught by those alone, without the language model,
# new connectors learn next to nothing, or learn for some hundred steps and then lose it again.
LOSSES = {"text_loss_weight": 1.0, "token_loss_weight": 0.3, "letter_loss_weight": 0.0, "code_loss_weight": 0.0}


class NoEncoder(nn.Module):
    """Stands where the representation encoder stands: the representations are the latents themselves."""

    def forward(self, latents: torch.Tensor, **kwargs) -> BaseModelOutputWithPast:
        return BaseModelOutputWithPast(last_hidden_state=latents)


def probe_transcription(arguments: argparse.Namespace) -> dict:
    """
    Trains what is not trained yet, writes the files and returns what `transcription_probe.json` holds.

    Raises:
        `ValueError`: when features are named like the latents, or the folder holds what was read under other conditions.
    """
    if any(name == LATENTS for name, _ in arguments.features):
        raise ValueError(f"{LATENTS!r} are the latents, which have a row anyway: give the features another name")
    conditions = {
        "language_model": public_name(arguments.language_model),
        "datasets": [public_name(path) for path in arguments.datasets],
        "split": arguments.split,
        "language": arguments.language,
        "max_items": arguments.max_items,
        "max_seconds": arguments.max_seconds,
        "max_steps": arguments.max_steps,
        "batch_size": arguments.batch_size,
        "evaluation_items": arguments.evaluation_items,
        "seed": arguments.seed,
    }
    features = [(LATENTS, arguments.features[0][1]), *arguments.features]
    report = {"conditions": conditions}
    report["features"] = {name: read(name, folder, arguments, conditions) for name, folder in features}
    folder = arguments.output_dir
    (folder / "transcription_probe.json").write_text(json.dumps(report, indent=2), encoding="utf-8")
    (folder / "transcription_probe.md").write_text(markdown(report), encoding="utf-8")
    print(markdown(report))
    return report


def read(name: str, tokenizer: str, arguments: argparse.Namespace, conditions: dict) -> dict:
    """
    What is read off the representations of a tokenizer, or off its latents: `errors` and `words` of each of the `sources`, and
    the `text_loss` of held-out texts beside their audio and beside that of another row, in nat a token. What was found under
    the same `conditions` before is not looked for again.
    """
    folder = arguments.output_dir / "".join(filter(str.isalnum, name))
    conditions = {**conditions, "tokenizer": public_name(tokenizer)}
    if (folder / "read.json").is_file():
        done = json.loads((folder / "read.json").read_text("utf-8"))
        if done["conditions"] != conditions:
            changed = sorted(key for key in conditions if conditions[key] != done["conditions"].get(key))
            raise ValueError(f"{folder} was read with another {', '.join(changed)}: choose another --output_dir")
        return done["found"]
    model, processor = with_new_connector(name, tokenizer, arguments)
    stage = RepresentationArguments(
        latents=arguments.latents,
        output_dir=str(folder / "connector"),
        tasks='{"transcribe": 1}',
        languages=arguments.language,
        max_steps=arguments.max_steps,
        batch_size=arguments.batch_size,
        learning_rate=LEARNING_RATE,
        warmup_steps=arguments.warmup_steps,
        evaluation_steps=arguments.evaluation_steps,
        evaluation_items=arguments.evaluation_items,
        bf16=arguments.bf16,
        **LOSSES,
    )
    teach(model, processor, stage)
    heard = json.loads((folder / "connector" / "history.json").read_text("utf-8"))[-1]
    records = list(written_down(model.eval(), processor, arguments, num_beams=1))
    found = {
        "sources": {source: totals(records) for source, records in by_source(records)},
        "text_loss": {"own": heard["text_ce"], "swapped": heard["text_ce_swapped"]},
    }
    done = {"conditions": conditions, "found": found}
    (folder / "read.json").write_text(json.dumps(done, indent=2), encoding="utf-8")
    return found


def with_new_connector(
    name: str, tokenizer: str, arguments: argparse.Namespace
) -> tuple[F3AudioLMForConditionalGeneration, F3Processor]:
    """The language model behind a connector that nothing has taught yet, the only part that learns."""
    model, processor = audio_language_model(tokenizer, arguments.language_model, code_loss_weight=0.0)
    if name == LATENTS:
        model.audio_model.encoder = NoEncoder()
    dim = model.config.audio_config.autoencoder_config.latent_dim
    width = dim if name == LATENTS else model.config.audio_config.hidden_size
    torch.manual_seed(arguments.seed)
    connector = F3Connector(width, model.config.connector_hidden_size, model.config.text_config.hidden_size)
    with torch.no_grad():
        connector.start.copy_(model.connector.start)
        connector.end.copy_(model.connector.end)
    model.connector = connector
    model.requires_grad_(False)
    model.connector.requires_grad_(True)
    return model, processor


def accuracy(found: dict) -> float:
    """1 - WER over the sources together, not below 0: who writes more than is said is not worse than who writes nothing."""
    errors, words = (sum(part[key] for part in found["sources"].values()) for key in ("errors", "words"))
    return max(0.0, 1 - errors / words)


def markdown(report: dict) -> str:
    """What was done, and the table."""
    text = (
        "Words that {language_model}, frozen, writes down wrongly, in percent, greedily: at most {max_items} recordings of each "
        "source, split {split}, language {language}. It reads features through a connector, which alone learned, for "
        "{max_steps} steps of {batch_size} rows. 1 - WER is over all sources, at least 0. The last two columns are the "
        "cross-entropy of the texts of {evaluation_items} validation recordings, in nat a token, beside their audio and beside "
        "that of another recording."
    ).format(**report["conditions"])
    return "\n".join(["# Transcription probe", "", text, "", *transcription_table(report), ""])


def transcription_table(report: dict) -> list[str]:
    """A row for each of the features; a column for each source."""
    sources = list(next(iter(report["features"].values()))["sources"])
    columns = ["features", *sources, "1 - WER", "nat, its audio", "nat, another's"]
    lines = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    for name, found in report["features"].items():
        cells = [f"{100 * found['sources'][source]['wer']:.1f}" for source in sources]
        cells += [f"{100 * accuracy(found):.1f}", *(f"{loss:.3f}" for loss in found["text_loss"].values())]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features", type=named_folder, nargs="+", required=True, metavar="NAME=MODEL",
                        help="F3Models by name; the first one's latents have a row as well")  # fmt: skip
    parser.add_argument("--latents", nargs="+", required=True, help="what latents_cache wrote, to learn from")
    parser.add_argument(
        "--datasets", nargs="+", required=True, help="of prepare_data and prepare_speech, to be judged by"
    )
    parser.add_argument("--language_model", required=True)
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--split", default="test")
    parser.add_argument("--language", default="en")
    parser.add_argument("--max_items", type=int, default=40, help="of each source of a dataset")
    parser.add_argument("--max_seconds", type=float, default=10.0, help="longer recordings are left out")
    parser.add_argument("--max_steps", type=int, default=250)
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--warmup_steps", type=int, default=10)
    parser.add_argument("--evaluation_steps", type=int, default=100)
    parser.add_argument("--evaluation_items", type=int, default=128)
    parser.add_argument("--no-bf16", dest="bf16", action="store_false")
    parser.add_argument("--seed", type=int, default=0)
    return parser


if __name__ == "__main__":
    restart_with_malloc_settings("f3_training.probe_transcription")
    probe_transcription(build_parser().parse_args())
