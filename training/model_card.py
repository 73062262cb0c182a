"""
Makes the folder that gets published: the weights in 16 bits, and a card in which no figure is typed by hand.

    python -m f3_training.model_card weights runs/nano/model model_cards/f3-autoencoder-nano-16khz    # several: their mean
    python -m f3_training.model_card card model_cards/f3-autoencoder-nano-16khz --training runs/nano/training.json \\
        --reports results/report.md runs/bottleneck/ablation.md results/benchmark.md

The folder is of an autoencoder, a tokenizer or an audio language model. `--training` is what trainings leave, `--reports` what
evaluations do; pictures that reports show are copied. A tokenizer's card shows `tokenizer.png`, which `tokenizer_picture`
draws, if the folder has it. A card keeps what it is made of in `card.json`: later calls add to it, a report in place of the
one with the same title.
"""

import argparse
import json
import re
import shutil
from pathlib import Path

import torch
from configuration_f3.configuration_audio_lm import F3AudioLMConfig
from configuration_f3.configuration_autoencoder import F3AutoencoderConfig
from configuration_f3.configuration_f3 import F3Config
from modeling_f3.modeling_autoencoder import F3AutoencoderModel
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

from .machine import described
from .model_parts import autoencoder_prefix


LICENCE = "apache-2.0"
PICTURE = "tokenizer.png"  # of `tokenizer_picture`
RECORD = "card.json"
WEIGHTS = "model.safetensors"
SHOWN = re.compile(r"!\[.*?\]\((.+?)\)")  # pictures of a text in Markdown, beside it
HEADER = """---
library_name: transformers
license: {licence}
pipeline_tag: {task}
tags:
- audio
- speech
- f3
---
# {name}"""

USE_AUTOENCODER = """```python
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

USE_TOKENIZER = """```python
import torch
from transformers import AutoFeatureExtractor, AutoModel

checkpoint = "{name}"
feature_extractor = AutoFeatureExtractor.from_pretrained(checkpoint, trust_remote_code=True)
model = AutoModel.from_pretrained(checkpoint, trust_remote_code=True).eval()
inputs = feature_extractor(waveform, sampling_rate={rate}, return_tensors="pt")  # mono, {rate} Hz
with torch.inference_mode():
    encoded = model.encode(**inputs)
    encoded.latents  # [batch, frames, {width}], to be decoded or generated
    encoded.last_hidden_state  # [batch, frames, {hidden}], representations of the same frames, to be understood
    audio = model.decode(encoded.latents, encoded.latents_mask, encoded.audio_lengths).audio_values
```"""

USE_AUDIO_LM = """```python
import torch
from transformers import AutoModelForMultimodalLM, AutoProcessor

checkpoint, language_model = "{name}", "{language_model}"
processor = AutoProcessor.from_pretrained(checkpoint, trust_remote_code=True)
model = AutoModelForMultimodalLM.from_pretrained(
    checkpoint, text_model_name_or_path=language_model, trust_remote_code=True
).eval()

inputs = processor.apply_transcription_request("recording.wav")
written = model.generate(**inputs, **model.transcription_options(inputs["input_ids"]))
print(processor.decode(written[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))

model = model.merge_adapter().pack_for_cpu()  # on a CPU: speaks in less than half of the time, and can no longer be trained or saved
spoken = model.generate(**processor.apply_speech_request("Good morning."), generator=torch.Generator().manual_seed(0))
processor.save_audio(spoken.audio[0], "morning.wav")
```"""

LIMITS = """Trained on tens of hours, not on thousands: voices, rooms and sounds far from the training data lose \
more than the tables show, and music and effects more than speech. What it decodes or says is made by a model, not recorded: \
do not use it as evidence of what was said. It carries voices over well enough to be misused for imitation."""


def model_card(model_dir: Path, trainings: list[dict], reports: list[str], history_note: str = "") -> str:
    """
    The card of a folder. `trainings` are records of one run after the other, `reports` those of evaluations, `history_note`
    tells what the records do not.
    """
    config = AutoConfig.from_pretrained(model_dir)
    task, introduction, use = DESCRIPTIONS[type(config)](model_dir, config)
    return card(
        HEADER.format(task=task, name=model_dir.name, licence=LICENCE),
        introduction,
        "## Use",
        use,
        "## Training",
        *map(training_section, trainings),
        history_note,
        *map(as_section, reports),
        "## Limits",
        LIMITS,
    )


def _autoencoder(model_dir: Path, config: F3AutoencoderConfig) -> tuple[str, str, str]:
    """Its task on the Hub, what it is and how it is used."""
    with torch.device("meta"):
        parameters = sum(weight.numel() for weight in F3AutoencoderModel(config).parameters())
    introduction = (
        f"The autoencoder of F3 (arXiv 2606.06357): waveform at {config.sampling_rate / 1000:g} kHz to normalised continuous "
        f"latents, {config.frame_rate:g} Hz x {config.latent_dim}, and back. {parameters / 1e6:.2f} M parameters, causal "
        f"but for {1000 * config.decoder_lookahead / config.frame_rate:g} ms in the decoder, no KL term: latents are "
        f"normalised per frame (Eq. 1) and the decoder learned from noisy ones (Eq. 2, gamma = {config.noise_scale:g})."
    )
    use = USE_AUTOENCODER.format(name=model_dir.name, rate=config.sampling_rate, width=config.latent_dim)
    return "audio-to-audio", introduction, use


def _tokenizer(model_dir: Path, config: F3Config) -> tuple[str, str, str]:
    autoencoder = config.autoencoder_config
    introduction = card(
        f"The tokenizer of F3 (arXiv 2606.06357): waveform at {config.sampling_rate / 1000:g} kHz to latents, "
        f"{autoencoder.frame_rate:g} Hz x {autoencoder.latent_dim}, and, by a causal encoder on them, to representations, "
        f"{autoencoder.frame_rate:g} Hz x {config.hidden_size}. The encoder learned to predict random codes of the next "
        f"{config.num_future_frames} frames (RQ-MTP, Eq. 5) and from a frozen language model that reads it (Eq. 7).",
        f"![a recording on its way through the tokenizer]({PICTURE})" if (model_dir / PICTURE).is_file() else "",
    )
    use = USE_TOKENIZER.format(
        name=model_dir.name, rate=config.sampling_rate, width=autoencoder.latent_dim, hidden=config.hidden_size
    )
    return "feature-extraction", introduction.strip(), use


def _audio_lm(model_dir: Path, config: F3AudioLMConfig) -> tuple[str, str, str]:
    language_model = str(config.text_model_name_or_path)
    introduction = (
        f"A language model that listens and speaks through the tokenizer of F3 (arXiv 2606.06357). The language model, "
        f"{language_model}, is fetched from where it is; this folder holds what is around it."
    )
    return "any-to-any", introduction, USE_AUDIO_LM.format(name=model_dir.name, language_model=language_model)


DESCRIPTIONS = {F3AutoencoderConfig: _autoencoder, F3Config: _tokenizer, F3AudioLMConfig: _audio_lm}


def card(*paragraphs: str) -> str:
    """The text of those that are not empty."""
    return "\n\n".join(filter(None, paragraphs)) + "\n"


def as_section(report: str) -> str:
    """A report with its headings one level lower, so that its title is a section of the card."""
    return "\n".join(f"#{line}" if line.startswith("#") else line for line in report.strip().splitlines())


def training_section(training: dict) -> str:
    """What a training was told, what it took, and its held-out figures over time."""
    given = {name: value for name, value in training["arguments"].items() if value is not None}
    where, last = described(training), training["history"][-1]
    if "crop_seconds" in given:
        seconds = given["batch_size"] * training["processes"] * given["crop_seconds"]
        told = (
            f"{training['steps']} steps of {seconds:.1f} s of audio, {training['minutes']:.0f} minutes in all, on {where}, by "
            "`python -m f3_training.autoencoder`, on the train split of `python -m f3_training.prepare_data`: speech in many "
            f"languages, music and sound effects. Started from {'another checkpoint' if 'init_from' in given else 'random weights'}"
        )
        judged = "Figures on held-out speech of the validation split, with averaged weights, while it trained"
    else:
        minutes, hours = last["minutes"], last["audio_hours"]
        told = (
            f"{training['steps']} steps on {hours:.1f} hours of audio, some of it several times, in {minutes:.0f} minutes "
            f"({60 * hours / minutes:.0f} times real time) on {where}"
        )
        judged = "Held-out figures of the validation split"
    return "\n".join(
        [f"{told}. Arguments: `{json.dumps(given)}`.", "", f"{judged}:", "", *history_table(training["history"])]
    )


def history_table(history: list[dict]) -> list[str]:
    """A row for each evaluation; figures that an early one lacks stay empty."""
    names = [name for name in history[-1] if name != "step"]
    lines = [f"| step | {' | '.join(names)} |", f"|{'---|' * (1 + len(names))}"]
    digits = {"minutes": 0, "audio_hours": 1}
    for row in history:
        figures = [f"{row[name]:.{digits.get(name, 3)}f}" if name in row else "" for name in names]
        lines.append(f"| {row['step']} | {' | '.join(figures)} |")
    return lines


def write_weights(
    sources: list[Path],
    model_dir: Path,
    language_model: str | None = None,
    decoder: Path | None = None,
) -> None:
    """
    A copy of a trained folder with 16-bit weights, which still load as fp32: half the download, nothing audible. With the
    processor or feature extractor beside it. Of several folders it is the last one, with the mean of all their weights: half-way
    between a model and what more training made of it there is often one that forgot less and learned as much.

    Args:
        language_model: name on the Hub, to be written in place of a folder of this machine.
        decoder: an autoencoder with the same encoder, whose decoder takes the place of the model's: latents stay what they
            were, and sound otherwise.

    Raises:
        `ValueError`: when `decoder` has another encoder.
    """
    given = {
        path.name: [load_file(source / path.name) for source in sources] for path in sources[-1].glob("*.safetensors")
    }
    means = {
        name: {key: _mean_in_16_bits([tensors[key] for tensors in weights]) for key in weights[-1]}
        for name, weights in given.items()
    }
    if decoder is not None:
        encoding = _part_of(decoder, "encoder.", means[WEIGHTS])
        if not all(torch.equal(means[WEIGHTS][name], part) for name, part in encoding.items()):
            raise ValueError(f"{decoder} has another encoder, so its decoder cannot read the latents of this model")
        means[WEIGHTS] |= _part_of(decoder, "decoder.", means[WEIGHTS])
    shutil.copytree(
        sources[-1], model_dir, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.safetensors", "README.md", RECORD)
    )
    for name, tensors in means.items():
        save_file(tensors, model_dir / name, metadata={"format": "pt"})
    if language_model is not None:
        settings = json.loads((model_dir / "config.json").read_text())
        settings["text_model_name_or_path"] = language_model
        (model_dir / "config.json").write_text(json.dumps(settings, indent=2) + "\n")


def _part_of(autoencoder: Path, part: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The encoder or decoder of an autoencoder in 16 bits, under the names that it has among `tensors`."""
    prefix = autoencoder_prefix(tensors)
    weights = load_file(autoencoder / WEIGHTS)
    return {prefix + name: _mean_in_16_bits([weights[name]]) for name in weights if name.startswith(part)}


def _mean_in_16_bits(tensors: list[torch.Tensor]) -> torch.Tensor:
    """Whole numbers are the same in all."""
    if not tensors[-1].is_floating_point():
        return tensors[-1]
    return torch.stack([tensor.float() for tensor in tensors]).mean(0).half()


def write_card(model_dir: Path, training: list[Path], reports: list[Path], history_note: str) -> None:
    """README.md, its pictures and `card.json`, out of what is given and what `card.json` has from before."""
    kept = model_dir / RECORD
    known = {"trainings": [], "reports": [], "history_note": ""}
    if kept.is_file():
        known = json.loads(kept.read_text(encoding="utf-8"))
    added = [json.loads(path.read_text()) for path in training]
    texts = known["reports"]
    for path in reports:
        texts.append(path.read_text(encoding="utf-8"))
        for picture in SHOWN.findall(texts[-1]):
            shutil.copy(path.parent / picture, model_dir / picture)
    record = {
        "trainings": [*known["trainings"], *(run for run in added if run not in known["trainings"])],
        "reports": list({text.split("\n", 1)[0]: text for text in texts}.values()),
        "history_note": history_note or known["history_note"],
    }
    kept.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    (model_dir / "README.md").write_text(model_card(model_dir, **record), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    weights = commands.add_parser("weights")
    weights.add_argument("sources", type=Path, nargs="+", help="trained folders; of several, the mean of their weights")
    weights.add_argument("model_dir", type=Path)
    weights.add_argument("--language_model", help="name on the Hub to write down, in place of a folder")
    weights.add_argument("--decoder", type=Path, help="autoencoder with the same encoder, to take the decoder from")
    weights.set_defaults(run=write_weights)
    made = commands.add_parser("card")
    made.add_argument("model_dir", type=Path)
    made.add_argument("--training", type=Path, nargs="+", default=[])
    made.add_argument("--reports", type=Path, nargs="+", default=[])
    made.add_argument("--history_note", default="", help="what the records do not tell, in Markdown")
    made.set_defaults(run=write_card)
    arguments = vars(parser.parse_args())
    arguments.pop("run")(**arguments)


if __name__ == "__main__":
    main()
