"""Studies of merged models: points between experts evaluated on a grid, and pages made from the rows.

>>> rows = experiments.read_rows("DIR/rows.jsonl")  # doctest: +SKIP
>>> experiments.save(experiments.accuracy_curves(rows, ("upright", "turned")), "curves")  # doctest: +SKIP

Names are loaded on first use, so that importing the package imports neither torch nor pandas.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from experiments.errors import StudyError

if TYPE_CHECKING:
    from experiments import tasks
    from experiments.grid.rows import read_rows, read_scores
    from experiments.pages.figures import accuracy_curves, save
    from experiments.results.results import Results, open_results
    from experiments.results.run import run
    from experiments.results.search import search
    from experiments.study.methods import plane
    from experiments.study.study import Study, Task

_HOME = {
    "Results": "results.results",
    "Study": "study.study",
    "Task": "study.study",
    "accuracy_curves": "pages.figures",
    "open_results": "results.results",
    "plane": "study.methods",
    "read_rows": "grid.rows",
    "read_scores": "grid.rows",
    "run": "results.run",
    "save": "pages.figures",
    "search": "results.search",
}

__all__ = [
    "Results",
    "Study",
    "StudyError",
    "Task",
    "accuracy_curves",
    "open_results",
    "plane",
    "read_rows",
    "read_scores",
    "run",
    "save",
    "search",
    "tasks",
]


def __getattr__(name: str) -> Any:
    if name == "tasks":
        return importlib.import_module("experiments.tasks")
    if name not in _HOME:
        raise AttributeError(f"module 'experiments' has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(f"experiments.{_HOME[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
