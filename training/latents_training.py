"""What stages 1 and 2 share: `Trainer` on cached latents, for a given time, judged by held-out rows."""

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset, List, Value, concatenate_datasets
from modeling_f3.modeling_autoencoder import F3AutoencoderModel
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.utils.data import Sampler
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from .latents_batches import BatchRandomness
from .latents_cache import load_latents, splits_in
from .machine import in_bf16, machine
from .malloc_settings import give_free_memory_back


WORD_ENDS = List(Value("float32"))
STEPS_BETWEEN_TRIMS = 5
COLUMNS = ("latents", "frames", "kind", "language", "text", "word_ends", "caption", "source")


class TimeBudget(TrainerCallback):
    """Saves and stops when the time is over."""

    def __init__(self, max_minutes: float | None):
        self.deadline = None if max_minutes is None else time.monotonic() + 60 * max_minutes

    def on_step_end(self, args, state, control, **kwargs):
        if self.deadline is not None and time.monotonic() >= self.deadline:
            control.should_save = control.should_training_stop = True


class FreeMemory(TrainerCallback):
    """Gives memory back now and then: holes between tensors add up, and looking for them at every step would take time."""

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step % STEPS_BETWEEN_TRIMS == 0:
            give_free_memory_back()


class HeldOutHistory(TrainerCallback):
    """
    Scores a model before the first step and whenever `Trainer` saves. The scores go where `Trainer` logs, as `eval_...`, and
    all of them so far into a file, beside the minutes that the steps took and the hours of audio they learned from.

    Args:
        score: means over held-out rows, by name.
        log: of the `Trainer`.
        frame_rate: of the latents.
        path: the file.
    """

    def __init__(
        self,
        score: Callable[[PreTrainedModel], dict[str, float]],
        log: Callable[[dict[str, float]], None],
        frame_rate: float,
        path: Path,
    ):
        self.score, self.log, self.frame_rate, self.path = score, log, frame_rate, path
        self.history: list[dict] = json.loads(path.read_text()) if path.is_file() else []
        self.hook, self.since = None, time.monotonic()
        self.minutes = self.audio_hours = 0.0

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        self.history = [row for row in self.history if row["step"] <= state.global_step]
        if self.history:
            self.minutes, self.audio_hours = self.history[-1]["minutes"], self.history[-1]["audio_hours"]
        frames_per_hour = 3600 * self.frame_rate / args.world_size

        def count(module, inputs: tuple, options: dict) -> None:
            if module.training:
                self.audio_hours += int(options["latents_mask"].sum()) / frames_per_hour

        self.hook = model.register_forward_pre_hook(count, with_kwargs=True)
        if state.global_step == 0:
            self._add(args, state, model)
        self.since = time.monotonic()

    def on_step_end(self, args, state, control, **kwargs):
        now = time.monotonic()
        self.minutes, self.since = self.minutes + (now - self.since) / 60, now

    def on_save(self, args, state, control, model=None, **kwargs):
        self._add(args, state, model)
        self.since = time.monotonic()

    def on_train_end(self, args, state, control, **kwargs):
        self.hook.remove()

    def _add(self, args, state, model: PreTrainedModel) -> None:
        """By every process, though one of them writes: where weights are sharded, none can do without the others."""
        if self.history and self.history[-1]["step"] == state.global_step:
            return
        was_training = model.training
        model.eval()
        with torch.no_grad(), torch.autocast(args.device.type, torch.bfloat16, args.bf16):
            scores = self.score(model)
        model.train(was_training)
        paid = {"step": state.global_step, "minutes": self.minutes, "audio_hours": self.audio_hours}
        self.history.append({**paid, **scores})
        if state.is_world_process_zero:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_text(json.dumps(self.history, indent=2))
        self.log({f"eval_{name}": value for name, value in scores.items()})


class LatentsTrainer(Trainer):
    """`Trainer`, but for how it reads the lengths of rows: it asks `datasets` for one at a time, a minute for 100,000."""

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler:
        sampler = super()._get_train_sampler(train_dataset)
        sampler.lengths = sampler.lengths[:]  # of a lazy column, all at once
        return sampler


def run_trainer(
    model: PreTrainedModel,
    arguments,
    rows: Dataset,
    collator,
    randomness: BatchRandomness,
    score: Callable,
    frame_rate: float,
    optimizer: torch.optim.Optimizer | None = None,
) -> Trainer:
    """
    Trains until the schedule ends or the time is over, from the last checkpoint if there is one. The process that writes
    leaves `output_dir/training.json`: arguments, machine, steps, and the scores by step. The optimizer is AdamW unless another
    is given.
    """
    arguments = replace(arguments, bf16=in_bf16(arguments.bf16))
    output_dir = Path(arguments.output_dir)
    language_model = getattr(model, "language_model", None)
    if language_model is not None and not torch.cuda.is_available():
        # sentences are short, and on processors the backward pass of fused attention takes longer than all it saves
        language_model.set_attn_implementation("eager")
    trainer = LatentsTrainer(
        model=model,
        args=trainer_arguments(arguments),
        train_dataset=rows,
        data_collator=collator,
        callbacks=[TimeBudget(arguments.max_minutes), FreeMemory(), randomness],
        optimizers=(optimizer, None),
    )
    held_out = HeldOutHistory(score, trainer.log, frame_rate, output_dir / "history.json")
    trainer.add_callback(held_out)
    trainer.train(resume_from_checkpoint=last_checkpoint(output_dir))
    gather_weights(trainer.model)
    if trainer.is_world_process_zero():
        record = {"arguments": vars(arguments), **machine(), "steps": trainer.state.global_step}
        record["history"] = held_out.history
        (output_dir / "training.json").write_text(json.dumps(record, indent=2))
    return trainer


def gather_weights(model: nn.Module) -> None:
    """
    Makes the model what it was before FSDP sharded it over the processes, all of which call this, with whole weights to be
    saved. Others are left as they are.
    """
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()  # else it puts its shards back when it is asked for its weights
            module.__class__ = type(module).__bases__[1]
    for module in model.modules():
        for name, weight in list(module.named_parameters(recurse=False)):
            if isinstance(weight, DTensor):
                setattr(module, name, nn.Parameter(weight.full_tensor(), weight.requires_grad))


def last_checkpoint(output_dir: Path) -> str | None:
    """The folder to resume from."""
    return get_last_checkpoint(str(output_dir)) if output_dir.is_dir() else None


def trainer_arguments(arguments) -> TrainingArguments:
    """Nothing that `Trainer` does not offer to everybody."""
    return TrainingArguments(
        output_dir=arguments.output_dir,
        max_steps=arguments.max_steps,
        per_device_train_batch_size=arguments.batch_size,
        gradient_accumulation_steps=arguments.gradient_accumulation_steps,
        learning_rate=arguments.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=arguments.warmup_steps,
        weight_decay=arguments.weight_decay,
        adam_beta2=0.95,
        max_grad_norm=1.0,
        bf16=arguments.bf16,
        use_cpu=not torch.cuda.is_available(),
        gradient_checkpointing=arguments.gradient_checkpointing,
        train_sampling_strategy="group_by_length",
        length_column_name="frames",
        remove_unused_columns=False,  # the collators choose
        logging_steps=arguments.logging_steps,
        eval_strategy="no",  # `HeldOutHistory` tells more than a mean loss
        save_steps=arguments.evaluation_steps,
        save_total_limit=1,
        report_to="tensorboard",
        seed=arguments.seed,
    )


def load_rows(
    arguments, split: str, autoencoder: F3AutoencoderModel, fits: Callable[[dict], bool] | None = None
) -> Dataset:
    """
    The rows of all `arguments.latents`, of the chosen sources, with `COLUMNS`, without texts in other languages than the chosen
    ones. With `fits`, only those that it accepts: it is shown all but the latents.

    Raises:
        `LatentsCacheError`: for latents of another autoencoder.
        `ValueError`: when no row is left.
    """
    # some folders may be for training alone; where none has the split, the first one says so
    folders = arguments.latents
    if split != "train":
        folders = [folder for folder in folders if split in splits_in(folder)] or folders[:1]
    parts = [load_latents(folder, split, autoencoder).with_format(None) for folder in folders]
    rows = concatenate_datasets([described(part) for part in parts])
    if arguments.languages:
        known = np.isin(rows["language"], arguments.languages.split(","))
        rows = rows.remove_columns("text").add_column("text", np.where(known, rows["text"], "").tolist())
    kept = np.ones(len(rows), dtype=bool)
    if arguments.sources:
        kept &= np.isin(rows["source"], arguments.sources.split(","))
    if fits is not None:
        kept &= [bool(fits(row)) for row in rows.remove_columns("latents")]
    if not kept.any():
        raise ValueError(
            f"no row of {', '.join(arguments.latents)}, split {split}, is left: check --sources, --languages, --max_seconds and "
            "--tasks; tasks of speech need columns `text` and `language`, a code of f3_training.prompts"
        )
    return rows.select(np.flatnonzero(kept)).with_format("numpy", columns=["latents"], output_all_columns=True)


def described(rows: Dataset) -> Dataset:
    """`COLUMNS` alone. What the dataset does not say is empty, but that a row with a text is speech."""
    for name in ("text", "kind", "language", "caption", "source"):
        if name not in rows.column_names:
            known = ["speech" if text else "" for text in rows["text"]] if name == "kind" else [""] * len(rows)
            rows = rows.add_column(name, known)
    if rows.features.get("word_ends") != WORD_ENDS:  # none, or in another precision
        known = rows["word_ends"][:] if "word_ends" in rows.column_names else [[]] * len(rows)
        others = rows.select_columns([name for name in rows.column_names if name != "word_ends"])
        rows = others.add_column("word_ends", known, feature=WORD_ENDS)
    return rows.select_columns(list(COLUMNS))


def held_out_rows(rows: Dataset, arguments) -> Dataset:
    """The same random ones every time, by length."""
    return rows.shuffle(arguments.seed).select(range(min(arguments.evaluation_items, len(rows)))).sort("frames")
