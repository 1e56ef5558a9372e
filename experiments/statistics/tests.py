"""What is left of many tests: corrections for their number (Holm), and for the best of points on one line (max-T)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from experiments.statistics.bootstrap import sound, uncertainty
from experiments.statistics.student import LEVEL

Examples = Mapping[str, np.ndarray]  # scores of examples by row key, from `read_scores`


class Simultaneous(NamedTuple):
    """Means over seeds of many statistics (k,), their 95 % intervals that hold all at once, and the p of each truth
    being 0, corrected for there being so many."""

    value: np.ndarray
    lo: np.ndarray
    hi: np.ndarray
    p: np.ndarray


def holm(p_values: ArrayLike) -> np.ndarray:
    """Correct p values for their number, in the order given (Holm, 1979)."""
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(1, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))
    return adjusted


def max_t(
    values: ArrayLike, draws: ArrayLike | None = None, *, above: bool = False, samples: int = 10_000, seed: int = 0
) -> Simultaneous:
    """Test many statistics at once, so that the best of them may be named: `values` (k, s) at the same seeds, and
    `draws` (k, n, s) of them on the same resampled examples; with `above` only whether truths are above 0.

    All are drawn together at other seeds and other examples, each studentised by an error that is guessed anew from as
    many seeds; how many degrees of freedom that error has, all statistics tell together. The p of one is how often the
    largest t of them all is as large as its own, and intervals reach as far as that in 95 of 100 draws. NaN where
    neither seeds nor examples tell.
    """
    own = np.asarray(values, dtype=np.float64)
    drawn = None if draws is None else np.moveaxis(sound(np.moveaxis(np.asarray(draws, np.float64), 0, -1)), -1, 0)
    centre = own.mean(axis=1)
    parts = [uncertainty(one, None if drawn is None else drawn[k]) for k, one in enumerate(own)]
    variance = np.array([part.variance for part in parts])
    if not np.isfinite(variance).all():
        nowhere = np.full(len(own), np.nan)
        return Simultaneous(centre, nowhere, nowhere, nowhere)
    rng, known = np.random.default_rng(seed), variance > 0
    away, guessed = _at_other_seeds(own, samples, rng)
    away *= np.sqrt([part.seeds for part in parts])
    if drawn is not None:
        away += _on_other_examples(drawn, np.array([part.common for part in parts]), samples, rng)
    t = away[:, known] / np.sqrt(variance[known])
    of_seeds = float(np.mean([part.seeds / part.variance for part in parts if part.variance])) if known.any() else 0.0
    if of_seeds:
        freedom = (own.shape[1] - 1) / of_seeds**2  # Satterthwaite
        squares = np.sort(rng.chisquare(freedom, samples)) / freedom
        t = t / np.sqrt(squares[np.argsort(np.argsort(guessed[:, known], axis=0), axis=0)])
    largest = np.max(t if above else np.abs(t), axis=1, initial=0)
    far = np.divide(centre, np.sqrt(variance), out=np.zeros_like(centre), where=known)
    p = np.array([(1 + (largest >= one).sum()) / (1 + samples) for one in (far if above else np.abs(far))])
    half = float(np.quantile(largest, LEVEL)) * np.sqrt(variance)
    highest = np.full_like(half, np.inf) if above else centre + half
    return Simultaneous(centre, centre - half, highest, np.where(known, p, centre == 0))


def _at_other_seeds(values: np.ndarray, samples: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draw (samples, k) how far means over other seeds lie from their truths, in standard errors, and how large these
    would be guessed there.

    How statistics go together is seen in the seeds; two say nothing of it, and of few only a part is believed.
    """
    count, seeds = values.shape
    if seeds == 1:
        return np.zeros((samples, count)), np.ones((samples, count))
    own = values - values.mean(axis=1, keepdims=True)
    length = np.linalg.norm(own, axis=1, keepdims=True)
    own = np.divide(own, length, out=np.zeros_like(own), where=length > 0)
    alone = np.sqrt(1 / (seeds - 1))
    made = np.sqrt(1 - alone**2) * rng.normal(size=(samples, seeds, seeds)) @ own.T
    made += np.where(length.T > 0, alone, 1) * rng.normal(size=(samples, seeds, count))
    return np.sqrt(seeds) * made.mean(axis=1), made.var(axis=1)


def _on_other_examples(draws: np.ndarray, common: np.ndarray, samples: int, rng: np.random.Generator) -> np.ndarray:
    """Draw (samples, k) how far other examples move all seeds together, as they do in `draws` (k, n, s)."""
    together = np.cov(draws.mean(axis=2), ddof=1).reshape(len(draws), -1)
    noise = np.sqrt(np.diag(together))
    share = np.divide(np.sqrt(common), noise, out=np.zeros_like(noise), where=noise > 0)
    squares, axes = np.linalg.eigh(together * np.outer(share, share))
    return rng.normal(size=(samples, len(draws))) * np.sqrt(np.maximum(squares, 0)) @ axes.T
