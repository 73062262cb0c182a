"""What stage 1 is made of: the model, its data, and what `Trainer` is told."""

import json
import time
from pathlib import Path

import numpy as np
import torch
from configuration_f3.configuration_f3 import F3Config
from datasets import Dataset
from feature_extraction_f3.feature_extraction_f3 import F3FeatureExtractor
from feature_extraction_f3.processing_f3 import F3Processor
from modeling_f3.modeling_audio_lm import F3AudioLMForConditionalGeneration
from modeling_f3.modeling_autoencoder import F3AutoencoderModel
from modeling_f3.modeling_f3 import F3ForPreTraining
from transformers import AutoTokenizer, PreTrainedModel, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from .latents_cache import latents_of, load_latents
from .prompts import task_of
from .representation_batches import BatchRandomness, LatentsCollator, QuestionCollator
from .representation_report import HeldOutReport


CALIBRATION_FRAMES = 90_000  # an hour, for the statistics of the quantiser


class TimeBudget(TrainerCallback):
    """Saves and stops when the time is over."""

    def __init__(self, max_minutes: float | None):
        self.deadline = None if max_minutes is None else time.monotonic() + 60 * max_minutes

    def on_step_end(self, args, state, control, **kwargs):
        if self.deadline is not None and time.monotonic() >= self.deadline:
            control.should_save = control.should_training_stop = True


def train_representation(arguments) -> PreTrainedModel:
    """Runs until the schedule ends or the time is over, and leaves `output_dir/model` behind."""
    torch.manual_seed(arguments.seed)
    output_dir = Path(arguments.output_dir)
    model, processor = initial_model(arguments)
    tokenizer = model.model if processor is None else model.audio_model
    autoencoder = tokenizer.autoencoder
    frame_rate = autoencoder.config.frame_rate
    splits = {
        split: rows_for(arguments, split, autoencoder, frame_rate, with_answers=processor is not None)
        for split in ("train", "validation")
    }
    if (
        model.prediction is not None
        and not model.prediction.quantizer.is_calibrated
        and not last_checkpoint(output_dir)
    ):
        calibrate(model, splits["train"], arguments.seed)
    held_out = splits["validation"].shuffle(arguments.seed)
    held_out = held_out.select(range(min(arguments.evaluation_items, len(held_out)))).sort("frames")
    randomness = BatchRandomness(arguments.seed)
    if processor is None:
        max_frames = int(arguments.max_seconds * frame_rate)
        collators = LatentsCollator(max_frames, randomness), LatentsCollator(max_frames)
    else:
        collators = QuestionCollator(processor, randomness), QuestionCollator(processor)
    report = HeldOutReport(collators[1], held_out, arguments.batch_size, output_dir / "history.json")
    trainer = Trainer(
        model=model,
        args=trainer_arguments(arguments),
        train_dataset=splits["train"],
        data_collator=collators[0],
        callbacks=[TimeBudget(arguments.max_minutes), randomness, report],
    )
    trainer.train(resume_from_checkpoint=last_checkpoint(output_dir))
    if trainer.is_world_process_zero():
        save(model, processor, output_dir)
        record = {"arguments": vars(arguments), "steps": trainer.state.global_step, "history": report.history}
        (output_dir / "training.json").write_text(json.dumps(record, indent=2))
    return model


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
        eval_strategy="no",  # `HeldOutReport` tells more than a mean loss
        save_steps=arguments.evaluation_steps,
        save_total_limit=1,
        report_to="tensorboard",
        seed=arguments.seed,
    )


def initial_model(arguments) -> tuple[PreTrainedModel, F3Processor | None]:
    """The model to be trained, and a processor when a language model takes part."""
    if (arguments.autoencoder is None) == (arguments.init_from is None):
        raise ValueError("pass either --autoencoder, for a new encoder, or --init_from, a tokenizer to go on with")
    if arguments.language_model is None:
        return _tokenizer(arguments), None
    if arguments.init_from is None:
        raise ValueError("a language model joins a tokenizer: train RQ-MTP first and pass its model as --init_from")
    tokenizer = AutoTokenizer.from_pretrained(arguments.language_model)
    config = F3Config.from_pretrained(arguments.init_from)
    feature_extractor = F3FeatureExtractor(sampling_rate=config.sampling_rate)
    processor = F3Processor(feature_extractor, tokenizer, hop_length=config.autoencoder_config.hop_length)
    model = F3AudioLMForConditionalGeneration.from_audio_text_pretrained(
        arguments.init_from,
        arguments.language_model,
        text_loss_weight=arguments.text_loss_weight,
        code_loss_weight=arguments.code_loss_weight,
        connector_hidden_size=arguments.connector_hidden_size,
        **processor.token_ids,
    )
    return model, processor


def _tokenizer(arguments) -> F3ForPreTraining:
    if arguments.init_from is not None:
        return F3ForPreTraining.from_pretrained(arguments.init_from)
    autoencoder = F3AutoencoderModel.from_pretrained(arguments.autoencoder)
    model = F3ForPreTraining(F3Config.preset(arguments.preset, autoencoder_config=autoencoder.config))
    model.model.autoencoder.load_state_dict(autoencoder.state_dict())
    return model


def rows_for(arguments, split: str, autoencoder: F3AutoencoderModel, frame_rate: float, with_answers: bool) -> Dataset:
    """The rows of a split that can be learned from: of the chosen sources and, for questions, with an answer and in length."""
    rows = load_latents(arguments.latents, split, autoencoder)
    kept = np.ones(len(rows), dtype=bool)
    if arguments.sources:
        kept &= np.isin(rows["source"], arguments.sources.split(","))
    if with_answers:
        labels = rows.select_columns(["kind", "language", "text", "caption"])
        kept &= [task_of(row) is not None for row in labels]
        kept &= np.asarray(rows["frames"]) <= arguments.max_seconds * frame_rate
    if not kept.any():
        raise ValueError(
            f"no row of {arguments.latents}, split {split}, is left to learn from: check --sources and --max_seconds"
        )
    return rows.select(np.flatnonzero(kept))


def calibrate(model: PreTrainedModel, rows: Dataset, seed: int) -> None:
    """Gives the quantiser the statistics of the training latents."""
    frames, drawn = 0, []
    for row in rows.shuffle(seed):
        drawn.append(torch.as_tensor(latents_of(row)))
        frames += len(drawn[-1])
        if frames >= CALIBRATION_FRAMES:
            break
    model.prediction.quantizer.calibrate(torch.cat(drawn))


def save(model: PreTrainedModel, processor: F3Processor | None, output_dir: Path) -> None:
    """`model`, with its feature extractor or processor; of an audio language model also the tokenizer, as `tokenizer`."""
    model.save_pretrained(output_dir / "model")
    feature_extractor = F3FeatureExtractor(sampling_rate=model.config.sampling_rate)
    (processor or feature_extractor).save_pretrained(output_dir / "model")
    if processor is not None:
        tokenizer = F3ForPreTraining(model.config.audio_config)
        tokenizer.model.load_state_dict(model.audio_model.state_dict())
        if model.prediction is not None:
            tokenizer.prediction.load_state_dict(model.prediction.state_dict())
        tokenizer.save_pretrained(output_dir / "tokenizer")
        feature_extractor.save_pretrained(output_dir / "tokenizer")
