"""
Serves the page: recordings to latents and back, and with an audio language model to text, and text to speech.

    python -m f3_gradio_demo --autoencoder model_cards/f3-autoencoder-nano-16khz [--audio_lm runs/speaker/model]
        [--language_model data/smollm2]

Where it is served is said in the environment variables of Gradio, such as `GRADIO_SERVER_NAME` and `GRADIO_SERVER_PORT`.
"""

import argparse

from .page import page


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--autoencoder", required=True, help="folder or Hub name of an autoencoder")
    parser.add_argument("--audio_lm", help="folder or Hub name of an audio language model")
    parser.add_argument("--language_model", help="the same of its language model, if not the one that it names")
    arguments = parser.parse_args()
    page(arguments.autoencoder, arguments.audio_lm, arguments.language_model).launch()


if __name__ == "__main__":
    main()
