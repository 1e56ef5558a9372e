"""Barriers: how far scores and losses between two experts fall behind the straight line between them.

The barrier at a point is chord - score, or loss - chord: above 0 the point is worse than the line. Those of scores are
shares of the task's own expert, so that tasks can be averaged; those of losses are in the losses' own unit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from experiments.grid.rows import Records
from experiments.statistics.curves import drops


class PairBarrier(NamedTuple):
    """The barriers of one pair of experts of a kind and a seed: the greatest on the line and that in its middle, means
    over the tasks of the two; of the `scores`, or of the `losses`. `draws` (samples, 2) are both on resampled examples,
    at the same points; None where examples have no scores."""

    kind: str
    pair: tuple[str, str]
    seed: int
    greatest: float
    midpoint: float
    draws: np.ndarray | None = None


def barriers(rows: Records, *, relative: bool, draws: Mapping[str, np.ndarray] | None = None) -> list[PairBarrier]:
    """Reckon the barriers on the lines of weights in rows of one split, a metric a task, with the `owner` of each task.

    `relative` are shares of the score of the task's own expert; `draws` are of rows by key (`contrasts.draws_of`).
    Lines that lack an end, the middle, or the own task of one of their experts have none, and relative ones need scores
    above 0.
    """
    lines: dict[tuple[Any, ...], dict[float, dict[str, Any]]] = {}
    ends: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in rows:
        held = [name for name, share in row["shares"].items() if share]
        if row["method"] == "single":
            ends[row["experts"], held[0], int(row["seed"]), row["task"]] = row
        elif row["method"] == "interpolate" and len(held) == 2 and row.get("batchnorm", "average") == "average":
            first, second = sorted(held)
            place = row["experts"], (first, second), int(row["seed"]), row["task"]
            lines.setdefault(place, {})[float(row["shares"][second])] = row
    found: dict[tuple[Any, ...], list[np.ndarray]] = {}
    for (kind, pair, seed, task), inner in lines.items():
        both = [ends.get((kind, name, seed, task)) for name in pair]
        owner = str(next(iter(inner.values()))["owner"])
        if owner not in pair or both[0] is None or both[1] is None or 0.5 not in inner:
            continue
        points = {0.0: both[0], **dict(sorted(inner.items())), 1.0: both[1]}
        if relative and ends[kind, owner, seed, task]["value"] <= 0:
            continue
        place = float(pair.index(owner)) if relative else None
        found.setdefault((kind, pair, seed), []).append(_sags(points, place, draws or {}))
    several = {
        place: np.mean([one[: min(map(len, own))] for one in own], axis=0)
        for place, own in found.items()
        if len(own) == 2
    }
    return [
        PairBarrier(kind, pair, seed, float(own[0, 0]), float(own[0, 1]), own[1:] if len(own) > 1 else None)
        for (kind, pair, seed), own in several.items()
    ]


def _sags(points: Mapping[float, dict[str, Any]], whole: float | None, draws: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return (1 + samples, 2) how far the worst point of a line and its middle lie below it, as scored and in draws;
    in shares of the score at `whole`, or without it as they are."""
    shares, rows = [*points], [*points.values()]
    table = np.array([[row["value"] for row in rows]])
    if all(str(row.get("key", "")) in draws for row in rows):
        table = np.concatenate([table, np.stack([draws[str(row["key"])] for row in rows], axis=1)])
    drop = drops(shares, table, rises=bool(rows[0].get("higher_is_better", True)))
    places = [int(drop[0].argmax()), shares.index(0.5) - 1]
    return drop[:, places] / (1.0 if whole is None else table[:, [shares.index(whole)]])


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
