"""What a training runs on: what it is good at, and its name for the record."""

import logging
import os
import platform
from functools import cache

import torch


logger = logging.getLogger(__name__)


@cache
def fast_in_bf16() -> bool:
    """
    Whether products of matrices in bf16 are. They are on accelerators that have them, and on processors whose vectors are wide
    enough to have or to imitate them; on one with AVX2 alone PyTorch took hundreds of times longer than in fp32.
    """
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.accelerator.is_available() or torch.backends.cpu.get_cpu_capability() in ("AVX512", "SVE256")


def in_bf16(wanted: bool) -> bool:
    """Whether to train in bf16: where it is wanted and fast."""
    if wanted and not fast_in_bf16():
        logger.warning("bf16 is very slow here: training in fp32")
    return wanted and fast_in_bf16()


def machine() -> dict[str, str | int]:
    """The processor, the number of its cores, and the accelerator that models are trained on, if there is one."""
    found = {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    return found | ({"accelerator": torch.cuda.get_device_name()} if torch.cuda.is_available() else {})


def described(record: dict) -> str:
    """What [`machine`] found, in words."""
    if "accelerator" in record:
        return f"one {record['accelerator']}"
    return f"{record['cores']} cores of a CPU ({record['processor']})"
