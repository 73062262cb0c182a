"""
Makes every saved folder carry the code it needs, so that it loads where this package is not installed.

Transformers copies custom code only between sibling files. Ours lives in three folders, so saving flattens it: the file
of the saved class and every file of ours that it imports, directly or not, are copied side by side into the saved
folder, with `from configuration_f3.x import y` rewritten to `from .x import y` and not another byte changed.

This file is copied along. In a flat copy the same steps find only siblings and nothing to rewrite, so what was loaded
with `trust_remote_code=True` can be saved again, completely.
"""

import ast
import os
import sys
from pathlib import Path
from typing import Any


PACKAGES = ("configuration_f3", "feature_extraction_f3", "modeling_f3")


class HubCodeMixin:
    """
    First base of every configuration, model, feature extractor and processor of F3: `save_pretrained` and `push_to_hub`
    also write the class's code and an `auto_map` with all its Auto classes.

    A class derived from ours in somebody else's file follows the rules of Transformers instead
    (`register_for_auto_class`), because its file may import anything.
    """

    # The Auto classes that load this very class; a derived class names its own.
    auto_classes: tuple[str, ...] = ()
    # By task, for tasks that a pipeline of Transformers cannot do with this class.
    pipeline_classes: dict[str, type] = {}

    def save_pretrained(self, save_directory: str | os.PathLike, *args: Any, **kwargs: Any):
        """Saves as Transformers does, and with it the code and the `auto_map`."""
        if os.path.isfile(save_directory):
            raise NotADirectoryError(f"{os.fspath(save_directory)!r} is a file: name a folder to save to")
        for part in _parts(self):
            _write_auto_map(part)
        saved = super().save_pretrained(save_directory, *args, **kwargs)
        if kwargs.get("is_main_process", True):
            self._export_code(save_directory)
        return saved

    def _upload_modified_files(self, working_dir: str | os.PathLike, *args: Any, **kwargs: Any):
        # `save_pretrained(push_to_hub=True)` uploads before it returns: the code must be there by then.
        self._export_code(working_dir)
        return super()._upload_modified_files(working_dir, *args, **kwargs)

    def _export_code(self, folder: str | os.PathLike) -> None:
        if getattr(self, "_hf_peft_config_loaded", False):
            return  # an adapter refers to the folder of its base model
        for part in _parts(self):
            export_code(type(part), folder)


class CompositeConfigMixin(HubCodeMixin):
    """First base of configurations that hold others, which then do not tell the folders that their models came from."""

    def to_dict(self) -> dict[str, Any]:
        """As in Transformers, which would write these folders into what gets published."""
        values = super().to_dict()
        for part in values.values():
            if isinstance(part, dict) and "_name_or_path" in part:
                part["_name_or_path"] = ""
        return values


def export_code(cls: type, folder: str | os.PathLike) -> list[str]:
    """
    Copies the file that defines `cls`, and every file of ours that it needs, flat into `folder`.

    Returns:
        `list[str]`: the names of the files written.
    """
    sources = collect_sources(Path(sys.modules[cls.__module__].__file__))
    for name, path in sources.items():
        (Path(folder) / name).write_bytes(_flattened(path))
    return sorted(sources)


def collect_sources(start: Path) -> dict[str, Path]:
    """File name to path of `start` and of all files of ours that it imports, directly or not."""
    sources: dict[str, Path] = {}
    queue = [start]
    while queue:
        path = queue.pop()
        known = sources.setdefault(path.name, path)
        if known != path:
            raise ValueError(f"{known} and {path} would overwrite each other in a flat folder: rename one of them")
        imported = [source for _, source in _our_imports(path)]
        queue.extend(source for source in imported if sources.get(source.name) != source)
    return sources


def _parts(saved: Any) -> list[Any]:
    """`saved` and, of a processor, the parts whose settings are written into the processor's own file."""
    names = saved.get_attributes() if hasattr(saved, "get_attributes") else ()
    candidates = [saved, *(getattr(saved, name) for name in names)]
    return [part for part in candidates if isinstance(part, HubCodeMixin) and _is_ours(type(part))]


def _is_ours(cls: type) -> bool:
    """Whether `cls` is defined in this package or, in a flat copy, beside this file."""
    return cls.__module__.rpartition(".")[0] in (*PACKAGES, __name__.rpartition(".")[0])


def _write_auto_map(part: HubCodeMixin) -> None:
    """Sets `auto_map`, and what `pipeline` reads, on a model's configuration, otherwise on the part itself."""
    holder = getattr(part, "config", part)
    if part.pipeline_classes:
        holder.custom_pipelines = {
            task: {"impl": _reference(pipeline_class), "pt": list(part.auto_classes)}
            for task, pipeline_class in part.pipeline_classes.items()
        }
    holder.auto_map = {**(getattr(holder, "auto_map", None) or {}), **_auto_map(type(part))}


def _auto_map(cls: type) -> dict[str, str]:
    """
    Auto class to `file.Class` for `cls` and its relatives: models of the same file that share its configuration class
    and so can open the same folder.
    """
    config_class = getattr(cls, "config_class", None)
    relatives = [
        relative
        for relative in vars(sys.modules[cls.__module__]).values()
        if isinstance(relative, type) and relative.__module__ == cls.__module__
        if config_class is not None and getattr(relative, "config_class", None) is config_class
    ]
    return {
        auto_class: _reference(relative)
        for relative in (*relatives, cls)
        for auto_class in vars(relative).get("auto_classes", ())
    }


def _reference(cls: type) -> str:
    """`file.Class`, as Transformers names custom code."""
    return f"{cls.__module__.rpartition('.')[2]}.{cls.__name__}"


def _flattened(path: Path) -> bytes:
    """The source with each import of ours made relative to its own folder."""
    lines = path.read_bytes().splitlines(keepends=True)
    for node, source in _our_imports(path):
        if node.level == 0:
            line = lines[node.lineno - 1]
            lines[node.lineno - 1] = line.replace(node.module.encode(), f".{source.stem}".encode(), 1)
    return b"".join(lines)


def _our_imports(path: Path) -> list[tuple[ast.ImportFrom, Path]]:
    """The imports of our files in `path`, each with the file it names."""
    found = []
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import) and any(alias.name.split(".")[0] in PACKAGES for alias in node.names):
            raise _unsupported(path, node)
        if not isinstance(node, ast.ImportFrom):
            continue
        package, _, module = (node.module or "").partition(".")
        if node.level == 0 and package in PACKAGES:
            source = path.parent.parent / package / f"{module}.py"
        elif node.level > 0:
            source = path.parent / f"{package}.py"
        else:
            continue
        if node.level > 1 or not source.is_file() or (node.level == 1 and module):
            raise _unsupported(path, node)
        found.append((node, source))
    return found


def _unsupported(path: Path, node: ast.stmt) -> ImportError:
    return ImportError(
        f"{path.name}, line {node.lineno}: `{ast.unparse(node)}` cannot be flattened for the Hub: write "
        "`from .file import name` inside a folder and `from folder.file import name` across folders"
    )
