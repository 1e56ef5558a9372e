"""Tests of differences: two models on the same examples, one difference or many."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from experiments.errors import StudyError
from experiments.grid.rows import Records, mean_of
from unival_core.metrics import is_binary

Z = 1.959964  # half-width of a normal 95 % interval, in standard errors
Examples = Mapping[str, np.ndarray]  # scores of examples by row key, from `read_scores`
_CHUNK = 2_000_000  # signs drawn at once


class Comparison(NamedTuple):
    """Second minus first in the mean, and the two-sided p of no difference."""

    difference: float
    p: float


class Gap(NamedTuple):
    """A difference between two models and its standard error; the error is NaN without scores of the examples."""

    value: float
    error: float

    @property
    def sign(self) -> int:
        """Return 1 or -1 where the 95 % interval leaves out zero, else 0; of the value alone where there is no
        error."""
        clear = math.isnan(self.error) or abs(self.value) > Z * self.error
        return int(np.sign(self.value)) if clear else 0

    def __str__(self) -> str:
        if math.isnan(self.error):
            return f"{100 * self.value:+.1f}"
        lo, hi = (100 * (self.value + side * Z * self.error) for side in (-1, 1))
        return f"{100 * self.value:+.1f} [{lo:+.1f}, {hi:+.1f}]"


def paired_test(first: ArrayLike, second: ArrayLike, *, samples: int = 10_000, seed: int = 0) -> Comparison:
    """Compare two points on the same examples, scores (n,) each in the same order.

    Exact McNemar (binomial on the discordant pairs) where all scores are 0 or 1; otherwise a permutation of the signs
    of the differences, drawn `samples` times.
    """
    a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if a.ndim != 1 or a.shape != b.shape or len(a) == 0:
        raise StudyError(f"scores of shapes {a.shape} and {b.shape} do not pair up: give the same n > 0 for both")
    exact = is_binary(a) and is_binary(b)
    p = _mcnemar(int((b > a).sum()), int((a > b).sum())) if exact else _sign_permutation(b - a, samples, seed)
    return Comparison(float((b - a).mean()), p)


def holm(p_values: ArrayLike) -> np.ndarray:
    """Correct p values for their number, in the order given (Holm, 1979)."""
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(1, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))
    return adjusted


def gap(first: Records, second: Records, scores: Examples) -> Gap:
    """Subtract the mean score of the second model's rows (one a seed) from the first's, on the same examples."""
    value = mean_of(first, "value") - mean_of(second, "value")
    examples = paired_examples([first, second], scores)
    return Gap(value, math.nan if examples is None else standard_error(examples[0] - examples[1]))


def mean_gap(first: Records, second: Records, splits: Sequence[str], scores: Examples) -> Gap | None:
    """Average the difference over every task and split that both models have, taken as independent; None if none."""
    found: list[Gap] = []
    for place in dict.fromkeys((row["task"], row["split"]) for row in first if row["split"] in splits):
        ours, theirs = ([row for row in rows if (row["task"], row["split"]) == place] for rows in (first, second))
        if theirs:
            found.append(gap(ours, theirs, scores))
    if not found:
        return None
    error = math.sqrt(sum(one.error**2 for one in found)) / len(found)
    return Gap(float(np.mean([one.value for one in found])), error)


def paired_examples(models: Sequence[Records], scores: Examples) -> list[np.ndarray] | None:
    """Average the scores of every example (n,) over each model's rows, one a seed; None if a row lacks them, or if n
    differs."""
    keys = [[row["key"] for row in rows] for rows in models]
    lengths = {len(scores.get(key, ())) for own in keys for key in own}
    if not all(keys) or len(lengths) != 1 or lengths == {0}:
        return None
    return [np.mean([scores[key] for key in own], axis=0) for own in keys]


def standard_error(values: np.ndarray) -> float:
    """Return the standard error of the mean of values (n,); NaN of a single one."""
    return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan


def _mcnemar(gained: int, lost: int) -> float:
    pairs = gained + lost
    term = tail = 1  # binomial coefficients, exact
    for k in range(min(gained, lost)):
        term = term * (pairs - k) // (k + 1)
        tail += term
    return min(1.0, 2 * tail / 2**pairs)


def _sign_permutation(differences: np.ndarray, samples: int, seed: int) -> float:
    d = differences[differences != 0]
    if len(d) == 0:
        return 1.0
    rng = np.random.default_rng(seed)
    step = max(1, _CHUNK // len(d))
    flips = (rng.integers(2, size=(min(step, samples - k), len(d)), dtype=np.uint8) for k in range(0, samples, step))
    sums = d.sum() - 2 * np.concatenate([flip.astype(np.float64) @ d for flip in flips])
    # A share of 1e-9 forgives sums that differ by rounding alone.
    reached = int((np.abs(sums) >= abs(d.sum()) * (1 - 1e-9)).sum())
    return (1 + reached) / (1 + samples)
