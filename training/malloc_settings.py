"""Settings of the memory allocator that training and encoding on CPUs want."""

import ctypes
import os
import sys


# glibc hands big tensors back to the kernel on every free; keeping them is worth several times the speed on CPUs.
_MALLOC = {
    "MALLOC_MMAP_THRESHOLD_": "4294967296",
    "MALLOC_TRIM_THRESHOLD_": "17179869184",
    "MALLOC_TOP_PAD_": "268435456",
}


def restart_with_malloc_settings(module_name: str) -> None:
    """Puts `python -m module_name`, with the same arguments, in the place of a process that lacks the settings."""
    if any(os.environ.get(name) != value for name, value in _MALLOC.items()):
        # read when a process starts, hence the new one
        command = [sys.executable, "-m", module_name, *sys.argv[1:]]
        os.execve(sys.executable, command, {**os.environ, **_MALLOC})


def give_free_memory_back() -> None:
    """
    Hands pages that nothing uses back to the kernel, which glibc does no longer by itself under the settings: batches of ever
    other shapes leave holes that grew to 23 GB within 20 steps of a language model that needs 5.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of glibc
    if trim is not None:
        trim(0)
