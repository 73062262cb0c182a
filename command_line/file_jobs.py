"""Many files through one function: found, skipped when done, written whole or not at all, failures reported at the end."""

import glob
import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

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


def run_jobs(jobs: Sequence[FileJob], work: Callable[[Path, Path], None], console: Console, at_once: int = 1) -> int:
    """
    `work(source, target)` for each job whose target is not there, `at_once` of them in threads of their own. A target appears
    only when it is complete, so a killed run loses the files that it was working on and no other.

    Returns:
        `int`: how many failed; each is reported, and the others are done.
    """
    todo = [job for job in jobs if not job.target.exists()]
    failed = 0
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress, ThreadPoolExecutor(at_once) as pool:
        task = progress.add_task("", total=len(jobs), completed=len(jobs) - len(todo))
        started = {pool.submit(_run, job, work): job for job in todo}
        try:
            for future in as_completed(started):
                progress.update(task, description=started[future].source.name, advance=1)
                error = future.result()
                if error is not None:
                    failed += 1
                    console.print(f"[red]{started[future].source}[/red]: {error}", highlight=False)
        finally:
            pool.shutdown(cancel_futures=True)  # stopped by the user, it begins no other file
    console.print(f"{len(todo) - failed} done, {len(jobs) - len(todo)} done before, {failed} failed", highlight=False)
    return failed


def _run(job: FileJob, work: Callable[[Path, Path], None]) -> Exception | None:
    part = job.target.with_name(f".part-{job.target.name}")
    try:
        job.target.parent.mkdir(parents=True, exist_ok=True)
        work(job.source, part)
        os.replace(part, job.target)
    except Exception as error:  # whatever is wrong with one file, the others are still wanted
        part.unlink(missing_ok=True)
        return error
    return None
