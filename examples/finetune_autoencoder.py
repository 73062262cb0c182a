"""
Your recordings -> an autoencoder that decodes them better (stage 0, from trained weights).

    python examples/finetune_autoencoder.py --dataset my-sounds --model model_cards/f3-autoencoder-nano-16khz \\
        --output_dir runs/my-autoencoder --repo_id me/f3-autoencoder-my-sounds

`my-sounds` is a folder of sound files, or a dataset of the Hub with a column of audio; no other column is needed. Only
the decoder learns: latents stay what they were, so tokenizers and language models that read them go on working with it.
With `--train_encoder` the encoder learns as well, and whatever reads latents has to be trained anew.
"""

from dataclasses import dataclass, field
from pathlib import Path

from f3_training.autoencoder import AutoencoderArguments
from f3_training.autoencoder_trainer import AutoencoderTrainer
from f3_training.evaluate_reconstruction import public_name
from f3_training.model_card import HEADER, USE_AUTOENCODER, card
from f3_training.publish import publish
from transformers import HfArgumentParser


@dataclass
class Arguments:
    """What this script needs to know beside the options of the training."""

    model: str = field(metadata={"help": "autoencoder to start from: folder or Hub name"})
    repo_id: str | None = field(default=None, metadata={"help": "where to push; without it the result is only checked"})
    licence: str = field(
        default="apache-2.0", metadata={"help": "of what is pushed: that of the recordings may decide it"}
    )
    train_encoder: bool = field(default=False, metadata={"help": "change the latents, too"})


def main(arguments: Arguments, training: AutoencoderArguments) -> None:
    training.init_from = arguments.model
    trainer = AutoencoderTrainer(training)
    if not arguments.train_encoder:
        trainer.updates.autoencoder.encoder.requires_grad_(False)
    model = trainer.train()  # the averaged weights; the trainer has saved them and the feature extractor

    folder = Path(training.output_dir) / "model"
    name = arguments.repo_id or folder.parent.name
    scores = trainer.history[-1] if trainer.history else {}
    figures = ", ".join(f"{score} {value:.3g}" for score, value in scores.items()) or "none"
    learned = "Encoder and decoder" if arguments.train_encoder else "The decoder alone"
    text = card(
        HEADER.format(task="audio-to-audio", name=name, licence=arguments.licence),
        f"The autoencoder `{public_name(arguments.model)}`, fine-tuned on `{public_name(training.dataset)}`.",
        "## Use",
        USE_AUTOENCODER.format(name=name, rate=model.config.sampling_rate, width=model.config.latent_dim),
        "## Training",
        f"{learned} learned, for {trainer.step} steps. Figures on held-out recordings: {figures}.",
        "## Limits",
        "Sounds unlike those it was fine-tuned on may be worse than before.",
    )
    (folder / "README.md").write_text(text, encoding="utf-8")
    print(publish(folder, arguments.repo_id) or folder)


if __name__ == "__main__":
    parser = HfArgumentParser((Arguments, AutoencoderArguments))
    parser.set_defaults(max_steps=2000, decay_steps=1000, learning_rate=3e-4, validation_split="")
    # a network that has been trained already needs no head start
    parser.set_defaults(discriminator_start=0, noise_ramp_steps=0, magnitude_ramp_steps=0)
    main(*parser.parse_args_into_dataclasses())
