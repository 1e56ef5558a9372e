"""The study: ratio sweeps, evaluation grids, curves and tables.

>>> rows = experiments.read_rows("pocket-full/rows.jsonl")  # doctest: +SKIP
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from experiments.grid.rows import read_rows

__all__ = ["read_rows"]


def __getattr__(name: str) -> Any:
    """`read_rows` loads pandas only when it is asked for."""
    if name not in __all__:
        raise AttributeError(f"module 'experiments' has no attribute {name!r}")
    return getattr(importlib.import_module("experiments.grid.rows"), name)
