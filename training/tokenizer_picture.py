"""
A picture of what the tokenizer makes of a recording, drawn by running it: spectrogram, latents, representations, and the
spectrogram of what is decoded from the latents.

    python -m f3_training.tokenizer_picture --model model_cards/f3-nano-16khz --input tests/fixtures/tt-allbusy.flac \\
        --output tokenizer.png
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from feature_extraction_f3.feature_extraction_f3 import F3FeatureExtractor
from matplotlib.figure import Figure
from modeling_f3.modeling_f3 import F3Model

from .audio_dataset import decode_audio
from .reconstruction_report import draw_spectrograms


@torch.inference_mode()
def draw(model: F3Model, samples: np.ndarray) -> Figure:
    """Four pictures over the same seconds, from the top down as data flow; `samples` `[N]` at the rate of the model."""
    rate = model.config.sampling_rate
    feature_extractor = F3FeatureExtractor(sampling_rate=rate)
    inputs = feature_extractor(samples, sampling_rate=rate, return_tensors="pt")
    encoded = model.encode(**inputs)
    decoded = model.decode(encoded.latents, encoded.latents_mask, encoded.audio_lengths)

    figure = Figure(figsize=(10, 8), layout="constrained")
    heard, latents, representations, spoken = figure.subplots(4, sharex=True)
    frame_rate = model.autoencoder.config.frame_rate
    waveforms = {
        f"waveform, {rate / 1000:g} kHz (its spectrogram)": samples,
        "waveform, decoded from the latents": decoded.audio_values[0, 0].numpy(),
    }
    draw_spectrograms((heard, spoken), waveforms, rate)
    for axis, name, frames in (
        (latents, "latents z", encoded.latents[0]),
        (representations, "representations u", encoded.last_hidden_state[0]),
    ):
        width = frames.shape[1]
        axis.set_title(f"{name}, {frame_rate:g} Hz × {width}", fontsize=9)
        spread = 2 * frames.std().item()
        extent = (0, len(frames) / frame_rate, 0, width)
        axis.imshow(
            frames.T, aspect="auto", extent=extent, vmin=-spread, vmax=spread, cmap="RdBu", interpolation="none"
        )
        axis.set_ylabel("channel")
    spoken.set_ylabel("Hz")
    spoken.set_xlabel("s")
    spoken.set_xlim(0, len(samples) / rate)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder or Hub name of a tokenizer")
    parser.add_argument("--input", type=Path, required=True, help="a sound file")
    parser.add_argument("--output", type=Path, required=True, help="the picture")
    arguments = parser.parse_args()
    model = F3Model.from_pretrained(arguments.model).eval()
    draw(model, decode_audio(arguments.input, model.config.sampling_rate)).savefig(arguments.output, dpi=70)


if __name__ == "__main__":
    main()
