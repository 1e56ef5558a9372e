"""The grid of a study of any model: where its experts lie, what evaluates them, what its folder says of it."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from experiments.errors import StudyError
from experiments.grid.engines import engine_named
from experiments.grid.grid import Engine, Grid
from experiments.grid.notes import Notes
from experiments.grid.subject import Subject, opened
from experiments.grid.worker import PRECISIONS, check_device
from experiments.results.files import subject_of
from experiments.results.sources import settled
from experiments.study.points import PRETRAINED, Expert
from experiments.study.study import Study
from merge import Input


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
    levels = {name: task.chance_on(study.splits) for name, task in study.tasks.items()}
    chance = {name: own for name, own in levels.items() if own}
    return Notes(study.question, study.source, tasks=tasks, files=files, chance=chance)
