"""Sound files of visitors to samples, samples to what a page plays, and what is wrong with them to messages."""

import atexit
import html
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import gradio as gr
import numpy as np
from f3_training.audio_dataset import decode_audio


Sound = tuple[int, np.ndarray]  # the rate in Hz and samples `[N]` in int16


def recorded(file: str | None, rate: int) -> np.ndarray:
    """
    Samples `[N]` in fp32 of an uploaded or recorded file, at `rate` Hz.

    Raises:
        `ValueError`: when there is no file, or none that can be read.
    """
    if file is None:
        raise ValueError("there is no recording yet: upload one, or record something")
    return decode_audio({"bytes": Path(file).read_bytes(), "path": Path(file).name}, rate)  # its folder is ours to know


def playable(samples: np.ndarray, rate: int) -> Sound:
    """Samples as they are: Gradio would bring floats to full volume, each piece of a stream by itself."""
    return rate, (samples.clip(-1, 1) * 32767).astype(np.int16)


@contextmanager
def errors_shown() -> Iterator[None]:
    """Wrong input is said on the page, in the words of the error, which Gradio takes for HTML."""
    try:
        yield
    except (TypeError, ValueError) as error:
        raise gr.Error(html.escape(str(error), quote=False), print_exception=False) from error


def provide_ffmpeg() -> None:
    """Gradio streams sound through a program `ffmpeg`. Where there is none, it gets the one of a package."""
    if shutil.which("ffmpeg") is None:
        import imageio_ffmpeg

        folder = Path(tempfile.mkdtemp(prefix="ffmpeg-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        (folder / "ffmpeg").symlink_to(imageio_ffmpeg.get_ffmpeg_exe())
        os.environ["PATH"] += os.pathsep + str(folder)
