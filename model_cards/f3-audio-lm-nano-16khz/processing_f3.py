"""Text and audio together: what a person writes and records to what the audio language model reads, and labels for it."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from numbers import Real
from typing import Any

import torch
from .configuration_audio_lm import FRAMES_PER_TOKEN
from .hub_code import HubCodeMixin
from transformers import BatchFeature, ProcessorMixin


# Special tokens that families of language models have and text never contains: start of audio, one audio token, end.
SPARE_TOKENS = (
    ("<|vision_start|>", "<|vision_pad|>", "<|vision_end|>"),  # Qwen
    ("<repo_name>", "<file_sep>", "<filename>"),  # SmolLM2
    ("<|reserved_special_token_0|>", "<|reserved_special_token_1|>", "<|reserved_special_token_2|>"),  # Llama 3
    ("<unused0>", "<unused1>", "<unused2>"),  # Gemma
)

# What models are asked to do, in the first of the wordings that they are trained with.
TRANSCRIPTION_REQUEST = "Transcribe the {language} speech."
SPEECH_REQUEST = "Say: {text}"

# Who may be heard in a conversation.
ROLES = ("system", "user", "assistant", "tool")

# Where a sentence ends: not after an initial or a title.
SENTENCE_END = re.compile(r"(?<=[.!?])(?<!\b[A-Z]\.)(?<!\b[DMS][rst]\.)(?<!\bMrs\.)\s+(?=[^a-z])|\n+")


def spelled(text: str) -> str:
    """
    A text letter by letter, in lower case. To tokenizers of language models each letter is a token then: hours of speech tell
    how all letters sound, but not all words.
    """
    return "".join(f" {letter}" for letter in text.lower())


def patches_by_word(ends: Sequence[float], patches: int) -> list[int]:
    """
    How many of a recording's patches belong to each word: one that has parts of two goes to the later word, each has one at
    least, and the last word has what is left.

    Args:
        ends: of the words, in patches.

    Raises:
        `ValueError`: when there are more words than patches.
    """
    if len(ends) > patches:
        raise ValueError(f"{len(ends)} words do not fit into {patches} patches of audio: check their ends")
    bounds = [0]
    for index, end in enumerate(ends[:-1], 1):
        bounds.append(min(max(int(end), bounds[-1] + 1), patches - len(ends) + index))
    return [after - before for before, after in zip(bounds, [*bounds[1:], patches])]


def split_sentences(text: str) -> list[str]:
    """
    The sentences and lines of a text without the blanks around them, for models that learned to say one sentence at a time.
    """
    return [part.strip() for part in SENTENCE_END.split(text) if part.strip()]


class F3Processor(HubCodeMixin, ProcessorMixin):
    """
    A feature extractor and the language model's own tokenizer, which is not changed: audio takes the place of special
    tokens that it already has.

    Args:
        feature_extractor ([`F3FeatureExtractor`]): for the waveforms.
        tokenizer (`PreTrainedTokenizerBase`): of the language model.
        hop_length (`int`): samples per latent frame, from the tokenizer's configuration.
        start_token, placeholder_token, end_token (`str`, *optional*): the three special tokens; by default the first
            triple of `SPARE_TOKENS` that the tokenizer has.
        word_by_word (`bool`): for models that learned to write each word, letter by letter, before they say it.

    Raises:
        `ValueError`: when the tokenizer has no such tokens.
    """

    auto_classes = ("AutoProcessor",)

    def __init__(
        self,
        feature_extractor=None,
        tokenizer=None,
        hop_length: int = 640,
        start_token: str | None = None,
        placeholder_token: str | None = None,
        end_token: str | None = None,
        word_by_word: bool = False,
        chat_template: str | None = None,
    ):
        super().__init__(feature_extractor, tokenizer, chat_template=chat_template or tokenizer.chat_template)
        self.hop_length, self.word_by_word = hop_length, word_by_word
        named = (start_token, placeholder_token, end_token)
        self.start_token, self.placeholder_token, self.end_token = named if all(named) else spare_tokens(tokenizer)
        known = tokenizer.get_vocab()
        missing = [token for token in (self.start_token, self.placeholder_token, self.end_token) if token not in known]
        if missing:
            raise ValueError(
                f"the tokenizer has no tokens {missing}: name three special tokens that it has and text never uses"
            )

    @property
    def token_ids(self) -> dict[str, int]:
        """The three ids under the names that [`F3AudioLMConfig`] gives them."""
        to_id = self.tokenizer.convert_tokens_to_ids
        return {
            "audio_start_token_id": to_id(self.start_token),
            "audio_token_id": to_id(self.placeholder_token),
            "audio_end_token_id": to_id(self.end_token),
        }

    @property
    def model_input_names(self) -> list[str]:
        return [*self.tokenizer.model_input_names, *self.feature_extractor.model_input_names]

    def __call__(
        self,
        text: str | Sequence[str] | None = None,
        audio: Any = None,
        sampling_rate: int | None = None,
        *,
        latents: Sequence[torch.Tensor] | None = None,
        padding_side: str = "left",
        return_tensors: str = "pt",
        **audio_options,
    ) -> BatchFeature:
        """
        Args:
            text: one text or a batch; in it, `placeholder_token` once for every audio.
            audio: the recordings of all texts in the order of their placeholders, as for [`F3FeatureExtractor`].
            sampling_rate: of `audio`.
            latents: known latents `[T, D]`, one tensor for each placeholder, in place of `audio`.
            padding_side: `"left"` to generate, `"right"` to train.
            audio_options: passed on to the feature extractor, such as `resample=True`.

        Returns:
            `input_ids` and `attention_mask` `[B, L]`, and what the model needs of the audio: `input_values` and
            `padding_mask`, or `latents` and `latents_mask`. Where speech begins after the texts, for models that speak word
            by word, `script_ids` as well.

        Raises:
            `ValueError`: when placeholders and audio do not match, and what the feature extractor raises.
        """
        if audio is not None and latents is not None:
            raise ValueError("pass either audio or latents")
        heard, frames = self._audio_inputs(audio, sampling_rate, latents, audio_options)
        if text is None:
            return BatchFeature(heard)
        texts = [text] if isinstance(text, str) else list(text)
        self._check_placeholders(texts, len(frames))
        written = iter([self._written_audio(count, {}) for count in frames])
        ids = [self._ids(item, written, special=True) for item in texts]
        data = {**self._padded(ids, padding_side), **heard}
        if self.word_by_word and all(item.endswith(self.start_token) for item in texts):
            data["script_ids"] = self._script_ids(map(self._asked_to_say, texts))
        return BatchFeature(data, tensor_type=return_tensors)

    def apply_chat_template(
        self,
        conversation: list[dict] | list[list[dict]],
        *,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        speak: bool = False,
        script: str | Sequence[str] | None = None,
        tokenize: bool = True,
        return_labels: bool = False,
        return_dict: bool = True,
        return_tensors: str = "pt",
        sampling_rate: int | None = None,
        padding_side: str | None = None,
        processor_kwargs: dict[str, Any] | None = None,
    ) -> BatchFeature | str | list[str]:
        """
        A conversation, or a batch of them, in the language model's own chat format. The content of a message is a string,
        or a list of parts: `{"type": "text", "text": ...}`, `{"type": "audio", "audio": waveform}` with a waveform as for
        [`F3FeatureExtractor`], `{"type": "audio", "path": file or URL}`, or `{"type": "audio", "latents": [T, D]}`. Speech
        of the assistant that a model learns word by word has its `"text"` as well, and `"word_ends"`, in seconds, if known.

        Args:
            add_generation_prompt: end with the beginning of an answer.
            continue_final_message: end within the last message, to be gone on with.
            speak: end with the beginning of a spoken answer; where the conversation ends in audio of the assistant, with
                that audio, to be gone on with in the same voice.
            script: what the spoken answer of each conversation says, for models that speak word by word, as `script_ids`
                `[B, S]`; by default what is asked for in the words of `speech_request`. Other models do without.
            tokenize: return what the model takes, not the text.
            return_labels: add what there is to learn from the assistant: `labels`, the tokens of written answers and -100
                elsewhere, and `spoken` `[A]`, true for audio in an answer, if there is such. An answer with audio in it is
                all spoken.
            return_dict, return_tensors: as everywhere in Transformers, where they have other values too.
            sampling_rate: of waveforms that don't say theirs; a file does, and is brought to the model's.
            padding_side: `"left"` to generate, `"right"` to train; by default the one that suits `return_labels`.
            processor_kwargs: passed on to the feature extractor, such as `{"resample": True}`.

        Raises:
            `ValueError`: for parts of another type, audio in another role than `ROLES`, audio and latents in one call, ends
                that are not those of the words, a script without words, a conversation without an answer to learn, and what
                the feature extractor raises.
        """
        if not return_dict or return_tensors != "pt":
            raise ValueError('audio comes along in a dictionary of tensors: use return_dict=True, return_tensors="pt"')
        batch = [conversation] if conversation and isinstance(conversation[0], dict) else list(conversation)
        scripts = [script] if isinstance(script, str) else list(script or ())
        if scripts and (len(scripts) != len(batch) or not all(map(str.strip, scripts))):
            raise ValueError(
                f"{len(batch)} spoken answers are to say {scripts}: give each of them a text that is not empty"
            )
        speak = speak or (continue_final_message and all(map(_ends_in_speech, batch)))
        continues = continue_final_message and not speak
        if continues and return_labels:
            raise ValueError("what is to be continued is no answer to learn: leave out one of the two options")
        if not tokenize:
            texts = [self._prompt(messages, add_generation_prompt, continues, speak) for messages in batch]
            return texts if isinstance(conversation[0], list) else texts[0]
        parts = [part for messages in batch for part in _audio_parts(messages)]
        heard, frames = self._audio_of(parts, sampling_rate, processor_kwargs or {})
        said = [part if is_said else {} for part, is_said in zip(parts, chain(*map(_spoken, batch)))]
        written = iter([self._written_audio(count, part) for count, part in zip(frames, said)])
        rows, targets = zip(*(self._row(item, written, add_generation_prompt, continues, speak) for item in batch))
        side = padding_side or ("right" if return_labels else "left")
        data = {**self._padded(rows, side), **heard}
        if speak and self.word_by_word:
            prompts = (self._prompt(messages, add_generation_prompt, continues, speak) for messages in batch)
            data["script_ids"] = self._script_ids(scripts or map(self._asked_to_say, prompts))
        if return_labels:
            data["labels"] = _pad(targets, -100, side)
            spoken = [_spoken(messages) for messages in batch]
            for index, (row, flags) in enumerate(zip(targets, spoken)):
                if not any(flags) and all(target == -100 for target in row):
                    raise ValueError(
                        f"conversation {index} has no answer of the assistant to learn: add one or leave it out"
                    )
            if any(map(any, spoken)):
                data["spoken"] = torch.tensor([flag for flags in spoken for flag in flags])
        return BatchFeature(data)

    def apply_transcription_request(self, audio: Any, *, language: str = "English", **options: Any) -> BatchFeature:
        """
        The prompt that asks for a transcript of a recording, or one each for a list of them: waveforms as for
        [`F3FeatureExtractor`] or names of files. `options` are those of `apply_chat_template`.
        """
        is_batch = isinstance(audio, (list, tuple)) and not isinstance(audio[0], Real)
        request = {"type": "text", "text": TRANSCRIPTION_REQUEST.format(language=language)}
        conversations = [
            [{"role": "user", "content": [{"type": "audio", "audio": item}, request]}]
            for item in (audio if is_batch else [audio])
        ]
        return self.apply_chat_template(conversations, add_generation_prompt=True, **options)

    def speech_request(self, text: str) -> str:
        """What a user writes to have `text` said, in the wording that the model has learned."""
        return SPEECH_REQUEST.format(text=text)

    def apply_speech_request(
        self, text: str | Sequence[str], *, voice: Any = None, voice_text: str = "", **options: Any
    ) -> BatchFeature:
        """
        The prompt that asks to say a text, or one each for several texts. With `voice`, a recording as for
        [`F3FeatureExtractor`] or the name of a file, in which `voice_text` is said, the answer goes on in that voice.
        `options` are those of `apply_chat_template`.
        """
        texts, conversations = [text] if isinstance(text, str) else list(text), []
        for item in texts:
            request = self.speech_request(f"{voice_text} {item}".strip())
            conversations.append([{"role": "user", "content": request}])
            if voice is not None:
                said = {"type": "audio", "audio": voice, "text": voice_text}
                conversations[-1].append({"role": "assistant", "content": [said]})
        return self.apply_chat_template(conversations, speak=True, script=texts, **options)

    def _audio_of(self, parts: list[dict], sampling_rate: int | None, options: dict) -> tuple[dict, list[int]]:
        """What the model is given of the audio in all conversations, and the latent frames of each."""
        latents = [part["latents"] for part in parts if "latents" in part]
        if latents and len(latents) < len(parts):
            raise ValueError("some audio is given as latents and some as waveforms: use one of them in a call")
        if latents or not parts:
            return self._audio_inputs(None, None, latents or None, options)
        return self._audio_inputs([self._recording(part, sampling_rate) for part in parts], None, None, options)

    def _recording(self, part: dict, sampling_rate: int | None) -> Any:
        """A waveform for the feature extractor, with its rate where it is known."""
        given = next((part[name] for name in ("audio", "path", "url") if name in part), None)
        if given is None:
            raise ValueError(f"audio has the keys {sorted(part)}: one of 'audio', 'path' and 'latents' is needed")
        if isinstance(given, str):
            given, sampling_rate = self.feature_extractor.fetch_audio(given), self.feature_extractor.sampling_rate
        if sampling_rate is None or isinstance(given, Mapping) or hasattr(given, "get_all_samples"):
            return given
        return {"array": given, "sampling_rate": sampling_rate}

    def _row(
        self, messages: list[dict], written: Iterator[str], add_generation_prompt: bool, continues: bool, speak: bool
    ) -> tuple[list[int], list[int]]:
        """Token ids of a conversation, and those to learn, -100 elsewhere; `written` is what stands for each audio."""
        goes_on = speak and _ends_in_speech(messages)
        opening = add_generation_prompt or (speak and not goes_on)
        ids, targets = [], []
        for segment, is_answer in self._segments(messages, opening, continues):
            segment_ids = self._ids(segment, written, special=False)
            ids += segment_ids
            is_text = is_answer and self.placeholder_token not in segment
            targets += segment_ids if is_text else [-100] * len(segment_ids)
        if goes_on:
            del ids[len(ids) - ids[::-1].index(self.token_ids["audio_token_id"]) :]  # what would end the audio
        elif speak:
            ids.append(self.token_ids["audio_start_token_id"])
        return ids, [*targets, -100][: len(ids)]

    def _prompt(self, messages: list[dict], add_generation_prompt: bool, continues: bool, speak: bool) -> str:
        """The rendered conversation, with its placeholders."""
        if not speak:
            return self._render(messages, add_generation_prompt, continues)
        if not _ends_in_speech(messages):
            return self._render(messages, True) + self.start_token
        before, placeholder, _ = self._render(messages, False).rpartition(self.placeholder_token)
        return before + placeholder

    def _segments(self, messages: list[dict], add_generation_prompt: bool, continues: bool) -> list[tuple[str, bool]]:
        """The rendered conversation cut where answers of the assistant begin and end; true for answers."""
        segments, done = [], ""
        for index, message in enumerate(messages[:-1] if continues else messages):
            if message["role"] != "assistant":
                continue
            before = self._render(messages[:index], True)
            until = self._render(messages[: index + 1], False)
            if not (before.startswith(done) and until.startswith(before)):
                raise ValueError("the chat template rewrites earlier messages, so answers cannot be told from prompts")
            segments += [(before[len(done) :], False), (until[len(before) :], True)]
            done = until
        rest = self._render(messages, add_generation_prompt, continues)[len(done) :]
        return [segment for segment in [*segments, (rest, False)] if segment[0]]

    def _render(self, messages: list[dict], add_generation_prompt: bool, continues: bool = False) -> str:
        flat = [{**message, "content": self._flat_content(message["content"])} for message in messages]
        return self.tokenizer.apply_chat_template(
            flat,
            chat_template=self.chat_template,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continues,
        )

    def _flat_content(self, content: str | list[dict]) -> str:
        """One string, with a placeholder for each audio."""
        texts = []
        for part in [{"type": "text", "text": content}] if isinstance(content, str) else content:
            if part.get("type") == "text":
                if self.placeholder_token in part["text"]:
                    raise ValueError(
                        f"a text has {self.placeholder_token!r} in it, which stands for audio: take it out"
                    )
                texts.append(part["text"])
            elif part.get("type") == "audio":
                texts.append(self.placeholder_token)
            else:
                raise ValueError(f"a part of a message is of type {part.get('type')!r}: use 'text' or 'audio'")
        return "".join(texts)

    def _audio_inputs(
        self, audio: Any, sampling_rate: int | None, latents: Any, options: dict
    ) -> tuple[dict, list[int]]:
        """What the model is given of the audio, and the latent frames of each."""
        if latents is not None:
            frames = [item.shape[0] for item in latents]
            padded = torch.nn.utils.rnn.pad_sequence(
                [torch.as_tensor(item).float() for item in latents], batch_first=True
            )
            mask = torch.arange(padded.shape[1]) < torch.tensor(frames)[:, None]
            return {"latents": padded, "latents_mask": mask}, frames
        if audio is None:
            return {}, []
        features = self.feature_extractor(audio, sampling_rate, **options)
        lengths = features["padding_mask"].sum(1)
        return dict(features), (-(-lengths // self.hop_length)).tolist()

    def _check_placeholders(self, texts: list[str], given: int) -> None:
        named = [text.count(self.placeholder_token) for text in texts]
        if sum(named) != given:
            raise ValueError(
                f"the texts name {sum(named)} audios ({named} by row, {self.placeholder_token!r} for each) and {given} are given"
            )

    def _ids(self, text: str, written: Iterator[str], special: bool) -> list[int]:
        """Token ids of `text`, with what is `written` for each audio."""
        first, *others = text.split(self.placeholder_token)
        for other in others:
            first += next(written) + other
        return self.tokenizer(first, add_special_tokens=special)["input_ids"]

    def _written_audio(self, frames: int, said: dict) -> str:
        """
        As many placeholders as an audio of so many frames has audio tokens. Where it is to be learned word by word, each word
        that is `said` stands before the patches that belong to it; without their `word_ends`, all stand before all patches.
        """
        count = -(-frames // FRAMES_PER_TOKEN)
        if not (self.word_by_word and said.get("text")):
            return f"{self.start_token}{self.placeholder_token * count}{self.end_token}"
        words, shares = [said["text"]], [count]
        if ends := said.get("word_ends"):
            words = said["text"].split()
            if len(ends) != len(words):
                raise ValueError(
                    f"{len(ends)} word_ends are given for the {len(words)} words of {said['text']!r}: give one for each"
                )
            patches_per_second = self.feature_extractor.sampling_rate / (self.hop_length * FRAMES_PER_TOKEN)
            shares = patches_by_word([end * patches_per_second for end in ends], count)
        written = (self._announced(word) + self.placeholder_token * share for word, share in zip(words, shares))
        return self.start_token + "".join(written) + self.end_token

    def _asked_to_say(self, prompt: str) -> str:
        """The text, where the last turn before the spoken answer in a rendered prompt ends in a `speech_request`, else ""."""
        specials = "|".join(map(re.escape, self.tokenizer.all_special_tokens))
        text = re.split(specials, prompt.rpartition(self.speech_request(""))[2])[0]
        request = self.speech_request(text)
        asked = self._prompt([{"role": "user", "content": request}], False, False, speak=True)
        return text if prompt.endswith(asked[asked.rindex(request) :]) else ""

    def _script_ids(self, texts: Iterable[str]) -> torch.Tensor:
        """`[B, S]` the words of each text as they are announced, and audio-end tokens after the last one."""
        rows = ["".join(map(self._announced, text.split())) + self.end_token for text in texts]
        ids = self.tokenizer(rows, add_special_tokens=False)["input_ids"]
        return _pad(ids, self.token_ids["audio_end_token_id"], "right")

    def _announced(self, words: str) -> str:
        """The letters of words that speech follows."""
        return spelled(words) + self.start_token

    def _padded(self, rows: Sequence[list[int]], side: str) -> dict[str, torch.Tensor]:
        pad = self.tokenizer.pad_token_id
        if pad is None:
            pad = self.tokenizer.eos_token_id or 0
        mask = [[1] * len(row) for row in rows]
        return {"input_ids": _pad(rows, pad, side), "attention_mask": _pad(mask, 0, side)}

    def save_audio(self, audio: Any, path: str) -> None:
        """
        Writes one waveform, or one of the `audio` that `generate` returns, as a sound file at the model's rate.

        Raises:
            `ImportError`: without the package soundfile.
        """
        try:
            import soundfile
        except (ImportError, OSError) as error:
            raise ImportError(f"sound files are written with soundfile ({error}): pip install soundfile") from error

        samples = torch.as_tensor(audio).detach().float().cpu().flatten().numpy()
        soundfile.write(path, samples, self.feature_extractor.sampling_rate)

    def post_process_multimodal_output(
        self,
        generated_outputs: Any,
        skip_special_tokens: bool = True,
        generation_mode: str | None = None,
        **kwargs: Any,
    ) -> list:
        """What `generate` returned as texts or, for `generation_mode="audio"`, as waveforms `[N]` in NumPy."""
        if generation_mode == "audio":
            return [waveform.float().cpu().numpy() for waveform in generated_outputs.audio]
        return super().post_process_multimodal_output(generated_outputs, skip_special_tokens, generation_mode, **kwargs)

    def batch_decode(self, *args, **kwargs) -> list[str]:
        """The tokenizer's."""
        return self.tokenizer.batch_decode(*args, **kwargs)

    def decode(self, *args, **kwargs) -> str:
        """The tokenizer's."""
        return self.tokenizer.decode(*args, **kwargs)


def spare_tokens(tokenizer) -> tuple[str, str, str]:
    """
    Start of audio, placeholder and end of audio among the tokens that `tokenizer` has already.

    Raises:
        `ValueError`: when it has none of those that we know.
    """
    known = tokenizer.get_vocab()
    for tokens in SPARE_TOKENS:
        if all(token in known for token in tokens):
            return tokens
    raise ValueError(
        "the tokenizer has none of the spare special tokens known here: pass start_token, placeholder_token and end_token, "
        "three special tokens that it has and text never contains"
    )


def _audio_parts(messages: list[dict]) -> list[dict]:
    parts = []
    for message in messages:
        content = [] if isinstance(message["content"], str) else message["content"]
        found = [part for part in content if part.get("type") == "audio"]
        if found and message["role"] not in ROLES:
            raise ValueError(
                f"a message of the role {message['role']!r} has audio: say who is heard, one of {', '.join(ROLES)}"
            )
        parts += found
    return parts


def _spoken(messages: list[dict]) -> list[bool]:
    """For each audio of a conversation, whether the assistant says it."""
    return [message["role"] == "assistant" for message in messages for _ in _audio_parts([message])]


def _ends_in_speech(messages: list[dict]) -> bool:
    """Whether a conversation ends in audio of the assistant."""
    return bool(messages) and messages[-1]["role"] == "assistant" and bool(_audio_parts(messages[-1:]))


def _pad(rows: Sequence[list[int]], value: int, side: str) -> torch.Tensor:
    """[B, longest]."""
    longest = max(map(len, rows))
    gaps = [[value] * (longest - len(row)) for row in rows]
    return torch.tensor([gap + row if side == "left" else row + gap for row, gap in zip(rows, gaps)])
