"""Series of points between two experts: their scores over the seeds, the straight line below them, what is kept."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from experiments.errors import StudyError
from experiments.grid.rows import Records, is_made_of, mean_of, names_in
from experiments.statistics.contrasts import Contrast, contrast
from experiments.statistics.tests import max_t


class Line(NamedTuple):
    """A series between two experts: share of the second, mean score and interval over the seeds, (m,) each.

    `seeds` holds each point's own scores, one a row.
    """

    share: np.ndarray
    value: np.ndarray
    lo: np.ndarray
    hi: np.ndarray
    seeds: list[list[float]]


def lines_between(rows: Records, pair: tuple[str, str], *, by: str = "experts", scale: float = 1) -> dict[str, Line]:
    """Read every series on the line from one expert to another, by the values of a column, in order of appearance.

    `rows` are of one task and metric (`scored`); scores are multiplied by `scale`. An end that was evaluated once
    serves every series of its experts. StudyError where there are no rows.
    """
    between = [row for row in rows if is_made_of(row, pair)]
    if not between:
        raise StudyError(f"no rows between {pair[0]} and {pair[1]}: run the study first")
    found: dict[str, Line] = {}
    for name in names_in([row for row in between if row.get("method") != "single"] or between, by):
        series = [row for row in between if str(row[by]) == name]
        points = _by_share(series, pair[1])
        kinds = {row["experts"] for row in series}
        ends = _by_share([row for row in between if row["experts"] in kinds], pair[1])
        points = {share: ends[share] for share in ends if share in (0, 1)} | points
        ordered = [points[share] for share in sorted(points)]
        value, lo, hi = (scale * np.array([mean_of(own, name) for own in ordered]) for name in ("value", "lo", "hi"))
        seeds = [[scale * row["value"] for row in own] for own in ordered]
        found[name] = Line(np.array(sorted(points)), value, lo, hi, seeds)
    return found


class Barrier(NamedTuple):
    """How far scores lie below the straight line between the ends, a loss above it: at equal shares, where such a point
    is there, and where it is most, at `place` of all points, with an interval and a p that are corrected for that."""

    midpoint: Contrast | None
    highest: float
    lo: float
    hi: float
    p: float
    place: int


def barrier(shares: ArrayLike, values: ArrayLike, draws: ArrayLike | None = None, *, rises: bool = True) -> Barrier:
    """Measure the barrier between two ends (arXiv 1912.05671, 2110.06296) from scores (k, s) at rising shares (k,) from
    0 to 1 and seeds, and `draws` (k, samples, s) of them; larger scores are better unless they fail to rise.

    The definition is that of the straight line: at the midpoint it is the mean of the ends less the score between.
    """
    share, scores = np.asarray(shares, dtype=np.float64), np.asarray(values, dtype=np.float64)
    below = drops(share, scores.T, rises=rises).T
    drawn = (
        None if draws is None else np.moveaxis(drops(share, np.moveaxis(np.asarray(draws), 0, -1), rises=rises), -1, 0)
    )
    most = int(below.mean(axis=1).argmax())
    every = max_t(below, drawn, samples=2_000)
    half = [k for k, one in enumerate(share[1:-1]) if abs(one - 0.5) < 1e-9]
    midpoint = contrast(below[half[0]], None if drawn is None else drawn[half[0]]) if half else None
    highest, lo, hi, p = (float(column[most]) for column in every)
    return Barrier(midpoint, highest, lo, hi, p, most + 1)


def drops(shares: ArrayLike, scores: ArrayLike, *, rises: bool = True) -> np.ndarray:
    """Return how far scores (..., m) are worse between the ends than the straight line between these (..., m - 2)."""
    own = np.asarray(scores, dtype=np.float64)
    return (1 if rises else -1) * (chord(shares, own) - own)[..., 1:-1]


def chord(shares: ArrayLike, scores: ArrayLike) -> np.ndarray:
    """Draw the straight line between the first and the last of scores (..., m) at rising shares (m,) from 0 to 1."""
    share, s = np.asarray(shares, dtype=np.float64), np.asarray(scores, dtype=np.float64)
    return s[..., :1] * (1 - share) + s[..., -1:] * share


def _by_share(rows: Iterable[dict], name: str) -> dict[float, Records]:
    points: dict[float, Records] = {}
    for row in rows:
        points.setdefault(float(row["shares"].get(name, 0)), []).append(row)
    return points
