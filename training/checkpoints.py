"""Checkpoints of the autoencoder's training: safetensors and JSON only, complete or absent, exact to resume from."""

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file


CHECKPOINT = re.compile(r"checkpoint-(\d+)")


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """The state of every parameter as named tensors: `"3.exp_avg"`, ..."""
    return {
        f"{index}.{key}": torch.as_tensor(value)
        for index, entries in optimizer.state_dict()["state"].items()
        for key, value in entries.items()
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor]) -> None:
    """The reverse of [`optimizer_tensors`]; hyper-parameters stay those of `optimizer`."""
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        index, key = name.split(".", 1)
        state.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def save_checkpoint(
    output_dir: Path, step: int, parts: dict[str, dict[str, torch.Tensor]], progress: dict[str, Any]
) -> Path:
    """
    Writes `output_dir/checkpoint-<step>` with one safetensors file per part. It is built under a name that nobody resumes
    from and renamed when complete, so a process killed in between leaves the previous checkpoint in force.
    """
    final = output_dir / f"checkpoint-{step}"
    building = output_dir / f"building-{step}"
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir(parents=True)
    for name, tensors in parts.items():
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, building / f"{name}.safetensors")
    (building / "progress.json").write_text(json.dumps({"step": step, **progress}, indent=2))
    shutil.rmtree(final, ignore_errors=True)
    os.replace(building, final)
    for older in output_dir.iterdir():
        if older != final and (CHECKPOINT.fullmatch(older.name) or older.name.startswith("building-")):
            shutil.rmtree(older, ignore_errors=True)
    return final


def latest_checkpoint(output_dir: Path) -> Path | None:
    """The complete checkpoint with the most steps."""
    found = [
        (int(match[1]), path) for path in output_dir.glob("checkpoint-*") if (match := CHECKPOINT.fullmatch(path.name))
    ]
    return max(found)[1] if found else None


def load_checkpoint(path: Path) -> tuple[dict[str, dict[str, torch.Tensor]], dict[str, Any]]:
    """The parts and the progress that [`save_checkpoint`] wrote."""
    parts = {file.stem: load_file(file) for file in sorted(path.glob("*.safetensors"))}
    return parts, json.loads((path / "progress.json").read_text())
