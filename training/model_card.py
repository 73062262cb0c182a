"""
Makes the folder that gets published: the weights in 16 bits, and a card in which no figure is typed by hand.

    python -m f3_training.model_card weights runs/nano/model model_cards/f3-autoencoder-nano-16khz
    python -m f3_training.model_card card model_cards/f3-autoencoder-nano-16khz --training runs/nano/training.json \\
        --evaluation results --benchmark benchmark.json --ablation runs/bottleneck

`--training` is what training leaves, `--evaluation` the folder of `evaluate_reconstruction` run on the published folder,
`--benchmark` the JSON of `benchmark_codecs`, `--ablation` the folder of `ablate_bottleneck`; pictures are copied.
"""

import argparse
import json
import shutil
from pathlib import Path

from configuration_f3.configuration_autoencoder import F3AutoencoderConfig
from feature_extraction_f3.feature_extraction_f3 import F3FeatureExtractor
from modeling_f3.modeling_autoencoder import F3AutoencoderModel

from .reconstruction_report import markdown


HEADER = """---
library_name: transformers
license: apache-2.0
pipeline_tag: audio-to-audio
tags:
- audio
- speech
- codec
- tokenizer
- f3
---
"""

USAGE = """```python
import torch
from transformers import AutoFeatureExtractor, AutoModel

checkpoint = "{name}"
feature_extractor = AutoFeatureExtractor.from_pretrained(checkpoint, trust_remote_code=True)
model = AutoModel.from_pretrained(checkpoint, trust_remote_code=True).eval()
inputs = feature_extractor(waveform, sampling_rate={rate}, return_tensors="pt")  # mono, {rate} Hz
with torch.inference_mode():
    encoded = model.encode(**inputs)  # latents [batch, frames, {width}], latents_mask, audio_lengths
    audio = model.decode(**encoded).audio_values  # [batch, 1, samples], as long as the input
```"""


def render(
    model_dir: Path, training: dict, evaluation: dict, benchmark: dict, ablation: str = "", history_note: str = ""
) -> str:
    """
    The text of the card; `ablation` is the report of `ablate_bottleneck`, `history_note` tells what the record of the
    training does not.
    """
    config = F3AutoencoderConfig.from_pretrained(model_dir)
    parameters = evaluation["conditions"]["parameters"]
    sections = [
        HEADER + f"# {model_dir.name}",
        f"The autoencoder of F3 (arXiv 2606.06357): waveform at {config.sampling_rate / 1000:g} kHz to normalised continuous "
        f"latents, {config.frame_rate:g} Hz x {config.latent_dim}, and back. {parameters / 1e6:.2f} M parameters, causal "
        f"but for {1000 * config.decoder_lookahead / config.frame_rate:g} ms in the decoder, no KL term: latents are "
        f"normalised per frame (Eq. 1) and the decoder learned from noisy ones (Eq. 2, gamma = {config.noise_scale:g}).",
        "## Use\n\n" + USAGE.format(name=model_dir.name, rate=config.sampling_rate, width=config.latent_dim),
        "## Training\n\n" + "\n\n".join(filter(None, (training_section(training), history_note))),
        "## Reconstruction of held-out recordings\n\n" + markdown(evaluation).split("\n", 2)[2].strip(),
        "![original and reconstructed spectrograms](spectrograms.png)",
        ablation and f"## What normalisation and noise do\n\n{ablation}\n![scores against noise](ablation.png)",
        "## Speed\n\n" + speed_section(benchmark),
        "## Limits\n\n" + LIMITS,
    ]
    return "\n\n".join(filter(None, sections)) + "\n"


LIMITS = """Trained on a CPU and on hours, not on thousands of hours: voices, rooms and sounds far from the training data lose \
more than the tables show, and music and effects more than speech. What it decodes is a reconstruction, not the recording: \
do not use it as evidence of what was said. It carries voices over well enough to be misused for imitation."""


def training_section(training: dict) -> str:
    """Where, how long and on what, and the figures of the validation split over time."""
    arguments = training["arguments"]
    seconds = arguments["batch_size"] * training["processes"] * arguments["crop_seconds"]
    lines = [
        f"{training['steps']} steps of {seconds:.1f} s of audio, {training['minutes']:.0f} minutes in all, on "
        f"{training['cores']} cores of a CPU ({training['processor']}), by `python -m f3_training.autoencoder`, on the train "
        "split of `python -m f3_training.prepare_data`: speech in many languages, music and sound effects. Started from "
        f"{'another checkpoint' if arguments['init_from'] else 'random weights'}. Arguments: "
        f"`{json.dumps({name: value for name, value in arguments.items() if value is not None})}`.",
        "",
        "Figures on held-out speech of the validation split, with averaged weights, while it trained:",
        "",
    ]
    names = [name for name in training["history"][-1] if name not in ("step", "minutes")]
    lines += [f"| step | minutes | {' | '.join(names)} |", f"|{'---|' * (2 + len(names))}"]
    for row in training["history"]:
        figures = " | ".join(f"{row[name]:.3f}" if name in row else "" for name in names)
        lines.append(f"| {row['step']} | {row['minutes']:.0f} | {figures} |")
    return "\n".join(lines)


def speed_section(benchmark: dict) -> str:
    """The table of `benchmark_codecs`."""
    conditions = ", ".join(f"{name} {value}" for name, value in benchmark["conditions"].items())
    lines = [
        f"`python -m f3_training.benchmark_codecs`, default configurations, one run: {conditions}.",
        "",
        "| codec | M parameters | kHz | ms per second of audio | x real time |",
        "|---|---|---|---|---|",
    ]
    for name, row in sorted(benchmark["codecs"].items(), key=lambda item: item[1]["ms_per_second"]):
        taken = row["ms_per_second"]
        lines.append(
            f"| {name} | {row['parameters'] / 1e6:.1f} | {row['sampling_rate'] / 1000:g} | {taken:.1f} | {1000 / taken:.1f} |"
        )
    ratios = ", ".join(f"{name} {ratio:.2f} times" for name, ratio in benchmark["ratios"].items())
    return "\n".join([*lines, "", f"As fast as the fastest codec that is not F3: {ratios}."])


def write_weights(source: Path, model_dir: Path) -> None:
    """A copy of a trained folder with 16-bit weights, which still load as fp32: half the download, nothing audible."""
    model = F3AutoencoderModel.from_pretrained(source)
    halves = {name: tensor.half() for name, tensor in model.state_dict().items()}
    model.save_pretrained(model_dir, state_dict=halves)
    F3FeatureExtractor.from_pretrained(source).save_pretrained(model_dir)


def write_card(
    model_dir: Path, training: Path, evaluation: Path, benchmark: Path, ablation: Path | None, history_note: str
) -> None:
    """README.md and its pictures."""
    for folder in filter(None, (evaluation, ablation)):
        for picture in sorted(folder.glob("*.png")):
            shutil.copy(picture, model_dir / picture.name)
    records = [json.loads(path.read_text()) for path in (training, evaluation / "metrics.json", benchmark)]
    ablated = (ablation / "ablation.md").read_text(encoding="utf-8") if ablation else ""
    (model_dir / "README.md").write_text(render(model_dir, *records, ablated, history_note), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    weights = commands.add_parser("weights")
    weights.add_argument("source", type=Path)
    weights.add_argument("model_dir", type=Path)
    weights.set_defaults(run=write_weights)
    card = commands.add_parser("card")
    card.add_argument("model_dir", type=Path)
    for record in ("training", "evaluation", "benchmark"):
        card.add_argument(f"--{record}", type=Path, required=True)
    card.add_argument("--ablation", type=Path)
    card.add_argument("--history_note", default="", help="a sentence on what happened between the runs")
    card.set_defaults(run=write_card)
    arguments = vars(parser.parse_args())
    arguments.pop("run")(**arguments)


if __name__ == "__main__":
    main()
