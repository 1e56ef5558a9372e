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
    from experiments.grid.rows import read_rows, read_scores
    from experiments.pages.figures import accuracy_curves, save

_HOME = {
    "accuracy_curves": "pages.figures",
    "read_rows": "grid.rows",
    "read_scores": "grid.rows",
    "save": "pages.figures",
}

__all__ = ["StudyError", "accuracy_curves", "read_rows", "read_scores", "save"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'experiments' has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(f"experiments.{_HOME[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
