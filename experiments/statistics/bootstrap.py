"""How sure a mean over seeds and examples is: a hierarchical bootstrap, seeds first, then the examples of each.

Examples are drawn once for all models and seeds that answered them, so that what is easy for one is easy for the
others. A few seeds say little of how far seeds lie apart, and a plain bootstrap of them is far too sure (of three it
covers the truth four times in five): its interval is stretched to what Student's t makes of their variance.
"""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike

from experiments.errors import StudyError
from unival_core.metrics import Interval

LEVEL, SAMPLES = 0.95, 2000
NOWHERE = Interval(math.nan, math.nan)
_CHUNK = 4_000_000  # examples drawn at once: about 64 MB


def resampled_means(table: ArrayLike, *, samples: int = SAMPLES, seed: int = 0) -> np.ndarray:
    """Return means (samples, k) of k models' scores (k, n) on examples drawn with replacement, the same for all models.

    StudyError where there are no examples.
    """
    scores = np.asarray(table, dtype=np.float64)
    if scores.ndim != 2 or not scores.shape[1]:
        raise StudyError(f"scores of shape {scores.shape} cannot be resampled: give (models, examples), one or more")
    n = scores.shape[1]
    rng = np.random.default_rng(seed)
    step = max(1, _CHUNK // n)
    parts: list[np.ndarray] = []
    for start in range(0, samples, step):
        rows = min(step, samples - start)
        drawn = rng.integers(n, size=(rows, n)) + n * np.arange(rows)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=rows * n).reshape(rows, n)
        parts.append(counts @ scores.T / n)
    return np.concatenate(parts)


def interval(values: ArrayLike, draws: ArrayLike | None = None, *, seed: int = 0) -> Interval:
    """Return the 95 % interval of the mean of a statistic over seeds: its `values` (s,), one a seed, and `draws`
    (samples, s) of each on resampled examples (`resampled_means`).

    With one seed the quantiles of its draws: evaluation noise only. Without draws, as where tasks score no examples,
    Student's from the seeds alone; with neither NaN. Also NaN where draws are no numbers more often than one in forty.

    Of several seeds the variance has two parts. The seeds' own, `values.var() / s`, holds the noise of examples within
    each seed. Examples that all seeds share move them together; how much is seen in the draws of the mean, beyond what
    draws apart would give. Degrees of freedom are Satterthwaite's (1946); the draws' skewness stays.
    """
    own = np.asarray(values, dtype=np.float64)
    count, centre = len(own), float(own.mean())
    spread = float(own.var(ddof=1)) / count if count > 1 else math.nan
    if draws is None:
        half = quantile_of_t(count - 1) * math.sqrt(spread) if count > 1 else math.nan
        return Interval(centre - half, centre + half)
    drawn = np.asarray(draws, dtype=np.float64)
    strange = ~np.isfinite(drawn).all(axis=1)
    if strange.mean() > (1 - LEVEL) / 2:
        return NOWHERE
    drawn = drawn[~strange]
    if count == 1:
        return _quantiles(drawn[:, 0])
    noise = float(drawn.mean(axis=1).var(ddof=1))
    shared = max(noise - float(drawn.var(axis=0, ddof=1).mean()) / count, 0) * count / (count - 1)
    variance = max(spread + shared, noise)
    rng = np.random.default_rng(seed)
    mixed = np.take_along_axis(drawn, rng.integers(count, size=drawn.shape), axis=1).mean(axis=1)
    if not math.isfinite(variance) or not variance or not mixed.std():
        return Interval(centre, centre) if not variance else NOWHERE
    freedom = (count - 1) * (variance / spread) ** 2 if spread else math.inf
    reach = quantile_of_t(freedom) * math.sqrt(variance) / (quantile_of_t(math.inf) * float(mixed.std()))
    lo, hi = _quantiles(mixed)
    return Interval(centre + reach * (lo - centre), centre + reach * (hi - centre))


def kind_of_interval(seeds: int, n: int) -> str:
    """Say what an interval over seeds, and n examples of each, takes into account."""
    examples = f"{n:,} example{'s' * (n != 1)}"
    if seeds > 1:
        return f"{seeds} seeds, {examples} each" if n else f"{seeds} seeds, no scores of examples"
    return f"1 seed, {examples}: evaluation noise only" if n else "none: 1 seed, no scores of examples"


def quantile_of_t(freedom: float, level: float = LEVEL) -> float:
    """Return the half-width of a two-sided interval in standard errors: Student's t of `freedom` >= 1 degrees.

    >>> round(quantile_of_t(2), 3), round(quantile_of_t(float("inf")), 3)
    (4.303, 1.96)
    """
    if freedom > 1e4:
        return NormalDist().inv_cdf((1 + level) / 2)
    # With t = sqrt(freedom) tan(angle), the density of the angle is proportional to cos(angle) ** (freedom - 1).
    angles = np.linspace(0, math.pi / 2, 20_001)
    density = np.cos(angles) ** (freedom - 1)
    below = np.concatenate([[0], np.cumsum((density[1:] + density[:-1]) / 2)])
    return math.sqrt(freedom) * math.tan(float(np.interp(level, below / below[-1], angles)))


def _quantiles(draws: np.ndarray) -> Interval:
    lo, hi = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(lo), float(hi))
