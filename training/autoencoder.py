"""
Stage 0: trains the autoencoder on any dataset of sounds.

    python -m f3_training.autoencoder --dataset data/f3mix --output_dir runs/nano --preset nano --max_steps 20000
    torchrun --nproc_per_node 2 -m f3_training.autoencoder ...      # several processes; or `accelerate launch` on GPUs

It stops after `--max_steps`, or earlier after `--max_minutes`, and always leaves `output_dir/model`, a `save_pretrained`
folder with the averaged weights; started again with the same `--output_dir` it goes on where it stopped.
"""

from dataclasses import dataclass, field

from .malloc_settings import restart_with_malloc_settings


@dataclass
class AutoencoderArguments:
    """Stage 0 of F3."""

    dataset: str = field(metadata={"help": "Hub dataset, saved dataset, or folder of sound files"})
    output_dir: str = field(metadata={"help": "checkpoints, logs and the resulting model; resumed from when it exists"})
    dataset_name: str | None = field(default=None, metadata={"help": "configuration of the dataset"})
    train_split: str = "train"
    validation_split: str | None = field(default="validation", metadata={"help": "held-out split, '' for none"})
    source_weights: str = field(
        default="", metadata={"help": "JSON of how often a second of a `source` is drawn, else 1: '{\"wesnoth\": 0.3}'"}
    )
    streaming: bool = field(default=False, metadata={"help": "read the dataset as a stream"})
    preset: str = field(default="base", metadata={"help": "base, s24 or nano"})
    init_from: str | None = field(default=None, metadata={"help": "start from this pretrained autoencoder"})
    freeze_encoder: bool = field(
        default=False, metadata={"help": "train the decoder only, so that latents made before stay valid"}
    )
    drift_weight: float = field(
        default=0.0,
        metadata={
            "help": "of the mean square by which latents leave those of --init_from, for which others were trained"
        },
    )
    recognizer: str | None = field(
        default=None,
        metadata={"help": "Whisper of the Hub or a folder, which is to hear the same words in the reconstruction"},
    )
    loss_weights: str = field(
        default="",
        metadata={"help": 'JSON of those of the losses that are to differ: \'{"loudness": 2, "adversarial": 2}\''},
    )
    noisy_loss_weights: str = field(
        default="",
        metadata={
            "help": "the same of those that are to differ where latents get noise, in full from alpha = 0.5 on; without "
            "adversarial and feature_matching the discriminators are shown all items that get none, and no others"
        },
    )
    max_steps: int = field(default=100_000, metadata={"help": "length of the schedule"})
    max_minutes: float | None = field(default=None, metadata={"help": "stop this run earlier, to be resumed"})
    warmup_steps: int = 200
    decay_steps: int = field(default=0, metadata={"help": "last steps, in which the rate falls linearly to zero"})
    discriminator_start: int = field(default=10_000, metadata={"help": "first step with discriminators"})
    discriminator_every: int = field(default=2, metadata={"help": "steps between updates of the discriminators"})
    noise_ramp_steps: int = field(default=3000, metadata={"help": "steps in which gamma of Eq. 2 rises to its value"})
    magnitude_ramp_steps: int = field(default=2000, metadata={"help": "steps in which losses without phase rise"})
    batch_size: int = field(default=16, metadata={"help": "crops per process"})
    crop_seconds: float = 1.28
    judged_share: float = field(default=0.5, metadata={"help": "share of batch and crop shown to the discriminators"})
    discriminator_channels: int = 16
    learning_rate: float = 2e-3
    discriminator_learning_rate: float = 3e-4
    weight_decay: float = 0.01
    max_grad_norm: float = 50.0
    ema_decay: float = field(default=0.999, metadata={"help": "of the averaged weights, which are the ones kept"})
    mixed_precision: str = field(default="bf16", metadata={"help": "bf16, fp16 or no; losses are always fp32"})
    torch_compile: bool = field(default=False, metadata={"help": "compile the ladders and the spectral losses"})
    logging_steps: int = 10
    evaluation_steps: int = 500
    evaluation_items: int = 16
    save_steps: int = 500
    seed: int = 0


def train() -> None:
    """Runs as the command line says."""
    from transformers import HfArgumentParser

    from .autoencoder_trainer import AutoencoderTrainer
    from .processes import leave_together

    (arguments,) = HfArgumentParser(AutoencoderArguments).parse_args_into_dataclasses()
    AutoencoderTrainer(arguments).train()
    leave_together()


def main() -> None:
    restart_with_malloc_settings("f3_training.autoencoder")
    train()


if __name__ == "__main__":
    main()
