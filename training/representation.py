"""
Stage 1: trains the representation encoder on the latents of a frozen autoencoder, with plain `Trainer`.

    python -m f3_training.representation --latents data/latents --autoencoder model_cards/f3-autoencoder-nano-16khz \\
        --preset nano --output_dir runs/rq --max_steps 4000                     # RQ-MTP alone (Eq. 5)
    python -m f3_training.representation --latents data/latents --init_from runs/rq/model --language_model data/smollm2 \\
        --output_dir runs/joint --max_steps 3000                                # with a frozen language model (Eq. 7)

Without a language model the result, `output_dir/model`, is an [`F3ForPreTraining`]; with one it is an
[`F3AudioLMForConditionalGeneration`] that refers to the language model, and the tokenizer lies in `output_dir/tokenizer`.
Started again with the same `--output_dir`, it goes on where it stopped.

On small machines it pays to begin with helpers, CTC on letters and on the language model's tokens: at `--text_loss_weight 0` the
language model is not run, which is several times as fast, and a second run with `--init_from` its result goes on with it.
"""

from dataclasses import dataclass, field

from .malloc_settings import restart_with_malloc_settings


@dataclass
class RepresentationArguments:
    """Stage 1 of F3."""

    latents: list[str] = field(metadata={"help": "what f3_training.latents_cache wrote, one folder or several"})
    output_dir: str = field(metadata={"help": "checkpoints, logs and the resulting model; resumed from when it exists"})
    autoencoder: str | None = field(default=None, metadata={"help": "start with this autoencoder and a new encoder"})
    init_from: str | None = field(default=None, metadata={"help": "or from this tokenizer or audio language model"})
    former_latents: list[str] = field(
        default_factory=list,
        metadata={
            "help": "with both of these: latents of the same rows by the former autoencoder of the model, whose encoder learns to "
            "hear in those of the new one what it heard in them"
        },
    )
    preset: str = field(default="nano", metadata={"help": "size of a new encoder: base or nano"})
    language_model: str | None = field(default=None, metadata={"help": "frozen language model to learn from as well"})
    text_loss_weight: float = field(
        default=1.0, metadata={"help": "of the language model's loss; at zero it is not run"}
    )
    code_loss_weight: float = field(
        default=1.0, metadata={"help": "of RQ-MTP beside a language model or letters; at zero it is left out"}
    )
    letter_loss_weight: float = field(
        default=0.0,
        metadata={"help": "of CTC on the letters of the texts, by a head that is thrown away, or by the listener"},
    )
    token_loss_weight: float = field(
        default=0.0, metadata={"help": "of CTC on the language model's tokens, a helper of the connector"}
    )
    listener_layers: int = field(
        default=0,
        metadata={"help": "of a new listener, which hears the letters of what is said; 0: no new one"},
    )
    listener_hidden_size: int = field(default=384, metadata={"help": "width of a new listener"})
    frozen: str = field(
        default="",
        metadata={
            "help": "comma-separated parts of an audio language model to leave as they are, of encoder, connector, listener "
            "and prediction"
        },
    )
    tasks: str = field(
        default='{"transcribe": 1, "caption": 1, "kind": 0.2}',
        metadata={"help": "JSON of tasks for the language model and how often each is chosen"},
    )
    connector_hidden_size: int = 1024
    sources: str = field(default="", metadata={"help": "comma-separated, to train on some sources only"})
    languages: str = field(
        default="", metadata={"help": "comma-separated codes, to learn the texts of some languages only"}
    )
    max_seconds: float = field(
        default=10.0, metadata={"help": "longer rows are cut, or left out where a text belongs to the whole"}
    )
    max_steps: int = field(default=4000, metadata={"help": "length of the schedule"})
    max_minutes: float | None = field(default=None, metadata={"help": "stop this run earlier, to be resumed"})
    batch_size: int = field(default=32, metadata={"help": "rows per process and step"})
    gradient_accumulation_steps: int = 1
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    warmup_steps: int = 200
    gradient_checkpointing: bool = False
    bf16: bool = True
    evaluation_steps: int = 500
    evaluation_items: int = 256
    logging_steps: int = 20
    seed: int = 0


def train() -> None:
    """Runs as the command line says."""
    from transformers import HfArgumentParser

    from .processes import leave_together
    from .representation_training import train_representation

    (arguments,) = HfArgumentParser(RepresentationArguments).parse_args_into_dataclasses()
    train_representation(arguments)
    leave_together()


if __name__ == "__main__":
    restart_with_malloc_settings("f3_training.representation")
    train()
