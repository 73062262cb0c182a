"""
Fine-tunes a tokenizer to classify audio, with plain `Trainer`.

    python -m f3_training.finetune_classification --model model_cards/f3-nano-16khz --dataset data/f3mix \\
        --label_column kind --output_dir runs/kind

The result, `output_dir/model`, works in `pipeline("audio-classification")`. Any dataset with an `audio` column and a column
of names for the classes will do.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from modeling_f3 import F3FeatureExtractor, F3ForAudioClassification
from transformers import Trainer, TrainingArguments

from .audio_dataset import decode_audio, load_audio_dataset


class ClassificationCollator:
    """Rows to `input_values`, `padding_mask` and `labels`; long audio is cut to its first `max_seconds`."""

    def __init__(self, feature_extractor: F3FeatureExtractor, label_column: str, label2id: dict, max_seconds: float):
        self.feature_extractor, self.label_column, self.label2id = feature_extractor, label_column, label2id
        self.max_samples = int(max_seconds * feature_extractor.sampling_rate)

    def __call__(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        rate = self.feature_extractor.sampling_rate
        waveforms = [decode_audio(row["audio"], rate)[: self.max_samples] for row in rows]
        labels = torch.tensor([self.label2id[row[self.label_column]] for row in rows])
        return {**self.feature_extractor(waveforms, rate), "labels": labels}


def accuracy(prediction) -> dict[str, float]:
    """For `Trainer.evaluate`."""
    return {"accuracy": float((np.asarray(prediction.predictions).argmax(-1) == prediction.label_ids).mean())}


def finetune(arguments: argparse.Namespace) -> dict[str, float]:
    """Trains, saves, and returns the scores on the validation split."""
    train, validation = (load_audio_dataset(arguments.dataset, split) for split in ("train", "validation"))
    labels = sorted(set(train[arguments.label_column]))
    model = F3ForAudioClassification.from_pretrained(
        arguments.model, id2label=dict(enumerate(labels)), label2id={label: index for index, label in enumerate(labels)}
    )
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
            save_strategy="no",
            report_to="none",
        ),
        data_collator=ClassificationCollator(
            feature_extractor, arguments.label_column, model.config.label2id, arguments.max_seconds
        ),
        train_dataset=train,
        eval_dataset=validation.filter(labels.__contains__, input_columns=arguments.label_column),
        compute_metrics=accuracy,
    )
    trainer.train()
    model.save_pretrained(arguments.output_dir / "model")
    feature_extractor.save_pretrained(arguments.output_dir / "model")
    return trainer.evaluate()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="an F3Model: folder or Hub name")
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--label_column", required=True)
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--max_steps", type=int, default=500)
    parser.add_argument("--max_seconds", type=float, default=5.0)
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--learning_rate", type=float, default=3e-4)
    print(finetune(parser.parse_args()))


if __name__ == "__main__":
    main()
