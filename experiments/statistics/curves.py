"""What a sweep says: intervals, paired tests, barriers and fronts. Pure functions of arrays; larger scores are better.

A sweep is `ratios` (m,) with `scores` (..., m); a front is `points` (m, d), one column a task. `experts` is (d, d): row
i holds the scores of task i's specialist on every task, so that its diagonal is the corner where all skills are whole.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from experiments.errors import StudyError
from unival_core.metrics.intervals import LEVEL, Interval, bootstrap_interval, is_binary, resampled_means
from unival_core.metrics.intervals import score_interval as score_interval
from unival_core.metrics.intervals import wilson_interval as wilson_interval

_CHUNK = 2_000_000  # signs drawn at once


@dataclass(frozen=True)
class Comparison:
    """Second minus first in the mean, its 95 % interval, and the two-sided p of no difference by the named test."""

    difference: float
    interval: Interval
    p: float
    test: str


@dataclass(frozen=True)
class BestOfMany:
    """The best of many points against a reference, corrected for having been picked.

    `gain` is the mean difference of point `index`; `lo` its lower 95 % bound, simultaneous over all points; `p` the
    chance of so large a maximum if no point were better than the reference.
    """

    index: int
    gain: float
    lo: float
    p: float


@dataclass(frozen=True)
class Selection:
    """The point picked on one split, and its score there and on the split that is reported."""

    index: int
    selected: float
    reported: float


def paired_test(first: ArrayLike, second: ArrayLike, *, samples: int = 10_000, seed: int = 0) -> Comparison:
    """Compare two points on the same examples, scores (n,) each in the same order.

    Exact McNemar (binomial on the discordant pairs) where all scores are 0 or 1; otherwise a permutation of the signs
    of the differences, drawn `samples` times. The interval is a paired bootstrap.
    """
    a, b = _paired(first, second)
    interval = bootstrap_interval(b - a, seed=seed)
    if is_binary(a) and is_binary(b):
        p, test = _mcnemar(int((b > a).sum()), int((a > b).sum())), "McNemar exact"
    else:
        p, test = _sign_permutation(b - a, samples, seed), "sign permutation"
    return Comparison(float((b - a).mean()), interval, p, test)


def holm(p_values: ArrayLike) -> np.ndarray:
    """P values corrected for their number, in the order given (Holm, 1979)."""
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(1, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))
    return adjusted


def best_of_many(points: ArrayLike, reference: ArrayLike, *, samples: int = 2000, seed: int = 0) -> BestOfMany:
    """The best of points (m, n) against a reference (n,), scored on the same n examples.

    A maximum over many ratios is biased upward; here the studentised maximum of all m differences is bootstrapped
    (White, 2000; Romano and Wolf, 2005), which keeps their dependence.
    """
    scores, base = np.asarray(points, dtype=np.float64), np.asarray(reference, dtype=np.float64)
    if scores.ndim != 2 or base.shape != scores.shape[1:]:
        raise StudyError(f"points {scores.shape} against a reference {base.shape}: give (m, n) and (n,)")
    differences = (scores - base).T
    gains = differences.mean(axis=0)
    errors = differences.std(axis=0, ddof=1) / math.sqrt(len(differences)) if len(differences) > 1 else 0 * gains
    # A point that differs from the reference nowhere has no error and must not count.
    scale = np.where(errors > 0, errors, np.inf)
    maxima = ((resampled_means(differences, samples, seed) - gains) / scale).max(axis=1)
    index = int(gains.argmax())
    lo = gains[index] - np.quantile(maxima, LEVEL) * errors[index]
    p = (1 + int((maxima >= gains[index] / scale[index]).sum())) / (1 + samples)
    return BestOfMany(index, float(gains[index]), float(lo), p)


def chord(ratios: ArrayLike, scores: ArrayLike) -> np.ndarray:
    """The straight line between the first and the last point, (..., m), at every ratio."""
    r, s = _sweep(ratios, scores)
    share = (r - r[0]) / (r[-1] - r[0])
    return s[..., :1] * (1 - share) + s[..., -1:] * share


def barrier(ratios: ArrayLike, scores: ArrayLike) -> np.ndarray:
    """Largest gap below the chord, (...): 0 where the curve never falls below it."""
    return (chord(ratios, scores) - np.asarray(scores, dtype=np.float64)).max(axis=-1)


def midpoint_barrier(ratios: ArrayLike, scores: ArrayLike) -> np.ndarray:
    """Mean of the ends minus the score at the middle ratio, (...); negative where the middle is above the chord."""
    r, s = _sweep(ratios, scores)
    middle = np.flatnonzero(np.isclose(r, (r[0] + r[-1]) / 2))
    if len(middle) != 1:
        raise StudyError(
            f"no point at the middle ratio {(r[0] + r[-1]) / 2:g}: the sweep needs an odd number of points"
        )
    return (s[..., 0] + s[..., -1]) / 2 - s[..., middle[0]]


def normalised(scores: ArrayLike, expert: ArrayLike) -> np.ndarray:
    """Merged over expert: 1 keeps the whole skill."""
    whole = np.asarray(expert, dtype=np.float64)
    if not (whole > 0).all():
        raise StudyError(f"an expert scores {whole.min():g} on its own task: it cannot be a yardstick")
    return np.asarray(scores, dtype=np.float64) / whole


def joint_score(scores: ArrayLike, experts: ArrayLike) -> np.ndarray:
    """Mean over the tasks of merged over expert: scores (d, m), experts (d, d), result (m,). Give it to `barrier`."""
    return normalised(scores, np.diag(np.asarray(experts))[:, None]).mean(axis=0)


def gain_over_ends(scores: ArrayLike) -> np.ndarray:
    """Every point's score minus the better end's, (..., m)."""
    s = np.asarray(scores, dtype=np.float64)
    return s - np.maximum(s[..., :1], s[..., -1:])


def pareto_front(points: ArrayLike) -> np.ndarray:
    """Mask (m,) of the points that no other point dominates (as good everywhere, better somewhere)."""
    p = _points(points)
    as_good = (p[:, None] >= p[None]).all(axis=2)
    better = (p[:, None] > p[None]).any(axis=2)
    return np.logical_not((as_good & better).any(axis=0))


def hypervolume(points: ArrayLike, reference: ArrayLike) -> float:
    """Volume that the points (m, d) dominate above the reference (d,); meant for small m and d."""
    p, low = _points(points), np.asarray(reference, dtype=np.float64)
    p = p[(p > low).all(axis=1)]
    if len(p) == 0:
        return 0.0
    if p.shape[1] == 1:
        return float(p.max() - low[0])
    p = p[pareto_front(p)]
    p = p[np.argsort(-p[:, -1], kind="stable")]
    heights = p[:, -1] - np.append(p[1:, -1], low[-1])
    slices = (hypervolume(p[: k + 1, :-1], low[:-1]) for k in np.flatnonzero(heights))
    return float(sum(height * area for height, area in zip(heights[heights > 0], slices, strict=True)))


def scaled(points: ArrayLike, experts: ArrayLike) -> np.ndarray:
    """Points with every task scaled to 0 at the worst expert and 1 at its specialist."""
    p, table = _points(points), np.asarray(experts, dtype=np.float64)
    low, corner = table.min(axis=0), np.diag(table)
    if not (corner > low).all():
        raise StudyError(
            f"specialists {corner.tolist()} do not beat the other experts {low.tolist()} on their own task"
        )
    return (p - low) / (corner - low)


def relative_hypervolume(points: ArrayLike, experts: ArrayLike) -> float:
    """Hypervolume above the worst experts as a share of the box up to the corner.

    With two tasks the whole chord between the experts gives 0.5, and m even points of it (m - 2) / (2 m - 2).
    """
    p = scaled(points, experts)
    return hypervolume(p, np.zeros(p.shape[1]))


def corner_distance(points: ArrayLike, experts: ArrayLike) -> np.ndarray:
    """Distance (m,) of the points, scaled as `scaled`, to the corner; what lies beyond it in a task costs nothing."""
    return np.linalg.norm(np.maximum(0, 1 - scaled(points, experts)), axis=1)


def knee(points: ArrayLike, experts: ArrayLike) -> int:
    """Index of the best mean of scaled scores: with two tasks the point farthest above the chord."""
    return int(scaled(points, experts).mean(axis=1).argmax())


def best_for(points: ArrayLike, preference: ArrayLike, experts: ArrayLike) -> int:
    """Index of the point with the best mean of merged over expert, weighted by a preference (d,) over the tasks."""
    weights = np.asarray(preference, dtype=np.float64)
    if not ((weights >= 0).all() and weights.sum() > 0):
        raise StudyError(f"preference {weights.tolist()}: give shares >= 0 that are not all 0")
    return int((normalised(_points(points), np.diag(np.asarray(experts))) @ weights).argmax())


def select(scores: Mapping[str, Sequence[float]], *, on: str = "val", report: str = "test") -> Selection:
    """Pick the best point on one split and report it on another; `scores` are (m,) by split, points in one order.

    Selecting on the reported split, or on any test or OOD split, raises StudyError: its score would be biased upward.
    """
    if on == report or on.startswith(("test", "ood")):
        raise StudyError(f"selecting on {on!r} and reporting on {report!r} flatters the result: select on a val split")
    for split in (on, report):
        if split not in scores:
            raise StudyError(f"no scores on split {split!r}: there are {', '.join(sorted(scores))}")
    chosen, reported = _paired(scores[on], scores[report])
    index = int(chosen.argmax())
    return Selection(index, float(chosen[index]), float(reported[index]))


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


def _paired(first: ArrayLike, second: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if a.ndim != 1 or a.shape != b.shape or len(a) == 0:
        raise StudyError(f"scores of shapes {a.shape} and {b.shape} do not pair up: give the same n > 0 for both")
    return a, b


def _points(points: ArrayLike) -> np.ndarray:
    p = np.asarray(points, dtype=np.float64)
    if p.ndim != 2:
        raise StudyError(f"points have shape {p.shape}: give (m, d), one column a task")
    return p


def _sweep(ratios: ArrayLike, scores: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    r, s = np.asarray(ratios, dtype=np.float64), np.asarray(scores, dtype=np.float64)
    if r.ndim != 1 or len(r) < 2 or s.shape[-1:] != r.shape or not (np.diff(r) > 0).all():
        raise StudyError(f"ratios {r.shape} with scores {s.shape}: give rising ratios (m,) and scores (..., m), m > 1")
    return r, s
