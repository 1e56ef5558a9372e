"""How sure a mean over seeds and examples is: hierarchical intervals, seeds first, then the examples of each.

Examples are drawn once for all models and seeds that answered them, so that what is easy for one is easy for the
others; those of one cluster (of one image, say) are drawn together. A few seeds say little of how far seeds lie apart,
and a plain bootstrap of them is far too sure (of three it covers the truth four times in five): their part of the
interval is Student's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from experiments.errors import StudyError
from experiments.statistics.student import LEVEL, quantile_of_t, tails_of_mixed
from unival_core.metrics import Interval

SAMPLES = 2000
NOWHERE = Interval(math.nan, math.nan)
_CHUNK = 4_000_000  # examples drawn at once: about 64 MB


def resampled_means(
    table: ArrayLike, *, clusters: Sequence[int] | np.ndarray | None = None, samples: int = SAMPLES, seed: int = 0
) -> np.ndarray:
    """Return means (samples, k) of k models' scores (k, n) on examples drawn with replacement, the same for all models.

    Whole `clusters` are drawn, numbers (n,) that examples of one cluster share; without them every example alone.
    StudyError where there are no examples.
    """
    scores = np.asarray(table, dtype=np.float64)
    if scores.ndim != 2 or not scores.shape[1]:
        raise StudyError(f"scores of shape {scores.shape} cannot be resampled: give (models, examples), one or more")
    sizes = None
    if clusters is not None:
        if len(clusters) != scores.shape[1]:
            raise StudyError(f"{len(clusters)} numbers of clusters for {scores.shape[1]} examples: give one each")
        member = np.unique(np.asarray(clusters), return_inverse=True)[1]
        sizes = np.bincount(member).astype(np.float64)
        scores = np.stack([np.bincount(member, own) for own in scores])
    n = scores.shape[1]
    columns = scores.T if sizes is None else np.column_stack([scores.T, sizes])
    step = max(1, _CHUNK // n)
    if step >= samples:
        sums = _counts(n, samples, seed) @ columns
    else:
        rng = np.random.default_rng(seed)
        parts = [_drawn(n, min(step, samples - start), rng) @ columns for start in range(0, samples, step)]
        sums = np.concatenate(parts)
    return sums / n if sizes is None else sums[:, :-1] / sums[:, -1:]


@lru_cache(maxsize=32)  # of at most 8 MB each: a page asks for the examples of its tasks and splits again and again
def _counts(n: int, samples: int, seed: int) -> np.ndarray:
    """Return how often each of n examples is drawn in every sample (samples, n)."""
    return _drawn(n, samples, np.random.default_rng(seed)).astype(np.uint8 if n < 256 else np.uint16)


def _drawn(n: int, samples: int, rng: np.random.Generator) -> np.ndarray:
    drawn = rng.integers(n, size=(samples, n)) + n * np.arange(samples)[:, None]
    return np.bincount(drawn.ravel(), minlength=samples * n).reshape(samples, n)


def interval(values: ArrayLike, draws: ArrayLike | None = None) -> Interval:
    """Return the 95 % interval of the mean of a statistic over seeds: its `values` (s,), one a seed, and `draws`
    (samples, s) of each on resampled examples (`resampled_means`).

    With one seed the quantiles of its draws: evaluation noise only. Without draws, as where tasks score no examples,
    Student's from the seeds alone (`uncertainty`); with neither NaN. Also NaN where draws are no numbers more often
    than one in forty. The skewness of draws stays, as far as the variance is that of examples.
    """
    own = np.asarray(values, dtype=np.float64)
    centre = float(own.mean())
    drawn = None if draws is None else sound(draws)
    if drawn is not None and len(own) == 1:
        return _quantiles(drawn[:, 0]) if len(drawn) else NOWHERE
    known = uncertainty(own, drawn)
    if not math.isfinite(known.variance):
        return NOWHERE
    half = quantile_of_t(known.freedom) * math.sqrt(known.variance)
    below = above = 1.0
    if drawn is not None and known.common:
        together = drawn.mean(axis=1)
        lo, hi = _quantiles(together)
        usual = quantile_of_t(math.inf) * float(together.std())
        middle, share = float(together.mean()), known.common / known.variance
        below, above = (1 + share * (reach / usual - 1) for reach in (middle - lo, hi - middle))
    return Interval(centre - below * half, centre + above * half)


class Uncertainty(NamedTuple):
    """The variance of the mean of a statistic over `number` seeds, in two parts: that of other seeds, and that of other
    examples, which all seeds have in common."""

    seeds: float
    common: float
    number: int

    @property
    def variance(self) -> float:
        """Return the whole."""
        return self.seeds + self.common

    @property
    def freedom(self) -> float:
        """Return the degrees of freedom of a 95 % interval: those of the seeds, over their share of the variance.

        Satterthwaite's (over its square) are too many where three seeds have to say how large that share is.
        """
        return (self.number - 1) * self.variance / self.seeds if self.seeds else math.inf


def uncertainty(values: np.ndarray, draws: np.ndarray | None) -> Uncertainty:
    """Reckon how uncertain the mean of a statistic over seeds is; NaN where neither seeds nor examples tell.

    The seeds' own variance, `values.var() / s`, holds what differs between seeds, and the noise of examples within each
    seed. Examples that all seeds share move them together: how much, is seen in the draws of the mean, beyond what
    draws apart would give.
    """
    count = len(values)
    spread = float(values.var(ddof=1)) / count if count > 1 else math.nan
    if draws is None:
        return Uncertainty(spread, 0.0, count)
    if not len(draws):
        return Uncertainty(math.nan, math.nan, count)
    noise = float(draws.mean(axis=1).var(ddof=1))
    if count == 1:
        return Uncertainty(0.0, noise, count)
    common = max(noise - float(draws.var(axis=0, ddof=1).mean()) / count, 0) * count / (count - 1)
    return Uncertainty(max(spread, noise / count - common), common, count)  # seeds that agree by luck are not certain


def over_seeds(values: ArrayLike) -> Interval:
    """Return Student's 95 % interval of a mean from its values at seeds (s,) alone; NaN of one seed."""
    return interval(values) if np.size(values) > 1 else NOWHERE


def p_of_no_effect(values: ArrayLike, draws: ArrayLike | None = None) -> float:
    """Return the two-sided p of a statistic whose truth is 0, from what `interval` takes into account; NaN where that
    is nothing. It holds far out too, where corrections for many tests look (`tails_of_mixed`)."""
    own = np.asarray(values, dtype=np.float64)
    centre, known = float(own.mean()), uncertainty(own, None if draws is None else sound(draws))
    if not known.variance:
        return float(centre == 0)
    if not math.isfinite(known.variance):
        return math.nan
    return tails_of_mixed(centre, known.seeds, known.common, known.number - 1)


def kind_of_interval(seeds: int, n: int) -> str:
    """Say what an interval over seeds, and n examples of each, takes into account."""
    examples = f"{n:,} example{'s' * (n != 1)}"
    if seeds > 1:
        return f"{seeds} seeds, {examples} each" if n else f"{seeds} seeds, no scores of examples"
    return f"1 seed, {examples}: evaluation noise only" if n else "none: 1 seed, no scores of examples"


def sound(draws: ArrayLike) -> np.ndarray:
    """Keep the draws (samples, ...) that are numbers; none of them where more than one in forty is not."""
    drawn = np.asarray(draws, dtype=np.float64)
    strange = ~np.isfinite(drawn).all(axis=tuple(range(1, drawn.ndim)))
    return drawn[:0] if strange.mean() > (1 - LEVEL) / 2 else drawn[~strange]


def _quantiles(draws: np.ndarray) -> Interval:
    lo, hi = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(lo), float(hi))
