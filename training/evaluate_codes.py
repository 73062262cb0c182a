"""
How well a tokenizer predicts the codes of latents it was not trained on (RQ-MTP, Eq. 5), and how many codes these need.

    python -m f3_training.evaluate_codes --model model_cards/f3-nano-16khz --latents data/latents --output_dir results/codes

Random, reproducible rows of a latents cache. Writes `codes.json` and `codes.md` (the tables, also printed).
"""

import argparse
import json
from pathlib import Path

import torch
from modeling_f3.modeling_f3 import F3ForPreTraining

from .evaluate_reconstruction import public_name
from .latents_batches import LatentsCollator
from .latents_training import held_out_rows, load_rows
from .malloc_settings import restart_with_malloc_settings
from .representation_report import held_out_scores


@torch.inference_mode()
def evaluate_codes(arguments: argparse.Namespace) -> dict:
    """Runs the evaluation, writes the files and returns what `codes.json` holds."""
    model = F3ForPreTraining.from_pretrained(arguments.model).eval()
    autoencoder = model.model.autoencoder
    rows = held_out_rows(load_rows(arguments, arguments.split, autoencoder), arguments)
    collator = LatentsCollator(int(arguments.max_seconds * autoencoder.config.frame_rate))
    scores = held_out_scores(model, collator, rows, arguments.batch_size)
    conditions = {
        "model": public_name(arguments.model),
        "latents": [public_name(folder) for folder in arguments.latents],
        "split": arguments.split,
        "rows": len(rows),
        "max_seconds": arguments.max_seconds,
        "seed": arguments.seed,
        "codebooks": model.config.num_codebooks,
        "codebook_size": model.config.codebook_size,
    }
    report = {"conditions": conditions, "scores": scores}
    arguments.output_dir.mkdir(parents=True, exist_ok=True)
    (arguments.output_dir / "codes.json").write_text(json.dumps(report, indent=2), encoding="utf-8")
    (arguments.output_dir / "codes.md").write_text(markdown(report), encoding="utf-8")
    print(markdown(report))
    return report


def markdown(report: dict) -> str:
    """The tables."""
    text = (
        "{rows} random recordings of {latents}, split {split}, first {max_seconds:g} s, seed {seed}; {codebooks} codebooks of "
        "{codebook_size} codes. The unigram is the entropy of the codes themselves."
    ).format(**{**report["conditions"], "latents": ", ".join(report["conditions"]["latents"])})
    scores = report["scores"]
    lines = [f"# Codes, {report['conditions']['split']} split", "", text, ""]
    lines += ["| frames ahead | cross-entropy (nat) | below the unigram |", "|---|---|---|"]
    for name, value in scores.items():
        if name.startswith("code_ce_"):
            lines.append(f"| {name.rpartition('_')[2]} | {value:.2f} | {scores['code_unigram'] - value:.2f} |")
    used = f"{100 * scores['code_usage']:.1f} % of its codes, perplexity / size {scores['code_perplexity']:.2f}"
    return "\n".join([*lines, "", f"The codebook that is used least: {used}.", ""])


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder or Hub name of a tokenizer with the heads of RQ-MTP")
    parser.add_argument("--latents", nargs="+", required=True, help="what f3_training.latents_cache wrote")
    parser.add_argument("--split", default="test")
    parser.add_argument("--sources", default="", help="comma-separated, some sources only")
    parser.add_argument("--max_items", type=int, default=1000, dest="evaluation_items")
    parser.add_argument("--max_seconds", type=float, default=10.0)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0, help="of the choice")
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.set_defaults(languages="")  # no text is read
    return parser


if __name__ == "__main__":
    restart_with_malloc_settings("f3_training.evaluate_codes")
    evaluate_codes(build_parser().parse_args())
