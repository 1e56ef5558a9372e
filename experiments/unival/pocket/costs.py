"""What trainings take: processor time, and memory at its highest.

Memory is that of the whole process (resident set, decoded media included). Linux keeps its highest value since it was
last told to forget it, which is done when a training begins, behind giving back what trainings before it left;
elsewhere there is none. `start_mb` is what the process had when the training began, with its libraries.
"""

from __future__ import annotations

import csv
import ctypes
import gc
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from experiments.unival.pocket.pipeline import Pocket
from unival_core.training import RunFolder, TrainOptions

COSTS = "costs.csv"
_PROCESS = Path("/proc/self")


@contextmanager
def measured(pocket: Pocket, folder: Path, start: str, options: TrainOptions) -> Iterator[None]:
    """Note what the training in `folder` takes, in `costs.csv` of the pocket where all starts.

    Of a training that goes on after a stop only the rest is measured: so many of its updates as `measured` says.
    """
    state = RunFolder(folder).load_state()
    forget_peak()
    began, memory = time.process_time(), megabytes("VmRSS")
    yield
    line = {
        "training": folder.name,
        "seed": options.seed,
        "start": start,
        "updates": options.updates,
        "measured": options.updates - (state["update"] if state else 0),
        "examples": options.updates * options.batch,
        "cpu_seconds": f"{time.process_time() - began:.2f}",
        "start_mb": memory,
        "peak_mb": megabytes("VmHWM"),
    }
    file = (pocket.start or pocket).folder / COSTS
    is_new = not file.exists()
    with file.open("a", newline="") as out:
        writer = csv.DictWriter(out, list(line), lineterminator="\n")
        if is_new:
            writer.writeheader()
        writer.writerow(line)


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
