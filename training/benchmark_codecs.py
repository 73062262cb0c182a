"""
How fast F3 encodes and decodes beside the codecs of the installed Transformers.

    python -m f3_training.benchmark_codecs --output_dir results

One run, one machine, the same recording for all, each codec at its own rate with its default configuration and random
weights (speed does not depend on what they learned). The codecs take turns, so that a busy moment of the machine hits
all of them, and each one's median counts.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from configuration_f3.configuration_autoencoder import F3AutoencoderConfig
from modeling_f3.modeling_autoencoder import F3AutoencoderModel
from transformers import (
    DacConfig,
    DacModel,
    EncodecConfig,
    EncodecModel,
    MimiConfig,
    MimiModel,
    PreTrainedModel,
    VibeVoiceAcousticTokenizerConfig,
    VibeVoiceAcousticTokenizerModel,
)

from .audio_dataset import decode_audio


RoundTrip = Callable[[torch.Tensor], torch.Tensor]


def f3(preset: str) -> tuple[PreTrainedModel, RoundTrip]:
    model = F3AutoencoderModel(F3AutoencoderConfig.preset(preset))
    return model, lambda audio: model.decode(**model.encode(audio)).audio_values


def encodec() -> tuple[PreTrainedModel, RoundTrip]:
    model = EncodecModel(EncodecConfig())

    def round_trip(audio: torch.Tensor) -> torch.Tensor:
        encoded = model.encode(audio)
        return model.decode(encoded.audio_codes, encoded.audio_scales).audio_values

    return model, round_trip


def mimi() -> tuple[PreTrainedModel, RoundTrip]:
    model = MimiModel(MimiConfig())
    return model, lambda audio: model.decode(model.encode(audio).audio_codes).audio_values


def dac() -> tuple[PreTrainedModel, RoundTrip]:
    model = DacModel(DacConfig())
    return model, lambda audio: model.decode(model.encode(audio).quantized_representation).audio_values


def vibevoice() -> tuple[PreTrainedModel, RoundTrip]:
    model = VibeVoiceAcousticTokenizerModel(VibeVoiceAcousticTokenizerConfig())
    return model, lambda audio: model.decode(model.encode(audio, sample=False).latents).audio


CODECS = {
    "F3 nano": lambda: f3("nano"),
    "F3 base": lambda: f3("base"),
    "EnCodec": encodec,
    "Mimi": mimi,
    "DAC": dac,
    "VibeVoice acoustic": vibevoice,
}
DEFAULT_RATE = 24_000  # of configurations that don't name theirs: VibeVoice's acoustic tokenizer


def time_codecs(recording: Path | None, seconds: float, rounds: int) -> dict[str, dict[str, float]]:
    """Milliseconds per second of audio (median, minimum) of every codec, and its size."""
    runs, results = {}, {}
    for name, build in CODECS.items():
        torch.manual_seed(0)
        model, round_trip = build()
        model.eval()
        rate = getattr(model.config, "sampling_rate", None) or DEFAULT_RATE
        runs[name] = (round_trip, test_audio(recording, rate, seconds))
        results[name] = {"parameters": sum(p.numel() for p in model.parameters()), "sampling_rate": rate}
    taken = {name: [] for name in runs}
    with torch.inference_mode():
        for turn in range(rounds + 1):
            for name, (round_trip, audio) in runs.items():
                started = time.perf_counter()
                round_trip(audio)
                if turn > 0:  # the first one warms up
                    taken[name].append(1000 * (time.perf_counter() - started) / seconds)
    for name, milliseconds in taken.items():
        results[name] |= {"ms_per_second": statistics.median(milliseconds), "fastest_ms_per_second": min(milliseconds)}
    return results


def test_audio(recording: Path | None, rate: int, seconds: float) -> torch.Tensor:
    """[1, 1, N] samples of the recording, repeated to the length, or noise without one."""
    length = int(rate * seconds)
    if recording is None:
        return 0.1 * torch.randn(1, 1, length, generator=torch.Generator().manual_seed(0))
    return torch.from_numpy(np.resize(decode_audio(recording, rate), length))[None, None]


def ratios(results: dict[str, dict[str, float]]) -> dict[str, float]:
    """How many times as fast as the fastest codec that is not ours."""
    fastest = min(row["ms_per_second"] for name, row in results.items() if not name.startswith("F3"))
    return {name: fastest / row["ms_per_second"] for name, row in results.items() if name.startswith("F3")}


def markdown(report: dict) -> str:
    """Conditions, the codecs from the fastest to the slowest, and the ratios."""
    conditions = ", ".join(f"{name} {value}" for name, value in report["conditions"].items())
    lines = [
        "# Speed",
        "",
        f"`python -m f3_training.benchmark_codecs`, default configurations, one run: {conditions}.",
        "",
        "| codec | M parameters | kHz | ms per second of audio | x real time |",
        "|---|---|---|---|---|",
    ]
    for name, row in sorted(report["codecs"].items(), key=lambda item: item[1]["ms_per_second"]):
        size, rate, taken = row["parameters"] / 1e6, row["sampling_rate"] / 1000, row["ms_per_second"]
        lines.append(f"| {name} | {size:.1f} | {rate:g} | {taken:.1f} | {1000 / taken:.1f} |")
    ratios = ", ".join(f"{name} {ratio:.2f} times" for name, ratio in report["ratios"].items())
    return "\n".join([*lines, "", f"As fast as the fastest codec that is not F3: {ratios}.", ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recording", type=Path, help="a sound file; noise without one")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output_dir", type=Path, help="for benchmark.json and benchmark.md, which is what is printed")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    results = time_codecs(arguments.recording, arguments.seconds, arguments.rounds)
    conditions = {
        "seconds": arguments.seconds,
        "rounds": arguments.rounds,
        "threads": arguments.threads,
        "dtype": "float32",
        "weights": "random",
        "processor": platform.processor() or platform.machine(),
        "torch": version("torch"),
        "transformers": version("transformers"),
    }
    report = {"conditions": conditions, "codecs": results, "ratios": ratios(results)}
    print(markdown(report))
    if arguments.output_dir:
        arguments.output_dir.mkdir(parents=True, exist_ok=True)
        (arguments.output_dir / "benchmark.json").write_text(json.dumps(report, indent=2) + "\n")
        (arguments.output_dir / "benchmark.md").write_text(markdown(report), encoding="utf-8")


if __name__ == "__main__":
    main()
