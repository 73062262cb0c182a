"""
The exported autoencoder with 8-bit weights: what they cost and what they gain, on one recording.

    python -m f3_training.quantize model_cards/f3-autoencoder-nano-16khz --recording tests/fixtures/tt-allbusy.flac \\
        --output_dir quantized

Dynamic quantisation by ONNX Runtime, for the CPU: weights of convolutions and linear layers become integers, and so
does what these are given, with one scale for each tensor of it, found anew in every run. Transposed convolutions, the
Fourier transforms and all that lies between stay in fp32. Writes the graphs to `fp32/` and `int8/`, and their sizes,
speeds and scores beside those of the model to `quantization.json`.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from modeling_f3.modeling_autoencoder import F3AutoencoderModel

from .audio_dataset import decode_audio
from .export import Tensors, export, load_onnx, parts_of
from .machine import machine
from .reconstruction_metrics import pesq_wideband, stoi


PARTS = ("encoder", "decoder")

Codec = tuple[Callable[[Tensors], Tensors], Callable[[Tensors], Tensors]]  # what encodes, and what decodes


def quantize(source: Path, target: Path, window: int) -> None:
    """Writes the graph in `source` with 8-bit weights to `target`; `window` is that of its Fourier transform."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.shape_inference import quant_pre_process

    target.parent.mkdir(parents=True, exist_ok=True)
    quant_pre_process(source, target, skip_symbolic_shape=True)
    graph = onnx.load(target).graph
    waves = {tensor.name for tensor in graph.initializer if window // 2 + 1 in tensor.dims}
    quantize_dynamic(
        target,
        target,
        op_types_to_quantize=["Conv", "MatMul"],
        weight_type=QuantType.QUInt8,  # the CPU has no convolution with signed ones
        nodes_to_exclude=[node.name for node in graph.node if waves & set(node.input)],
    )


@torch.inference_mode()
def measure(codecs: dict[str, Codec], samples: np.ndarray, rate: int, rounds: int) -> dict[str, dict[str, float]]:
    """
    Of each codec, for `samples` [N]: PESQ-WB and STOI of the reconstruction, the largest difference of a latent from
    those of the first, and the milliseconds that a second of audio takes: the median and the minimum of `rounds` in
    which all take turns.
    """
    audio = {
        "input_values": torch.from_numpy(samples)[None, None],
        "padding_mask": torch.ones(1, len(samples), dtype=torch.long),
    }
    results, taken, latents = {}, {name: [] for name in codecs}, None
    for name, (encode, decode) in codecs.items():
        encoded = encode(audio)
        latents = encoded["latents"] if latents is None else latents
        decoded = decode(encoded)["audio_values"][0, 0].numpy()
        results[name] = {
            "pesq": pesq_wideband(samples, decoded, rate),
            "stoi": stoi(samples, decoded, rate),
            "latents_difference": (encoded["latents"] - latents).abs().max().item(),
        }
    for _ in range(rounds):
        for name, (encode, decode) in codecs.items():
            started = time.perf_counter()
            decode(encode(audio))
            taken[name].append(1000 * (time.perf_counter() - started) * rate / len(samples))
    for name, milliseconds in taken.items():
        results[name] |= {"ms_per_second": statistics.median(milliseconds), "fastest_ms_per_second": min(milliseconds)}
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="folder or Hub name of an autoencoder")
    parser.add_argument("--recording", type=Path, required=True, help="a sound file with speech")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output_dir", type=Path, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    model = F3AutoencoderModel.from_pretrained(arguments.folder, dtype=torch.float32).eval()
    fp32, int8 = (arguments.output_dir / name for name in ("fp32", "int8"))
    export(model, fp32)
    for part in PARTS:
        quantize(fp32 / f"{part}.onnx", int8 / f"{part}.onnx", model.config.stft_window)
    parts, rate = parts_of(model), model.config.sampling_rate
    codecs = {"model": tuple(lambda inputs, part=parts[name]: part(**inputs) for name in PARTS)}
    codecs |= {folder.name: tuple(load_onnx(folder / f"{part}.onnx") for part in PARTS) for folder in (fp32, int8)}
    results = measure(codecs, decode_audio(arguments.recording, rate), rate, arguments.rounds)
    for folder in (fp32, int8):
        results[folder.name]["megabytes"] = sum((folder / f"{part}.onnx").stat().st_size for part in PARTS) / 1e6

    conditions = {
        "recording": arguments.recording.name,
        "rounds": arguments.rounds,
        "threads": arguments.threads,
        **machine(),
        "torch": version("torch"),
        "onnxruntime": version("onnxruntime"),
    }
    print(" · ".join(f"{name}: {value}" for name, value in conditions.items()))
    print(f"{'':8s} {'MB':>6s} {'ms per s':>9s} {'PESQ-wb':>8s} {'STOI':>6s} {'latents differ by':>18s}")
    for name, row in results.items():
        size = f"{row['megabytes']:6.1f}" if "megabytes" in row else f"{'':6s}"
        print(
            f"{name:8s} {size} {row['ms_per_second']:9.1f} {row['pesq']:8.3f} {row['stoi']:6.4f} "
            f"{row['latents_difference']:18.1e}"
        )
    ratio = results["fp32"]["ms_per_second"] / results["int8"]["ms_per_second"]
    print(f"int8: {ratio:.2f} x as fast as fp32")
    report = {"conditions": conditions, "results": results, "ratio": ratio}
    (arguments.output_dir / "quantization.json").write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
