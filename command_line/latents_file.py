"""Latents on disk: safetensors with what is needed to make sound of them again, or gathered as a dataset."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from modeling_f3.model_outputs import F3AutoencoderEncoderOutput
from safetensors import safe_open
from safetensors.torch import save_file


def save_latents(encoded: F3AutoencoderEncoderOutput, sampling_rate: int, model: str, path: Path) -> None:
    """Writes the latents `[T, D]` of one recording, and how many samples it has at which rate."""
    metadata = {"samples": str(encoded.audio_lengths.item()), "sampling_rate": str(sampling_rate), "model": model}
    save_file({"latents": encoded.latents[0].contiguous().cpu()}, path, metadata)


def load_latents(path: Path) -> tuple[torch.Tensor, dict[str, str]]:
    """
    Latents `[T, D]`, and `samples`, `sampling_rate` and `model` as text.

    Raises:
        `ValueError`: for a file that `save_latents` has not written.
    """
    with safe_open(path, "pt") as file:
        metadata = file.metadata() or {}
        if "latents" not in file.keys() or not {"samples", "sampling_rate", "model"} <= metadata.keys():
            raise ValueError(f"{path} holds no latents: write it with `f3 encode`")
        return file.get_tensor("latents"), metadata


def gather(paths: Sequence[Path], names: Sequence[str], folder: Path) -> None:
    """Writes latents files as one dataset of the `datasets` library, a row for each, for `load_from_disk`."""
    from datasets import Dataset

    Dataset.from_generator(_rows, gen_kwargs={"paths": list(paths), "names": list(names)}).save_to_disk(folder)


def _rows(paths: Sequence[Path], names: Sequence[str]) -> Iterator[dict]:
    for path, name in zip(paths, names):
        latents, metadata = load_latents(path)
        yield {
            "file": name,
            "latents": latents.float().numpy(),
            "samples": int(metadata["samples"]),
            "sampling_rate": int(metadata["sampling_rate"]),
        }
