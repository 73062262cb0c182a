"""
When each word of recordings ends: the column `word_ends`, in seconds, that speech word by word is learned from.

    python -m f3_training.align_words --dataset my-voice --output_dir data/my-voice-aligned

Whisper base reads the text while it listens, and what it attends to at each word tells where that is said. Recordings of more
than 30 seconds or without a text get none. Needs the extra `evaluation`.
"""

import argparse
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
from datasets import DatasetDict, List, Value

from .audio_dataset import decode_audio, load_audio_dataset
from .judges import load_whisper
from .reconstruction_metrics import JUDGE_RATE


LONGEST = 30  # seconds that Whisper hears at once
MEL_HOP = 160  # samples
POSITIONS_PER_SECOND = 50  # of Whisper's attention
LEAD = 0.08  # seconds by which it turns to a word before that begins: the mean over words whose ends Piper had told


def align_words(dataset: str, output_dir: Path, splits: Sequence[str], text_column: str, language: str) -> None:
    """Writes the `splits` with the ends of the words in `text_column`."""
    ends_of = load_aligner(language)

    def with_ends(row: dict) -> dict:
        text, samples = row[text_column] or "", decode_audio(row["audio"], JUDGE_RATE)
        alignable = text.split() and len(samples) <= LONGEST * JUDGE_RATE
        return {"word_ends": ends_of(samples, text) if alignable else None}

    aligned = {}
    for split in splits:
        rows = load_audio_dataset(dataset, split)
        features = rows.features.copy()
        features["word_ends"] = List(Value("float32"))
        aligned[split] = rows.map(with_ends, features=features, desc=split)
    DatasetDict(aligned).save_to_disk(output_dir)


def load_aligner(language: str) -> Callable[[np.ndarray, str], list[float]]:
    """A function of mono samples at 16 kHz and what is said in them: the seconds at which its words end."""
    whisper = load_whisper()
    from faster_whisper.audio import pad_or_trim
    from faster_whisper.tokenizer import Tokenizer

    tokenizer = Tokenizer(whisper.hf_tokenizer, whisper.model.is_multilingual, task="transcribe", language=language)

    def ends_of(samples: np.ndarray, text: str) -> list[float]:
        tokens = [tokenizer.encode(f" {word}") for word in text.split()]
        encoded = whisper.encode(pad_or_trim(whisper.feature_extractor(samples)))
        (found,) = whisper.model.align(
            encoded, tokenizer.sot_sequence, [sum(tokens, [])], len(samples) // MEL_HOP, median_filter_width=7
        )
        return ends_of_words(found.alignments, list(map(len, tokens)), len(samples) / JUDGE_RATE)

    return ends_of


def ends_of_words(path: Iterable[tuple[int, int]], sizes: Sequence[int], seconds: float) -> list[float]:
    """
    When words of `sizes` tokens end, in a recording of some `seconds`: where the next one begins.

    Args:
        path: pairs of a token and a position of the attention, in their order; the token after the last is the end.
    """
    begins: dict[int, int] = {}
    for token, position in path:
        begins.setdefault(token, position)
    return [min(begins[token] / POSITIONS_PER_SECOND + LEAD, seconds) for token in np.cumsum(sizes).tolist()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", required=True, help="Hub name, saved dataset or folder")
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--splits", nargs="+", default=["train"])
    parser.add_argument("--text_column", default="text", help="column of the words that are said")
    parser.add_argument("--language", default="en", help="code of the language they are of")
    align_words(**vars(parser.parse_args()))


if __name__ == "__main__":
    main()
