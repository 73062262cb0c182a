"""Speak: a text as speech, which is heard while it is made."""

from collections.abc import Iterable, Iterator
from functools import partial

import gradio as gr
import numpy as np
from configuration_f3.configuration_audio_lm import FRAMES_PER_TOKEN
from feature_extraction_f3.processing_f3 import F3Processor, split_sentences
from matplotlib.figure import Figure
from modeling_f3.modeling_audio_lm import F3AudioLMForConditionalGeneration

from .sounds import Sound, errors_shown, playable, provide_ffmpeg
from .spectrograms import spectrograms


PORTION = 0.5  # seconds handed out at once; single patches play faster than a visitor far away can fetch them


def speak_tab(model: F3AudioLMForConditionalGeneration, processor: F3Processor) -> None:
    """Adds the tab to the page that is being built."""
    provide_ffmpeg()
    with gr.Tab("Speak"):
        text = gr.Textbox(label="Text", lines=3)
        seconds = gr.Slider(1, 60, value=20, step=1, label="Cut off after (s)")
        button = gr.Button("Speak", variant="primary")
        speech = gr.Audio(label="Speech", streaming=True, autoplay=True, interactive=False)
        facts = gr.Markdown()
        picture = gr.Plot(show_label=False, format="png")
    button.click(partial(speak, model, processor), [text, seconds], [speech, picture, facts], api_name="speak")


def speak(
    model: F3AudioLMForConditionalGeneration, processor: F3Processor, text: str, seconds: float
) -> Iterator[tuple[Sound | None, Figure | None, str]]:
    """The speech in portions as they are made; at the end its spectrogram, and why it ended."""
    rate, patch = processor.feature_extractor.sampling_rate, FRAMES_PER_TOKEN * processor.hop_length
    patches = max(1, int(seconds * rate / patch))
    said = []
    with errors_shown():
        if not text.strip():
            raise ValueError("there is nothing to say: write a text")
        pieces = sentence_by_sentence(model, processor, text, patches * patch)
        for portion in portions(pieces, int(PORTION * rate)):
            said.append(portion)
            yield playable(portion, rate), None, ""
    samples = np.concatenate(said)
    reason = "stop" if len(samples) < patches * patch else "length"
    yield None, spectrograms({"speech": samples}, rate), f"{len(samples) / rate:.2f} s, ended by {reason}"


def sentence_by_sentence(
    model: F3AudioLMForConditionalGeneration, processor: F3Processor, text: str, most: int
) -> Iterator[np.ndarray]:
    """Samples as they become final, at most so many, a whole number of patches."""
    for sentence in split_sentences(text):
        patches = most // (FRAMES_PER_TOKEN * processor.hop_length)
        if patches == 0:
            return
        request = processor.apply_speech_request(sentence).to(model.device)
        for (piece,) in model.stream_audio(**request, max_new_patches=patches):
            most -= len(piece)
            yield piece.float().cpu().numpy()


def portions(pieces: Iterable[np.ndarray], least: int) -> Iterator[np.ndarray]:
    """Pieces joined until there are at least so many samples; the last portion has what is left, if anything is."""
    joined = []
    for piece in pieces:
        joined.append(piece)
        if sum(map(len, joined)) >= least:
            yield np.concatenate(joined)
            joined = []
    if any(map(len, joined)):
        yield np.concatenate(joined)
