"""How sure a score is: 95 % intervals of what the metrics return."""

import math
from collections.abc import Callable
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from unival_core.errors import UnivalError
from unival_core.metrics.scores import Scores

LEVEL = 0.95
_CHUNK = 2_000_000  # numbers resampled at once: about 16 MB


class Interval(NamedTuple):
    """Bounds of a confidence interval."""

    lo: float
    hi: float


def wilson_interval(successes: float, n: int, level: float = LEVEL) -> Interval:
    """Compute the score interval of a proportion (Wilson, 1927)."""
    if not (n > 0 and 0 <= successes <= n):
        raise UnivalError(f"{successes} successes of {n}: give 0 <= successes <= n and n > 0")
    z = NormalDist().inv_cdf((1 + level) / 2)
    share = successes / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return Interval(max(0.0, centre - half), min(1.0, centre + half))


def bootstrap_interval(
    examples: ArrayLike,
    *,
    combine: Callable[[np.ndarray], np.ndarray] | None = None,
    level: float = LEVEL,
    samples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Give percentile bootstrap of the mean of `examples` (n,), or of `combine` applied to the means of rows (n, k)."""
    values = np.asarray(examples, dtype=np.float64)
    table = values if values.ndim == 2 else values[:, None]
    means = resampled_means(table, samples, seed)
    scores = means[:, 0] if combine is None else combine(means)
    lo, hi = np.quantile(scores, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(lo), float(hi))


def score_interval(scores: Scores, *, seed: int = 0) -> Interval:
    """Give the 95 % interval of a metric's value: Wilson for 0/1 examples, bootstrap otherwise, NaN where not computed.

    Of a corpus score without statistics (METEOR) it is the interval of the examples' mean, moved onto the value.
    """
    if math.isnan(scores.value):
        return Interval(math.nan, math.nan)
    if scores.statistics is not None:
        return bootstrap_interval(scores.statistics, combine=scores.combine, seed=seed)
    if is_binary(scores.per_example):
        return wilson_interval(float(scores.per_example.sum()), scores.n)
    lo, hi = bootstrap_interval(scores.per_example, seed=seed)
    shift = scores.value - float(scores.per_example.mean())
    return Interval(lo + shift, hi + shift)


def resampled_means(table: np.ndarray, samples: int, seed: int) -> np.ndarray:
    """Compute means (samples, k) of rows (n, k) drawn with replacement."""
    n = len(table)
    if n == 0:
        raise UnivalError("nothing to resample: the list of examples is empty")
    rng = np.random.default_rng(seed)
    step = max(1, _CHUNK // table.size)
    return np.concatenate(
        [table[rng.integers(n, size=(min(step, samples - k), n))].mean(axis=1) for k in range(0, samples, step)]
    )


def is_binary(values: np.ndarray) -> bool:
    """Tell whether all scores are 0 or 1."""
    return bool(((values == 0) | (values == 1)).all())
