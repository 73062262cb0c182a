"""Reconstruct: a recording through its latents and back."""

from functools import partial

import gradio as gr
import torch
from feature_extraction_f3.feature_extraction_f3 import F3FeatureExtractor
from matplotlib.figure import Figure
from modeling_f3.modeling_autoencoder import F3AutoencoderModel

from .sounds import Sound, errors_shown, playable, recorded
from .spectrograms import spectrograms


def reconstruct_tab(model: F3AutoencoderModel, feature_extractor: F3FeatureExtractor) -> None:
    """Adds the tab to the page that is being built."""
    with gr.Tab("Reconstruct"):
        recording = gr.Audio(type="filepath", label="Recording")
        button = gr.Button("Reconstruct", variant="primary")
        reconstruction = gr.Audio(label="Reconstruction", interactive=False)
        facts = gr.Markdown()
        picture = gr.Plot(show_label=False, format="png")
    button.click(
        partial(reconstruct, model, feature_extractor),
        recording,
        [reconstruction, picture, facts],
        api_name="reconstruct",
    )


@torch.inference_mode()
def reconstruct(
    model: F3AutoencoderModel, feature_extractor: F3FeatureExtractor, file: str | None
) -> tuple[Sound, Figure, str]:
    """The reconstruction of a sound file, both spectrograms, and how many latents lie between them."""
    with errors_shown():
        rate = feature_extractor.sampling_rate
        samples = recorded(file, rate)
        encoded = model.encode(**feature_extractor(samples, rate))
        decoded = model.decode(**encoded).audio_values[0, 0].numpy()
    frames, width = encoded.latents.shape[1:]
    facts = (
        f"{len(samples) / rate:.2f} s at {rate} Hz → **{frames} latents of {width} values** "
        f"({model.config.frame_rate:g} Hz) → {len(decoded)} samples, of {len(samples)}"
    )
    return playable(decoded, rate), spectrograms({"original": samples, "reconstruction": decoded}, rate), facts
