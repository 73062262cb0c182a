"""Pinned Debian packages: downloaded with apt-get, checked, unpacked without being installed."""

import hashlib
import os
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from .pinned_wheels import appearing


@dataclass(frozen=True)
class Package:
    """One Debian package at one version; `sha256` is that of the .deb file."""

    name: str
    version: str
    sha256: str
    architecture: str = "all"

    @property
    def file_name(self) -> str:
        """The name `apt-get download` gives the file (a colon in the version is escaped)."""
        return f"{self.name}_{self.version.replace(':', '%3a')}_{self.architecture}.deb"


class DataError(RuntimeError):
    """A source can't be built; the message names the package and the fix."""


class PackageUnavailableError(DataError):
    """The package can't be fetched."""


class PackageCorruptError(DataError):
    """The package isn't the pinned one, or can't be unpacked, or lacks what its parser expects."""


def fetch(package: Package, cache: Path) -> Path:
    """Path of the checked .deb in `cache`, downloaded when it isn't there yet."""
    deb = cache / package.file_name
    if not deb.is_file():
        _download(package, cache)
    found = hashlib.sha256(deb.read_bytes()).hexdigest()
    if found != package.sha256:
        raise PackageCorruptError(
            f"{package.name}: sha256 of {deb.name} is {found}, expected {package.sha256}. Delete the file from "
            f"{cache} and run again to download it anew."
        )
    return deb


def _download(package: Package, cache: Path) -> None:
    """Let apt-get write the .deb into a folder of its own, so that a half-written file never gets its final name."""
    command = ["apt-get", "download", f"{package.name}={package.version}"]
    fix = f"run `apt-get update`, or put {package.file_name} into {cache}"
    with tempfile.TemporaryDirectory(dir=cache, prefix=".download-") as folder:
        try:
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        except FileNotFoundError:
            raise PackageUnavailableError(f"{package.name}: apt-get isn't on this machine; {fix}.") from None
        downloaded = Path(folder) / package.file_name
        if done.returncode or not downloaded.is_file():
            raise PackageUnavailableError(
                f"{package.name}={package.version} can't be downloaded; {fix}. apt-get said: {done.stderr.strip()}"
            )
        os.replace(downloaded, cache / package.file_name)


def unpack(package: Package, cache: Path) -> Path:
    """Folder with the files of the package, whole or not there, whichever of several processes is first."""
    deb = fetch(package, cache)
    folder = cache / "unpacked" / f"{package.name}_{package.sha256[:12]}"
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with appearing(folder) as partial_folder:
        try:
            subprocess.run(["dpkg", "-x", deb, partial_folder], check=True, capture_output=True, text=True)
        except FileNotFoundError:
            raise PackageUnavailableError(f"{package.name}: dpkg isn't on this machine; install it.") from None
        except subprocess.CalledProcessError as error:
            raise PackageCorruptError(f"{package.name}: dpkg can't unpack {deb}: {error.stderr.strip()}") from error
    return folder
