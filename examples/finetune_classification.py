"""
Your recordings and a name for each -> a classifier of audio.

    python examples/finetune_classification.py --dataset my-sounds --label_column animal --model runs/joint/tokenizer \\
        --output_dir runs/animals --repo_id me/f3-animals

`my-sounds` is a folder with the recordings and a `metadata.csv` with the columns `file_name` and `animal`, or a dataset
of the Hub. The result works in `pipeline("audio-classification")`.
"""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from datasets import ClassLabel
from f3_training.audio_dataset import decode_audio, load_audio_dataset
from f3_training.evaluate_reconstruction import public_name
from f3_training.model_card import HEADER, card
from f3_training.publish import publish
from modeling_f3 import F3FeatureExtractor, F3ForAudioClassification
from transformers import HfArgumentParser, Trainer, TrainingArguments, set_seed


@dataclass
class Arguments:
    """What this script needs to know beside the options of `Trainer`."""

    dataset: str = field(metadata={"help": "folder with a metadata.csv, or name of a dataset of the Hub"})
    model: str = field(metadata={"help": "tokenizer (F3Model) to start from: folder or Hub name"})
    repo_id: str | None = field(default=None, metadata={"help": "where to push; without it the result is only checked"})
    licence: str = field(
        default="apache-2.0", metadata={"help": "of what is pushed: that of the recordings may decide it"}
    )
    label_column: str = field(default="label", metadata={"help": "column of the names of the classes"})
    max_seconds: float = field(default=5.0, metadata={"help": "of a recording, from its start"})


class ClassificationCollator:
    """Rows to `input_values`, `padding_mask` and `labels`; long audio is cut to its first `max_seconds`."""

    def __init__(self, feature_extractor: F3FeatureExtractor, label_column: str, max_seconds: float):
        self.feature_extractor, self.label_column = feature_extractor, label_column
        self.max_samples = int(max_seconds * feature_extractor.sampling_rate)

    def __call__(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        rate = self.feature_extractor.sampling_rate
        waveforms = [decode_audio(row["audio"], rate)[: self.max_samples] for row in rows]
        labels = torch.tensor([row[self.label_column] for row in rows])
        return {**self.feature_extractor(waveforms, rate), "labels": labels}


def accuracy(prediction) -> dict[str, float]:
    """For `Trainer.evaluate`."""
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


def main(arguments: Arguments, training: TrainingArguments) -> None:
    set_seed(training.seed)
    rows = load_audio_dataset(arguments.dataset, "train")
    if not isinstance(rows.features[arguments.label_column], ClassLabel):
        rows = rows.class_encode_column(arguments.label_column)
    labels = rows.features[arguments.label_column].names
    rows = rows.train_test_split(test_size=0.1, seed=training.seed)

    feature_extractor = F3FeatureExtractor.from_pretrained(arguments.model)
    # its autoencoder stays frozen; the encoder and a new head are trained
    model = F3ForAudioClassification.from_pretrained(
        arguments.model, id2label=dict(enumerate(labels)), label2id={label: index for index, label in enumerate(labels)}
    )
    trainer = Trainer(
        model=model,
        args=training,
        data_collator=ClassificationCollator(feature_extractor, arguments.label_column, arguments.max_seconds),
        train_dataset=rows["train"],
        eval_dataset=rows["test"],
        compute_metrics=accuracy,
    )
    trainer.train()
    score = trainer.evaluate()["eval_accuracy"]

    folder = Path(training.output_dir) / "model"
    model.save_pretrained(folder)
    feature_extractor.save_pretrained(folder)
    name, base = arguments.repo_id or folder.parent.name, public_name(arguments.model)
    text = card(
        HEADER.format(task="audio-classification", name=name, licence=arguments.licence),
        f"`{base}`, fine-tuned on `{public_name(arguments.dataset)}` to tell apart {', '.join(labels)}.",
        "## Use",
        f'`pipeline("audio-classification", model="{name}", trust_remote_code=True)("recording.wav")`',
        "## Training",
        f"{training.max_steps} steps. Accuracy on {len(rows['test'])} held-out recordings: {score:.3f}.",
        "## Limits",
        "It answers with one of its classes, whatever it hears.",
    )
    (folder / "README.md").write_text(text, encoding="utf-8")
    print(publish(folder, arguments.repo_id) or folder)


if __name__ == "__main__":
    parser = HfArgumentParser((Arguments, TrainingArguments))
    parser.set_defaults(max_steps=500, per_device_train_batch_size=16, learning_rate=3e-4, warmup_steps=50)
    parser.set_defaults(save_strategy="no", report_to="none", remove_unused_columns=False)
    main(*parser.parse_args_into_dataclasses())
