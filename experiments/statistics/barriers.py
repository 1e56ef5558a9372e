"""Barriers: how far scores and losses between two experts fall behind the straight line between them.

The barrier at a point is chord - score, or loss - chord: above 0 the point is worse than the line. Those of scores are
shares of the task's own expert, so that tasks can be averaged; those of losses are in the losses' own unit.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from experiments.grid.rows import Records
from experiments.statistics.curves import drops


class PairBarrier(NamedTuple):
    """The barriers of one pair of experts of a kind and a seed: the greatest on the line and that in its middle, means
    over the tasks of the two; of the `scores`, or of the `losses`."""

    kind: str
    pair: tuple[str, str]
    seed: int
    greatest: float
    midpoint: float


def barriers(rows: Records, *, relative: bool) -> list[PairBarrier]:
    """Reckon the barriers on the lines of weights in rows of one split, a metric a task, with the `owner` of each task.

    `relative` are shares of the score of the task's own expert. Lines that lack an end, the middle, or the own task of
    one of their experts have none, and relative ones need scores above 0.
    """
    lines: dict[tuple[Any, ...], dict[float, float]] = {}
    ends: dict[tuple[Any, ...], float] = {}
    rises: dict[str, bool] = {}
    for row in rows:
        held = [name for name, share in row["shares"].items() if share]
        rises[row["task"]] = bool(row.get("higher_is_better", True))
        if row["method"] == "single":
            ends[row["experts"], held[0], int(row["seed"]), row["task"]] = row["value"]
        elif row["method"] == "interpolate" and len(held) == 2 and row.get("batchnorm", "average") == "average":
            first, second = sorted(held)
            lines.setdefault((row["experts"], (first, second), int(row["seed"]), row["task"]), {})[
                float(row["shares"][second])
            ] = row["value"]
    owners = {row["task"]: row["owner"] for row in rows}
    found: dict[tuple[Any, ...], list[tuple[float, float]]] = {}
    for (kind, pair, seed, task), inner in lines.items():
        both = [ends.get((kind, name, seed, task), math.nan) for name in pair]
        if owners[task] not in pair or np.isnan(both).any() or 0.5 not in inner:
            continue
        shares = [0.0, *sorted(inner), 1.0]
        values = np.array([both[0], *(inner[share] for share in shares[1:-1]), both[1]])
        drop = drops(shares, values, rises=rises[task])
        whole = ends[kind, owners[task], seed, task] if relative else 1.0
        if whole <= 0:
            continue
        middle = float(drop[shares[1:-1].index(0.5)])
        found.setdefault((kind, pair, seed), []).append((float(drop.max()) / whole, middle / whole))
    several = [(place, own) for place, own in found.items() if len(own) == 2]
    return [PairBarrier(*place, *map(float, np.mean(own, axis=0))) for place, own in several]


def rank_correlation(x: list[float], y: list[float]) -> float:
    """Return Spearman's correlation; NaN for fewer than three points, or where one side is constant.

    >>> rank_correlation([1, 2, 3], [10, 30, 20])
    0.5
    """
    if len(x) < 3 or len(set(x)) == 1 or len(set(y)) == 1:
        return math.nan
    return round(float(np.corrcoef(_ranks(x), _ranks(y))[0, 1]), 12)


def _ranks(values: list[float]) -> np.ndarray:
    """Return ranks, equal values with their mean."""
    own = np.asarray(values, dtype=np.float64)
    return np.array([(np.sum(own < value) + np.sum(own <= value) - 1) / 2 for value in own])
