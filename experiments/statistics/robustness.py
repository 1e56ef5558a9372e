"""Effective robustness: whether a model is better on shifted data than its score at home foretells.

Single models trace a line of shifted over reported scores, on logit scales where scores are shares of 1 and as they are
elsewhere (arXiv 2007.00644). What lies beyond it is robust; a gain on the line is the gain at home, seen again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.grid.rows import Records
from experiments.grid.units import SHARES, Unit, unit_of
from experiments.statistics.contrasts import BySeed, Contrast, contrast

EDGE = 1e-3  # where 0 and 1 stand, which a logit scale does not have
FEWEST = 3  # single models that make a line
Pair = tuple[dict[str, Any], dict[str, Any]]  # a model's rows on the reported and the shifted split, at one seed


class Scale(NamedTuple):
    """A scale of scores: shares of 1 by their logit, anything else in its unit."""

    unit: Unit

    @property
    def is_logit(self) -> bool:
        """Tell whether scores are shares of 1."""
        return self.unit == SHARES

    def place(self, value: Any) -> Any:
        """Return where scores of rows stand on an axis."""
        return np.clip(value, EDGE, 1 - EDGE) if self.is_logit else self.unit.factor * np.asarray(value)

    def straight(self, place: Any) -> Any:
        """Return places on an axis without a scale."""
        return np.log(place / (1 - place)) if self.is_logit else place

    def bent(self, number: Any) -> Any:
        """Turn `straight` back."""
        return 1 / (1 + np.exp(-number)) if self.is_logit else number


class Trend(NamedTuple):
    """A straight line on two scales: slope and height (...), and how many models it is of."""

    slope: Any
    height: Any
    models: int

    def at(self, x: Any) -> Any:
        """Return its height at straight places."""
        return self.slope * x + self.height


def trend(x: np.ndarray, y: np.ndarray) -> Trend | None:
    """Fit a line to straight places (..., m) by least squares; None for fewer than three, or where all x are equal."""
    if x.shape[-1] < FEWEST or not np.ptp(x, axis=-1).all():
        return None
    across = x - x.mean(axis=-1, keepdims=True)
    slope = (across * y).sum(axis=-1) / (across**2).sum(axis=-1)
    return Trend(slope, y.mean(axis=-1) - slope * x.mean(axis=-1), x.shape[-1])


def trend_of(pairs: Sequence[Pair]) -> Trend | None:
    """Fit the line of single models, each at every seed that it has."""
    if not pairs:
        return None
    scales = _scales(pairs)
    x, y = (np.array([pair[i]["value"] for pair in pairs]) for i in (0, 1))
    return trend(scales[0].straight(scales[0].place(x)), scales[1].straight(scales[1].place(y)))


def pairs_of_splits(inside: BySeed, outside: BySeed) -> dict[int, Pair]:
    """Pair a model's rows on the reported and the shifted split, at the seeds that have both."""
    return {seed: (inside[seed], outside[seed]) for seed in inside if seed in outside}


def beyond(model: Mapping[int, Pair], singles: Sequence[Pair], draws: Mapping[str, np.ndarray]) -> Contrast | None:
    """Test how far a model lies beyond the line of single models on shifted data, in the numbers of the rows; None
    without a line.

    `draws` are of rows by key (`draws_of`): the line, one for all seeds of the model, is fitted anew on every one.
    """
    if not model or len(singles) < FEWEST:
        return None
    seeds, scales = sorted(model), _scales(singles)
    rises = unit_of([one for _, one in singles]).rises
    tables: list[tuple[np.ndarray, np.ndarray]] = []  # values (m,), draws (samples, m) of singles, then of the model
    for i in (0, 1):
        rows: Records = [*(pair[i] for pair in singles), *(model[seed][i] for seed in seeds)]
        drawn = [draws[str(row["key"])] for row in rows if str(row["key"]) in draws]
        values = np.array([row["value"] for row in rows])
        tables.append((values, np.stack(drawn, axis=1) if len(drawn) == len(rows) else np.empty((0, len(rows)))))
    found: list[np.ndarray] = []
    for x, y in zip(*tables, strict=True):
        if x.ndim == 2 and not len(x) * len(y):
            continue
        places = [scale.straight(scale.place(one)) for scale, one in zip(scales, (x, y), strict=True)]
        line = trend(*(one[..., : len(singles)] for one in places))
        if line is None:
            return None
        slope, height = np.asarray(line.slope)[..., None], np.asarray(line.height)[..., None]
        foretold = scales[1].bent(slope * places[0][..., len(singles) :] + height)
        away = (scales[1].bent(places[1][..., len(singles) :]) - foretold) / (
            1 if scales[1].is_logit else scales[1].unit.factor
        )
        found.append(away if rises else -away)
    return contrast(found[0], found[1] if len(found) > 1 else None)


def _scales(pairs: Sequence[Pair]) -> tuple[Scale, Scale]:
    inside, outside = ([pair[i] for pair in pairs] for i in (0, 1))
    return Scale(unit_of(inside)), Scale(unit_of(outside))
