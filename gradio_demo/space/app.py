"""What a Space runs; its variables name the models."""

import os

from f3_gradio_demo.page import page


page(os.environ["F3_AUTOENCODER"], os.environ.get("F3_AUDIO_LM"), os.environ.get("F3_LANGUAGE_MODEL")).launch()
