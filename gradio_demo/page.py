"""The page: a tab for each thing that the given models can do."""

import gradio as gr
from feature_extraction_f3 import F3FeatureExtractor, F3Processor
from modeling_f3 import F3AudioLMForConditionalGeneration, F3AutoencoderModel

from .reconstruct import reconstruct_tab
from .speak import speak_tab
from .transcribe import transcribe_tab


TITLE = "# F3-Tokenizer\nSound as something that language models can read and write."
KEPT = 3600  # seconds that files of visitors are kept


def page(autoencoder: str, audio_lm: str | None = None, language_model: str | None = None) -> gr.Blocks:
    """
    Args:
        autoencoder: folder or Hub name of an [`F3AutoencoderModel`], for the tab Reconstruct.
        audio_lm: the same of an [`F3AudioLMForConditionalGeneration`], for Transcribe and, with a flow head, Speak.
        language_model: the same of its language model, if not the one that it names.
    """
    with gr.Blocks(title="F3-Tokenizer", analytics_enabled=False, delete_cache=(KEPT, KEPT)) as blocks:
        gr.Markdown(TITLE)
        reconstruct_tab(
            F3AutoencoderModel.from_pretrained(autoencoder).eval(), F3FeatureExtractor.from_pretrained(autoencoder)
        )
        if audio_lm is not None:
            model = F3AudioLMForConditionalGeneration.from_pretrained(
                audio_lm, text_model_name_or_path=language_model
            ).merge_adapter()
            model.pack_for_cpu()
            processor = F3Processor.from_pretrained(audio_lm)
            transcribe_tab(model, processor)
            if model.flow_head is not None:
                speak_tab(model, processor)
    return blocks
