"""
How well an audio language model speaks: sentences it has not learned, in the voice that it has.

    python -m f3_training.evaluate_speech --model runs/speaker/model --dataset data/speech --latents data/speech-latents \\
        --voice piper_joe --output_dir results/speech

Whisper says what is heard, DistillMOS how good it sounds, Resemblyzer whether it is the voice: cosine to the mean of the
recordings of the same sentences. These are judged as well, as they are and after the autoencoder, which no speech of the
model can be expected to surpass. Default options on all sentences, then a grid of steps and guidance on fewer; how long
the first sound takes, and what a second of longer speech costs; and what each condition of the flow head is worth, the flow
loss without it. Writes `speech.json`, `speech.jsonl` (every sentence), `speech.md` (the tables, also printed) and sound files
of the first sentences.
"""

import argparse
import json
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from feature_extraction_f3.processing_f3 import F3Processor
from modeling_f3.modeling_audio_lm import F3AudioLMForConditionalGeneration
from tqdm import tqdm

from .audio_dataset import decode_audio, load_audio_dataset, resample
from .evaluate_reconstruction import public_name
from .judges import Judges, load_judges
from .latents_batches import TaskMix
from .latents_cache import load_latents
from .malloc_settings import restart_with_malloc_settings
from .reconstruction_metrics import JUDGE_RATE, UndefinedScoreError, word_errors


STEPS, SCALES = (1, 2, 4, 10), (1.0, 1.5, 2.0, 3.0)
CONDITIONS = {"hidden state": "has_condition", "representation": "has_representation", "previous patch": "has_previous"}
SOUND_FILES = 5
WAITS = 20  # sentences whose first sound is waited for
LENGTHS = (1, 4, 12, 24)  # sentences said in one go
FLOW_ROWS = 8  # in a batch for the flow loss


def evaluate_speech(arguments: argparse.Namespace, judges: Judges | None = None) -> dict:
    """
    Runs the evaluation, writes the files and returns what `speech.json` holds.

    Raises:
        `ValueError`: when the dataset has no sentence in the voice.
    """
    model = F3AudioLMForConditionalGeneration.from_pretrained(
        arguments.model, text_model_name_or_path=arguments.language_model
    )
    model = model.merge_adapter().to(arguments.device)
    processor = F3Processor.from_pretrained(arguments.model)
    judges = load_judges(cache=arguments.judge_cache) if judges is None else judges
    rows = of_voice(load_audio_dataset(arguments.dataset, arguments.split), arguments.voice, arguments.max_items)
    latents = of_voice(load_latents(arguments.latents, arguments.split, model.audio_model.autoencoder), arguments.voice)
    flow_loss = flow_losses(model, processor, latents.select(range(min(arguments.max_items, len(latents)))))
    if arguments.packed:
        model.pack_for_cpu()
    folder, rate = arguments.output_dir, model.config.sampling_rate
    folder.mkdir(parents=True, exist_ok=True)

    def say(chosen: Dataset, title: str, **options: Any) -> list[tuple[torch.Tensor, dict]]:
        texts = tqdm(chosen["text"], desc=title, unit="sentence")
        return [spoken(model, processor, text, seed=index, **options) for index, text in enumerate(texts)]

    # All is said before any is judged: judges that run in between keep the processor from what is timed.
    said = say(rows, "default options")
    for index, (samples, _) in enumerate(said[:SOUND_FILES]):
        processor.save_audio(samples, str(folder / f"{index}.wav"))
    waits = [seconds_to_first_sound(model, processor, text, seed) for seed, text in enumerate(rows["text"][:WAITS])]
    by_length = costs_by_length(model, processor, rows["text"])
    few = rows.select(range(min(arguments.grid_items, len(rows))))
    pairs = list(product(STEPS, SCALES))
    said_on_grid = [
        say(few, f"{steps} steps, {scale}", num_flow_steps=steps, flow_guidance_scale=scale) for steps, scale in pairs
    ]
    voice = mean_embedding([decode_audio(row["audio"], JUDGE_RATE) for row in rows], judges.embed_speaker)

    def judge(said: list[tuple[torch.Tensor, dict]], title: str) -> list[dict]:
        progress = tqdm(zip(said, rows["text"]), desc=f"judging {title}", total=len(said), unit="sentence")
        return [record | judged(samples, text, voice, judges, rate) for (samples, record), text in progress]

    references = {
        title: means([judged(*pair, voice, judges, rate) for pair in recorded])
        for title, recorded in recordings_of(model, rows).items()
    }
    records = judge(said, "default options")
    grid = [
        {"steps": steps, "guidance": scale, **means(judge(part, f"{steps} steps, {scale}"))}
        for (steps, scale), part in zip(pairs, said_on_grid)
    ]
    report = {
        "conditions": {
            "model": public_name(arguments.model),
            "dataset": public_name(arguments.dataset),
            "split": arguments.split,
            "voice": arguments.voice,
            "sentences": len(rows),
            "grid_sentences": len(few),
            "threads": torch.get_num_threads(),
            "device": arguments.device,
            "packed": arguments.packed,
        },
        "references": references,
        "default": means(records),
        "grid": grid,
        "first_sound": {"seconds": median(waits), "longest": max(waits)},
        "by_length": by_length,
        "flow_loss": flow_loss,
    }
    (folder / "speech.json").write_text(json.dumps(report, indent=2, ensure_ascii=False), encoding="utf-8")
    lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    (folder / "speech.jsonl").write_text(lines, encoding="utf-8")
    (folder / "speech.md").write_text(markdown(report), encoding="utf-8")
    print(markdown(report))
    return report


def of_voice(rows: Dataset, voice: str, most: int | None = None) -> Dataset:
    """The first rows of a voice."""
    kept = [index for index, source in enumerate(rows["source"]) if source == voice][:most]
    if not kept:
        raise ValueError(f"no row has the source {voice!r}: there are {', '.join(sorted(set(rows['source'])))}")
    return rows.select(kept)


@torch.inference_mode()
def recordings_of(model: F3AudioLMForConditionalGeneration, rows: Dataset) -> dict[str, list[tuple[torch.Tensor, str]]]:
    """The samples `[N]` and the text of each row, as they are and encoded and decoded."""
    rate = model.config.sampling_rate
    originals = [torch.from_numpy(decode_audio(row["audio"], rate)) for row in rows]
    autoencoder = model.audio_model.autoencoder
    decoded = [
        autoencoder.decode(**autoencoder.encode(samples[None, None].to(model.device))).audio_values[0, 0]
        for samples in originals
    ]
    return {
        "recordings": list(zip(originals, rows["text"])),
        "recordings, encoded and decoded": list(zip(decoded, rows["text"])),
    }


@torch.inference_mode()
def spoken(
    model: F3AudioLMForConditionalGeneration, processor: F3Processor, text: str, seed: int, **options: Any
) -> tuple[torch.Tensor, dict]:
    """The samples `[N]`, and how long they are, took to make, and why they end."""
    inputs = processor.apply_speech_request(text).to(model.device)
    started = time.perf_counter()
    output = model.generate(**inputs, generator=torch.Generator().manual_seed(seed), **options)
    elapsed = time.perf_counter() - started
    seconds = output.audio_lengths[0].item() / model.config.sampling_rate
    return output.audio[0], {"seconds": seconds, "model_seconds": elapsed, "finish_reason": output.finish_reasons[0]}


@torch.inference_mode()
def seconds_to_first_sound(
    model: F3AudioLMForConditionalGeneration, processor: F3Processor, text: str, seed: int
) -> float:
    """From the call to the first samples that `stream_audio` yields, so the prompt is read within."""
    inputs = processor.apply_speech_request(text).to(model.device)
    started = time.perf_counter()
    chunks = model.stream_audio(**inputs, generator=torch.Generator().manual_seed(seed))
    next(chunk for chunk in chunks if len(chunk[0]) > 0)
    return time.perf_counter() - started


def costs_by_length(model: F3AudioLMForConditionalGeneration, processor: F3Processor, texts: list[str]) -> list[dict]:
    """Of ever more sentences said in one go: how long they are, what a second of them costs, and why they end."""
    found = []
    for count in LENGTHS:
        if count <= len(texts):
            _, record = spoken(model, processor, " ".join(texts[:count]), seed=0)
            factor = record.pop("model_seconds") / record["seconds"]
            found.append({"sentences": count, "real_time_factor": factor, **record})
    return found


def judged(samples: torch.Tensor, text: str, voice: np.ndarray, judges: Judges, rate: int) -> dict:
    """What the judges say; `None` for what is too short for a judge."""
    heard = resample(samples.float().cpu().numpy(), rate, JUDGE_RATE)
    written = judges.transcribe(heard, "en")
    errors, words = word_errors(text, written)
    try:
        similarity = cosine(judges.embed_speaker(heard), voice)
    except UndefinedScoreError:
        similarity = None
    scores = {"mos": float(judges.predict_mos(heard)), "similarity": similarity}
    return {"text": text, "heard": written, "errors": errors, "words": words} | scores


def mean_embedding(recordings: list[np.ndarray], embed: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Of the recordings that are long enough."""
    found = []
    for samples in recordings:
        try:
            found.append(embed(samples))
        except UndefinedScoreError:
            continue
    return np.mean(found, axis=0)


def cosine(first: np.ndarray, second: np.ndarray) -> float:
    return float(first @ second / (np.linalg.norm(first) * np.linalg.norm(second)))


def means(records: list[dict]) -> dict:
    """
    Over sentences; the word error rate is all errors over all words, the real-time factor all time over all audio. What only
    generated speech has, its length, its end and its cost, is left out for recordings.
    """
    similarities = [record["similarity"] for record in records if record["similarity"] is not None]
    found = {
        "wer": sum(record["errors"] for record in records) / sum(record["words"] for record in records),
        "mos": fmean(record["mos"] for record in records),
        "similarity": fmean(similarities) if similarities else None,
        "without_similarity": len(records) - len(similarities),
    }
    if "finish_reason" not in records[0]:
        return found
    seconds, model_seconds = (sum(record[name] for record in records) for name in ("seconds", "model_seconds"))
    return found | {
        "stopped": fmean(record["finish_reason"] == "stop" for record in records),
        "seconds": seconds / len(records),
        "real_time_factor": model_seconds / seconds,
    }


def flow_losses(model: F3AudioLMForConditionalGeneration, processor: F3Processor, rows: Dataset) -> dict[str, float]:
    """The flow loss with all conditions, and with each of them taken away."""
    speak = TaskMix(processor, {"speak": 1.0}, max(rows["frames"]))
    batches = [
        speak([rows[index] for index in range(start, min(start + FLOW_ROWS, len(rows)))])
        for start in range(0, len(rows), FLOW_ROWS)
    ]
    return {"all": _flow_loss(model, batches, None)} | {
        f"without {name}": _flow_loss(model, batches, flag) for name, flag in CONDITIONS.items()
    }


@torch.inference_mode()
def _flow_loss(model: F3AudioLMForConditionalGeneration, batches: list[dict], flag: str | None) -> float:
    """The mean over rows; the argument `flag` of the flow head says that a condition is missing."""

    def take_away(module, inputs: tuple, options: dict) -> tuple[tuple, dict]:
        missing = torch.zeros(len(inputs[0]), dtype=torch.bool, device=inputs[0].device)
        return inputs, options if flag is None else {**options, flag: missing}

    hook = model.flow_head.register_forward_pre_hook(take_away, with_kwargs=True)
    total, rows = 0.0, 0
    with torch.random.fork_rng():
        torch.manual_seed(0)  # the same noise whatever is missing
        for batch in batches:
            count = len(batch["input_ids"])
            total += count * model(**{name: value.to(model.device) for name, value in batch.items()}).flow_loss.item()
            rows += count
    hook.remove()
    return total / rows


def markdown(report: dict) -> str:
    """The tables."""
    text = (
        "{model} says {sentences} sentences of {dataset}, split {split}, that it has not learned, in the voice {voice} "
        "({device}, {threads} threads, {weights}). The grid is over {grid_sentences} of them."
    ).format(
        **report["conditions"], weights="packed weights" if report["conditions"]["packed"] else "weights as they are"
    )
    columns = {
        "WER (%)": lambda part: f"{100 * part['wer']:.1f}",
        "DistillMOS": lambda part: f"{part['mos']:.2f}",
        "similarity": lambda part: "" if part["similarity"] is None else f"{part['similarity']:.3f}",
        "stop by themselves (%)": lambda part: f"{100 * part['stopped']:.0f}" if "stopped" in part else "",
        "seconds": lambda part: f"{part['seconds']:.2f}" if "seconds" in part else "",
        "real-time factor": lambda part: f"{part['real_time_factor']:.2f}" if "real_time_factor" in part else "",
    }
    lines = [
        "# Speech",
        "",
        text,
        "",
        f"| speech | steps | guidance | {' | '.join(columns)} |",
        f"|{'---|' * (3 + len(columns))}",
    ]
    rows = [{"speech": name, "steps": "", "guidance": "", **part} for name, part in report["references"].items()]
    rows.append({"speech": "the model's", "steps": "default", "guidance": "default", **report["default"]})
    rows += [{"speech": "the model's", **part} for part in report["grid"]]
    for row in rows:
        cells = " | ".join(show(row) for show in columns.values())
        lines.append(f"| {row['speech']} | {row['steps']} | {row['guidance']} | {cells} |")
    lines += ["", "| sentences in one go | seconds | real-time factor | ends by |", "|---|---|---|---|"]
    lines += [
        f"| {row['sentences']} | {row['seconds']:.1f} | {row['real_time_factor']:.2f} | {row['finish_reason']} |"
        for row in report["by_length"]
    ]
    lines += ["", "From request to first sound {seconds:.2f} s, {longest:.2f} at most.".format(**report["first_sound"])]
    lines += ["", "| conditions of the flow head | flow loss |", "|---|---|"]
    lines += [f"| {name} | {loss:.4f} |" for name, loss in report["flow_loss"].items()]
    return "\n".join([*lines, ""])


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder or Hub name of an audio language model that speaks")
    parser.add_argument("--dataset", required=True, help="sentences with recordings, of prepare_speech")
    parser.add_argument("--latents", required=True, help="the same, encoded by latents_cache")
    parser.add_argument("--split", default="test")
    parser.add_argument("--voice", required=True, help="source of the sentences, the voice that was learned")
    parser.add_argument("--max_items", type=int, default=100, help="sentences")
    parser.add_argument("--grid_items", type=int, default=20, help="sentences for each pair of steps and guidance")
    parser.add_argument("--judge_cache", type=Path, help="where their weights are kept (default $HF_HOME/f3_wheels)")
    parser.add_argument("--language_model", help="folder or Hub name, if not the one that the model names")
    parser.add_argument("--packed", action="store_true", help="packs the model for the CPU before it speaks")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output_dir", type=Path, required=True)
    return parser


if __name__ == "__main__":
    restart_with_malloc_settings("f3_training.evaluate_speech")
    evaluate_speech(build_parser().parse_args())
