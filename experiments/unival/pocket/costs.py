"""What trainings take: processor time, and memory at its highest.

Memory is that of the whole process (resident set, decoded media included). Linux keeps its highest value since it was
last told to forget it, which is done when a training begins, behind giving back what trainings before it left;
elsewhere there is none. `start_mb` is what the process had when the training began, with its libraries.
"""

from __future__ import annotations

import csv
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from experiments.grid.memory import forget_peak, megabytes
from experiments.unival.pocket.pipeline import Pocket
from unival_core.training import RunFolder, TrainOptions

COSTS = "costs.csv"


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
