"""How sure a mean over seeds and examples is: a hierarchical bootstrap, seeds first, then the examples of each.

Examples are drawn once for all models and seeds that answered them, so that what is easy for one is easy for the
others. A few seeds say little of how far seeds lie apart, and a plain bootstrap of them is far too sure (of three it
covers the truth four times in five): its interval is stretched to what Student's t makes of their variance.
"""

from __future__ import annotations

import math
from functools import lru_cache
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
    step = max(1, _CHUNK // n)
    if step >= samples:
        return _counts(n, samples, seed) @ scores.T / n
    rng = np.random.default_rng(seed)
    parts = [_drawn(n, min(step, samples - start), rng) @ scores.T / n for start in range(0, samples, step)]
    return np.concatenate(parts)


@lru_cache(maxsize=32)  # of at most 8 MB each: a page asks for the examples of its tasks and splits again and again
def _counts(n: int, samples: int, seed: int) -> np.ndarray:
    """Return how often each of n examples is drawn in every sample (samples, n)."""
    return _drawn(n, samples, np.random.default_rng(seed)).astype(np.uint8 if n < 256 else np.uint16)


def _drawn(n: int, samples: int, rng: np.random.Generator) -> np.ndarray:
    drawn = rng.integers(n, size=(samples, n)) + n * np.arange(samples)[:, None]
    return np.bincount(drawn.ravel(), minlength=samples * n).reshape(samples, n)


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
    drawn = None if draws is None else _sound(draws)
    if drawn is not None and count == 1:
        return _quantiles(drawn[:, 0]) if len(drawn) else NOWHERE
    variance, freedom = uncertainty(own, drawn)
    if drawn is None:
        half = quantile_of_t(freedom) * math.sqrt(variance) if count > 1 else math.nan
        return Interval(centre - half, centre + half)
    if not variance:
        return Interval(centre, centre)
    rng = np.random.default_rng(seed)
    mixed = np.take_along_axis(drawn, rng.integers(count, size=drawn.shape), axis=1).mean(axis=1)
    if not math.isfinite(variance) or not mixed.std():
        return NOWHERE
    reach = quantile_of_t(freedom) * math.sqrt(variance) / (quantile_of_t(math.inf) * float(mixed.std()))
    lo, hi = _quantiles(mixed)
    return Interval(centre + reach * (lo - centre), centre + reach * (hi - centre))


def uncertainty(values: np.ndarray, draws: np.ndarray | None) -> tuple[float, float]:
    """Return the variance of the mean of a statistic over seeds, and its degrees of freedom (see `interval`); NaN where
    neither seeds nor examples tell."""
    count = len(values)
    spread = float(values.var(ddof=1)) / count if count > 1 else math.nan
    if draws is None:
        return spread, count - 1
    if not len(draws):
        return math.nan, math.nan
    noise = float(draws.mean(axis=1).var(ddof=1))
    if count == 1:
        return noise, math.inf
    shared = max(noise - float(draws.var(axis=0, ddof=1).mean()) / count, 0) * count / (count - 1)
    variance = max(spread + shared, noise)
    return variance, (count - 1) * (variance / spread) ** 2 if spread else math.inf


def p_of_no_effect(values: ArrayLike, draws: ArrayLike | None = None) -> float:
    """Return the two-sided p of a statistic whose truth is 0, by Student's t from what `interval` takes into account;
    NaN where that is nothing."""
    own = np.asarray(values, dtype=np.float64)
    centre, (variance, freedom) = float(own.mean()), uncertainty(own, None if draws is None else _sound(draws))
    if not variance:
        return float(centre == 0)
    return tails_of_t(centre / math.sqrt(variance), freedom) if math.isfinite(variance) else math.nan


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
    angles, below = _angles_of_t(freedom)
    return math.sqrt(freedom) * math.tan(float(np.interp(level, below, angles)))


def tails_of_t(t: float, freedom: float) -> float:
    """Return how likely Student's t of `freedom` >= 1 degrees is as far from 0 as `t`.

    >>> round(tails_of_t(4.303, 2), 3), round(tails_of_t(-1.96, float("inf")), 3)
    (0.05, 0.05)
    """
    if freedom > 1e4:
        return math.erfc(abs(t) / math.sqrt(2))
    angles, below = _angles_of_t(freedom)
    return 1 - float(np.interp(math.atan(abs(t) / math.sqrt(freedom)), angles, below))


def _angles_of_t(freedom: float) -> tuple[np.ndarray, np.ndarray]:
    """Return angles from 0 to a right one and how often t = sqrt(freedom) tan(angle) is below each, of |t|."""
    angles = np.linspace(0, math.pi / 2, 20_001)
    density = np.cos(angles) ** (freedom - 1)
    below = np.concatenate([[0], np.cumsum((density[1:] + density[:-1]) / 2)])
    return angles, below / below[-1]


def _sound(draws: ArrayLike) -> np.ndarray:
    """Keep the draws that are numbers; none of them where more than one in forty is not."""
    drawn = np.asarray(draws, dtype=np.float64)
    strange = ~np.isfinite(drawn).all(axis=1)
    return drawn[:0] if strange.mean() > (1 - LEVEL) / 2 else drawn[~strange]


def _quantiles(draws: np.ndarray) -> Interval:
    lo, hi = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(lo), float(hi))
