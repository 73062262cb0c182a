"""From recordings as people have them to what the models take; every check of the audio border is made here."""

from collections.abc import Mapping
from numbers import Real
from typing import Any

import numpy as np
import torch
from .hub_code import HubCodeMixin
from transformers import BatchFeature, SequenceFeatureExtractor
from transformers.utils import logging

from .resampling import resample as resample_waveform


logger = logging.get_logger(__name__)


class F3FeatureExtractor(HubCodeMixin, SequenceFeatureExtractor):
    """
    Turns waveforms into `input_values [batch, 1, samples]` (fp32) and `padding_mask [batch, samples]` (1 on samples,
    0 on the padding after them).

    The models hear one channel at one rate, and nothing is converted behind the caller's back: another rate, several
    channels or integer samples raise an error that names the fix. `resample=True` and `to_mono=True` ask for the
    conversion.

    Args:
        sampling_rate (`int`): samples per second that the model expects, in hertz.
        padding_value (`float`): sample value of the padding; the models ignore it.
        feature_size (`int`): channels, always 1.
        padding_side (`str`): always `"right"`, since the models are causal.
    """

    model_input_names = ["input_values", "padding_mask"]
    auto_classes = ("AutoFeatureExtractor",)

    def __init__(
        self,
        sampling_rate: int = 24_000,
        padding_value: float = 0.0,
        feature_size: int = 1,
        padding_side: str = "right",
        **kwargs: Any,
    ):
        if not _is_rate(sampling_rate) or sampling_rate != int(sampling_rate):
            raise ValueError(f"sampling_rate must be a positive whole number of hertz, got {sampling_rate!r}")
        if feature_size != 1:
            raise ValueError(f"feature_size must be 1 (mono), got {feature_size!r}")
        if padding_side != "right":
            raise ValueError(f"padding_side must be 'right' (the models are causal), got {padding_side!r}")
        super().__init__(
            feature_size=feature_size,
            sampling_rate=int(sampling_rate),
            padding_value=padding_value,
            padding_side=padding_side,
            **kwargs,
        )

    def __call__(
        self,
        audio: Any,
        sampling_rate: int | None = None,
        *,
        resample: bool = False,
        to_mono: bool = False,
        padding: bool | str = True,
        truncation: bool = False,
        max_length: int | None = None,
        pad_to_multiple_of: int | None = None,
        return_attention_mask: bool = True,
        return_tensors: str | None = "pt",
    ) -> BatchFeature:
        """
        Args:
            audio:
                One waveform or a list of them. A waveform is a 1-D array, tensor or list of floats, usually within
                [-1, 1]; a 2-D array `[channels, samples]`; or a dictionary of the `datasets` library with `array` and
                `sampling_rate`. A batch is always a list, never an array.
            sampling_rate: samples per second of `audio`; leave it out only for dictionaries, which know theirs.
            resample: convert from `sampling_rate` to the model's rate.
            to_mono: average the channels of 2-D arrays.
            padding: `True` pads to the longest of the batch, `"max_length"` to `max_length`, `False` not at all.
            truncation: cut each waveform to `max_length`.
            max_length: samples, at the model's rate.
            pad_to_multiple_of: pad further, to a multiple of so many samples; the models do not need it.
            return_attention_mask: whether to return `padding_mask`.
            return_tensors: `"pt"`, `"np"`, or `None` for a list of arrays `[1, samples]`.

        Raises:
            `TypeError`: for samples that are not floating point, and for what is not audio.
            `ValueError`: for a wrong rate, several channels, no samples, NaN or infinity.
        """
        waveforms = [self._waveform(item, name, sampling_rate, resample, to_mono) for name, item in _named_items(audio)]
        padded = self.pad(
            BatchFeature({"input_values": waveforms}),
            padding=padding,
            truncation=truncation,
            max_length=max_length,
            pad_to_multiple_of=pad_to_multiple_of,
            return_attention_mask=True,
            return_tensors="np",
        )
        features = {"input_values": [samples[np.newaxis] for samples in padded["input_values"]]}
        if return_attention_mask:
            features["padding_mask"] = list(padded["attention_mask"])
        return BatchFeature(features, tensor_type=return_tensors)

    def _waveform(self, item: Any, name: str, rate: int | None, resample: bool, to_mono: bool) -> np.ndarray:
        """The checked samples `[N]` of one recording in fp32, at the model's rate."""
        if isinstance(item, Mapping) or hasattr(item, "get_all_samples"):
            item, rate = _opened(item, name, rate)
        samples = _mono(_floats(item, name), name, to_mono)
        if samples.size == 0:
            raise ValueError(f"{name} is empty: leave it out of the batch, or pass at least one sample")
        if not np.isfinite(samples).all():
            count = samples.size - np.isfinite(samples).sum()
            raise ValueError(f"{name} has {count} NaN or infinite samples of {samples.size}: repair it or leave it out")
        if np.abs(samples).max() > 100:
            logger.warning_once(f"{name} peaks at {np.abs(samples).max():.0f}, expected about 1: divide PCM by 32768")
        return self._at_model_rate(samples, name, rate, resample)

    def _at_model_rate(self, samples: np.ndarray, name: str, rate: int | None, resample: bool) -> np.ndarray:
        if rate is None:
            if resample:
                raise ValueError(f"resample=True needs the rate of {name}: pass sampling_rate=")
            logger.warning_once(
                f"sampling_rate was not passed to {type(self).__name__}: {self.sampling_rate} Hz is assumed, and audio "
                "of another rate will sound wrong without an error"
            )
        elif not _is_rate(rate):
            raise ValueError(f"sampling_rate must be a positive number of hertz, got {rate!r}")
        elif rate != self.sampling_rate and not resample:
            raise ValueError(
                f"{name}: got {rate} Hz, this model expects {self.sampling_rate} Hz: resample the audio, for example "
                "by passing resample=True"
            )
        elif rate != self.sampling_rate:
            return resample_waveform(torch.from_numpy(samples), int(rate), self.sampling_rate).numpy()
        return samples


def _named_items(audio: Any) -> list[tuple[str, Any]]:
    """The recordings of a batch, or the only one, each with the name that an error gives it."""
    if not isinstance(audio, (list, tuple)) or (audio and isinstance(audio[0], Real)):
        return [("audio", audio)]
    if not audio:
        raise ValueError("audio is an empty list: pass at least one waveform")
    return [(f"audio[{index}]", item) for index, item in enumerate(audio)]


def _opened(item: Any, name: str, rate: int | None) -> tuple[Any, int]:
    """Samples and rate of a row of `datasets`: a dictionary or a decoder."""
    if hasattr(item, "get_all_samples"):
        decoded = item.get_all_samples()
        item = {"array": decoded.data, "sampling_rate": decoded.sample_rate}
    if item.get("array") is None or item.get("sampling_rate") is None:
        raise ValueError(f"{name} has the keys {sorted(item)}: decode it first, 'array' and 'sampling_rate' are needed")
    if rate is not None and rate != item["sampling_rate"]:
        raise ValueError(f"{name} says {item['sampling_rate']} Hz but sampling_rate={rate} was passed: pass only one")
    return item["array"], item["sampling_rate"]


def _floats(item: Any, name: str) -> np.ndarray:
    """An fp32 array from an array, tensor or list of floats."""
    if isinstance(item, torch.Tensor):
        item = item.detach().cpu()
        item = item.float().numpy() if item.is_floating_point() else item.numpy()
    if item is None or isinstance(item, (str, bytes)):
        raise TypeError(f"{name} is {item!r:.60}, not samples: read the file first, for example with soundfile.read")
    try:
        samples = np.asarray(item)
    except ValueError as error:
        raise ValueError(
            f"{name} is a list of lists of different lengths: the channels of one recording are equally long"
        ) from error
    if samples.dtype.kind in "iu" and samples.size:
        raise TypeError(
            f"{name} has {samples.dtype} samples, floats within [-1, 1] are expected: divide 16-bit PCM by 32768"
        )
    if samples.dtype.kind not in "fiu":
        raise TypeError(f"{name} has samples of type {samples.dtype}, floats within [-1, 1] are expected")
    return samples.astype(np.float32)


def _mono(samples: np.ndarray, name: str, to_mono: bool) -> np.ndarray:
    """`[N]` from `[N]` or `[channels, N]`."""
    if samples.ndim == 1:
        return samples
    if samples.ndim != 2:
        raise ValueError(f"{name} has shape {list(samples.shape)}: pass one 1-D waveform, or a list of them as a batch")
    channels, length = samples.shape
    if channels == 1:
        return samples[0]
    if channels > length > 0:
        raise ValueError(f"{name} has shape {list(samples.shape)}, expected [channels, samples]: transpose it")
    if not to_mono:
        raise ValueError(
            f"{name} has {channels} channels (shape {list(samples.shape)}), this model hears one: pass to_mono=True to "
            "average them, pick one, or pass a list if the rows are a batch"
        )
    return samples.mean(axis=0)


def _is_rate(rate: Any) -> bool:
    return isinstance(rate, Real) and not isinstance(rate, bool) and rate > 0
