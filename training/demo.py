"""
The main job on a real recording, with the checkpoint that comes with the project: sound to latents and back.

    python -m f3_training.demo [--input any.wav] [--output_dir demo]

Prints the scores of the reconstruction beside Opus and writes original.wav, reconstructed.wav and spectrogram.png.
"""

import argparse
from pathlib import Path

import modeling_f3  # noqa: F401  registers the Auto classes
import numpy as np
import soundfile
import torch
from transformers import AutoFeatureExtractor, AutoModel

from .audio_dataset import decode_audio
from .evaluate_reconstruction import MODEL, Item, evaluate_item
from .judges import load_judges
from .reconstruction_report import means, plot_spectrograms, score_table


CHECKOUT = Path(__file__).resolve().parents[1]
CHECKPOINT = CHECKOUT / "model_cards" / "f3-autoencoder-nano-16khz"
RECORDING = CHECKOUT / "tests" / "fixtures" / "tt-allbusy.flac"


def reconstruct(checkpoint: str | Path, recording: Path, output_dir: Path) -> dict:
    """Does what the demo shows, prints and writes it, and returns the scores by system."""
    model = AutoModel.from_pretrained(checkpoint).eval()
    feature_extractor = AutoFeatureExtractor.from_pretrained(checkpoint)
    rate = feature_extractor.sampling_rate
    samples = decode_audio(recording, rate)

    inputs = feature_extractor(samples, sampling_rate=rate, return_tensors="pt")
    with torch.inference_mode():
        encoded = model.encode(**inputs)
    frames, width = encoded.latents.shape[1:]
    print(
        f"{recording.name}: {len(samples) / rate:.2f} s at {rate} Hz -> {frames} latent frames x {width} "
        f"({model.config.frame_rate:g} Hz) -> {int(encoded.audio_lengths[0])} samples, of {len(samples)}"
    )

    item = Item(recording.name, samples, kind="speech", source="", language="", text="")
    record, waveforms = evaluate_item(model, item, load_judges([]), noise_levels=[], seed=0)
    scores = means([record])
    print("\n".join(score_table({"": scores}, "")))
    print(f"encoded and decoded {len(samples) / rate / record['model_seconds']:.0f} x faster than real time")

    output_dir.mkdir(parents=True, exist_ok=True)
    for name, waveform in (("original", waveforms["original"]), ("reconstructed", waveforms[MODEL])):
        soundfile.write(output_dir / f"{name}.wav", np.clip(waveform, -1, 1), rate)
    example = ("speech", recording.name, waveforms["original"], waveforms[MODEL])
    plot_spectrograms([example], rate, output_dir / "spectrogram.png")
    print(f"wrote original.wav, reconstructed.wav and spectrogram.png to {output_dir}")
    return scores["systems"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=CHECKPOINT, help="folder or Hub name of an autoencoder")
    parser.add_argument("--input", type=Path, default=RECORDING, help="a sound file")
    parser.add_argument("--output_dir", type=Path, default=Path("demo"))
    arguments = parser.parse_args()
    reconstruct(arguments.model, arguments.input, arguments.output_dir)


if __name__ == "__main__":
    main()
