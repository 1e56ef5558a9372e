"""Fronts: which of many points are worth having when several tasks count. Larger scores are better.

A front is `points` (m, d), one column a task. `experts` is (k, d): a row holds the scores of an expert on every task.
`owners` (d,) are the rows of every task's own expert, by default row i of task i; their scores on it are the corner
where all skills are whole.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from experiments.errors import StudyError


def pareto_front(points: ArrayLike) -> np.ndarray:
    """Return a mask (m,) of the points that no other point dominates (as good everywhere, better somewhere)."""
    p = _points(points)
    as_good = (p[:, None] >= p[None]).all(axis=2)
    better = (p[:, None] > p[None]).any(axis=2)
    return np.logical_not((as_good & better).any(axis=0))


def hypervolume(points: ArrayLike, reference: ArrayLike) -> float:
    """Measure the volume that the points (m, d) dominate above the reference (d,); meant for small m and d."""
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


def scaled(points: ArrayLike, experts: ArrayLike, owners: Sequence[int] | None = None) -> np.ndarray:
    """Scale every task of the points to 0 at the worst expert and 1 at its own; StudyError where that is not best."""
    p, table = _points(points), np.asarray(experts, dtype=np.float64)
    low, corner = table.min(axis=0), table[range(len(table)) if owners is None else owners, range(p.shape[1])]
    if not (corner > low).all():
        raise StudyError(f"experts {corner.tolist()} do not beat the other experts {low.tolist()} on their own task")
    return (p - low) / (corner - low)


def relative_hypervolume(points: ArrayLike, experts: ArrayLike, owners: Sequence[int] | None = None) -> float:
    """Measure what the points dominate of the box from the worst experts to the corner of all experts' own scores.

    With two tasks the whole straight line between the experts gives 0.5, and m even points of it (m - 2) / (2 m - 2).
    """
    p = scaled(points, experts, owners)
    return hypervolume(p, np.zeros(p.shape[1]))


def _points(points: ArrayLike) -> np.ndarray:
    p = np.asarray(points, dtype=np.float64)
    if p.ndim != 2:
        raise StudyError(f"points have shape {p.shape}: give (m, d), one column a task")
    return p
