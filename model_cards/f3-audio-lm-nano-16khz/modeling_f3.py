"""The F3 tokenizer: latents of a frozen autoencoder, representations of a causal encoder on top, and its heads."""

import torch
import torch.nn.functional as F
from .configuration_f3 import F3Config
from torch import nn
from transformers import initialization as init
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutput, SequenceClassifierOutput
from transformers.utils import can_return_tuple, is_torchdynamo_exporting

from .latent_bottleneck import draw_noise
from .model_outputs import F3AutoencoderDecoderOutput, F3ForPreTrainingOutput, F3Output
from .modeling_autoencoder import F3AutoencoderModel
from .multi_token_prediction import F3MultiTokenPrediction
from .pretrained_model import F3PreTrainedModel
from .random_quantizer import F3RandomQuantizer
from .representation_encoder import F3RepresentationEncoder
from .streaming_state import F3StreamingState


# Without gradients, longer audio is represented in pieces of this many frames, with a cache between them.
FRAMES_PER_PIECE = 1000


class F3RepresentationPreTrainedModel(F3PreTrainedModel):
    config: F3Config
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _skip_keys_device_placement = ["past_key_values"]

    @torch.no_grad()
    def _init_weights(self, module):
        if isinstance(module, F3RandomQuantizer):
            projections, codebooks = module.random_tensors()
            init.copy_(module.projections, projections)
            init.copy_(module.codebooks, codebooks)
            init.zeros_(module.mean)
            init.ones_(module.deviation)
        else:
            super()._init_weights(module)


class F3Model(F3RepresentationPreTrainedModel):
    """
    The whole tokenizer. `encode` gives latents, to be decoded or generated, and representations, to be understood, of the
    same frames (`config.autoencoder_config.frame_rate`, 25 a second); `decode` turns latents into audio. The autoencoder
    is frozen, always.
    """

    auto_classes = ("AutoModel", "AutoModelForAudioTokenization")
    _keep_in_fp32_modules_strict = ["autoencoder.decoder"]
    _keys_to_ignore_on_load_unexpected = [r"^prediction\."]  # heads of pre-training, which the tokenizer does without

    def __init__(self, config: F3Config):
        super().__init__(config)
        self.autoencoder = F3AutoencoderModel(config.autoencoder_config)
        self.encoder = F3RepresentationEncoder(config)
        self.post_init()

    def frozen_modules(self) -> list[nn.Module]:
        return [self.autoencoder]

    @can_return_tuple
    def forward(
        self,
        input_values: torch.Tensor | None = None,
        padding_mask: torch.Tensor | None = None,
        latents: torch.Tensor | None = None,
        latents_mask: torch.Tensor | None = None,
        noise: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        **kwargs,
    ) -> F3Output:
        """
        Latents and representations of a waveform, or of latents that are known already.

        Args:
            input_values: samples `[B, 1, N]` at `config.sampling_rate`, from [`F3FeatureExtractor`].
            padding_mask: `[B, N]`, non-zero on samples, zero on the padding after them.
            latents: `[B, T, D]` in place of `input_values`.
            latents_mask: `[B, T]`, non-zero on frames, zero on the padding after them.
            noise: `[B, T, D]`, added to the latents that the representation encoder reads, not to those returned.
            past_key_values: the cache of an earlier call; the frames given now follow those it has seen.
            use_cache: return the cache.

        Raises:
            `ValueError`: for both or neither of waveform and latents, or what the autoencoder refuses.
        """
        if (input_values is None) == (latents is None):
            raise ValueError("pass either input_values, the waveform, or latents")
        lengths = None
        if latents is None:
            with torch.no_grad():
                encoded = self.autoencoder.encode(input_values, padding_mask)
            latents, latents_mask, lengths = encoded.latents, encoded.latents_mask, encoded.audio_lengths
        else:
            latents_mask = self.autoencoder.checked_latents_mask(latents, latents_mask)
        output = self._represent(
            latents if noise is None else latents + noise.to(latents),
            past_key_values=past_key_values,
            use_cache=bool(use_cache),
            output_hidden_states=self.config.output_hidden_states
            if output_hidden_states is None
            else output_hidden_states,
            output_attentions=self.config.output_attentions if output_attentions is None else output_attentions,
            **kwargs,
        )
        return F3Output(
            last_hidden_state=output.last_hidden_state * latents_mask.unsqueeze(-1),
            latents=latents * latents_mask.unsqueeze(-1),
            latents_mask=latents_mask,
            audio_lengths=lengths,
            past_key_values=output.past_key_values,
            hidden_states=output.hidden_states,
            attentions=output.attentions,
        )

    def encode(
        self,
        input_values: torch.Tensor | None = None,
        padding_mask: torch.Tensor | None = None,
        latents: torch.Tensor | None = None,
        latents_mask: torch.Tensor | None = None,
        **kwargs,
    ) -> F3Output:
        """[`~F3Model.forward`] under the name it has in a tokenizer; without gradients, memory is bounded for any length."""
        return self(input_values, padding_mask, latents=latents, latents_mask=latents_mask, **kwargs)

    def decode(
        self,
        latents: torch.Tensor,
        latents_mask: torch.Tensor | None = None,
        audio_lengths: torch.Tensor | None = None,
        return_dict: bool | None = None,
    ) -> F3AutoencoderDecoderOutput | tuple:
        """Latents to waveform, see [`F3AutoencoderModel.decode`]."""
        return self.autoencoder.decode(latents, latents_mask, audio_lengths, return_dict)

    @torch.no_grad()
    def stream_encode(
        self,
        input_values: torch.Tensor,
        state: F3StreamingState,
        past_key_values: Cache | None = None,
        flush: bool = False,
    ) -> F3Output:
        """
        The next chunk `[B, 1, n]` of a stream, of any length n >= 0, to the latents and representations that became
        complete; together they equal `encode` of the whole. The memory of the stream is `state` and the
        `past_key_values` returned, which the next call is given.
        """
        encoded = self.autoencoder.stream_encode(input_values, state, flush)
        latents = encoded.latents
        if latents.shape[1] == 0:
            nothing = latents.new_zeros(*latents.shape[:2], self.config.hidden_size)
            return F3Output(nothing, latents, encoded.latents_mask, past_key_values=past_key_values)
        return self(latents=latents, past_key_values=past_key_values, use_cache=True)

    def _represent(
        self, latents: torch.Tensor, past_key_values: Cache | None, use_cache: bool, **kwargs
    ) -> BaseModelOutputWithPast:
        """
        Padding comes after the audio, where no frame of it can look, so nothing needs to be masked. Long audio is read in
        pieces: attention to all of it at once would grow with the square of its length.
        """
        wants_layers = kwargs["output_hidden_states"] or kwargs["output_attentions"]
        whole = torch.is_grad_enabled() or wants_layers or is_torchdynamo_exporting()
        if whole or latents.shape[1] <= FRAMES_PER_PIECE:
            return self.encoder(latents, past_key_values=past_key_values, use_cache=use_cache, **kwargs)
        pieces = []
        for piece in latents.split(FRAMES_PER_PIECE, dim=1):
            output = self.encoder(piece, past_key_values=past_key_values, use_cache=True, **kwargs)
            past_key_values = output.past_key_values
            pieces.append(output.last_hidden_state)
        return BaseModelOutputWithPast(torch.cat(pieces, dim=1), past_key_values if use_cache else None)


class F3ForPreTraining(F3RepresentationPreTrainedModel):
    """The tokenizer with the heads of RQ-MTP: its loss is Eq. 5, and `Trainer` needs nothing else."""

    auto_classes = ("AutoModelForPreTraining",)
    accepts_loss_kwargs = False  # the loss is a mean over its own batch, whatever `Trainer` counts

    def __init__(self, config: F3Config):
        super().__init__(config)
        self.model = F3Model(config)
        self.prediction = F3MultiTokenPrediction(config)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_values: torch.Tensor | None = None,
        padding_mask: torch.Tensor | None = None,
        latents: torch.Tensor | None = None,
        latents_mask: torch.Tensor | None = None,
        noise: torch.Tensor | None = None,
        return_loss: bool = True,
        **kwargs,
    ) -> F3ForPreTrainingOutput:
        """
        Args:
            noise: `[B, T, D]` on the latents that the encoder reads. Without it, training mode draws it as the
                configuration says, and evaluation mode adds none.
            return_loss: predict codes at all. That it is true by default tells `Trainer` that no labels are needed.

        The other arguments are those of [`F3Model`].
        """
        if input_values is not None and latents is None:
            with torch.no_grad():
                encoded = self.model.autoencoder.encode(input_values, padding_mask)
            input_values, latents, latents_mask = None, encoded.latents, encoded.latents_mask
        if noise is None and self.training and latents is not None:
            noise = draw_latent_noise(latents.shape, self.config)
        output = self.model(input_values, latents=latents, latents_mask=latents_mask, noise=noise, **kwargs)
        seen = {"hidden_states": output.hidden_states, "attentions": output.attentions}
        if not return_loss:
            return F3ForPreTrainingOutput(**seen)
        predicted = self.prediction(output.last_hidden_state, output.latents, output.latents_mask)
        return F3ForPreTrainingOutput(
            loss=predicted.loss,
            logits=predicted.logits,
            code_losses=tuple(predicted.losses),
            codes=predicted.codes,
            **seen,
        )


def draw_latent_noise(
    shape: tuple[int, int, int], config: F3Config, generator: torch.Generator | None = None
) -> torch.Tensor:
    """Noise for latents of `shape` [B, T, D] that the representation encoder trains on: it will read generated ones."""
    return draw_noise(shape, config.latent_noise_scale, 1 - config.latent_noise_probability, generator)


class F3ForAudioClassification(F3RepresentationPreTrainedModel):
    """One of `config.num_labels` classes for the whole item: a norm and a linear layer on the mean representation."""

    auto_classes = ("AutoModelForAudioClassification",)

    def __init__(self, config: F3Config):
        super().__init__(config)
        self.model = F3Model(config)
        self.norm = nn.LayerNorm(config.hidden_size)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_values: torch.Tensor | None = None,
        padding_mask: torch.Tensor | None = None,
        latents: torch.Tensor | None = None,
        latents_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs,
    ) -> SequenceClassifierOutput:
        """
        Args:
            labels: `[B]`, a class for each item.

        The other arguments are those of [`F3Model`].

        Raises:
            `ValueError`: for labels of another shape.
        """
        output = self.model(input_values, padding_mask, latents, latents_mask, **kwargs)
        kept = output.latents_mask.unsqueeze(-1)
        mean = output.last_hidden_state.sum(1) / kept.sum(1).to(output.last_hidden_state)
        logits = self.classifier(self.norm(mean))
        loss = None
        if labels is not None:
            if tuple(labels.shape) != tuple(logits.shape[:1]):
                raise ValueError(f"labels {list(labels.shape)} must be one class for each of {logits.shape[0]} items")
            loss = F.cross_entropy(logits.float(), labels)
        return SequenceClassifierOutput(loss, logits, output.hidden_states, output.attentions)


class F3ForCTC(F3RepresentationPreTrainedModel):
    """Tokens by connectionist temporal classification: one of `config.vocab_size` for every frame, or the blank."""

    auto_classes = ("AutoModelForCTC",)

    def __init__(self, config: F3Config):
        super().__init__(config)
        if config.vocab_size is None:
            raise ValueError(
                "F3ForCTC needs config.vocab_size: F3ForCTC.from_pretrained(..., vocab_size=len(tokenizer))"
            )
        self.model = F3Model(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_values: torch.Tensor | None = None,
        padding_mask: torch.Tensor | None = None,
        latents: torch.Tensor | None = None,
        latents_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs,
    ) -> CausalLMOutput:
        """
        Args:
            labels: `[B, L]` tokens, -100 after the last one of an item.

        The other arguments are those of [`F3Model`].

        Raises:
            `ValueError`: for labels of another shape, out of the vocabulary, or longer than an item has frames.
        """
        output = self.model(input_values, padding_mask, latents, latents_mask, **kwargs)
        logits = self.lm_head(output.last_hidden_state)
        loss = None if labels is None else self._loss(logits, labels, output.latents_mask.sum(1))
        return CausalLMOutput(loss, logits, output.hidden_states, output.attentions)

    def _loss(self, logits: torch.Tensor, labels: torch.Tensor, frames: torch.Tensor) -> torch.Tensor:
        if labels.ndim != 2 or labels.shape[0] != logits.shape[0]:
            raise ValueError(f"labels {list(labels.shape)} must be [{logits.shape[0]}, tokens]")
        kept = labels >= 0
        if bool((labels >= self.config.vocab_size).any()):
            raise ValueError(f"labels name a token beyond the vocabulary of {self.config.vocab_size}")
        too_long = (kept.sum(1) > frames).nonzero().flatten().tolist()
        if too_long:
            raise ValueError(
                f"the labels of rows {too_long} are longer than their audio has frames: leave these rows out"
            )
        return F.ctc_loss(
            logits.float().log_softmax(-1).transpose(0, 1),
            labels[kept],
            frames,
            kept.sum(1),
            blank=self.config.pad_token_id,
            reduction=self.config.ctc_loss_reduction,
            zero_infinity=True,
        )
