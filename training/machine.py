"""What a training ran on, for its record."""

import os
import platform

import torch


def machine() -> dict[str, str | int]:
    """The processor, the number of its cores, and the accelerator that models are trained on, if there is one."""
    found = {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    return found | ({"accelerator": torch.cuda.get_device_name()} if torch.cuda.is_available() else {})


def described(record: dict) -> str:
    """What [`machine`] found, in words."""
    if "accelerator" in record:
        return f"one {record['accelerator']}"
    return f"{record['cores']} cores of a CPU ({record['processor']})"
