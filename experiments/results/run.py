"""Evaluating a study of any model: from what its author wrote to rows in a folder."""

# What users give is checked, whatever its type is said to be.
# pyright: reportUnnecessaryIsInstance=false

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.errors import StudyError
from experiments.grid.grid import experts_of
from experiments.results.grids import check_experts, engine_for, grid_of
from experiments.results.steps import run_in_steps
from experiments.study.cells import cells_of
from experiments.study.study import Mixture, Study

if TYPE_CHECKING:
    from experiments.results.results import Results


def run(
    study: Study,
    folder: str | Path,
    *,
    points: int | None = None,
    only: str | Mixture | Sequence[str | Mixture] | None = None,
    seeds: int | Sequence[int] | None = None,
    split: str | Sequence[str] | None = None,
    processes: int = 1,
    device: str = "cpu",
    precision: str = "fp32",
    engine: str = "local",
    progress: bool = True,
) -> Results:
    """Evaluate what `folder/rows.jsonl` lacks of a study, a row a cell, and return what the folder holds.

    Stopped in any way, the same call goes on: a cell is a point, task, split and seed, and its row is keyed by the
    digests of the weights, the method with its parameters, BatchNorm policy, task, split, the study's `version`, kind
    of device and precision. `only` takes mixtures ("a+b"), `points`, `seeds` and `split` narrow what the study says.
    With several `processes`, or the engine `ray`, model and scoring functions must be importable by name; what is
    defined in `__main__`, a notebook or a lambda runs in this process, with a warning. `precision` bf16 or fp16 lets
    models answer under autocast; weights are merged in float32.

    A score that raises an error or is not finite is a row with a note. Raises StudyError for scores of a wrong type,
    for what does not fit the study or its model, and MergeError for experts that cannot be opened or merged.
    """
    if not isinstance(study, Study):
        raise StudyError(f"a {type(study).__name__} is no study: give experiments.Study(...)")
    folder = Path(folder)
    wanted = cells_of(study, points=points, only=only, split=split)
    grid = grid_of(study, folder, seeds=seeds, device=device, precision=precision)
    chosen = engine_for(grid, engine, processes)
    check_experts(grid, experts_of(wanted))
    summary = run_in_steps(grid, wanted, folder, chosen, choose=study.choose, progress=progress)
    if summary.failed:
        warnings.warn(f"{summary.failed} cells could not be scored: {summary.note}", stacklevel=2)
    from experiments.results.results import open_results

    return open_results(folder, study.name, ran=summary, given=study)
