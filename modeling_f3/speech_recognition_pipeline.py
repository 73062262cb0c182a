"""Transcribes through the language model: `pipeline("automatic-speech-recognition")` of an audio language model."""

import copy
from collections.abc import Mapping
from typing import Any

from transformers import Pipeline


class F3SpeechRecognitionPipeline(Pipeline):
    """
    What the stock pipeline does for models that it knows. Saved audio language models name it, so that
    `pipeline("automatic-speech-recognition", model=..., trust_remote_code=True)` finds it.

    Takes one recording or a list: the name of a file, a waveform `[N]` at the model's rate, or a dictionary with `array` (or
    `raw`) and `sampling_rate`. Returns `{"text": ...}` for each.

    Args:
        language (`str`, *optional*): English name of the language spoken, `"English"` by default.
        max_new_tokens (`int`, *optional*): the longest transcript.
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
    ) -> tuple[dict, dict, dict]:
        options = dict(generate_kwargs or {})
        if max_new_tokens is not None:
            options["max_new_tokens"] = max_new_tokens
        return {} if language is None else {"language": language}, {"generate_kwargs": options}, {}

    def preprocess(self, recording: Any, language: str = "English") -> dict:
        if isinstance(recording, Mapping):
            samples = recording["raw"] if "raw" in recording else recording["array"]
            recording = {"array": samples, "sampling_rate": recording["sampling_rate"]}
        elif not isinstance(recording, str):
            recording = {"array": recording, "sampling_rate": self.processor.feature_extractor.sampling_rate}
        return self.processor.apply_transcription_request(
            recording, language=language, processor_kwargs={"resample": True, "to_mono": True}
        )

    def _forward(self, inputs: dict, generate_kwargs: dict[str, Any]) -> dict:
        options = {"max_length": None, **self.model.transcription_options(inputs["input_ids"]), **generate_kwargs}
        generation_config = copy.deepcopy(self.generation_config)
        others = generation_config.update(**options)
        written = self.model.generate(**inputs, **others, generation_config=generation_config)
        return {"transcript": written[0, inputs["input_ids"].shape[1] :]}

    def postprocess(self, outputs: dict) -> dict[str, str]:
        return {"text": self.processor.decode(outputs["transcript"], skip_special_tokens=True).strip()}
