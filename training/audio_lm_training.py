"""What stage 2 is made of: the model with its new parts, what it is judged by, and what is saved."""

import json
from collections import defaultdict
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from datasets import Dataset
from feature_extraction_f3.processing_f3 import F3Processor
from modeling_f3.modeling_audio_lm import F3AudioLMForConditionalGeneration
from safetensors.torch import save_file
from transformers import PreTrainedModel

from .latents_batches import BatchRandomness, TaskMix
from .latents_training import held_out_rows, load_rows, run_trainer
from .model_parts import inner_transformer, learn, with_parts_of
from .prompts import TASKS


if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel


# The layers of the language model, and nothing of the same name elsewhere.
LORA_TARGETS = r"language_model\..*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"
SPEECH_LOSSES = ("flow_loss", "stop_loss", "representation_loss")
# The parts around it that learn, unless they are frozen.
AROUND = ("connector", "residual_lm", "flow_head", "stop_head", "representation_head")


def train_audio_lm(arguments) -> "F3AudioLMForConditionalGeneration | PeftModel":
    """Runs until the schedule ends or the time is over, and leaves `output_dir/model` behind."""
    torch.manual_seed(arguments.seed)
    output_dir, weights = Path(arguments.output_dir), json.loads(arguments.tasks)
    processor = F3Processor.from_pretrained(arguments.init_from)
    processor.word_by_word |= arguments.word_by_word
    model = speaking_model(arguments)
    randomness = BatchRandomness(arguments.seed)
    autoencoder = model.audio_model.autoencoder
    max_frames = int(arguments.max_seconds * autoencoder.config.frame_rate)
    voices = arguments.voices.split(",") if arguments.voices else ()
    mix = TaskMix(processor, weights, max_frames, randomness, voices)
    train, validation = (load_rows(arguments, split, autoencoder, mix.tasks_of) for split in ("train", "validation"))
    held_out = held_out_rows(validation, arguments)
    named = [name for name, weight in weights.items() if weight > 0]
    mixes = {name: TaskMix(processor, {name: 1.0}, max_frames, voices=voices) for name in named}
    frozen = learn({name: getattr(model, name) for name in AROUND}, arguments.frozen)
    trained = model if arguments.lora_rank == 0 else with_lora(model, arguments.lora_rank, frozen)
    trainer = run_trainer(
        trained, arguments, train, mix, randomness,
        lambda model: held_out_losses(model, mixes, held_out, arguments.batch_size), autoencoder.config.frame_rate,
    )  # fmt: skip
    if trainer.is_world_process_zero():
        save(trained, processor, output_dir / "model")
    return trained


def held_out_losses(
    model: PreTrainedModel, mixes: dict[str, TaskMix], rows: Dataset, batch_size: int
) -> dict[str, float]:
    """`TASK_text_loss`, or the losses of speech, `TASK_flow_loss` and so on: means over the rows that fit the task."""
    means = {}
    for name, mix in mixes.items():
        fitting, sums = [row for row in rows if mix.tasks_of(row)], defaultdict(float)
        for start in range(0, len(fitting), batch_size):
            part = fitting[start : start + batch_size]
            with torch.random.fork_rng():
                torch.manual_seed(0)  # the same noise every time
                output = model(**{key: value.to(model.device) for key, value in mix(part).items()})
            for loss in SPEECH_LOSSES if TASKS[name].spoken else ("text_loss",):
                if getattr(output, loss) is not None:
                    sums[loss] += len(part) * getattr(output, loss).item()
        means.update({f"{name}_{loss}": total / len(fitting) for loss, total in sums.items()})
    return means


def speaking_model(arguments) -> F3AudioLMForConditionalGeneration:
    """
    The model of stage 1 with a flow head, a new one if it had none, and without the heads of RQ-MTP. One of stage 2 comes as it
    is, with its adapter. Either gets a residual language model if it is asked for and had none.
    """
    model = F3AudioLMForConditionalGeneration.from_pretrained(
        arguments.init_from, text_model_name_or_path=arguments.language_model
    )
    config, changed = model.config, {}
    if config.code_loss_weight > 0:
        changed["code_loss_weight"] = 0.0
    for name in ("representation_loss_weight", "own_history_share"):
        if getattr(arguments, name) is not None:
            changed[name] = getattr(arguments, name)
    if config.flow_config is None:
        changed["flow_config"] = {
            "latent_dim": config.audio_config.autoencoder_config.latent_dim,
            "condition_size": config.text_config.hidden_size,
            "representation_size": config.connector_hidden_size,
            "hidden_size": arguments.flow_hidden_size,
            "intermediate_size": 3 * arguments.flow_hidden_size,
            "num_hidden_layers": arguments.flow_layers,
            "num_attention_heads": max(1, arguments.flow_hidden_size // 64),
        }
    if config.residual_config is None and arguments.residual_layers:
        changed["residual_config"] = inner_transformer(
            arguments.residual_hidden_size, arguments.residual_layers, config.text_config.max_position_embeddings
        )
    if changed:
        with_parts_of(model, **changed)
    model.audio_model.requires_grad_(False)
    if model.listener is not None:
        model.listener.requires_grad_(False)  # what it learns from is not among these tasks
    return model


def with_lora(model: F3AudioLMForConditionalGeneration, rank: int, frozen: Collection[str] = ()) -> "PeftModel":
    """
    The model as a `PeftModel` that trains an adapter of its language model, the one that it was loaded with or else a new one
    of `rank`, and the parts around it in whole, but for `frozen` ones.
    """
    from peft import LoraConfig, get_peft_model

    config, weights = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=LORA_TARGETS), {}
    if model._hf_peft_config_loaded:
        config, weights = taken_out(model)
    adapted = get_peft_model(
        model, replace(config, modules_to_save=[name for name in AROUND if name not in frozen], inference_mode=False)
    )
    adapted.load_state_dict(weights, strict=False)
    return adapted


def taken_out(model: F3AudioLMForConditionalGeneration) -> "tuple[LoraConfig, dict[str, torch.Tensor]]":
    """The adapter that a model was loaded with, its weights named as a `PeftModel` names them; the model is left without."""
    (config,) = model.peft_config.values()
    weights = {f"base_model.model.{name}": weight for name, weight in model.state_dict().items() if ".lora_" in name}
    model.take_off_adapter()
    return config, weights


def save(trained: "F3AudioLMForConditionalGeneration | PeftModel", processor: F3Processor, folder: Path) -> None:
    """
    A folder that `from_pretrained` opens as it is. An adapter lies in it beside the parts around the language model, which is
    fetched from where it was and then gets the adapter. What was trained is left without one.
    """
    if isinstance(trained, F3AudioLMForConditionalGeneration):
        trained.save_pretrained(folder)
    else:
        from peft import get_peft_model_state_dict

        (config,) = trained.peft_config.values()
        adapter = {name: weight for name, weight in get_peft_model_state_dict(trained).items() if ".lora_" in name}
        trained.unload().save_pretrained(folder)  # with the parts that were trained in whole
        save_file({name: weight.contiguous() for name, weight in adapter.items()}, folder / "adapter_model.safetensors")
        replace(config, modules_to_save=None, base_model_name_or_path=None, inference_mode=True).save_pretrained(folder)
    processor.save_pretrained(folder)
