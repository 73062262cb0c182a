"""
Fine-tunes a tokenizer to transcribe by CTC, letter by letter, with plain `Trainer`.

    python -m f3_training.finetune_ctc --model model_cards/f3-nano-16khz --dataset data/f3mix --language en \\
        --output_dir runs/ctc

The result, `output_dir/model`, works in `pipeline("automatic-speech-recognition")`. Any dataset with the columns `audio`
and `text` will do; rows whose text is longer than their audio has latent frames are left out.
"""

import argparse
import json
from pathlib import Path

import torch
from datasets import Dataset
from modeling_f3 import F3Config, F3FeatureExtractor, F3ForCTC
from transformers import Trainer, TrainingArguments, Wav2Vec2CTCTokenizer

from .audio_dataset import decode_audio, load_audio_dataset
from .ctc_helpers import spelled


class CTCCollator:
    """Rows to `input_values`, `padding_mask` and `labels`."""

    def __init__(self, feature_extractor: F3FeatureExtractor, tokenizer: Wav2Vec2CTCTokenizer):
        self.feature_extractor, self.tokenizer = feature_extractor, tokenizer

    def __call__(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        rate = self.feature_extractor.sampling_rate
        features = self.feature_extractor([decode_audio(row["audio"], rate) for row in rows], rate)
        tokens = self.tokenizer([spelled(row["text"]) for row in rows], padding=True, return_tensors="pt")
        labels = tokens["input_ids"].masked_fill(tokens["attention_mask"] == 0, -100)
        return {**features, "labels": labels}


def letters(texts: list[str], folder: Path) -> Wav2Vec2CTCTokenizer:
    """A tokenizer of the characters that occur in `texts`; the blank of CTC is its padding token, 0."""
    characters = sorted(set("".join(map(spelled, texts))) - {" "})
    vocabulary = {token: index for index, token in enumerate(["<pad>", "<unk>", "|", *characters])}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    return Wav2Vec2CTCTokenizer(str(folder / "vocab.json"), bos_token=None, eos_token=None)


def transcribed(rows: Dataset, language: str | None, frame_rate: float, max_seconds: float) -> Dataset:
    """The rows that can be learned from: with a text, in the language, not too long, and no faster than a letter a frame."""
    kept = [
        index
        for index, row in enumerate(rows.remove_columns("audio"))
        if 0 < len(spelled(row["text"])) < row["duration"] * frame_rate
        and row["duration"] <= max_seconds
        and language in (None, row.get("language"))
    ]
    return rows.select(kept)


def finetune(arguments: argparse.Namespace) -> dict[str, float]:
    """Trains, saves, and returns the loss on the validation split."""
    frame_rate = F3Config.from_pretrained(arguments.model).autoencoder_config.frame_rate
    train, validation = (
        transcribed(load_audio_dataset(arguments.dataset, split), arguments.language, frame_rate, arguments.max_seconds)
        for split in ("train", "validation")
    )
    folder = arguments.output_dir / "model"
    tokenizer = letters(train["text"], folder)
    model = F3ForCTC.from_pretrained(arguments.model, vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id)
    feature_extractor = F3FeatureExtractor.from_pretrained(arguments.model)
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(arguments.output_dir),
            max_steps=arguments.max_steps,
            per_device_train_batch_size=arguments.batch_size,
            per_device_eval_batch_size=arguments.batch_size,
            learning_rate=arguments.learning_rate,
            warmup_steps=arguments.max_steps // 10,
            remove_unused_columns=False,
            prediction_loss_only=True,
            save_strategy="no",
            report_to="none",
        ),
        data_collator=CTCCollator(feature_extractor, tokenizer),
        train_dataset=train,
        eval_dataset=validation,
    )
    trainer.train()
    for part in (model, feature_extractor, tokenizer):
        part.save_pretrained(folder)
    return trainer.evaluate()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="an F3Model: folder or Hub name")
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--language", help="only rows of this `language`")
    parser.add_argument("--max_steps", type=int, default=2000)
    parser.add_argument("--max_seconds", type=float, default=10.0)
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--learning_rate", type=float, default=3e-4)
    print(finetune(parser.parse_args()))


if __name__ == "__main__":
    main()
