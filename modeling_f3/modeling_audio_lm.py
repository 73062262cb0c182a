"""The F3 audio language model: audio tokens and text in, one language model for both (Eq. 7)."""

import os
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from configuration_f3.configuration_audio_lm import FRAMES_PER_TOKEN, F3AudioLMConfig
from configuration_f3.configuration_f3 import F3Config
from torch import nn
from transformers import AutoModelForCausalLM
from transformers import initialization as init
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import can_return_tuple

from .connector import F3Connector, in_pairs, token_counts, token_mask
from .generation_f3 import AUDIO_INPUTS, F3SpeechGenerationMixin
from .latent_bottleneck import draw_noise
from .listener import F3Listener
from .model_outputs import F3AudioLMOutput, F3Output
from .modeling_f3 import F3ForPreTraining, F3Model, F3RepresentationPreTrainedModel, draw_latent_noise
from .modeling_flow_head import F3FlowHead
from .multi_token_prediction import F3MultiTokenPrediction
from .packed_layers import is_packed, pack_layers
from .residual_lm import F3ResidualLM
from .speech_recognition_pipeline import F3SpeechRecognitionPipeline


class F3AudioLMForConditionalGeneration(F3SpeechGenerationMixin, F3RepresentationPreTrainedModel):
    """
    A language model that listens and speaks. The tokenizer's representations become audio tokens in the connector and take
    the places that `input_ids` keeps for them; the language model answers in text, or its hidden states become the latent
    patches of speech in the flow head. The losses train encoder and connector through the frozen language model, next to
    RQ-MTP on the representations themselves.
    """

    config: F3AudioLMConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    input_modalities = ("audio", "text")
    auto_classes = ("AutoModel", "AutoModelForMultimodalLM", "AutoModelForSpeechSeq2Seq", "AutoModelForTextToWaveform")
    pipeline_classes = {"automatic-speech-recognition": F3SpeechRecognitionPipeline}
    accepts_loss_kwargs = False  # losses are means over the items of a batch, whatever `Trainer` counts
    _keep_in_fp32_modules_strict = ["audio_model.autoencoder.decoder"]

    def __init__(self, config: F3AudioLMConfig):
        super().__init__(config)
        self.audio_model = F3Model(config.audio_config)
        self.connector = F3Connector(
            config.audio_config.hidden_size, config.connector_hidden_size, config.text_config.hidden_size
        )
        self.language_model = AutoModelForCausalLM.from_config(config.text_config)
        self.prediction = F3MultiTokenPrediction(config.audio_config) if config.code_loss_weight > 0 else None
        self.listener = None if config.listener_config is None else F3Listener(config)
        self.residual_lm = self.flow_head = self.stop_head = self.representation_head = None
        if config.residual_config is not None:
            self.residual_lm = F3ResidualLM(config)
        if config.flow_config is not None:
            self.flow_head = F3FlowHead(config.flow_config)
            self.stop_head = nn.Linear(config.text_config.hidden_size, 1)
            if config.representation_loss_weight > 0:
                size = FRAMES_PER_TOKEN * config.audio_config.hidden_size
                self.representation_head = nn.Linear(config.text_config.hidden_size, size)
        if not config.save_language_model:
            self._keys_to_ignore_on_load_missing = [r"^language_model\."]  # fetched from where they are
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module):
        if isinstance(module, F3Connector):
            init.normal_(module.start, std=0.02)
            init.normal_(module.end, std=0.02)
            return
        super()._init_weights(module)
        if module is self.listener:
            init.zeros_(module.spelling)  # until it learns that of a tokenizer
        if self.residual_lm is not None and module is self.residual_lm.residual:
            init.zeros_(module.weight)  # at first, nothing is added

    def frozen_modules(self) -> list[nn.Module]:
        return [self.language_model] if self.config.freeze_language_model else []

    @classmethod
    def from_audio_text_pretrained(
        cls, audio_model: str | os.PathLike, language_model: str | os.PathLike, **config: Any
    ) -> "F3AudioLMForConditionalGeneration":
        """
        A new audio language model out of a tokenizer and a language model. `config` are values of [`F3AudioLMConfig`], the
        three token ids among them. With a `code_loss_weight` of zero the tokenizer needs no heads of RQ-MTP.
        """
        text_model = AutoModelForCausalLM.from_pretrained(language_model)
        model = cls(
            F3AudioLMConfig(
                audio_config=F3Config.from_pretrained(audio_model),
                text_config=text_model.config,
                **{"text_model_name_or_path": os.fspath(language_model), **config},
            )
        )
        if model.prediction is None:
            model.audio_model.load_state_dict(F3Model.from_pretrained(audio_model).state_dict())
        else:
            pretrained = F3ForPreTraining.from_pretrained(audio_model)
            model.audio_model.load_state_dict(pretrained.model.state_dict())
            model.prediction.load_state_dict(pretrained.prediction.state_dict())
        model.language_model.load_state_dict(text_model.state_dict())
        with torch.no_grad():
            embeddings = model.get_input_embeddings().weight
            model.connector.start.copy_(embeddings[model.config.audio_start_token_id])
            model.connector.end.copy_(embeddings[model.config.audio_end_token_id])
        model.generation_config = text_model.generation_config
        return model

    def fill_missing(self, **hub_options) -> None:
        """Fetches the language model that the checkpoint leaves out."""
        if self.config.save_language_model:
            return
        name, revision = self.config.text_model_name_or_path, self.config.text_model_revision
        fix = "pass text_model_name_or_path=... to from_pretrained, the language model this model was trained with"
        if name is None:
            raise OSError(f"the checkpoint has no language model and does not say which one it needs: {fix}")
        try:
            found = AutoModelForCausalLM.from_pretrained(
                name, revision=revision or "main", dtype=self.dtype, **hub_options
            )
            # Transformers may have put an adapter on it by now: weights below one have another name, its own are loaded.
            own = self.language_model.state_dict()
            names = {name.replace(".base_layer.", "."): name for name in own}
            weights = {names.get(name, name): weight for name, weight in found.state_dict().items()}
            adapter = {name: weight for name, weight in own.items() if ".lora_" in name}
            self.language_model.load_state_dict({**adapter, **weights})
        except (OSError, ValueError) as error:
            raise OSError(
                f"the language model {name!r} of this checkpoint cannot be loaded ({error}): {fix}"
            ) from error
        except RuntimeError as error:
            raise OSError(f"{name!r} is not the language model of this checkpoint ({error}): {fix}") from error

    def save_pretrained(self, save_directory: str | os.PathLike, *args: Any, **kwargs: Any):
        """
        As in Transformers, with two differences: the language model is left out unless `config.save_language_model`, and an
        adapter that the model was loaded with lies beside the rest, not in its place.
        """
        if is_packed(self):
            raise ValueError("a model packed for the CPU has no weights left to save: load it again, and save that")
        if self._hf_peft_config_loaded:
            super().save_pretrained(save_directory, *args, **{**kwargs, "push_to_hub": False})
            self._hf_peft_config_loaded = False  # for Transformers, a model with an adapter is nothing but the adapter
            try:
                return self.save_pretrained(save_directory, *args, **kwargs)
            finally:
                self._hf_peft_config_loaded = True
        self.generation_config._from_model_config = False  # or loading it would drop the options of speech
        for name in F3AudioLMConfig.__annotations__:
            vars(self.generation_config).pop(name, None)  # `from_pretrained` leaves there what is the configuration's
        self._keys_to_ignore_on_save = set()
        if not self.config.save_language_model:
            if self.config.text_model_name_or_path is None:
                raise ValueError(
                    "the language model would be lost: set config.text_model_name_or_path to where it can be loaded from, "
                    "or config.save_language_model = True"
                )
            self._keys_to_ignore_on_save = {f"language_model.{name}" for name in self.language_model.state_dict()}
        # the format that it was loaded from is that of the adapter, whose names are not ours
        return super().save_pretrained(save_directory, *args, **{**kwargs, "save_original_format": False})

    def merge_adapter(self) -> "F3AudioLMForConditionalGeneration":
        """
        Adds the adapter to the weights of the language model and takes it off: the answers stay, and come sooner. The
        language model is one of its own then, so checkpoints hold it. Returns the model; without an adapter, as it was.
        """
        if self._hf_peft_config_loaded:
            for layer in self._adapted_layers().values():
                layer.merge()
            self.take_off_adapter()
            self.config.save_language_model = True
        return self

    def pack_for_cpu(self) -> "F3AudioLMForConditionalGeneration":
        """
        Makes speech faster: the transformers that take part get packed layers, with weights in half precision and fewer
        operations, see `pack_layers`. What is said changes no more than that rounds. For inference alone, and for
        good: load the model again to train or save it. Returns the model.

        Raises:
            `ValueError`: when the model is not in fp32 on the CPU, or has an adapter.
        """
        if self.device.type != "cpu" or self.dtype != torch.float32:
            raise ValueError(
                f"only models in float32 on the CPU can be packed, this one is {self.dtype} on {self.device}"
            )
        if self._hf_peft_config_loaded:
            raise ValueError(
                "layers with an adapter cannot be packed: call merge_adapter() or take_off_adapter() first"
            )
        bodies = [self.language_model.base_model, self.audio_model.encoder.body]
        if self.residual_lm is not None:
            bodies.append(self.residual_lm.body)
        if self.flow_head is not None:
            bodies.append(self.flow_head)
        for body in bodies:
            pack_layers(body)
        return self

    def take_off_adapter(self) -> None:
        """Leaves the model without the adapter that it was loaded with; without one, as it was."""
        if not self._hf_peft_config_loaded:
            return
        for name, layer in self._adapted_layers().items():
            self.set_submodule(name, layer.get_base_layer())
        del self.peft_config
        self._hf_peft_config_loaded = False

    def _adapted_layers(self) -> dict[str, nn.Module]:
        """Layers of PEFT, which need not be installed where there are none."""
        return {name: layer for name, layer in self.named_modules() if hasattr(layer, "get_base_layer")}

    def tie_weights(self, missing_keys: set[str] | None = None, **kwargs):
        # The only tied weights are inside the language model; where it comes later, none of it is missing.
        super().tie_weights(missing_keys if self.config.save_language_model else None, **kwargs)

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.get_input_embeddings()

    def get_output_embeddings(self) -> nn.Module:
        return self.language_model.get_output_embeddings()

    @can_return_tuple
    def get_audio_features(
        self,
        input_values: torch.Tensor | None = None,
        padding_mask: torch.Tensor | None = None,
        latents: torch.Tensor | None = None,
        latents_mask: torch.Tensor | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPooling:
        """
        `last_hidden_state`: representations `[A, T, d]` of A audios; `pooler_output`: their audio tokens, one after the
        other without padding, `[tokens, width of the language model]`.
        """
        output = self.audio_model(input_values, padding_mask, latents, latents_mask, **kwargs)
        return BaseModelOutputWithPooling(
            last_hidden_state=output.last_hidden_state,
            pooler_output=self._audio_tokens(output),
            hidden_states=output.hidden_states,
            attentions=output.attentions,
        )

    def _audio_tokens(self, output: F3Output) -> torch.Tensor:
        return self.connector(output.last_hidden_state)[token_mask(output.latents_mask)]

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        input_values: torch.Tensor | None = None,
        padding_mask: torch.Tensor | None = None,
        latents: torch.Tensor | None = None,
        latents_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        spoken: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs,
    ) -> F3AudioLMOutput:
        """
        Args:
            input_ids: `[B, L]` text with `config.audio_token_id` at the place of every audio token, from [`F3Processor`].
            attention_mask: `[B, L]`, zero on padding.
            input_values: `[A, 1, N]` all audios of the batch, in the order in which `input_ids` names them.
            padding_mask: `[A, N]`, as for [`F3Model`].
            latents: `[A, T, D]` in place of `input_values`.
            latents_mask: `[A, T]`.
            labels: `[B, L]`, the text to be learned, -100 elsewhere. In training only the logits from the first label on
                are computed.
            spoken: `[A]`, true for the audios to be learned as speech. Where given, the parts that speak take part in
                training even if none of them is: processes that share weights need gradients of the same ones.

        Audio without `input_ids` is not read by the language model: the loss is that of RQ-MTP alone, `None` without its heads.

        Raises:
            `ValueError`: when placeholders and audio do not match, the text is longer than the language model reads, or
                there is nothing to learn though there are labels.
        """
        audio = self._audio(input_values, padding_mask, latents, latents_mask)
        losses = self._code_losses(audio)
        if audio is not None and input_ids is None and inputs_embeds is None:
            return F3AudioLMOutput(loss=self._total(losses) if losses else None, **losses)
        if inputs_embeds is None:
            inputs_embeds = self._embed(input_ids, None if audio is None else self._audio_tokens(audio))
        self._check_length(inputs_embeds, attention_mask)
        speaks = spoken is not None and (self.training or bool(spoken.any()))
        if speaks and self.flow_head is None:
            raise ValueError("the model has no flow head to learn speech with: give its configuration a flow_config")
        recorded = None if audio is None else audio.latents
        if speaks and self.training and self.config.own_history_share > 0:
            chosen = torch.rand(spoken.shape, device=spoken.device) < self.config.own_history_share
            hidden = self._hidden_states(inputs_embeds, attention_mask, position_ids)
            latents = self._own_latents(input_ids, hidden, audio, spoken & chosen)
            audio = self._audio(None, None, latents, audio.latents_mask)
            inputs_embeds = self._embed(input_ids, self._audio_tokens(audio))
        if labels is not None:
            first = self._first_label(labels, speaks)
            if self.training:
                logits_to_keep = labels.shape[1] - first + 1  # a label is predicted one step earlier
        output = self.language_model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            use_cache=use_cache,
            logits_to_keep=logits_to_keep,
            **{**kwargs, "output_hidden_states": True} if speaks else kwargs,
        )
        if labels is not None:
            losses["text_loss"] = text_loss(output.logits[:, -labels.shape[1] :], labels[:, -output.logits.shape[1] :])
        if speaks:
            hidden = output.hidden_states[-1]
            if self.residual_lm is not None:
                hidden, _ = self.residual_lm(hidden, inputs_embeds, attention_mask, position_ids)
            losses |= self._speech_losses(input_ids, hidden, audio, recorded, spoken)
        return F3AudioLMOutput(
            loss=self._total(losses) if labels is not None or speaks else None,
            logits=output.logits,
            past_key_values=output.past_key_values,
            hidden_states=output.hidden_states,
            attentions=output.attentions,
            **losses,
        )

    def _audio(self, input_values, padding_mask, latents, latents_mask) -> F3Output | None:
        """Representations, in training of noisy latents; `None` without audio."""
        if input_values is None and latents is None:
            return None
        noise = None
        if self.training:
            if latents is None:
                with torch.no_grad():
                    encoded = self.audio_model.autoencoder.encode(input_values, padding_mask)
                input_values, latents, latents_mask = None, encoded.latents, encoded.latents_mask
            noise = draw_latent_noise(latents.shape, self.config.audio_config)
        return self.audio_model(input_values, padding_mask, latents, latents_mask, noise=noise)

    def _code_losses(self, audio: F3Output | None) -> dict[str, Any]:
        """RQ-MTP, where there is audio and the model has its heads."""
        if audio is None or self.prediction is None:
            return {}
        predicted = self.prediction(audio.last_hidden_state, audio.latents, audio.latents_mask)
        return {"code_loss": predicted.loss, "code_losses": tuple(predicted.losses)}

    def _embed(self, input_ids: torch.Tensor, audio_tokens: torch.Tensor | None) -> torch.Tensor:
        """Text embeddings [B, L, width] with the vectors of audio in their places."""
        embeds = self.get_input_embeddings()(input_ids)
        config, connector = self.config, self.connector
        for token_id, vector in (
            (config.audio_start_token_id, connector.start),
            (config.audio_end_token_id, connector.end),
        ):
            embeds = torch.where((input_ids == token_id).unsqueeze(-1), vector.to(embeds), embeds)
        places = input_ids == config.audio_token_id
        given = 0 if audio_tokens is None else audio_tokens.shape[0]
        if int(places.sum()) != given:
            raise ValueError(
                f"input_ids have places for {int(places.sum())} audio tokens ({places.sum(1).tolist()} by row) and the audio "
                f"has {given}: pass text and audio through one call of F3Processor"
            )
        if given:
            embeds = embeds.masked_scatter(places.unsqueeze(-1), audio_tokens.to(embeds))
        return embeds

    def _check_length(self, embeds: torch.Tensor, attention_mask: torch.Tensor | None) -> None:
        limit = getattr(self.config.text_config, "max_position_embeddings", None)
        if limit is None or embeds.shape[1] <= limit:
            return
        lengths = [embeds.shape[1]] * embeds.shape[0] if attention_mask is None else attention_mask.sum(1).tolist()
        rows = {row: length for row, length in enumerate(lengths) if length > limit}
        if rows:
            raise ValueError(
                f"the language model reads {limit} tokens, and rows {list(rows)} have {list(rows.values())}: "
                "shorten their text or their audio (12.5 tokens a second)"
            )

    def prepare_inputs_for_generation(self, *args, is_first_iteration: bool = False, **kwargs):
        inputs = super().prepare_inputs_for_generation(*args, is_first_iteration=is_first_iteration, **kwargs)
        if not is_first_iteration and not bool((inputs["input_ids"] == self.config.audio_token_id).any()):
            for name in AUDIO_INPUTS:
                inputs.pop(name, None)  # the cache has read the audio
        return inputs

    @torch.no_grad()
    def _hidden_states(self, embeds: torch.Tensor, attention_mask, position_ids) -> torch.Tensor:
        """H [B, L, width], what speech is made from."""
        given = {"attention_mask": attention_mask, "position_ids": position_ids}
        hidden = self.language_model.base_model(inputs_embeds=embeds, use_cache=False, **given).last_hidden_state
        return hidden if self.residual_lm is None else self.residual_lm(hidden, embeds, **given)[0]

    @torch.no_grad()
    def _own_latents(
        self, input_ids: torch.Tensor, hidden: torch.Tensor, audio: F3Output, chosen: torch.Tensor
    ) -> torch.Tensor:
        """
        Latents [A, T, D], those of the `chosen` [A] audios with the patches that the model itself would say, each after
        those recorded before it.
        """
        patches = Patches.of(self, input_ids, hidden, audio)
        said = chosen[patches.owner] & patches.complete
        own = self.flow_head.sample(*patches.conditions(said), **self._speech_options(None, {}).of_flow_head)
        heard = patches.heard.clone()
        heard[said] = self.audio_model.autoencoder.normalize(own).to(heard)
        tokens = token_mask(audio.latents_mask)[:, :, None, None]
        return in_pairs(audio.latents).masked_scatter(tokens, heard).flatten(1, 2)[:, : audio.latents.shape[1]]

    def _speech_losses(
        self,
        input_ids: torch.Tensor,
        hidden: torch.Tensor,
        audio: F3Output,
        recorded: torch.Tensor,
        spoken: torch.Tensor,
    ) -> dict[str, torch.Tensor]:
        """
        The losses of the audios that are `spoken` [A]: first the mean over the patches of each, then over the rows of the
        batch, so that a batch cut into smaller ones has the same loss. Patch i of `recorded` [A, T, D], and the
        representations at its place, normalised over their channels, are learned from the hidden state before it, and
        whether speech ends there, or a word of it that stands before its patches, from the one at its place.
        """
        patches, rows = Patches.of(self, input_ids, hidden, audio), len(input_ids)
        tokens, owner, said = token_mask(audio.latents_mask), patches.owner, spoken[patches.owner]
        learned = said & patches.complete
        condition, representation, previous, known = patches.conditions(learned)
        if self.training:
            noise = draw_noise((len(previous), *previous.shape[1:]), self.config.previous_noise_scale, 0.5)
            previous = previous + noise.to(previous)
        wanted = in_pairs(recorded)[tokens][learned]
        flow = self.flow_head.loss(wanted, condition, representation, previous, known)
        scores = self.stop_head(patches.at[said].to(self.stop_head.weight.dtype))[:, 0].float()
        stop = F.binary_cross_entropy_with_logits(scores, patches.ends[said].float(), reduction="none")
        losses = {
            "flow_loss": _mean_of_means(flow, owner[learned], rows),
            "stop_loss": _mean_of_means(stop, owner[said], rows),
        }
        if self.representation_head is not None:
            heard = in_pairs(audio.last_hidden_state)[tokens][learned].detach().float()
            told = self.representation_head(condition.to(self.representation_head.weight.dtype)).float()
            wanted = F.layer_norm(heard, heard.shape[-1:]).flatten(1)
            errors = (told - wanted).square().mean(1)
            losses["representation_loss"] = _mean_of_means(errors, owner[learned], rows)
        return losses

    def _first_label(self, labels: torch.Tensor, speaks: bool) -> int:
        """The first position that any row has a label at, not counting position 0, which nothing predicts."""
        columns = (labels[:, 1:] != -100).any(0).nonzero()
        if columns.numel() == 0 and speaks:
            return labels.shape[1]
        if columns.numel() == 0:
            raise ValueError(
                f"none of the {labels.shape[0]} rows has a label: leave labels out, or give the rows a text"
            )
        return int(columns[0]) + 1

    def _total(self, losses: dict[str, torch.Tensor]) -> torch.Tensor:
        weights = {name: getattr(self.config, f"{name}_weight") for name in losses if name != "code_losses"}
        return sum(weight * losses[name] for name, weight in weights.items())


@dataclass(frozen=True)
class Patches:
    """
    The n patches of all audios of a batch, one after the other, and what is known before each is said.

    Args:
        owner: `[n]`, which audio a patch is of.
        begins: `[n]`, true for the first of an audio.
        complete: `[n]`, false for a last one that an odd frame is missing of.
        heard: `[n, P, D]` latents.
        representations: `[n, width of the connector]`, downsampled.
        before: `[n, width]`, the hidden state before the place of a patch.
        at: `[n, width]`, the one at its place.
        ends: `[n]`, true where no other patch follows in the text.
    """

    owner: torch.Tensor
    begins: torch.Tensor
    complete: torch.Tensor
    heard: torch.Tensor
    representations: torch.Tensor
    before: torch.Tensor
    at: torch.Tensor
    ends: torch.Tensor

    @classmethod
    def of(
        cls, model: F3AudioLMForConditionalGeneration, input_ids: torch.Tensor, hidden: torch.Tensor, audio: F3Output
    ) -> "Patches":
        """Of `audio`, at the places that `input_ids` [B, L] has for it, whose hidden states [B, L, width] are `hidden`."""
        counts = token_counts(audio.latents_mask.sum(1))
        owner = torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts)
        tokens, places = token_mask(audio.latents_mask), input_ids == model.config.audio_token_id
        return cls(
            owner=owner,
            begins=torch.cat([owner.new_ones(1, dtype=torch.bool), owner[1:] != owner[:-1]]),
            complete=in_pairs(audio.latents_mask.unsqueeze(-1))[tokens].flatten(1).all(1),
            heard=in_pairs(audio.latents)[tokens],
            representations=model.connector.downsampled(audio.last_hidden_state)[tokens].detach(),
            before=hidden[:, :-1][places[:, 1:]],
            at=hidden[places],
            ends=~F.pad(places, (0, 1))[:, 1:][places],
        )

    def conditions(self, chosen: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """What the flow head makes the `chosen` [n] ones from: H_i, r_{i-1}, the patch before, and whether there is one."""
        representations, previous = self.representations.roll(1, 0), self.heard.roll(1, 0)
        return self.before[chosen], representations[chosen], previous[chosen], ~self.begins[chosen]


def _mean_of_means(values: torch.Tensor, owner: torch.Tensor, rows: int) -> torch.Tensor:
    """The sum over owners of the mean of the values [n] that belong to each, divided by `rows`."""
    sizes = torch.bincount(owner)
    return (values / sizes[owner]).sum() / rows


def text_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """
    Eq. 7: cross-entropy of the logits [B, L, V] at each position against the label [B, L] at the next one, first the mean
    of each row, then of the rows, so that a batch cut into smaller ones has the same loss. Rows without a label count zero.
    """
    wanted = labels[:, 1:]
    kept = wanted != -100
    entropies = F.cross_entropy(logits[:, :-1][kept].float(), wanted[kept], reduction="none")
    per_row = torch.zeros(kept.shape, dtype=entropies.dtype, device=entropies.device).masked_scatter(kept, entropies)
    return (per_row.sum(1) / kept.sum(1).clamp(min=1)).mean()
