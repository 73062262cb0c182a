"""Transcribe: what is said in a recording."""

from functools import partial

import gradio as gr
from f3_training.prompts import LANGUAGES
from feature_extraction_f3.processing_f3 import F3Processor
from modeling_f3.modeling_audio_lm import F3AudioLMForConditionalGeneration
from modeling_f3.speech_recognition_pipeline import F3SpeechRecognitionPipeline

from .sounds import errors_shown, recorded


def transcribe_tab(model: F3AudioLMForConditionalGeneration, processor: F3Processor) -> None:
    """Adds the tab to the page that is being built."""
    pipeline = F3SpeechRecognitionPipeline(model=model, processor=processor)
    with gr.Tab("Transcribe"):
        recording = gr.Audio(type="filepath", label="Speech")
        language = gr.Dropdown(sorted(LANGUAGES.values()), value="English", label="Language")
        button = gr.Button("Transcribe", variant="primary")
        transcript = gr.Textbox(label="Transcript")
    button.click(partial(transcribe, pipeline), [recording, language], transcript, api_name="transcribe")


def transcribe(pipeline: F3SpeechRecognitionPipeline, file: str | None, language: str) -> str:
    """What is said in a sound file in the language of that English name."""
    with errors_shown():
        return pipeline(recorded(file, pipeline.processor.feature_extractor.sampling_rate), language=language)["text"]
