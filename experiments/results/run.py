"""Evaluating a study of any model: from what its author wrote to rows in a folder."""

# What users give is checked, whatever its type is said to be.
# pyright: reportUnnecessaryIsInstance=false

from __future__ import annotations

import pickle
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.errors import StudyError
from experiments.grid.engines import engine_named
from experiments.grid.grid import Engine, Grid, experts_of, run_cells
from experiments.grid.notes import Notes
from experiments.grid.subject import Subject, opened
from experiments.grid.worker import PRECISIONS, check_device
from experiments.results.files import subject_of
from experiments.results.sources import settled
from experiments.study.cells import cells_of
from experiments.study.points import PRETRAINED, Expert
from experiments.study.study import Mixture, Study
from merge import Input

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
    summary = run_cells(grid, wanted, folder, chosen, progress=progress)
    if summary.failed:
        warnings.warn(f"{summary.failed} cells could not be scored: {summary.note}", stacklevel=2)
    from experiments.results.results import open_results

    return open_results(folder, study.name, ran=summary)


def grid_of(
    study: Study,
    folder: Path,
    *,
    file: str = "",
    seeds: int | Sequence[int] | None = None,
    device: str = "cpu",
    precision: str = "fp32",
) -> Grid:
    """Return the grid of a study whose rows are in a folder, where experts that lie in no file are written.

    `file` (FILE.py:NAME) is what defines the study, for other processes and later sessions.
    """
    if precision not in PRECISIONS:
        raise StudyError(f"precision={precision!r}: choose one of {', '.join(PRECISIONS)}")
    chosen = study if seeds is None else replace(study, seeds=seeds)
    lying = settled(chosen, folder)
    notes = replace(notes_of(lying), code=file)
    return Grid(study.name, subject_of(lying, file), chosen.all_seeds, device, notes, precision)


def engine_for(grid: Grid, engine: str, processes: int | None, address: str | None = None) -> Engine:
    """Return the engine that is named; this process alone where no other can make the subject, with a warning.

    StudyError for a device that this machine lacks.
    """
    if engine == "local":
        check_device(grid.device)
    chosen = engine_named(engine, processes, address)
    if (engine == "local" and processes in (None, 1)) or is_importable(grid.subject):
        return chosen
    warnings.warn(
        f"study {grid.study}: its model or a scoring function is defined in __main__, a notebook or a lambda, which "
        "other processes cannot import: everything runs in this one",
        stacklevel=3,
    )
    return engine_named("local", 1)


def is_importable(subject: Subject) -> bool:
    """Tell whether another process can make a subject of its pickle."""
    try:
        return b"__main__" not in pickle.dumps(subject)
    except (pickle.PicklingError, AttributeError, TypeError):
        return False


def check_experts(grid: Grid, experts: Sequence[Expert]) -> None:
    """Open every expert of every seed and hold it against the model, before anything is evaluated."""
    for seed in grid.seeds:
        for expert in experts:
            grid.subject.layout(opened(grid.subject.source(expert, seed)), "")


def notes_of(study: Study) -> Notes:
    """Return what pages and later sessions need of a study besides its rows."""
    given = {**study.experts, **({PRETRAINED: study.pretrained} if study.pretrained is not None else {})}
    files: dict[str, dict[str, list[str]]] = {}
    for name in given:
        sources = {seed: study.source_of(name, seed) for seed in study.all_seeds}
        files[name] = {
            str(seed): [
                str(source.path.absolute() if source.path.exists() else source.path),
                source.section,
                *source.rename,
            ]
            for seed, source in sources.items()
            if isinstance(source, Input)
        }
    tasks = {task: study.owner(task) for task in study.tasks}
    return Notes(study.question, study.source, tasks=tasks, files=files)
