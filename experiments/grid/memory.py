"""The memory of this process, as Linux tells it; elsewhere nothing is known."""

from __future__ import annotations

import ctypes
import gc
from pathlib import Path

_PROCESS = Path("/proc/self")


def forget_peak() -> None:
    """Give memory that is not used back to the system, and let its highest value start anew, where that can be."""
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)
        (_PROCESS / "clear_refs").write_text("5")
    except (OSError, AttributeError, TypeError):  # no Linux, or one with another allocator
        return


def megabytes(name: str) -> str:
    """Return the memory of this process by the system's name for it, in megabytes (10^6 bytes); "" where it is not
    known."""
    try:
        lines = (_PROCESS / "status").read_text().splitlines()
    except OSError:
        return ""
    found = [line.split()[1] for line in lines if line.startswith(f"{name}:")]
    return f"{int(found[0]) * 1024 / 1e6:.0f}" if found else ""
