"""
Your recordings and their texts -> a model that writes down what is said, letter by letter (CTC).

    python examples/finetune_ctc.py --dataset my-speech --text_column text --model runs/joint/tokenizer \\
        --output_dir runs/letters --repo_id me/f3-letters

`my-speech` is a folder with the recordings and a `metadata.csv` with the columns `file_name` and `text`, or a dataset
of the Hub. The result works in `pipeline("automatic-speech-recognition")`.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

import torch
from f3_training.audio_dataset import decode_audio, load_audio_dataset
from f3_training.ctc_helpers import spelled
from f3_training.evaluate_reconstruction import public_name
from f3_training.model_card import HEADER, card
from f3_training.publish import publish
from modeling_f3 import F3Config, F3FeatureExtractor, F3ForCTC
from transformers import HfArgumentParser, Trainer, TrainingArguments, Wav2Vec2CTCTokenizer, set_seed


@dataclass
class Arguments:
    """What this script needs to know beside the options of `Trainer`."""

    dataset: str = field(metadata={"help": "folder with a metadata.csv, or name of a dataset of the Hub"})
    model: str = field(metadata={"help": "tokenizer (F3Model) to start from: folder or Hub name"})
    repo_id: str | None = field(default=None, metadata={"help": "where to push; without it the result is only checked"})
    licence: str = field(
        default="apache-2.0", metadata={"help": "of what is pushed: that of the recordings may decide it"}
    )
    text_column: str = field(default="text", metadata={"help": "column of the words that are said"})
    max_seconds: float = field(default=10.0, metadata={"help": "longer recordings are left out"})


class CTCCollator:
    """Rows to `input_values`, `padding_mask` and `labels`, the letters of the texts."""

    def __init__(self, feature_extractor: F3FeatureExtractor, tokenizer: Wav2Vec2CTCTokenizer, text_column: str):
        self.feature_extractor, self.tokenizer, self.text_column = feature_extractor, tokenizer, text_column

    def __call__(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        rate = self.feature_extractor.sampling_rate
        features = self.feature_extractor([decode_audio(row["audio"], rate) for row in rows], rate)
        texts = [spelled(row[self.text_column]) for row in rows]
        tokens = self.tokenizer(texts, padding=True, return_tensors="pt")
        return {**features, "labels": tokens["input_ids"].masked_fill(tokens["attention_mask"] == 0, -100)}


def letters(texts: list[str], folder: Path) -> Wav2Vec2CTCTokenizer:
    """A tokenizer of the characters that occur in `texts`; the blank of CTC is its padding token, 0."""
    characters = sorted(set("".join(map(spelled, texts))) - {" "})
    vocabulary = {token: index for index, token in enumerate(["<pad>", "<unk>", "|", *characters])}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    return Wav2Vec2CTCTokenizer(str(folder / "vocab.json"), bos_token=None, eos_token=None)


def main(arguments: Arguments, training: TrainingArguments) -> None:
    set_seed(training.seed)
    folder = Path(training.output_dir) / "model"
    feature_extractor = F3FeatureExtractor.from_pretrained(arguments.model)
    frame_rate = F3Config.from_pretrained(arguments.model).autoencoder_config.frame_rate

    def can_be_learned(row: dict) -> bool:
        """Not too long, and at most one letter for each latent frame."""
        rate = feature_extractor.sampling_rate
        seconds, letters = len(decode_audio(row["audio"], rate)) / rate, len(spelled(row[arguments.text_column] or ""))
        return seconds <= arguments.max_seconds and 0 < letters < seconds * frame_rate

    rows = load_audio_dataset(arguments.dataset, "train").select_columns(["audio", arguments.text_column])
    rows = rows.filter(can_be_learned).train_test_split(test_size=0.05, seed=training.seed)

    tokenizer = letters(rows["train"][arguments.text_column], folder)
    # its autoencoder stays frozen; the encoder and a new head are trained
    model = F3ForCTC.from_pretrained(arguments.model, vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id)
    trainer = Trainer(
        model=model,
        args=training,
        data_collator=CTCCollator(feature_extractor, tokenizer, arguments.text_column),
        train_dataset=rows["train"],
        eval_dataset=rows["test"],
    )
    trainer.train()
    loss = trainer.evaluate()["eval_loss"]

    for part in (model, feature_extractor, tokenizer):
        part.save_pretrained(folder)
    name, base = arguments.repo_id or folder.parent.name, public_name(arguments.model)
    text = card(
        HEADER.format(task="automatic-speech-recognition", name=name, licence=arguments.licence),
        f"`{base}`, fine-tuned on `{public_name(arguments.dataset)}` to transcribe, letter by letter.",
        "## Use",
        f'`pipeline("automatic-speech-recognition", model="{name}", trust_remote_code=True)("recording.wav")`',
        "## Training",
        f"{training.max_steps} steps of CTC. Loss on {len(rows['test'])} held-out recordings: {loss:.3f}.",
        "## Limits",
        "It has no language model: what sounds alike may be spelled alike.",
    )
    (folder / "README.md").write_text(text, encoding="utf-8")
    print(publish(folder, arguments.repo_id) or folder)


if __name__ == "__main__":
    parser = HfArgumentParser((Arguments, TrainingArguments))
    parser.set_defaults(max_steps=2000, per_device_train_batch_size=16, learning_rate=3e-4, warmup_steps=200)
    parser.set_defaults(save_strategy="no", report_to="none", remove_unused_columns=False, prediction_loss_only=True)
    main(*parser.parse_args_into_dataclasses())
