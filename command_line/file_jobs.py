"""Many files through one function: found, skipped when done, written whole or not at all, failures reported at the end."""

import glob
import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


RECORD = ".f3.json"


@dataclass(frozen=True)
class FileJob:
    """One file to read and the one to write."""

    source: Path
    target: Path


def file_jobs(sources: Sequence[str], suffixes: Sequence[str], output: Path, suffix: str) -> list[FileJob]:
    """
    A job for each file among `sources`: names of files, folders that are searched, and patterns such as `"*.wav"`. The
    target keeps the place of the file in its folder, with another suffix.

    Raises:
        `ValueError`: when a source names nothing, or two files would have the same target.
    """
    targets: dict[Path, Path] = {}
    for source in sources:
        for file, place in _found(source, suffixes):
            target = output / place.with_suffix(suffix)
            if targets.setdefault(target, file) != file:
                raise ValueError(f"{targets[target]} and {file} would both become {target}: use two output folders")
    return [FileJob(source, target) for target, source in targets.items()]


def _found(source: str, suffixes: Sequence[str]) -> list[tuple[Path, Path]]:
    """Files, each with its place in the folder that `source` names, or its bare name."""
    path = Path(source)
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.suffix.lower() in suffixes and file.is_file())
        found = [(file, file.relative_to(path)) for file in files]
    elif path.exists():
        found = [(path, Path(path.name))]
    else:
        found = [(Path(name), Path(Path(name).name)) for name in sorted(glob.glob(source, recursive=True))]
    if not found:
        raise ValueError(f"{source!r} names no {' or '.join(suffixes)} file: check the name, or quote a pattern")
    return found


def claim(folder: Path, made_by: dict[str, str]) -> None:
    """
    Notes in `folder` what makes the files in it.

    Raises:
        `ValueError`: when something else has made those that are there, which would count as done.
    """
    record = folder / RECORD
    known = json.loads(record.read_text(encoding="utf-8")) if record.is_file() else made_by
    if known != made_by:
        raise ValueError(f"{folder} holds what {known} made, not {made_by}: use another output folder")
    folder.mkdir(parents=True, exist_ok=True)
    record.write_text(json.dumps(made_by), encoding="utf-8")


def run_jobs(
    jobs: Sequence[FileJob], read: Callable[[Path], Any], write: Callable[[Any, Path], None], console: Console
) -> int:
    """
    `write(read(source), target)` for each job whose target is not there; the next file is read while one is worked on. A
    target appears only when it is complete, so a killed run loses the files that it was working on and no other.

    Returns:
        `int`: how many failed; each is reported, and the others are done.
    """
    todo = [job for job in jobs if not job.target.exists()]
    failed = 0
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=len(jobs), completed=len(jobs) - len(todo))
        for job, content in _read_ahead(todo, read):
            progress.update(task, description=job.source.name)
            part = job.target.with_name(f".part-{job.target.name}")
            try:
                job.target.parent.mkdir(parents=True, exist_ok=True)
                write(content.result(), part)
                os.replace(part, job.target)
            except Exception as error:  # whatever is wrong with one file, the others are still wanted
                failed += 1
                part.unlink(missing_ok=True)
                console.print(f"[red]{job.source}[/red]: {error}", highlight=False)
            progress.advance(task)
    console.print(f"{len(todo) - failed} done, {len(jobs) - len(todo)} done before, {failed} failed", highlight=False)
    return failed


def _read_ahead(jobs: Sequence[FileJob], read: Callable[[Path], Any]) -> Iterator[tuple[FileJob, Future]]:
    """Each job with what was read for it, one job ahead, so that no more than two are in memory."""
    with ThreadPoolExecutor(1) as reader:
        ahead = reader.submit(read, jobs[0].source) if jobs else None
        for index, job in enumerate(jobs):
            current = ahead
            if index + 1 < len(jobs):
                ahead = reader.submit(read, jobs[index + 1].source)
            yield job, current
