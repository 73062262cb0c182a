"""What a Space runs; its variables `F3_AUTOENCODER` and `F3_AUDIO_LM` name the models."""

import os

from f3_gradio_demo.page import page


page(os.environ["F3_AUTOENCODER"], os.environ.get("F3_AUDIO_LM")).launch()
