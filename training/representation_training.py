"""What stage 1 is made of: the model, its data, and what is saved."""

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from configuration_f3.configuration_audio_lm import F3AudioLMConfig
from configuration_f3.configuration_f3 import F3Config
from datasets import Dataset
from feature_extraction_f3.feature_extraction_f3 import F3FeatureExtractor
from feature_extraction_f3.processing_f3 import F3Processor
from modeling_f3.listener import LETTERS
from modeling_f3.modeling_audio_lm import F3AudioLMForConditionalGeneration
from modeling_f3.modeling_autoencoder import F3AutoencoderModel
from modeling_f3.modeling_f3 import F3ForPreTraining, F3Model
from torch import nn
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel, Trainer

from .ctc_helpers import FILLER, CTCCollator, CTCHelper, CTCUnits, TokensHelper, spelled
from .following import FORMER, Following, PairsCollator, exchange_autoencoder, paired, read_estimates
from .helper import Helper
from .latents_batches import BatchRandomness, LatentsCollator, TaskMix
from .latents_cache import load_autoencoder
from .latents_training import held_out_rows, last_checkpoint, load_rows, run_trainer
from .model_parts import inner_transformer, learn, with_parts_of
from .muon import MuonWithAdamW, hidden_matrices
from .representation_report import held_out_scores


# first and last layers
ENDS = ("projection", "prediction", "representations", "latents", "letters", "letters_head", "tokens_head")
AROUND = ("connector", "listener", "prediction")  # what stage 1 trains beside the encoder, unless it is frozen
STATISTICS_FRAMES = 90_000  # an hour, for the quantiser and for what following begins with


def train_representation(arguments) -> PreTrainedModel:
    """Runs until the schedule ends or the time is over, and leaves `output_dir/model` behind."""
    torch.manual_seed(arguments.seed)
    model, processor = initial_model(arguments)
    if teach(model, processor, arguments).is_world_process_zero():
        save(model, processor, Path(arguments.output_dir))
    return model


def teach(model: PreTrainedModel, processor: F3Processor | None, arguments) -> Trainer:
    """Trains what of the model is not frozen, with the helpers that have a weight, which are gone afterwards."""
    output_dir = Path(arguments.output_dir)
    tokenizer = model.model if processor is None else model.audio_model
    autoencoder = tokenizer.autoencoder
    max_frames = int(arguments.max_seconds * autoencoder.config.frame_rate)
    randomness = BatchRandomness(arguments.seed)
    speaks = getattr(model, "flow_head", None) is not None
    former = None
    if arguments.former_latents:
        former = exchange_autoencoder(tokenizer, load_autoencoder(arguments.autoencoder), keep_decoder=speaks)
    if reads_audio(arguments, processor):
        tasks = json.loads(arguments.tasks)
        collator, held_out_collator = (TaskMix(processor, tasks, max_frames, drawn) for drawn in (randomness, None))
        fits = collator.tasks_of
    else:
        collator, held_out_collator = (LatentsCollator(max_frames, drawn) for drawn in (randomness, None))
        fits = None
    train, validation = (rows_of(arguments, split, tokenizer, former, fits) for split in ("train", "validation"))
    if not last_checkpoint(output_dir):
        if former is not None and not speaks:  # what speaks has to hear both kinds of latents
            read_estimates(model, tokenizer, *some_frames(train, arguments.seed, "latents", FORMER))
        if model.prediction is not None and not model.prediction.quantizer.is_calibrated:
            calibrate(model, train, arguments.seed)
    held_out = held_out_rows(validation, arguments)
    helpers = ctc_helpers(model, processor, arguments, train["text"], max_frames)
    if former is not None:
        helpers.append((PairsCollator, Following(model, tokenizer, former, speaks)))
    for adding, _ in helpers:
        collator, held_out_collator = adding(collator), adding(held_out_collator)

    def score(model: PreTrainedModel) -> dict[str, float]:
        losses = [name for _, helper in helpers for name in helper.loss_names]
        return held_out_scores(model, held_out_collator, held_out, arguments.batch_size, losses)

    # On letters, 83 steps of Muon were worth 260 of AdamW.
    optimizer = MuonWithAdamW(
        *hidden_matrices(model, ENDS), arguments.learning_rate, betas=(0.9, 0.95), weight_decay=arguments.weight_decay
    )
    frame_rate = autoencoder.config.frame_rate
    trainer = run_trainer(model, arguments, train, collator, randomness, score, frame_rate, optimizer)
    for _, helper in helpers:
        helper.detach()
    return trainer


def rows_of(arguments, split: str, tokenizer: F3Model, former: F3Model | None, fits: Callable | None) -> Dataset:
    """What is learned from: latents, where a `former` tokenizer is followed with those of its autoencoder beside them."""
    rows = load_rows(arguments, split, tokenizer.autoencoder, fits)
    if former is None:
        return rows
    return paired(rows, load_rows(replace(arguments, latents=arguments.former_latents), split, former.autoencoder))


def reads_audio(arguments, processor: F3Processor | None) -> bool:
    """Whether a language model is run; its tokens alone teach much faster than it does itself."""
    return processor is not None and arguments.text_loss_weight > 0


def initial_model(arguments) -> tuple[PreTrainedModel, F3Processor | None]:
    """The model to be trained, and a processor when a language model takes part."""
    _check_start(arguments)
    given = None if arguments.init_from is None else AutoConfig.from_pretrained(arguments.init_from)
    reads = isinstance(given, F3AudioLMConfig) or arguments.language_model is not None
    if arguments.former_latents and reads and arguments.text_loss_weight > 0:
        raise ValueError("an encoder follows to another autoencoder without the language model: --text_loss_weight 0")
    if isinstance(given, F3AudioLMConfig):
        return _with_listener(arguments), F3Processor.from_pretrained(arguments.init_from)
    if arguments.frozen or arguments.listener_layers:
        raise ValueError("--frozen and --listener_layers are about audio language models: pass one as --init_from")
    if arguments.language_model is None:
        if arguments.code_loss_weight != 1 and arguments.letter_loss_weight == 0:
            raise ValueError("--code_loss_weight weighs RQ-MTP against other losses, and there are none")
        return _tokenizer(arguments), None
    if given is None:
        raise ValueError("a language model joins a tokenizer: train RQ-MTP first and pass its model as --init_from")
    if arguments.text_loss_weight == 0 and arguments.token_loss_weight == 0:
        raise ValueError("nothing is learned from the language model: raise --text_loss_weight or --token_loss_weight")
    return audio_language_model(
        arguments.init_from,
        arguments.language_model,
        text_loss_weight=arguments.text_loss_weight,
        code_loss_weight=arguments.code_loss_weight,
        connector_hidden_size=arguments.connector_hidden_size,
    )


def _check_start(arguments) -> None:
    """
    Raises:
        `ValueError`: when it is not clear what to start with.
    """
    given = (arguments.autoencoder is not None, arguments.init_from is not None)
    if arguments.former_latents and not all(given):
        raise ValueError("--former_latents is about a model, --init_from, that gets another --autoencoder: pass both")
    if not arguments.former_latents and sum(given) != 1:
        raise ValueError(
            "pass either --autoencoder, for a new encoder, or --init_from, a model to go on with; both with "
            "--former_latents, for an encoder that follows to another autoencoder"
        )


def audio_language_model(
    tokenizer: str, language_model: str, **config: Any
) -> tuple[F3AudioLMForConditionalGeneration, F3Processor]:
    """A language model that reads a tokenizer through a new connector, with its processor; `config` as in its configuration."""
    given = AutoConfig.from_pretrained(tokenizer)
    processor = F3Processor(
        F3FeatureExtractor(sampling_rate=given.sampling_rate),
        AutoTokenizer.from_pretrained(language_model),
        hop_length=given.autoencoder_config.hop_length,
    )
    model = F3AudioLMForConditionalGeneration.from_audio_text_pretrained(
        tokenizer, language_model, **config, **processor.token_ids
    )
    return model, processor


def _with_listener(arguments) -> F3AudioLMForConditionalGeneration:
    """A model that has its language model and connector already, and gets a listener if one is asked for and it had none."""
    model = F3AudioLMForConditionalGeneration.from_pretrained(
        arguments.init_from, text_model_name_or_path=arguments.language_model
    )
    changed = {"text_loss_weight": arguments.text_loss_weight, "code_loss_weight": arguments.code_loss_weight}
    if model.config.listener_config is None and arguments.listener_layers:
        changed["listener_config"] = inner_transformer(
            arguments.listener_hidden_size, arguments.listener_layers, model.config.text_config.max_position_embeddings
        )
    with_parts_of(model, **changed)
    if "listener_config" in changed:
        model.listener.learn_spelling(AutoTokenizer.from_pretrained(arguments.init_from))
    model.requires_grad_(False)
    parts = {"encoder": model.audio_model.encoder, **{name: getattr(model, name) for name in AROUND}}
    learn(parts, arguments.frozen)
    return model


def _tokenizer(arguments) -> F3ForPreTraining:
    if arguments.init_from is not None:
        return F3ForPreTraining.from_pretrained(arguments.init_from)
    autoencoder = F3AutoencoderModel.from_pretrained(arguments.autoencoder)
    model = F3ForPreTraining(F3Config.preset(arguments.preset, autoencoder_config=autoencoder.config))
    model.model.autoencoder.load_state_dict(autoencoder.state_dict())
    return model


def ctc_helpers(
    model: PreTrainedModel, processor: F3Processor | None, arguments, texts: list[str], max_frames: int
) -> list[tuple[Callable, Helper]]:
    """Those with a weight, attached to the model, each after what makes a collator one that adds its units."""
    tokenizer = model.model if processor is None else model.audio_model
    listener, helpers = getattr(model, "listener", None), []
    if arguments.letter_loss_weight > 0:
        letters = CTCUnits("letters", spelled, texts if listener is None else [" ".join(LETTERS.strip())])
        head, features = (
            nn.Linear(tokenizer.config.hidden_size, 1 + len(letters.vocabulary)),
            attrgetter("last_hidden_state"),
        )
        if listener is not None:  # which stays, with its own head
            head, features = nn.Identity(), listener
        # an audio language model weighs its losses itself
        own_weight = arguments.code_loss_weight if processor is None else 1.0
        weight = arguments.letter_loss_weight
        helper = CTCHelper(model, tokenizer, letters.name, head, weight, own_weight, features)
        helpers.append((partial(CTCCollator, units=letters, max_frames=max_frames), helper))
    if arguments.token_loss_weight > 0:
        if processor is None:
            raise ValueError("--token_loss_weight is about the tokens of a language model: pass --language_model")
        tokens = CTCUnits("tokens", partial(processor.tokenizer.encode, add_special_tokens=False), texts)
        blank = processor.tokenizer.encode(FILLER, add_special_tokens=False)[0]
        embeddings = model.get_input_embeddings().weight[[blank, *tokens.vocabulary]]
        helper = TokensHelper(model, tokens.name, embeddings, arguments.token_loss_weight)
        helpers.append((partial(CTCCollator, units=tokens, max_frames=max_frames), helper))
    return helpers


def calibrate(model: PreTrainedModel, rows: Dataset, seed: int) -> None:
    """Gives the quantiser the statistics of the training latents."""
    model.prediction.quantizer.calibrate(*some_frames(rows, seed, "latents"))


def some_frames(rows: Dataset, seed: int, *columns: str) -> list[torch.Tensor]:
    """Of random rows, about `STATISTICS_FRAMES` in all: for every column of latents the frames `[N, D]`, in fp32."""
    drawn, frames = {name: [] for name in columns}, 0
    for row in rows.shuffle(seed):
        for name in columns:
            drawn[name].append(torch.as_tensor(np.asarray(row[name], np.float32)))
        frames += len(drawn[columns[0]][-1])
        if frames >= STATISTICS_FRAMES:
            break
    return [torch.cat(parts) for parts in drawn.values()]


def save(model: PreTrainedModel, processor: F3Processor | None, output_dir: Path) -> None:
    """
    `model`, with its feature extractor or processor; of an audio language model also the tokenizer, as `tokenizer`, with the
    heads of RQ-MTP if the model has any.
    """
    model.save_pretrained(output_dir / "model")
    feature_extractor = F3FeatureExtractor(sampling_rate=model.config.sampling_rate)
    (processor or feature_extractor).save_pretrained(output_dir / "model")
    if processor is not None:
        tokenizer = model.audio_model
        if model.prediction is not None:
            tokenizer = F3ForPreTraining(model.config.audio_config)
            tokenizer.model.load_state_dict(model.audio_model.state_dict())
            tokenizer.prediction.load_state_dict(model.prediction.state_dict())
        tokenizer.save_pretrained(output_dir / "tokenizer")
        feature_extractor.save_pretrained(output_dir / "tokenizer")
