"""
The parts of a checkpoint as graphs that run without its code: ONNX, or programs of `torch.export`.

    python -m f3_training.export model_cards/f3-autoencoder-nano-16khz --output_dir exported
    python -m f3_training.export runs/speaker/model --output_dir exported --format torch_export

| part | inputs | output | in checkpoints of |
|---|---|---|---|
| `encoder` | `input_values`, `padding_mask` | `latents`, `latents_mask`, `audio_lengths` | all |
| `decoder` | `latents`, `latents_mask`, `audio_lengths` | `audio_values` | all |
| `representation_encoder` | `latents`, `latents_mask` | `last_hidden_state` | tokenizer, audio language model |
| `flow_head` | those of [`F3FlowHead`], all of them | `velocity` | audio language model |

Names, shapes and types are those of the methods. Batch and time have any size, with one exception: the `encoder` of
torch_export wants more than one latent frame of audio. Fixed are fp32, all widths, and the frames of a patch. A graph
works on the whole length at once, so its memory grows with it (that of the representation encoder with its square), it
keeps no state between the chunks of a stream, and masks that do not fit are not refused. The flow head is one velocity:
solver, steps and guidance stay with the caller. The language model is not exported.

Every part is loaded from its file and compared with the model, on random inputs of other sizes than those it was traced
with.
"""

import argparse
import math
from collections.abc import Callable
from pathlib import Path

import modeling_f3  # noqa: F401  registers the Auto classes
import numpy as np
import torch
from modeling_f3.modeling_flow_head import F3FlowHead
from modeling_f3.pretrained_model import F3PreTrainedModel
from torch import nn
from torch.export import Dim, ExportedProgram
from torch.export.graph_signature import InputKind
from transformers import AutoModel
from transformers.exporters import DynamoConfig, DynamoExporter, OnnxConfig, OnnxExporter
from transformers.exporters.utils import register_patch


TRACED = (2, 7)  # items and frames of the inputs that are traced
CHECKED = ((1, 2), (3, 520))  # and of those that are compared; the model encodes and decodes the longer ones in pieces
TOLERANCE = 1e-4

Tensors = dict[str, torch.Tensor]


class Part(nn.Module):
    """A method of a model as the `forward` that exporters trace."""

    def __init__(self, model: F3PreTrainedModel):
        super().__init__()
        self.model = model

    def examples(self, batch: int, frames: int) -> Tensors:
        """Random inputs for so many items of so many latent frames, the longest of them."""
        raise NotImplementedError

    def dynamic_shapes(self) -> dict[str, dict[int, object]]:
        """The axes whose size follows that of the examples, as `torch.export` wants them told."""
        batch, frames = TRACED
        smaller, larger = self.examples(batch, frames), self.examples(batch + 1, frames + 1)
        return {
            name: {axis: Dim.DYNAMIC for axis, size in enumerate(values.shape) if size != larger[name].shape[axis]}
            for name, values in smaller.items()
        }


class Encoder(Part):
    """Of an [`F3AutoencoderModel`]."""

    def forward(self, **inputs: torch.Tensor) -> Tensors:
        return dict(self.model.encode(**inputs))

    def examples(self, batch: int, frames: int) -> Tensors:
        samples = frames * self.model.config.hop_length - 1
        lengths = torch.linspace(samples, 1, batch).long()
        return {
            "input_values": 0.1 * torch.randn(batch, 1, samples, generator=torch.Generator().manual_seed(frames)),
            "padding_mask": (torch.arange(samples) < lengths[:, None]).long(),
        }


class Decoder(Part):
    """Of an [`F3AutoencoderModel`]."""

    def forward(self, **inputs: torch.Tensor) -> Tensors:
        return {"audio_values": self.model.decode(**inputs).audio_values}

    @torch.no_grad()
    def examples(self, batch: int, frames: int) -> Tensors:
        encoder = Encoder(self.model)
        return encoder(**encoder.examples(batch, frames))


class RepresentationEncoder(Part):
    """Of an [`F3Model`]."""

    def forward(self, **inputs: torch.Tensor) -> Tensors:
        return {"last_hidden_state": self.model(**inputs).last_hidden_state}

    def examples(self, batch: int, frames: int) -> Tensors:
        encoded = Decoder(self.model.autoencoder).examples(batch, frames)
        return {name: encoded[name] for name in ("latents", "latents_mask")}


class FlowHead(Part):
    """An [`F3FlowHead`]."""

    def forward(self, **inputs: torch.Tensor) -> Tensors:
        return {"velocity": self.model(**inputs)}

    def examples(self, batch: int, frames: int) -> Tensors:
        config, generator = self.model.config, torch.Generator().manual_seed(frames)
        patch = (config.patch_size, config.latent_dim)
        shapes = {
            "noisy_patch": patch,
            "time": (),
            "condition": (config.condition_size,),
            "representation": (config.representation_size,),
            "previous_patch": patch,
        }
        inputs = {name: torch.rand(batch, *shape, generator=generator) for name, shape in shapes.items()}
        known = torch.rand(3, batch, generator=generator) > 0.5
        return inputs | dict(zip(("has_condition", "has_representation", "has_previous"), known))


def parts_of(model: F3PreTrainedModel) -> dict[str, Part]:
    """What can be exported of a model of any class, by name."""
    if isinstance(model, F3FlowHead):
        return {"flow_head": FlowHead(model)}
    tokenizer = getattr(model, "audio_model", model)
    autoencoder = getattr(tokenizer, "autoencoder", tokenizer)
    parts = {"encoder": Encoder(autoencoder), "decoder": Decoder(autoencoder)}
    if tokenizer is not autoencoder:
        parts["representation_encoder"] = RepresentationEncoder(tokenizer)
    if getattr(model, "flow_head", None) is not None:
        parts |= parts_of(model.flow_head)
    return parts


# The Fourier transforms of ONNX Runtime have errors that the compression of quiet bins blows up: latents of a recording
# differed by 1.5e-3. With matrices they differ by 9e-6, and take 0.7 times as long. Every `OnnxExporter` of the process
# finds these functions from now on; they take what `Spectrogram` gives them.
@register_patch("onnx", "torch.fft.rfft")
def rfft_by_matrices(original: Callable) -> Callable:
    """In graphs of ONNX, `torch.fft.rfft` of [..., window] multiplies by the waves of all frequencies."""

    def rfft(frames: torch.Tensor) -> torch.Tensor:
        cosines, sines = (torch.from_numpy(wave.astype(np.float32)) for wave in waves(frames.shape[-1]))
        return torch.complex(frames @ cosines, -(frames @ sines))

    return rfft


@register_patch("onnx", "torch.fft.irfft")
def irfft_by_matrices(original: Callable) -> Callable:
    """In graphs of ONNX, `torch.fft.irfft` of [..., n / 2 + 1] adds them up again."""

    def irfft(spectrum: torch.Tensor, n: int) -> torch.Tensor:
        share = np.full(n // 2 + 1, 2 / n)  # of a frequency and its mirror image, which the first and the last lack
        share[[0, -1]] = 1 / n
        cosines, sines = (torch.from_numpy((wave * share).T.astype(np.float32)) for wave in waves(n))
        return spectrum.real @ cosines - spectrum.imag @ sines

    return irfft


def waves(window: int) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and sines [window, window / 2 + 1] of all frequencies up to half the sampling rate, in fp64."""
    angles = 2 * np.pi / window * np.outer(np.arange(window), np.arange(window // 2 + 1))
    return np.cos(angles), np.sin(angles)


def export_onnx(part: Part, path: Path) -> None:
    """One file with the weights inside."""
    # The optimiser of onnxscript takes adding less than 1e-8 for adding nothing, after which silence is not a number.
    config = OnnxConfig(dynamic_shapes=part.dynamic_shapes(), output_path=path, external_data=False, optimize=False)
    OnnxExporter().export(part, part.examples(*TRACED), config)


def load_onnx(path: Path) -> Callable[[Tensors], Tensors]:
    """The graph of a file, run by ONNX Runtime on the CPU with as many threads as torch has."""
    from onnxruntime import InferenceSession, SessionOptions

    options = SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def run(inputs: Tensors) -> Tensors:
        values = session.run(names, {name: tensor.numpy() for name, tensor in inputs.items()})
        return {name: torch.from_numpy(value) for name, value in zip(names, values)}

    return run


def export_program(part: Part, path: Path) -> None:
    """One file of `torch.export`."""
    program = DynamoExporter().export(part, part.examples(*TRACED), DynamoConfig(dynamic_shapes=part.dynamic_shapes()))
    drop_unused_weights(program)
    torch.export.save(program, path)


def drop_unused_weights(program: ExportedProgram) -> None:
    """A program has all weights of the model that it was traced from; those of other parts leave."""
    unused = {node.name: node for node in program.graph.find_nodes(op="placeholder") if not node.users}
    inputs = program.graph_signature.input_specs
    for spec in [spec for spec in inputs if spec.kind == InputKind.PARAMETER and spec.arg.name in unused]:
        program.graph.erase_node(unused[spec.arg.name])
        inputs.remove(spec)
        del program.state_dict[spec.target]


def load_program(path: Path) -> Callable[[Tensors], Tensors]:
    """The program of a file."""
    program = torch.export.load(path).module()
    return lambda inputs: program(**inputs)


FORMATS = {"onnx": (".onnx", export_onnx, load_onnx), "torch_export": (".pt2", export_program, load_program)}


def export(model: F3PreTrainedModel, folder: Path, file_format: str = "onnx") -> dict[str, float]:
    """
    Writes all parts of `model`, which is in evaluation mode and fp32, and returns how far each differs from it at most.

    Raises:
        `ValueError`: for a part that differs by more than `TOLERANCE`; its file is removed.
    """
    suffix, write, load = FORMATS[file_format]
    folder.mkdir(parents=True, exist_ok=True)
    differences = {}
    for name, part in parts_of(model).items():
        path = folder / f"{name}{suffix}"
        write(part, path)
        differences[name] = compare(part, load(path))
        print(f"{path}: {path.stat().st_size / 1e6:.1f} MB, differs by {differences[name]:.1e} at most")
        if differences[name] > TOLERANCE:
            path.unlink()
            raise ValueError(f"{name} differs by {differences[name]:.1e} from the model, more than {TOLERANCE:.0e}")
    return differences


@torch.no_grad()
def compare(part: Part, run: Callable[[Tensors], Tensors]) -> float:
    """The largest difference between what `run` and `part` make of the same inputs; infinite where one is NaN."""
    largest = 0.0
    for size in CHECKED:
        inputs = part.examples(*size)
        expected, actual = part(**inputs), run(inputs)
        for name, values in expected.items():
            difference = (actual[name].double() - values.double()).abs().nan_to_num(nan=math.inf)
            largest = max(largest, difference.max().item())
    return largest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="folder or Hub name of an autoencoder, a tokenizer or an audio language model")
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--format", choices=sorted(FORMATS), default="onnx")
    arguments = parser.parse_args()
    model = AutoModel.from_pretrained(arguments.folder, dtype=torch.float32).eval()
    export(model, arguments.output_dir, arguments.format)


if __name__ == "__main__":
    main()
