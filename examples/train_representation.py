"""
Your recordings -> a tokenizer with representations that know them (stage 1, on a frozen autoencoder).

    python examples/train_representation.py --dataset my-sounds --autoencoder runs/my-autoencoder/model \\
        --output_dir runs/my-tokenizer --repo_id me/f3-my-sounds

`my-sounds` is a folder of sound files, or a dataset of the Hub with a column of audio. A new encoder learns to predict
random codes of the frames to come (RQ-MTP), for which sound is enough; with texts, a language model can teach it
afterwards: `python -m f3_training.representation`.
"""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from f3_training.audio_dataset import decode_audio, load_audio_dataset
from f3_training.evaluate_reconstruction import public_name
from f3_training.latents_batches import BatchRandomness, LatentsCollator
from f3_training.latents_cache import load_autoencoder
from f3_training.model_card import HEADER, USE_TOKENIZER, card
from f3_training.publish import publish
from f3_training.representation_training import calibrate
from modeling_f3 import F3Config, F3FeatureExtractor, F3ForPreTraining
from transformers import HfArgumentParser, Trainer, TrainingArguments, set_seed


@dataclass
class Arguments:
    """What this script needs to know beside the options of `Trainer`."""

    dataset: str = field(metadata={"help": "folder of sound files, or name of a dataset of the Hub"})
    autoencoder: str = field(metadata={"help": "autoencoder to build on: folder or Hub name"})
    repo_id: str | None = field(default=None, metadata={"help": "where to push; without it the result is only checked"})
    licence: str = field(
        default="apache-2.0", metadata={"help": "of what is pushed: that of the recordings may decide it"}
    )
    preset: str = field(default="nano", metadata={"help": "size of the encoder: base or nano"})
    max_seconds: float = field(default=10.0, metadata={"help": "longer recordings are cut at random places"})


def main(arguments: Arguments, training: TrainingArguments) -> None:
    set_seed(training.seed)
    autoencoder = load_autoencoder(arguments.autoencoder)
    config = F3Config.preset(arguments.preset, autoencoder_config=autoencoder.config)
    feature_extractor = F3FeatureExtractor(sampling_rate=config.sampling_rate)

    @torch.inference_mode()
    def encode(row: dict) -> dict:
        waveform = decode_audio(row["audio"], config.sampling_rate)
        inputs = feature_extractor(waveform, sampling_rate=config.sampling_rate)
        return {"latents": autoencoder.encode(**inputs).latents[0].numpy()}  # [frames, D]

    # the autoencoder stays as it is, so that every recording is encoded only once
    rows = load_audio_dataset(arguments.dataset, "train")
    rows = rows.map(encode, remove_columns=rows.column_names).with_format("numpy")
    rows = rows.train_test_split(test_size=0.05, seed=training.seed)

    model = F3ForPreTraining(config)  # or from_pretrained(...), to go on with a trained encoder on this autoencoder
    model.model.autoencoder.load_state_dict(autoencoder.state_dict())
    calibrate(model, rows["train"], training.seed)  # the random codes suit these latents

    randomness = BatchRandomness(training.seed)
    collator = LatentsCollator(int(arguments.max_seconds * autoencoder.config.frame_rate), randomness)
    trainer = Trainer(
        model=model,
        args=training,
        data_collator=collator,
        train_dataset=rows["train"],
        eval_dataset=rows["test"],
        callbacks=[randomness],
    )
    trainer.train()
    loss = trainer.evaluate()["eval_loss"]

    folder = Path(training.output_dir) / "model"
    model.save_pretrained(folder)
    feature_extractor.save_pretrained(folder)
    name, dataset = arguments.repo_id or folder.parent.name, public_name(arguments.dataset)
    width = autoencoder.config.latent_dim
    text = card(
        HEADER.format(task="feature-extraction", name=name, licence=arguments.licence),
        f"A tokenizer on the autoencoder `{public_name(arguments.autoencoder)}`, trained on `{dataset}`.",
        "## Use",
        USE_TOKENIZER.format(name=name, rate=config.sampling_rate, width=width, hidden=config.hidden_size),
        "## Training",
        f"{training.max_steps} steps of RQ-MTP. Loss on {len(rows['test'])} held-out recordings: {loss:.3f}.",
        "## Limits",
        f"It knows `{dataset}` and nothing else.",
    )
    (folder / "README.md").write_text(text, encoding="utf-8")
    print(publish(folder, arguments.repo_id) or folder)


if __name__ == "__main__":
    parser = HfArgumentParser((Arguments, TrainingArguments))
    parser.set_defaults(max_steps=4000, per_device_train_batch_size=32, learning_rate=1e-3, weight_decay=0.05)
    parser.set_defaults(lr_scheduler_type="cosine", warmup_steps=200, save_strategy="no", report_to="none")
    parser.set_defaults(remove_unused_columns=False, prediction_loss_only=True)
    main(*parser.parse_args_into_dataclasses())
