"""
Stage 2: teaches the audio language model to transcribe, to speak and to make sounds, with plain `Trainer`.

    python -m f3_training.audio_lm --latents data/latents data/speech-latents --init_from runs/joint/model \\
        --lora_rank 16 --output_dir runs/speaker --max_steps 20000

`--tasks` mixes the tasks of `f3_training.prompts`: a row is used for one of those that fit it, drawn by their weights.
Autoencoder and representation encoder stay as they are. The language model stays frozen, or is adapted by LoRA; the adapter
lies in the resulting folder, `output_dir/model`, and `from_pretrained` puts it on the language model, which is fetched from
where it was. Started again with the same `--output_dir`, it goes on.
"""

from dataclasses import dataclass, field

from .malloc_settings import restart_with_malloc_settings


@dataclass
class AudioLMArguments:
    """Stage 2 of F3."""

    latents: list[str] = field(metadata={"help": "what f3_training.latents_cache wrote, one folder or several"})
    init_from: str = field(metadata={"help": "audio language model of stage 1, or of stage 2 to go on with"})
    output_dir: str = field(metadata={"help": "checkpoints, logs and the resulting model; resumed from when it exists"})
    language_model: str | None = field(
        default=None, metadata={"help": "folder or Hub name, if not the one that the model names"}
    )
    tasks: str = field(
        default='{"transcribe": 1, "speak": 2, "caption": 0.2, "sound": 0.2}',
        metadata={"help": "JSON of tasks and how often each is chosen"},
    )
    voices: str = field(
        default="",
        metadata={"help": "comma-separated sources to learn speaking from, else all; the rest is listened to"},
    )
    word_by_word: bool = field(
        default=False, metadata={"help": "learn to write each word, letter by letter, before saying it"}
    )
    lora_rank: int = field(default=0, metadata={"help": "adapt the language model by LoRA; 0 leaves it frozen"})
    frozen: str = field(
        default="",
        metadata={
            "help": "comma-separated parts to leave as they are, of connector, residual_lm, flow_head, stop_head and "
            "representation_head"
        },
    )
    representation_loss_weight: float | None = field(
        default=None,
        metadata={"help": "of telling the next representations, if not that of the model; 0: without that head"},
    )
    own_history_share: float | None = field(
        default=None,
        metadata={"help": "of speech that is learned after patches of the model's own, if not that of the model"},
    )
    residual_layers: int = field(
        default=0,
        metadata={"help": "of a new residual language model, between language model and flow head; 0: no new one"},
    )
    residual_hidden_size: int = field(default=384, metadata={"help": "width of a new residual language model"})
    flow_hidden_size: int = field(default=256, metadata={"help": "width of a new flow head"})
    flow_layers: int = field(default=3, metadata={"help": "layers of a new flow head"})
    sources: str = field(default="", metadata={"help": "comma-separated, to train on some sources only"})
    languages: str = field(
        default="", metadata={"help": "comma-separated codes, to learn the texts of some languages only"}
    )
    max_seconds: float = field(
        default=10.0, metadata={"help": "longer rows are cut, or left out where a text belongs to the whole"}
    )
    max_steps: int = field(default=10_000, metadata={"help": "length of the schedule"})
    max_minutes: float | None = field(default=None, metadata={"help": "stop this run earlier, to be resumed"})
    batch_size: int = field(default=16, metadata={"help": "rows per process and step"})
    gradient_accumulation_steps: int = 1
    learning_rate: float = 5e-4
    weight_decay: float = 0.01
    warmup_steps: int = 200
    gradient_checkpointing: bool = False
    bf16: bool = True
    evaluation_steps: int = 500
    evaluation_items: int = 64
    logging_steps: int = 20
    seed: int = 0


def train() -> None:
    """Runs as the command line says."""
    from transformers import HfArgumentParser

    from .audio_lm_training import train_audio_lm
    from .processes import leave_together

    (arguments,) = HfArgumentParser(AudioLMArguments).parse_args_into_dataclasses()
    train_audio_lm(arguments)
    leave_together()


if __name__ == "__main__":
    restart_with_malloc_settings("f3_training.audio_lm")
    train()
