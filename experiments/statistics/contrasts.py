"""Whether models differ: statistics of their scores with intervals and tests over seeds and examples, and what is left
of many tests after their correction.

A model is given by its rows of one task and split, by training seed. Models that answered the same examples are
resampled together, so that a difference between them is as sure as their answers to the same examples allow.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.errors import StudyError
from experiments.grid.units import Unit
from experiments.statistics.bootstrap import interval, p_of_no_effect, resampled_means
from experiments.statistics.tests import Examples, holm

SIGNIFICANT = 0.05
BySeed = Mapping[int, dict[str, Any]]


class Contrast(NamedTuple):
    """A statistic whose truth may be 0, its 95 % interval and two-sided p of 0, which are NaN where neither seeds nor
    examples tell; its values at the seeds, and the p at these very seeds, of other examples alone."""

    value: float
    lo: float
    hi: float
    p: float
    seeds: tuple[float, ...] = ()
    p_here: float = math.nan


class Measured(NamedTuple):
    """Scores (models, seeds), and draws (models, samples, seeds) of them on resampled examples if these have scores."""

    seeds: tuple[int, ...]
    values: np.ndarray
    draws: np.ndarray | None


class Part(NamedTuple):
    """A statistic of one task and split: in which unit, at which seeds, its values (s,) and draws (samples, s)."""

    unit: Unit
    seeds: tuple[int, ...]
    values: np.ndarray
    draws: np.ndarray | None


def draws_of(rows: Iterable[Mapping[str, Any]], scores: Examples) -> dict[str, np.ndarray]:
    """Draw the value of each row on resampled examples, (samples,) by row key; of rows without scores of examples none.

    Rows of one task and split that have as many examples are drawn on the same ones, whole clusters at a time where
    they have `clusters` (`experiments.grid.clusters`).
    """
    places: dict[tuple[str, str, int], dict[str, Mapping[str, Any]]] = {}
    for row in rows:
        key = str(row["key"])
        if n := len(scores.get(key, ())):
            places.setdefault((row["task"], row["split"], n), {})[key] = row
    found: dict[str, np.ndarray] = {}
    for (task, split, n), own in places.items():
        known = [row["clusters"] for row in own.values() if len(row.get("clusters", ())) == n]
        salt = zlib.crc32(f"{task} {split}".encode())  # examples of tasks are drawn apart
        table = [scores[key] for key in own]
        means = resampled_means(table, clusters=known[0] if known else None, seed=salt)
        # The value of a corpus metric is not the mean of its examples' scores: draws are moved onto it.
        off = np.array([row["value"] - one.mean() for row, one in zip(own.values(), table, strict=True)])
        found |= zip(own, (means + off).T, strict=True)
    return found


def measured(models: Sequence[BySeed], scores: Examples, draws: Mapping[str, np.ndarray] | None = None) -> Measured:
    """Measure models on one task and split, at the seeds that all have; a model with one row serves every seed.

    No seeds where the models have none in common. `scores` are of the examples by row key, `draws` those of `draws_of`
    where they are known.
    """
    several = [set(model) for model in models if len(model) != 1]
    every = set.intersection(*several) if several else set(models[0])
    seeds = tuple(sorted(every))
    rows = [[model[seed] if seed in model else next(iter(model.values())) for seed in seeds] for model in models]
    values = np.array([[row["value"] for row in own] for own in rows])
    keys = {str(row["key"]) for own in rows for row in own}
    lengths = {len(scores.get(key, ())) for key in keys}
    if len(lengths) != 1 or lengths == {0}:
        return Measured(seeds, values, None)
    drawn = draws if draws is not None else draws_of((row for own in rows for row in own), scores)
    table = [np.stack([drawn[str(row["key"])] for row in own], axis=1) for own in rows]
    return Measured(seeds, values, np.stack(table))


def contrast(values: np.ndarray, draws: np.ndarray | None) -> Contrast:
    """Test a statistic by its values (seeds,) and its draws (samples, seeds) on resampled examples."""
    lo, hi = interval(values, draws)
    p, centre = p_of_no_effect(values, draws), float(np.mean(values))
    here = math.nan if draws is None else p_of_no_effect([centre], draws.mean(axis=1, keepdims=True))
    return Contrast(centre, lo, hi, p, tuple(map(float, values)), here)


def difference(
    first: BySeed,
    second: BySeed,
    scores: Examples,
    *,
    rises: bool = True,
    draws: Mapping[str, np.ndarray] | None = None,
) -> Contrast | None:
    """Test by how much the first model is better than the second on one task and split; None without common seeds."""
    seeds, values, drawn = measured([first, second], scores, draws)
    if not seeds:
        return None
    sign = 1 if rises else -1
    return contrast(sign * (values[0] - values[1]), None if drawn is None else sign * (drawn[0] - drawn[1]))


def averaged(parts: Sequence[Part]) -> Contrast | None:
    """Test the mean of statistics over tasks and splits, at the seeds that all have; None where these are none.

    StudyError for statistics of different units: a mean of them would be of whatever is told in the largest numbers.
    """
    units = list(dict.fromkeys(part.unit for part in parts))
    if len(units) > 1:
        named = ", ".join(unit.words or "no unit" for unit in units)
        raise StudyError(f"scores in {named} have no mean: average retention, or the tasks of one unit at a time")
    seeds = sorted(set.intersection(*(set(part.seeds) for part in parts))) if parts else []
    if not seeds:
        return None
    places = [[part.seeds.index(seed) for seed in seeds] for part in parts]
    values = np.mean([part.values[own] for part, own in zip(parts, places, strict=True)], axis=0)
    drawn = [part.draws[:, own] for part, own in zip(parts, places, strict=True) if part.draws is not None]
    return contrast(values, np.mean(drawn, axis=0) if len(drawn) == len(parts) else None)


def signs(contrasts: Sequence[Contrast], *, here: bool = False) -> list[int]:
    """Return 1 or -1 of every contrast that is told apart from 0 after Holm's correction for all of them, else 0; with
    `here` at these very seeds, for other examples alone."""
    clear = survived([one.p_here if here else one.p for one in contrasts])
    return [int(np.sign(one.value)) if sure else 0 for one, sure in zip(contrasts, clear, strict=True)]


def survived(p_values: Sequence[float]) -> list[bool]:
    """Tell of every p whether it is significant after Holm's correction for all that are known."""
    adjusted = iter(holm([p for p in p_values if p == p]))
    return [p == p and bool(next(adjusted) < SIGNIFICANT) for p in p_values]
