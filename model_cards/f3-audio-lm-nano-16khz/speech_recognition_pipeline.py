"""Transcribes through the language model: `pipeline("automatic-speech-recognition")` of an audio language model."""

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from transformers.pipelines.base import ChunkPipeline


CHUNK_SECONDS = 8.0  # trainings see recordings of up to 10 s, most of them of one sentence
PAUSE_SECONDS = 0.2


class F3SpeechRecognitionPipeline(ChunkPipeline):
    """
    What the stock pipeline does for models that it knows. Saved audio language models name it, so that
    `pipeline("automatic-speech-recognition", model=..., trust_remote_code=True)` finds it.

    Takes one recording or a list: the name of a file, a waveform `[N]` at the model's rate, or a dictionary with `array` (or
    `raw`) and `sampling_rate`. Returns `{"text": ...}` for each.

    Args:
        language (`str`, *optional*): English name of the language spoken, `"English"` by default.
        chunk_length_s (`float`, *optional*): seconds at once, 8 by default. A longer recording is cut where it is quietest, and
            the transcripts of its pieces are joined; `None` reads it whole.
        max_new_tokens (`int`, *optional*): the longest transcript of a piece.
        generate_kwargs (`dict`, *optional*): more for `generate`, in place of the model's `transcription_options`.
    """

    _load_processor = True
    _load_tokenizer = _load_feature_extractor = _load_image_processor = _load_video_processor = False
    _pipeline_calls_generate = True

    def _sanitize_parameters(
        self,
        language: str | None = None,
        max_new_tokens: int | None = None,
        generate_kwargs: dict[str, Any] | None = None,
        **recording_options: Any,
    ) -> tuple[dict, dict, dict]:
        options = dict(generate_kwargs or {})
        if max_new_tokens is not None:
            options["max_new_tokens"] = max_new_tokens
        if language is not None:
            recording_options["language"] = language
        return recording_options, {"generate_kwargs": options}, {}

    def preprocess(
        self, recording: Any, language: str = "English", chunk_length_s: float | None = CHUNK_SECONDS
    ) -> Iterator[dict]:
        extractor = self.processor.feature_extractor
        rate = extractor.sampling_rate
        if isinstance(recording, Mapping):
            samples, rate = recording["raw"] if "raw" in recording else recording["array"], recording["sampling_rate"]
        else:
            samples = extractor.fetch_audio(recording) if isinstance(recording, str) else recording
        given = {"array": samples, "sampling_rate": rate}
        samples = extractor(given, resample=True, to_mono=True)["input_values"][0, 0]
        pieces = [samples]
        if chunk_length_s is not None:
            pieces = cut_at_pauses(samples, extractor.sampling_rate, chunk_length_s)
        for index, piece in enumerate(pieces):
            request = self.processor.apply_transcription_request(
                piece.numpy(), language=language, sampling_rate=extractor.sampling_rate
            )
            yield {"is_last": index == len(pieces) - 1, **request}

    def _forward(self, inputs: dict, generate_kwargs: dict[str, Any]) -> dict:
        is_last = inputs.pop("is_last")
        options = {"max_length": None, **self.model.transcription_options(inputs["input_ids"]), **generate_kwargs}
        generation_config = copy.deepcopy(self.generation_config)
        others = generation_config.update(**options)
        written = self.model.generate(**inputs, **others, generation_config=generation_config)
        return {"is_last": is_last, "transcript": written[0, inputs["input_ids"].shape[1] :]}

    def postprocess(self, pieces: list[dict]) -> dict[str, str]:
        texts = [self.processor.decode(piece["transcript"], skip_special_tokens=True).strip() for piece in pieces]
        return {"text": " ".join(filter(None, texts))}


def cut_at_pauses(samples: torch.Tensor, rate: int, longest: float) -> list[torch.Tensor]:
    """
    Pieces `[n]` of samples `[N]`, none of more than `longest` seconds, each cut in the quietest fifth of a second of what may be
    its second half.

    Raises:
        `ValueError`: when `longest` is less than a second.
    """
    if longest < 1:
        raise ValueError(f"recordings cannot be cut into pieces of {longest} s: use a chunk_length_s of 1 or more")
    limit, window = int(longest * rate), int(PAUSE_SECONDS * rate)
    step, pieces = max(1, window // 4), []
    while len(samples) > limit:
        last = min(limit, len(samples) - limit // 4)  # what is left over is not the end of a word
        power = F.avg_pool1d(samples[None, limit // 2 : last].square(), window, step)
        cut = limit // 2 + int(power.argmin()) * step + window // 2
        pieces.append(samples[:cut])
        samples = samples[cut:]
    return [*pieces, samples]
