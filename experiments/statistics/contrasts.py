"""Whether models differ: statistics of their scores with intervals and tests over seeds and examples, and what is left
of many tests after their correction.

A model is given by its rows of one task and split, by training seed. Models that answered the same examples are
resampled together, so that a difference between them is as sure as their answers to the same examples allow.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.statistics.bootstrap import interval, p_of_no_effect, resampled_means
from experiments.statistics.tests import Examples, holm

SIGNIFICANT = 0.05
BySeed = Mapping[int, dict[str, Any]]


class Contrast(NamedTuple):
    """A statistic whose truth may be 0, its 95 % interval and two-sided p of 0; these are NaN where neither seeds nor
    examples tell."""

    value: float
    lo: float
    hi: float
    p: float


class Measured(NamedTuple):
    """Scores (models, seeds), and draws (models, samples, seeds) of them on resampled examples if these have scores."""

    seeds: tuple[int, ...]
    values: np.ndarray
    draws: np.ndarray | None


def measured(models: Sequence[BySeed], scores: Examples) -> Measured:
    """Measure models on one task and split, at the seeds that all have; a model with one row serves every seed.

    No seeds where the models have none in common. `scores` are of the examples by row key.
    """
    several = [set(model) for model in models if len(model) != 1]
    every = set.intersection(*several) if several else set(models[0])
    seeds = tuple(sorted(every))
    rows = [[model[seed] if seed in model else next(iter(model.values())) for seed in seeds] for model in models]
    values = np.array([[row["value"] for row in own] for own in rows])
    keys = list(dict.fromkeys(str(row["key"]) for own in rows for row in own))
    lengths = {len(scores.get(key, ())) for key in keys}
    if len(lengths) != 1 or lengths == {0}:
        return Measured(seeds, values, None)
    place = rows[0][0]
    salt = zlib.crc32(f"{place['task']} {place['split']}".encode())  # examples of tasks are drawn apart
    means = resampled_means([scores[key] for key in keys], seed=salt)
    draws = np.stack([np.stack([means[:, keys.index(str(row["key"]))] for row in own], axis=1) for own in rows])
    # The value of a corpus metric is not the mean of its examples' scores: draws are moved onto it.
    off = values - np.array([[scores[str(row["key"])].mean() for row in own] for own in rows])
    return Measured(seeds, values, draws + off[:, None])


def contrast(values: np.ndarray, draws: np.ndarray | None) -> Contrast:
    """Test a statistic by its values (seeds,) and its draws (samples, seeds) on resampled examples."""
    lo, hi = interval(values, draws)
    return Contrast(float(np.mean(values)), lo, hi, p_of_no_effect(values, draws))


def difference(first: BySeed, second: BySeed, scores: Examples, *, rises: bool = True) -> Contrast | None:
    """Test by how much the first model is better than the second on one task and split; None without common seeds."""
    seeds, values, draws = measured([first, second], scores)
    if not seeds:
        return None
    sign = 1 if rises else -1
    return contrast(sign * (values[0] - values[1]), None if draws is None else sign * (draws[0] - draws[1]))


def signs(contrasts: Sequence[Contrast]) -> list[int]:
    """Return 1 or -1 of every contrast that is told apart from 0 after Holm's correction for all of them, else 0."""
    known = [one.p for one in contrasts if one.p == one.p]
    adjusted = iter(holm(known))
    clear = [one.p == one.p and bool(next(adjusted) < SIGNIFICANT) for one in contrasts]
    return [int(np.sign(one.value)) if sure else 0 for one, sure in zip(contrasts, clear, strict=True)]
