"""
Word error rate of an audio language model on the speech of datasets, by source.

    python -m f3_training.evaluate_transcription --model runs/joint/model --datasets data/f3mix data/speech \\
        --output_dir results/transcription

Rows of one language with a text, in random, reproducible order. Answers are found by beams, which follow letters where the model
has a listener. Writes `transcription.json` (counts and rates), `transcription.jsonl` (every text beside what was written) and
`transcription.md` (the table, also printed).
"""

import argparse
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import torch
from feature_extraction_f3.processing_f3 import F3Processor
from modeling_f3.modeling_audio_lm import F3AudioLMForConditionalGeneration
from tqdm import tqdm

from .audio_dataset import decode_audio, load_audio_dataset
from .evaluate_reconstruction import public_name
from .malloc_settings import restart_with_malloc_settings
from .prompts import LANGUAGES
from .reconstruction_metrics import normalize_words, word_errors


def evaluate_transcription(arguments: argparse.Namespace) -> dict:
    """
    Runs the evaluation, writes the files and returns what `transcription.json` holds.

    Raises:
        `ValueError`: when no row has a text in the language.
    """
    model = F3AudioLMForConditionalGeneration.from_pretrained(
        arguments.model, text_model_name_or_path=arguments.language_model
    )
    model.take_off_adapter() if arguments.frozen_language_model else model.merge_adapter()
    model.to(arguments.device)
    processor = F3Processor.from_pretrained(arguments.model)
    records = list(written_down(model, processor, arguments, arguments.num_beams))
    if not records:
        raise ValueError(
            f"no row of {arguments.datasets}, split {arguments.split}, has a text in {arguments.language!r}"
        )
    report = {
        "conditions": {
            "model": public_name(arguments.model),
            "language_model": public_name(str(model.config.text_model_name_or_path)),
            "frozen_language_model": arguments.frozen_language_model,
            "datasets": [public_name(path) for path in arguments.datasets],
            "split": arguments.split,
            "language": arguments.language,
            "seed": arguments.seed,
            "max_items": arguments.max_items,
            "num_beams": arguments.num_beams or model.transcription_options(torch.zeros(1, 1))["num_beams"],
            "chosen_by": "language model" if model.listener is None else "language model and listener",
        },
        "sources": {name: totals(group) for name, group in by_source(records)},
        "all": totals(records),
    }
    folder = arguments.output_dir
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "transcription.json").write_text(json.dumps(report, indent=2, ensure_ascii=False), encoding="utf-8")
    lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    (folder / "transcription.jsonl").write_text(lines, encoding="utf-8")
    (folder / "transcription.md").write_text(markdown(report), encoding="utf-8")
    print(markdown(report))
    return report


def texts_in(path: str, arguments: argparse.Namespace):
    """The chosen rows of one dataset, by length, so that little of a batch is padding."""
    rows = load_audio_dataset(path, arguments.split).shuffle(arguments.seed)
    columns = rows.select_columns(["kind", "language", "text", "duration", "source"]).to_dict()
    kept, counts = [], Counter()
    for index, (kind, language, text, duration, source) in enumerate(zip(*columns.values())):
        fits = kind == "speech" and language == arguments.language and normalize_words(text)
        if fits and duration <= arguments.max_seconds and counts[source] < arguments.max_items:
            kept.append(index)
            counts[source] += 1
    return rows.select(kept).sort("duration")


def written_down(
    model: F3AudioLMForConditionalGeneration,
    processor: F3Processor,
    arguments: argparse.Namespace,
    num_beams: int | None,
) -> Iterator[dict]:
    """What the model writes for each of the chosen recordings, beside what is said in it, and the words that are wrong."""
    for path in arguments.datasets:
        rows = texts_in(path, arguments)
        for start in tqdm(range(0, len(rows), arguments.batch_size), desc=public_name(path), unit="batch"):
            batch = [rows[index] for index in range(start, min(start + arguments.batch_size, len(rows)))]
            found = transcripts(model, processor, batch, arguments.language, num_beams)
            for row, written in zip(batch, found):
                errors, words = word_errors(row["text"], written)
                known = {"source": row["source"], "text": row["text"], "written": written}
                yield known | {"errors": errors, "words": words}


@torch.inference_mode()
def transcripts(
    model: F3AudioLMForConditionalGeneration,
    processor: F3Processor,
    rows: list[dict],
    language: str,
    num_beams: int | None,
) -> list[str]:
    """What the model writes down for each row."""
    rate = processor.feature_extractor.sampling_rate
    waveforms = [decode_audio(row["audio"], rate) for row in rows]
    inputs = processor.apply_transcription_request(waveforms, language=LANGUAGES[language], sampling_rate=rate)
    options = model.transcription_options(inputs["input_ids"])
    if num_beams is not None:
        options["num_beams"] = num_beams
    written = model.generate(**inputs.to(model.device), **options)
    answers = written[:, inputs["input_ids"].shape[1] :]
    return [text.strip() for text in processor.batch_decode(answers, skip_special_tokens=True)]


def by_source(records: list[dict]) -> Iterator[tuple[str, list[dict]]]:
    """The records of each source, in alphabetical order."""
    for name in sorted({record["source"] for record in records}):
        yield name, [record for record in records if record["source"] == name]


def totals(records: list[dict]) -> dict:
    """Counts, and the word error rate: all errors over all words."""
    errors, words = (sum(record[key] for record in records) for key in ("errors", "words"))
    return {"items": len(records), "words": words, "errors": errors, "wer": errors / words}


def markdown(report: dict) -> str:
    """The table."""
    text = (
        "Word error rate of {model} (language model {language_model}), number of beams {num_beams}, chosen by {chosen_by}, "
        "split {split}, language {language}, at most {max_items} recordings of each source, seed {seed}."
    ).format(**report["conditions"])
    title = "# Transcription" + " by the frozen language model" * report["conditions"]["frozen_language_model"]
    lines = [title, "", text, "", "| source | recordings | words | WER (%) |", "|---|---|---|---|"]
    for name, part in [*report["sources"].items(), ("all", report["all"])]:
        lines.append(f"| {name} | {part['items']} | {part['words']} | {100 * part['wer']:.1f} |")
    return "\n".join([*lines, ""])


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder or Hub name of an audio language model")
    parser.add_argument("--datasets", nargs="+", required=True, help="of prepare_data and prepare_speech")
    parser.add_argument("--split", default="test")
    parser.add_argument("--language", choices=sorted(LANGUAGES), default="en")
    parser.add_argument("--max_items", type=int, default=200, help="of each source of a dataset")
    parser.add_argument("--max_seconds", type=float, default=20.0, help="longer recordings are left out")
    parser.add_argument("--num_beams", type=int, help="if not as many as in the pipeline; 1 is greedy")
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0, help="of the choice")
    parser.add_argument("--language_model", help="folder or Hub name, if not the one that the model names")
    parser.add_argument(
        "--frozen_language_model", action="store_true", help="leave the adapter out: the language model as it was"
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output_dir", type=Path, required=True)
    return parser


if __name__ == "__main__":
    restart_with_malloc_settings("f3_training.evaluate_transcription")
    evaluate_transcription(build_parser().parse_args())
