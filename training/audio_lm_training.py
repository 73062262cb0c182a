"""What stage 2 is made of: the model with its new parts, the mixture of tasks, and what `Trainer` is told."""

import json
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from configuration_f3.configuration_audio_lm import F3AudioLMConfig
from datasets import Dataset, concatenate_datasets
from feature_extraction_f3.processing_f3 import F3Processor
from modeling_f3.modeling_audio_lm import F3AudioLMForConditionalGeneration
from transformers import PreTrainedModel, Trainer, TrainerCallback

from .latents_cache import latents_of, load_latents
from .prompts import SOUND, SPEAK, TASKS, Task, asked
from .representation_batches import BatchRandomness
from .representation_training import TimeBudget, last_checkpoint, trainer_arguments


ALL_TASKS = {task.name: task for task in (*TASKS, SPEAK, SOUND)}
COLUMNS = ("latents", "frames", "kind", "language", "text", "caption", "source")
# The attention of the language model, and nothing of the same name elsewhere.
LORA_TARGETS = r"language_model\..*\.(q_proj|k_proj|v_proj|o_proj)"
TRAINED_ANYWAY = ("connector", "flow_head", "stop_head")


class TaskMix:
    """
    Collates rows of latents to questions and answers: one task for each row, drawn by weight among those that fit it.
    Without `randomness`, the first that fits, in its first wording.
    """

    def __init__(self, processor: F3Processor, weights: dict[str, float], randomness: BatchRandomness | None = None):
        unknown = sorted(weights.keys() - ALL_TASKS.keys())
        if unknown:
            raise ValueError(f"unknown tasks {', '.join(unknown)}: choose from {', '.join(ALL_TASKS)}")
        self.processor, self.randomness = processor, randomness
        self.weights = {ALL_TASKS[name]: weight for name, weight in weights.items() if weight > 0}

    def tasks_of(self, row: dict) -> list[Task]:
        return [task for task in self.weights if task.text(row).strip()]

    def __call__(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        generator = self.randomness and self.randomness.generator()
        conversations = []
        for row in rows:
            task = self.task_for(row, generator)
            choice = int(torch.randint(2**16, (), generator=generator)) if generator is not None else 0
            conversations.append(asked(task, row, latents_of(row), choice))
        return dict(self.processor.apply_chat_template(conversations, return_labels=True))

    def task_for(self, row: dict, generator: torch.Generator | None) -> Task:
        """One of `tasks_of(row)`."""
        fitting = self.tasks_of(row)
        if generator is None:
            return fitting[0]
        weights = torch.tensor([float(self.weights[task]) for task in fitting])
        return fitting[int(torch.multinomial(weights, 1, generator=generator))]


class HeldOutLosses(TrainerCallback):
    """The losses of each task on held-out rows, whenever `Trainer` saves, kept as a history."""

    def __init__(self, processor: F3Processor, weights: dict[str, float], rows: Dataset, batch_size: int, path: Path):
        self.mixes = {name: TaskMix(processor, {name: 1.0}) for name, weight in weights.items() if weight > 0}
        self.rows, self.batch_size, self.path = rows, batch_size, path
        self.history: list[dict] = json.loads(path.read_text()) if path.is_file() else []

    def on_save(self, args, state, control, model=None, **kwargs):
        if not state.is_world_process_zero or (self.history and self.history[-1]["step"] >= state.global_step):
            return
        self.history.append({"step": state.global_step, **self.scores(model)})
        self.path.write_text(json.dumps(self.history, indent=2))
        print("held-out " + json.dumps(self.history[-1]), flush=True)

    @torch.inference_mode()
    def scores(self, model: PreTrainedModel) -> dict[str, float]:
        """`TASK_text_loss`, or `TASK_flow_loss` and `TASK_stop_loss`, means over the rows that fit the task."""
        was_training, sums, counts = model.training, defaultdict(float), defaultdict(int)
        model.eval()
        for name, mix in self.mixes.items():
            fitting = [row for row in self.rows if mix.tasks_of(row)]
            for start in range(0, len(fitting), self.batch_size):
                part = fitting[start : start + self.batch_size]
                with torch.random.fork_rng(), torch.autocast(model.device.type, torch.bfloat16):
                    torch.manual_seed(0)  # the same noise every time
                    output = model(**{key: value.to(model.device) for key, value in mix(part).items()})
                names = ("flow_loss", "stop_loss") if ALL_TASKS[name].spoken else ("text_loss",)
                for loss in names:
                    sums[f"{name}_{loss}"] += len(part) * getattr(output, loss).item()
                    counts[f"{name}_{loss}"] += len(part)
        model.train(was_training)
        return {name: round(total / counts[name], 4) for name, total in sums.items()}


def train_audio_lm(arguments) -> F3AudioLMForConditionalGeneration:
    """Runs until the schedule ends or the time is over, and leaves `output_dir/model` behind."""
    torch.manual_seed(arguments.seed)
    output_dir, weights = Path(arguments.output_dir), json.loads(arguments.tasks)
    processor = F3Processor.from_pretrained(arguments.init_from)
    model = speaking_model(arguments)
    randomness = BatchRandomness(arguments.seed)
    mix = TaskMix(processor, weights, randomness)
    splits = {split: rows_for(arguments, split, model, mix) for split in ("train", "validation")}
    held_out = splits["validation"].shuffle(arguments.seed)
    held_out = held_out.select(range(min(arguments.evaluation_items, len(held_out))))
    trained = model if arguments.lora_rank == 0 else with_lora(model, arguments.lora_rank)
    report = HeldOutLosses(processor, weights, held_out, arguments.batch_size, output_dir / "history.json")
    trainer = Trainer(
        model=trained,
        args=trainer_arguments(arguments),
        train_dataset=splits["train"],
        data_collator=mix,
        callbacks=[TimeBudget(arguments.max_minutes), randomness, report],
    )
    trainer.train(resume_from_checkpoint=last_checkpoint(output_dir))
    if trainer.is_world_process_zero():
        if arguments.lora_rank > 0:
            trained.save_pretrained(output_dir / "adapter")
            model = trained.merge_and_unload()
            model.config.save_language_model = True  # it is no longer the one to be fetched
        model.save_pretrained(output_dir / "model")
        processor.save_pretrained(output_dir / "model")
        record = {"arguments": vars(arguments), "steps": trainer.state.global_step, "history": report.history}
        (output_dir / "training.json").write_text(json.dumps(record, indent=2))
    return model


def speaking_model(arguments) -> F3AudioLMForConditionalGeneration:
    """The model of stage 1 with a flow head, a new one if it had none, and without the heads of RQ-MTP."""
    listener = F3AudioLMForConditionalGeneration.from_pretrained(arguments.init_from)
    values = {**listener.config.to_dict(), "code_loss_weight": 0.0}
    if values["flow_config"] is None:
        values["flow_config"] = {
            "latent_dim": listener.config.audio_config.autoencoder_config.latent_dim,
            "condition_size": listener.config.text_config.hidden_size,
            "representation_size": listener.config.connector_hidden_size,
            "hidden_size": arguments.flow_hidden_size,
            "intermediate_size": 3 * arguments.flow_hidden_size,
            "num_hidden_layers": arguments.flow_layers,
            "num_attention_heads": max(1, arguments.flow_hidden_size // 64),
        }
    model = F3AudioLMForConditionalGeneration(F3AudioLMConfig(**values))
    kept = {name: weight for name, weight in listener.state_dict().items() if not name.startswith("prediction.")}
    model.load_state_dict(kept, strict=False)
    model.generation_config = listener.generation_config
    model.audio_model.requires_grad_(False)
    return model


def with_lora(model: F3AudioLMForConditionalGeneration, rank: int):
    """The model as a `PeftModel` that trains an adapter of its language model, and the parts around it in whole."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=LORA_TARGETS, modules_to_save=list(TRAINED_ANYWAY))
    return get_peft_model(model, config)


def rows_for(arguments, split: str, model: F3AudioLMForConditionalGeneration, mix: TaskMix) -> Dataset:
    """The rows of a split that fit a task and are not too long."""
    autoencoder = model.audio_model.autoencoder
    parts = [load_latents(folder, split, autoencoder).select_columns(list(COLUMNS)) for folder in arguments.latents]
    rows = concatenate_datasets([part.with_format(None) for part in parts])
    kept = np.asarray(rows["frames"]) <= arguments.max_seconds * autoencoder.config.frame_rate
    if arguments.sources:
        kept &= np.isin(rows["source"], arguments.sources.split(","))
    kept &= [bool(mix.tasks_of(row)) for row in rows.remove_columns("latents")]
    if not kept.any():
        raise ValueError(
            f"no row of {', '.join(arguments.latents)}, split {split}, fits a task: check --tasks and --sources"
        )
    return rows.select(np.flatnonzero(kept)).with_format("numpy", columns=["latents"], output_all_columns=True)
