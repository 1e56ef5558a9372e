"""What a run of cells needs and would do, without doing it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from experiments.grid.grid import ROWS, Clock, Grid, groups, missing_jobs
from experiments.study.points import Cell

SHOWN = 30  # points that are listed


def forecast(grid: Grid, cells: Sequence[Cell], folder: Path, pace: str = "", size: float = 0.0) -> str:
    """Tell in lines the files needed and which are missing, memory, and what there is to evaluate and for how
    long.

    Nothing is written; with missing files there is no telling which rows are there already. `pace` is said where no
    cell was evaluated before, `size` (GB) taken for a model where no checkpoint is there.
    """
    expected = grid.expected(cells)
    missing = [file for file in expected if not file.exists()]
    tasks = Counter(cell.task for cell in cells)
    named = ", ".join(f"{number} of {task}" for task, number in tasks.items())
    seeds = ", ".join(map(str, grid.seeds))
    pace = pace or "time not known before a cell is evaluated"
    lines = [
        f"study {grid.study}: {len(cells)} cells for each seed of {seeds} ({named})",
        _memory(cells, expected, size),
    ]
    lines += [f"{'missing' if file in missing else 'there':8}{file}  ({how})" for file, how in expected.items()]
    if missing:
        return "\n".join([*lines, f"{len(missing)} of {len(expected)} files are missing", pace])
    jobs = missing_jobs(grid.jobs(cells), folder / ROWS)
    found = groups(jobs)
    lines.append(f"{len(jobs)} cells to evaluate at {len(found)} points")
    if jobs:
        lines.append(Clock(folder / ROWS, jobs).left() or pace)
    for group in found[:SHOWN]:
        places = ", ".join(f"{job.cell.task} {job.cell.split}" for job in group)
        lines.append(f"seed {group[0].seed}: {group[0].cell.point.label}: {places}")
    return "\n".join(lines + ([f"and {len(found) - SHOWN} more points"] if len(found) > SHOWN else []))


def _memory(cells: Sequence[Cell], expected: dict[Path, str], size: float) -> str:
    """The model that moves, its endpoints, and the members of an ensemble, each as large as the largest file."""
    most = max(len(cell.point.held) for cell in cells)
    members = max((len(cell.point.held) for cell in cells if cell.point.method == "ensemble"), default=0)
    sizes = [file.stat().st_size / 1e9 for file in expected if file.suffix in (".pt", ".safetensors") and file.exists()]
    models = 1 + most + members
    gigabytes = f", about {models * max(sizes, default=size):.2f} GB" if sizes or size else ""
    return f"at most {models} models in memory{gigabytes}"
