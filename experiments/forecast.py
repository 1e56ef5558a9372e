"""What a run of a study would do, without doing it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from experiments.run import ROWS, Clock, Plan, groups, missing_experts, missing_jobs
from experiments.studies import Cell

SHOWN = 40  # points that are listed


def forecast(plan: Plan, folder: Path) -> str:
    """Lines that tell the missing files, or else the missing cells by point and the time they may take."""
    cells = plan.study.cells(plan.choice)
    lines = [_counted(plan, cells)]
    if missing := missing_experts(cells, plan.setting):
        lines += [f"missing: {name}: {file}" for name, file in missing.items()]
        return "\n".join(lines)
    todo = missing_jobs(plan.jobs(), folder / ROWS)
    found = groups(todo)
    lines += [f"{len(todo)} cells to evaluate, {Clock(folder / ROWS, todo).left() or 'time not known yet'}"]
    for group in found[:SHOWN]:
        places = ", ".join(f"{job.cell.task} {job.cell.split}" for job in group)
        lines.append(f"seed {group[0].seed}, {group[0].cell.point.label}: {places}")
    if len(found) > SHOWN:
        lines.append(f"and {len(found) - SHOWN} more points")
    return "\n".join(lines)


def _counted(plan: Plan, cells: list[Cell]) -> str:
    tasks = Counter(cell.task for cell in cells)
    seeds = len(plan.setting.scales)
    named = ", ".join(f"{task} {number}" for task, number in tasks.items())
    return f"study {plan.study.name}: {len(cells)} cells for each of {seeds} seeds ({named})"
