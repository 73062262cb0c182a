"""What a training ran on, for its record."""

import os
import platform


def machine() -> dict[str, str | int]:
    """The processor and the number of its cores."""
    return {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()}
