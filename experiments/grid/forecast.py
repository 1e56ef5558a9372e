"""What a run of a study needs and would do, without doing it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from experiments.grid.grid import ROWS, Clock, Plan, groups, missing_jobs
from experiments.study.study import Cell, held

SHOWN = 30  # points that are listed
BASE = 1.0  # GB of the published model in float32
PUBLISHED_SECONDS = 0.015  # a caption at batch 1 (arXiv 2307.16184, on one MI250X)


def forecast(plan: Plan, folder: Path) -> str:
    """Lines that tell the files needed and which are missing, memory, and what there is to evaluate and for how long.

    Nothing is written; with missing files there is no telling which rows are there already.
    """
    cells = plan.study.cells(plan.choice)
    expected = plan.expected()
    missing = [file for file in expected if not file.exists()]
    lines = [_counted(plan, cells), _memory(cells, expected)]
    lines += [f"{'missing' if file in missing else 'there':8}{file}  ({how})" for file, how in expected.items()]
    if missing:
        return "\n".join([*lines, f"{len(missing)} of {len(expected)} files are missing", _time(plan, cells)])
    jobs = missing_jobs(plan.jobs(), folder / ROWS)
    found = groups(jobs)
    lines.append(f"{len(jobs)} cells to evaluate at {len(found)} points")
    if jobs:
        lines.append(Clock(folder / ROWS, jobs).left() or _time(plan, cells))
    for group in found[:SHOWN]:
        places = ", ".join(f"{job.cell.task} {job.cell.split}" for job in group)
        lines.append(f"seed {group[0].seed}: {group[0].cell.point.label}: {places}")
    return "\n".join(lines + ([f"and {len(found) - SHOWN} more points"] if len(found) > SHOWN else []))


def _counted(plan: Plan, cells: list[Cell]) -> str:
    tasks = Counter(cell.task for cell in cells)
    seeds = ", ".join(map(str, plan.setting.scales))
    named = ", ".join(f"{number} of {task}" for task, number in tasks.items())
    return f"study {plan.study.name}: {len(cells)} cells for each seed of {seeds} ({named})"


def _memory(cells: list[Cell], expected: dict[Path, str]) -> str:
    """The model that moves, its endpoints, and the members of an ensemble, each as large as the largest file."""
    most = max(len(held(cell.point.shares)) for cell in cells)
    together = max((len(held(c.point.shares)) for c in cells if c.point.method == "ensemble"), default=0)
    sizes = [file.stat().st_size / 1e9 for file in expected if file.suffix in (".pt", ".safetensors") and file.exists()]
    models = 1 + most + together
    return f"at most {models} models in memory, about {models * max(sizes, default=BASE):.2f} GB"


def _time(plan: Plan, cells: list[Cell]) -> str:
    if plan.choice.scale == "pocket":
        return "time not known before a cell is evaluated"
    rows = plan.setting.limit or 1000
    asked = sum(len(held(cell.point.shares)) if cell.point.method == "ensemble" else 1 for cell in cells)
    hours = asked * rows * PUBLISHED_SECONDS / 3600
    return f"about {hours:.1f} GPU hours with {rows} rows a cell, at the published {PUBLISHED_SECONDS} s a row"
