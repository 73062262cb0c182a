"""The memory of a stream: named tensors that every causal layer reads and renews, nothing else."""

import os

import torch
from safetensors.torch import load_file, save_file


class F3StreamingState:
    """
    What a causal network must remember between two chunks of one stream. It starts empty (silence before the first
    sample); passing it to the streaming methods of a model fills it. One state belongs to one direction (encode or
    decode) of one batch of streams.
    """

    def __init__(self, tensors: dict[str, torch.Tensor] | None = None):
        self.tensors = dict(tensors or {})

    def extend(self, name: str, chunk: torch.Tensor, context: int, dim: int) -> torch.Tensor:
        """
        Puts the last `context` steps seen under `name` before `chunk` along `dim`, and remembers the new last ones.

        Raises:
            `ValueError`: if the stream was started with another batch size or width.
        """
        extended = torch.cat([self.recall(name, chunk, context, dim), chunk], dim)
        self.tensors[name] = extended.narrow(dim, extended.shape[dim] - context, context).clone()
        return extended

    def recall(self, name: str, like: torch.Tensor, length: int, dim: int) -> torch.Tensor:
        """The tensor kept under `name`, or `length` zero steps along `dim`, shaped as `like` elsewhere."""
        shape = list(like.shape)
        shape[dim] = length
        if name not in self.tensors:
            return like.new_zeros(shape)
        kept = self.tensors[name]
        expected = shape[:dim] + list(kept.shape[dim : dim + 1]) + shape[dim + 1 :]
        if list(kept.shape) != expected:
            raise ValueError(
                f"the stream was started with shape {list(kept.shape)} at {name!r} and now gets {list(like.shape)}: "
                "use one state per batch of streams"
            )
        return kept

    def copy(self) -> "F3StreamingState":
        """An independent state that continues from the same point."""
        return F3StreamingState({name: tensor.clone() for name, tensor in self.tensors.items()})

    def clear(self) -> None:
        """Back to silence: the state can start another stream."""
        self.tensors.clear()

    def save(self, path: str | os.PathLike) -> None:
        """Writes the state as a safetensors file; the file appears complete or not at all."""
        temporary = f"{os.fspath(path)}.tmp"
        save_file({name: tensor.contiguous() for name, tensor in self.tensors.items()}, temporary)
        os.replace(temporary, path)

    @classmethod
    def load(cls, path: str | os.PathLike, device: str | torch.device = "cpu") -> "F3StreamingState":
        """Reads a state written by [`~F3StreamingState.save`]."""
        return cls(load_file(path, device=str(device)))
