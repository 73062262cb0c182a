"""generate() and stream_audio(): text by the stock loop of Transformers, speech by one loop that yields latent patches."""

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
import torch.nn.functional as F
from configuration_f3.configuration_audio_lm import FRAMES_PER_TOKEN, F3AudioLMConfig
from transformers import GenerationConfig, GenerationMixin
from transformers.cache_utils import Cache

from .connector import token_counts
from .growing_cache import growing_cache
from .letter_prefixes import LetterPrefixes
from .model_outputs import F3SpeechOutput
from .streaming_state import F3StreamingState


@dataclass(frozen=True)
class SpeechOptions:
    """
    How speech is generated. Values come from the call, else from `generation_config`, else from here.

    Args:
        num_flow_steps: steps of the flow solver for each patch.
        flow_guidance_scale: how far the flow head follows the hidden state, beyond what is likely anyway; 1 is off. The
            `guidance_scale` of Transformers is that of text.
        flow_guidance_until: time, from 0 at the noise to 1 at the patch, before which it does so.
        noise_temperature: variance of the noise that patches start from.
        flow_solver: `"euler"`; `"midpoint"`, which evaluates the flow head twice in a step; or `"adams_bashforth"`, which makes
            use of the step before.
        flow_sway: where steps are short: near the noise below 0, near the data above; see `time_grid`.
        stop_threshold: probability of the end at which to stop.
        min_new_patches: patches before which nothing stops.
        max_new_patches: the cap; by default `patches_per_token` for each token of a row's script, or else for each text
            token of its prompt, and 25 more.
        patches_per_token: see there; a patch is 80 ms. Of a script, no word but the last is said longer than that either.
    """

    num_flow_steps: int = 10
    flow_guidance_scale: float = 2.0
    flow_guidance_until: float = 1.0
    noise_temperature: float = 1.0
    flow_solver: str = "euler"
    flow_sway: float = -1.0
    stop_threshold: float = 0.5
    min_new_patches: int = 2
    max_new_patches: int | None = None
    patches_per_token: int = 8

    @property
    def of_flow_head(self) -> dict[str, Any]:
        """Those that `F3FlowHead.sample` takes."""
        return {
            "num_steps": self.num_flow_steps,
            "guidance_scale": self.flow_guidance_scale,
            "guidance_until": self.flow_guidance_until,
            "noise_temperature": self.noise_temperature,
            "solver": self.flow_solver,
            "sway": self.flow_sway,
        }


OPTIONS = tuple(field.name for field in fields(SpeechOptions))
SPARE_PATCHES = 25
SPARE_TOKENS = 10


@dataclass
class SpeechStep:
    """
    One step of the loop.

    Args:
        patches: `[B, P, D]` latents, zero for rows that have ended.
        speaking: `[B]`, true for rows that these patches belong to.
    """

    patches: torch.Tensor
    speaking: torch.Tensor


class F3SpeechGenerationMixin(GenerationMixin):
    """Adds speech to the text that `GenerationMixin` generates."""

    output_modalities = ("audio", "text")

    @torch.no_grad()
    def generate(
        self,
        inputs: torch.Tensor | None = None,
        generation_config=None,
        *,
        generation_mode: str | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        script_ids: torch.Tensor | None = None,
        by_letters: bool = False,
        **kwargs: Any,
    ):
        """
        Text or speech, as the prompt asks: one that ends in the audio-start token, or within audio, goes on in speech.

        Args:
            inputs: `input_ids`, as everywhere in Transformers.
            generation_config: of Transformers, for text; for speech it may hold the fields of [`SpeechOptions`].
            generation_mode: `"audio"` answers in speech whatever the prompt asks for; `"text"` refuses prompts for speech.
            generator: of the noise of speech, on the CPU; one, or a list with one for each row.
            script_ids: `[B, S]`, for models that speak word by word: what a row writes before each word that it says, up to
                the next audio-start token, and audio-end tokens where it has nothing left to say.
            by_letters: for transcripts: beams follow what the language model and, by its letters, the listener together find
                likeliest.
            kwargs: what the processor made of the prompt, and options: of `GenerationMixin.generate` for text, the fields
                of [`SpeechOptions`] for speech.

        Returns:
            What `GenerationMixin.generate` returns, or [`F3SpeechOutput`].

        Raises:
            `ValueError`: when rows ask for different things, the mode contradicts the prompt, an option is unknown, or there is
                nothing to choose by letters.
        """
        input_ids = kwargs.pop("input_ids", inputs)
        if input_ids is None:
            raise ValueError("generate needs input_ids: F3Processor makes them from text")
        if generation_mode == "audio":
            input_ids, kwargs = self._asking_for_speech(input_ids, kwargs)
        if not self._asks_for_speech(input_ids, generation_mode):
            config = self.config
            places = [config.audio_start_token_id, config.audio_token_id, config.audio_end_token_id]  # not words
            options = {}
            if generation_config is None or generation_config.suppress_tokens is None:
                options["suppress_tokens"] = places
            if by_letters:
                letters = self._letter_prefixes(input_ids, generation_config, kwargs)
                kwargs["logits_processor"] = [*(kwargs.get("logits_processor") or []), letters]
                if (self._option("num_beams", generation_config, kwargs) or 1) > 1:
                    options["length_penalty"] = 0.0  # every letter has its worth already
            if generation_config is None:
                kwargs = options | kwargs
            else:
                generation_config = copy.deepcopy(generation_config)
                generation_config.update(**options)
            return super().generate(input_ids, generation_config=generation_config, **kwargs)
        options = self._speech_options(generation_config, kwargs)
        caps = self._caps(input_ids, kwargs.get("attention_mask"), script_ids, options)
        patches, rows = [], []
        for step in self._speech_steps(input_ids, options, caps, generator, script_ids, **kwargs):
            patches.append(step.patches)
            rows.append(step.speaking)
        latents, lengths = torch.cat(patches, dim=1), torch.stack(rows).sum(0)
        frames = lengths * FRAMES_PER_TOKEN
        mask = torch.arange(latents.shape[1], device=latents.device) < frames[:, None]
        audio = self.audio_model.decode(latents, mask)
        return F3SpeechOutput(
            audio=[item[0, :length] for item, length in zip(audio.audio_values, audio.audio_lengths.tolist())],
            audio_lengths=audio.audio_lengths,
            latents=[item[:length] for item, length in zip(latents, frames.tolist())],
            finish_reasons=[
                "length" if length >= cap else "stop" for length, cap in zip(lengths.tolist(), caps.tolist())
            ],
        )

    def transcription_options(self, input_ids: torch.Tensor) -> dict[str, Any]:
        """
        Options of `generate` for transcripts. Three beams: greedily, what the language model expects wins more often over
        what it hears; or eight, which a listener keeps to what is heard. As many tokens as the longest audio in
        `input_ids` takes, and a few: nobody speaks faster.
        """
        heard = int((input_ids == self.config.audio_token_id).sum(1).max())
        options = {"do_sample": False, "num_beams": 3, "max_new_tokens": heard + SPARE_TOKENS}
        if self.listener is not None:
            options |= {"num_beams": 8, "by_letters": True}
        return options

    def _letter_prefixes(
        self, input_ids: torch.Tensor, generation_config: GenerationConfig | None, options: dict[str, Any]
    ) -> LetterPrefixes:
        """What makes beams follow the letters that are heard."""
        if self.listener is None:
            raise ValueError(
                "by_letters needs a listener: give the model's configuration a listener_config, or leave it out"
            )
        if not self.listener.spelling.any():
            raise ValueError(
                "the listener does not know the letters of tokens yet: call model.listener.learn_spelling(tokenizer)"
            )
        audio = self._audio(**{name: options.get(name) for name in AUDIO_INPUTS})
        counts = [] if audio is None else token_counts(audio.latents_mask.sum(1)).tolist()
        if any(len(row) != 1 for row in audios_by_row(input_ids == self.config.audio_token_id, counts)):
            raise ValueError("by_letters is for transcripts: each row needs one audio to be written down")

        ends, new, most = (
            self._option(name, generation_config, options) for name in ("eos_token_id", "max_new_tokens", "max_length")
        )
        length = input_ids.shape[1]
        return LetterPrefixes(
            self.listener(audio),
            audio.latents_mask.sum(1),
            self.listener.spelling,
            prompt_length=length,
            end_token_ids=[] if ends is None else torch.as_tensor(ends).reshape(-1).tolist(),
            max_length=(most or math.inf) if new is None else length + new,
        )

    def _option(self, name: str, generation_config: GenerationConfig | None, options: dict[str, Any]) -> Any:
        """What `generate` of Transformers takes: of the call, else of the configuration given, else of the model's own."""
        given = (options.get(name), *(getattr(x, name, None) for x in (generation_config, self.generation_config)))
        return next((value for value in given if value is not None), None)

    @torch.no_grad()
    def stream_audio(
        self,
        input_ids: torch.Tensor,
        generation_config=None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        script_ids: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> Iterator[list[torch.Tensor]]:
        """
        What `generate` says, while it is said: yields for each row the samples `[n]` that became final, none for rows that
        have ended. Chunks of a row together are its audio. The first one comes before the second step of the language
        model. Arguments are those of `generate`.
        """
        input_ids, kwargs = self._asking_for_speech(input_ids, kwargs)
        self._asks_for_speech(input_ids, "audio")
        options = self._speech_options(generation_config, kwargs)
        caps = self._caps(input_ids, kwargs.get("attention_mask"), script_ids, options)
        state, hop = F3StreamingState(), self.config.audio_config.autoencoder_config.hop_length
        due, position = torch.zeros(len(input_ids), dtype=torch.long), 0
        for step in self._speech_steps(input_ids, options, caps, generator, script_ids, **kwargs):
            due += step.speaking.cpu() * FRAMES_PER_TOKEN * hop
            samples = self.audio_model.autoencoder.stream_decode(step.patches, state).audio_values[:, 0]
            yield _within(samples, position, due)
            position += samples.shape[1]
        samples = self.audio_model.autoencoder.stream_decode(step.patches[:, :0], state, flush=True).audio_values[:, 0]
        yield _within(samples, position, due)

    def _expand_inputs_for_generation(
        self, expand_size: int = 1, is_encoder_decoder: bool = False, input_ids: torch.Tensor | None = None, **kwargs
    ):
        """Repeats rows for beams, and the audios of a row with it, however many it has."""
        audio = {name: kwargs.pop(name) for name in AUDIO_INPUTS if kwargs.get(name) is not None}
        expanded, kwargs = super()._expand_inputs_for_generation(expand_size, is_encoder_decoder, input_ids, **kwargs)
        if expand_size > 1 and audio:
            frames = self._frames_of(**audio)
            rows = audios_by_row(input_ids == self.config.audio_token_id, token_counts(frames).tolist())
            order = [index for row in rows for _ in range(expand_size) for index in row]
            audio = {name: value[order] for name, value in audio.items()}
        return expanded, {**kwargs, **audio}

    def _frames_of(self, input_values=None, padding_mask=None, latents=None, latents_mask=None) -> torch.Tensor:
        """Latent frames [A] of each audio."""
        if latents is not None:
            return self.audio_model.autoencoder.checked_latents_mask(latents, latents_mask).sum(1)
        samples = input_values.new_ones(input_values[:, 0].shape) if padding_mask is None else padding_mask
        return -(-samples.sum(1).long() // self.config.audio_config.autoencoder_config.hop_length)

    def _asking_for_speech(
        self, input_ids: torch.Tensor, kwargs: dict[str, Any]
    ) -> tuple[torch.Tensor, dict[str, Any]]:
        """The prompt and its mask; where all rows ask for text, with the token that begins speech."""
        if self._open_rows(input_ids).any():
            return input_ids, kwargs
        input_ids = F.pad(input_ids, (0, 1), value=self.config.audio_start_token_id)
        if kwargs.get("attention_mask") is not None:
            kwargs = {**kwargs, "attention_mask": F.pad(kwargs["attention_mask"], (0, 1), value=1)}
        return input_ids, kwargs

    def _asks_for_speech(self, input_ids: torch.Tensor, mode: str | None) -> bool:
        if mode not in (None, "text", "audio"):
            raise ValueError(f"generation_mode is 'text' or 'audio', got {mode!r}")
        asked = self._open_rows(input_ids)
        if bool(asked.any()) != bool(asked.all()):
            raise ValueError(
                f"rows {asked.nonzero().flatten().tolist()} ask for speech and the others for text: generate them apart"
            )
        speaks = bool(asked.all())
        if speaks and mode == "text":
            raise ValueError("generation_mode is 'text' but the prompt asks for speech: build it without speak=True")
        if speaks and self.flow_head is None:
            raise ValueError("this model has no flow head, so it cannot speak: it was built without flow_config")
        return speaks

    def _open_rows(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Which rows [B] end where audio begins or within it."""
        opening = (self.config.audio_start_token_id, self.config.audio_token_id)
        return torch.isin(input_ids[:, -1], torch.tensor(opening, device=input_ids.device))

    def _speech_options(self, generation_config, kwargs: dict[str, Any]) -> SpeechOptions:
        """Takes the options out of `kwargs`; what is left must be inputs."""
        stored = generation_config or self.generation_config
        found = {name: kwargs.pop(name, None) for name in OPTIONS}
        found = {name: getattr(stored, name, None) if value is None else value for name, value in found.items()}
        unknown = sorted(kwargs.keys() - {"attention_mask", "input_values", "padding_mask", "latents", "latents_mask"})
        if unknown:
            raise ValueError(f"speech takes no {', '.join(unknown)}: its options are {', '.join(OPTIONS)}")
        return replace(SpeechOptions(), **{name: value for name, value in found.items() if value is not None})

    def _caps(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None,
        script_ids: torch.Tensor | None,
        options: SpeechOptions,
    ) -> torch.Tensor:
        """[B] patches at which a row is cut off: no text takes longer to say."""
        if options.max_new_patches is not None:
            return torch.full((len(input_ids),), options.max_new_patches)
        kept = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        text_tokens = ((input_ids != self.config.audio_token_id) & (kept != 0)).sum(1)
        if script_ids is not None:
            written = (script_ids != self.config.audio_end_token_id).sum(1)
            text_tokens = torch.where(written > 0, written, text_tokens)
        return (options.patches_per_token * text_tokens + SPARE_PATCHES).cpu()

    def _speech_steps(
        self,
        input_ids: torch.Tensor,
        options: SpeechOptions,
        caps: torch.Tensor,
        generator: torch.Generator | list[torch.Generator] | None,
        script_ids: torch.Tensor | None,
        attention_mask: torch.Tensor | None = None,
        **audio_inputs: Any,
    ) -> Iterator[SpeechStep]:
        """
        The loop: hidden state -> patch -> representation -> audio token -> hidden state. A patch is handed out before the
        language model reads it, and only what it then says decides about the end: of all that is said, or of a word, after
        which the row reads on in its script.
        """
        audio = self._audio(**{name: audio_inputs.get(name) for name in AUDIO_INPUTS})
        embeds = self._embed(input_ids, None if audio is None else self._audio_tokens(audio))
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        voice = VoicePrompt.of(self, input_ids, audio)
        script = Script.of(self, input_ids, script_ids, options.patches_per_token)
        written, kept = script.write(~script.finished())
        embeds, mask = torch.cat([embeds, self._embed(written, None)], 1), torch.cat([mask, kept.to(mask)], 1)
        cache = SpeechCache.of(self.config)
        hidden = self._read(embeds, mask, cache)
        speaking = torch.ones(len(input_ids), dtype=torch.bool, device=embeds.device)
        caps = caps.to(embeds.device)
        for count in range(1, int(caps.max()) + 1):
            patch = self.flow_head.sample(
                hidden,
                voice.representation,
                voice.patch,
                voice.known,
                **options.of_flow_head,
                generator=generator,
            )
            patch = self.audio_model.autoencoder.normalize(patch)  # back to where latents live (Eq. 1)
            yield SpeechStep(patch * speaking[:, None, None], speaking)
            if not bool((speaking & (caps > count)).any()):
                return
            token = voice.extend(self, patch)
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
            hidden = self._read(token, mask, cache)
            ended = torch.sigmoid(self.stop_head(hidden.to(self.stop_head.weight.dtype))[:, 0]) > options.stop_threshold
            turning = script.turning(ended)
            speaking = speaking & (caps > count)
            if count >= options.min_new_patches:
                speaking = speaking & (turning | ~ended)
            if not bool(speaking.any()):
                return
            turning = turning & speaking
            if bool(turning.any()):
                written, kept = script.write(turning)
                mask = torch.cat([mask, kept.to(mask)], dim=1)
                after = self._read(self._embed(written, None), mask, cache)
                hidden = torch.where(turning[:, None], after, hidden)

    def _read(self, embeds: torch.Tensor, attention_mask: torch.Tensor, cache: "SpeechCache") -> torch.Tensor:
        """The last hidden state [B, width] that speech is made from after `embeds` [B, n, width]; the cache takes them in."""
        positions = (attention_mask.long().cumsum(1) - 1).clamp(min=0)[:, -embeds.shape[1] :]
        given = {"attention_mask": attention_mask, "position_ids": positions, "use_cache": True}
        output = self.language_model.base_model(  # without the head, whose words nobody asks for
            inputs_embeds=embeds.to(self.language_model.dtype), past_key_values=cache.language_model, **given
        )
        hidden = output.last_hidden_state
        if self.residual_lm is not None:
            hidden, _ = self.residual_lm(hidden, embeds, past_key_values=cache.residual_lm, **given)
        return hidden[:, -1]


AUDIO_INPUTS = ("input_values", "padding_mask", "latents", "latents_mask")


@dataclass
class SpeechCache:
    """What the language model and the residual one, if there is one, remember of what they have read."""

    language_model: Cache
    residual_lm: Cache | None

    @classmethod
    def of(cls, config: F3AudioLMConfig) -> "SpeechCache":
        """Of a model that has read nothing yet."""
        residual = config.residual_config
        return cls(growing_cache(config.text_config), None if residual is None else growing_cache(residual))


class Script:
    """What the rows of a batch are still to write before the words that they say, and how far each has come."""

    def __init__(self, ids: torch.Tensor, start_token_id: int, end_token_id: int, patches_per_token: int):
        self.ids, self.start_token_id, self.end_token_id = ids, start_token_id, end_token_id
        self.patches_per_token = patches_per_token
        self.places, self.patches, self.most_patches = torch.zeros(3, len(ids), dtype=torch.long, device=ids.device)

    @classmethod
    def of(cls, model, input_ids: torch.Tensor, script_ids: torch.Tensor | None, patches_per_token: int) -> "Script":
        """Of `script_ids` `[B, S]`; without any, nothing is left to write."""
        config, end = model.config, input_ids.new_full((len(input_ids), 1), model.config.audio_end_token_id)
        ids = end if script_ids is None else torch.cat([script_ids.to(end), end], dim=1)
        return cls(ids, config.audio_start_token_id, config.audio_end_token_id, patches_per_token)

    def finished(self) -> torch.Tensor:
        """`[B]`, true for rows that have nothing left to write."""
        return self.ids.gather(1, self.places[:, None])[:, 0] == self.end_token_id

    def write(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """
        What `rows` `[B]` write before they say their next word: ids and mask `[B, n]`, padded on the left, for the others
        wholly.
        """
        starts = torch.arange(self.ids.shape[1], device=self.ids.device) >= self.places[:, None]
        until = ((self.ids == self.start_token_id) & starts).int().argmax(1) + 1
        counts = torch.where(rows, until - self.places, 0)
        longest = int(counts.max())
        offsets = torch.arange(longest, device=self.ids.device) - (longest - counts)[:, None]
        mask = offsets >= 0
        ids = self.ids.gather(1, (self.places[:, None] + offsets).clamp(min=0))
        self.places = self.places + counts
        self.patches = torch.where(rows, 0, self.patches)
        self.most_patches = torch.where(rows, self.patches_per_token * counts, self.most_patches)
        return ids, mask

    def turning(self, ended: torch.Tensor) -> torch.Tensor:
        """After another patch, the rows `[B]` that go on with their next word: those that have `ended` one, or should have."""
        self.patches = self.patches + 1
        return (ended | (self.patches >= self.most_patches)) & ~self.finished()


class VoicePrompt:
    """
    What the next patch follows: the previous patch, its downsampled representation, and the representation encoder's
    memory of all that was said in this voice, prompt included.
    """

    def __init__(self, patch: torch.Tensor, representation: torch.Tensor, known: torch.Tensor):
        self.patch, self.representation, self.known = patch, representation, known
        self.cache: Cache | None = None
        self.mask: torch.Tensor | None = None

    @classmethod
    def of(cls, model, input_ids: torch.Tensor, audio) -> "VoicePrompt":
        """Of rows that end within audio, which goes on in the same voice, or after the audio-start token, which does not."""
        rows, config = len(input_ids), model.config
        device = model.get_input_embeddings().weight.device
        width, dim = config.connector_hidden_size, config.flow_config.latent_dim
        goes_on = input_ids[:, -1] == config.audio_token_id
        start = cls(
            torch.zeros(rows, FRAMES_PER_TOKEN, dim, device=device),
            torch.zeros(rows, width, device=device),
            goes_on.clone(),
        )
        if not bool(goes_on.any()):
            return start
        counts = token_counts(audio.latents_mask.sum(1)).tolist()
        latents = [audio.latents.new_zeros(0, dim)] * rows
        for row, audios in enumerate(audios_by_row(input_ids == config.audio_token_id, counts)):
            if bool(goes_on[row]):
                latents[row] = audio.latents[audios[-1], : counts[audios[-1]] * FRAMES_PER_TOKEN]
        longest = max(len(item) for item in latents)
        padded = torch.stack([torch.cat([item.new_zeros(longest - len(item), dim), item]) for item in latents])
        lengths = torch.tensor([len(item) for item in latents], device=device)
        start.mask = (torch.arange(longest, device=device) >= longest - lengths[:, None]).long()
        start._encode(model, padded)
        return start

    def extend(self, model, patch: torch.Tensor) -> torch.Tensor:
        """Takes in the patch `[B, P, D]` that was said; the audio token `[B, 1, width]` that it is to the language model."""
        if self.mask is not None:
            self.mask = torch.cat([self.mask, self.mask.new_ones(len(patch), patch.shape[1])], dim=1)
        self.known = torch.ones_like(self.known)
        return model.connector(self._encode(model, patch))

    def _encode(self, model, latents: torch.Tensor) -> torch.Tensor:
        """Representations of the last patch in `latents`, which are the next frames of the stream."""
        positions = None
        if self.mask is not None:
            positions = (self.mask.cumsum(1) - 1).clamp(min=0)[:, -latents.shape[1] :]
        output = model.audio_model.encoder(
            latents, attention_mask=self.mask, position_ids=positions, past_key_values=self.cache, use_cache=True
        )
        self.cache = output.past_key_values
        last = output.last_hidden_state[:, -FRAMES_PER_TOKEN:]
        self.patch, self.representation = latents[:, -FRAMES_PER_TOKEN:], model.connector.downsampled(last)[:, 0]
        return last


def audios_by_row(places: torch.Tensor, counts: list[int]) -> list[list[int]]:
    """Which audios, of `counts` audio tokens each and in the order of the rows, take the `places` `[B, L]` of each row."""
    rows, following = [], 0
    for named in places.sum(1).tolist():
        first = following
        while named > 0 and following < len(counts):
            named, following = named - counts[following], following + 1
        rows.append(list(range(first, following)))
    return rows


def _within(samples: torch.Tensor, position: int, due: torch.Tensor) -> list[torch.Tensor]:
    """Of samples `[B, n]` from `position` on, what lies before the end `due` of each row."""
    return [row[: max(0, end - position)] for row, end in zip(samples, due.tolist())]
