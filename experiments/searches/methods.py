"""Search methods: generators that yield points to evaluate (ask) and receive their trials (tell).

A method gets the space, the trials of the ends (one expert alone each, in the order of the space), the budget of the
whole search and random numbers; it ends when it has nothing more to ask. Asking for a known point is free.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass

import numpy as np

from experiments.errors import StudyError
from experiments.searches.space import Space, Trial
from experiments.statistics.fronts import hypervolume
from experiments.study.points import lattice

Asks = Generator[list[dict[str, float]], list[Trial], None]

REPEATS = 1000  # known points drawn in a row before a space counts as exhausted
WIDTH = 0.02  # what a gap as wide as the whole promises by its width alone: bumps lie where the ends promise nothing


def grid(space: Space, ends: Sequence[Trial], budget: int, rng: np.random.Generator) -> Asks:
    """Ask for even points, as many as the budget allows: the finest lattice of no more points, the ends among them."""
    count, parts = len(ends), 1
    while math.comb(parts + count, count - 1) <= budget:
        parts += 1
    yield [space.point(counts) for counts in reversed(lattice(count, parts))]


def random(space: Space, ends: Sequence[Trial], budget: int, rng: np.random.Generator) -> Asks:
    """Yield points drawn evenly from all that `steps` allow, none twice."""
    seen: set[tuple[int, ...]] = set()
    repeats = 0
    while repeats < REPEATS:
        bars = np.sort(rng.choice(space.steps + len(ends) - 1, len(ends) - 1, replace=False))
        edges = [-1, *bars.tolist(), space.steps + len(ends) - 1]
        counts = tuple(b - a - 1 for a, b in itertools.pairwise(edges))  # the places between neighbouring bars
        repeats = repeats + 1 if counts in seen else 0
        if counts not in seen:
            seen.add(counts)
            yield [space.point(counts)]


def coordinate(space: Space, ends: Sequence[Trial], budget: int, rng: np.random.Generator) -> Asks:
    """Descend by coordinates from equal shares or the best end: each expert's share in turn, up and down by a reach.

    The other shares keep their proportions. The reach is halved when no move helps, and the search ends at one step.
    """
    centre = yield [space.point([1] * len(ends))]
    best = max([*centre, *ends], key=lambda trial: trial.value)
    reach = space.steps // 4
    while reach:
        before = best
        for index, sign in itertools.product(range(len(ends)), (1, -1)):
            counts = _moved(space, space.counts(best.shares), index, sign * reach)
            (trial,) = yield [space.point(counts)]
            best = max(best, trial, key=lambda trial: trial.value)
        if best is before:
            reach //= 2


def adaptive(space: Space, ends: Sequence[Trial], budget: int, rng: np.random.Generator) -> Asks:
    """Bisect between the two neighbours that lie farthest apart on the front.

    Far apart is where the corner of both, as good as the better one in every task, would add most hypervolume: where
    scores are monotonous, no point between them can add more. Scores are scaled by the range of the ends. Neighbours
    are points without a third that is nearer to both; with two experts that is the order of the ratio.
    """
    table = space.rising([space.row(trial.scores) for trial in ends])
    low, span = table.min(axis=0), np.ptp(table, axis=0)
    trials = [*ends, *(yield [space.point([1] * len(ends))])]
    while True:
        places = np.array([space.counts(trial.shares) for trial in trials])
        scores = (space.rising([space.row(trial.scores) for trial in trials]) - low) / np.where(span > 0, span, 1)
        asked = _promising(space, places, scores)
        if asked is None:
            return
        trials += yield [space.point(asked)]


def cma(space: Space, ends: Sequence[Trial], budget: int, rng: np.random.Generator) -> Asks:
    """Sample by CMA-ES (Hansen 2016, arXiv 1604.00772) from equal shares; its points are projected onto the simplex."""
    try:
        from cma import CMAEvolutionStrategy
    except ImportError as error:
        raise StudyError("method cma needs the package cma: pip install 'unival-merge[search]'") from error
    # With a seed of NaN it leaves numpy's global random numbers alone.
    options = {"verbose": -9, "seed": math.nan, "randn": lambda *shape: rng.standard_normal(shape)}
    strategy = CMAEvolutionStrategy([1 / len(ends)] * len(ends), 0.3, options)
    while not strategy.stop():
        drawn = strategy.ask()
        told = yield [space.point(space.nearest(onto_simplex(np.asarray(x)))) for x in drawn]
        strategy.tell(drawn, [-trial.value for trial in told])


def greedy_soup(space: Space, ends: Sequence[Trial], budget: int, rng: np.random.Generator) -> Asks:
    """Add each expert to the average, from the best one down, unless that lowers it (Wortsman et al. 2022, recipe
    1)."""
    first, *others = sorted(range(len(ends)), key=lambda index: -ends[index].value)
    members, best = [first], ends[first].value
    for index in others:
        counts = [int(i in (*members, index)) for i in range(len(ends))]
        (trial,) = yield [space.point(counts)]
        if trial.value >= best:
            members, best = [*members, index], trial.value


@dataclass(frozen=True)
class Search:
    """A search method: what it does in a few words, and its generator."""

    help: str
    function: Callable[[Space, Sequence[Trial], int, np.random.Generator], Asks]


SEARCHES: dict[str, Search] = {
    "grid": Search("even points", grid),
    "random": Search("points drawn evenly", random),
    "coordinate": Search("one share after the other, up and down", coordinate),
    "adaptive": Search("between the neighbours that promise most", adaptive),
    "cma": Search("CMA-ES (extra search)", cma),
    "greedy-soup": Search("from the best expert down, each that does not lower the average", greedy_soup),
}


def onto_simplex(x: np.ndarray) -> np.ndarray:
    """Return the point of the simplex nearest to x (Duchi et al. 2008, figure 1).

    >>> onto_simplex(np.array([0.5, 1.5, -1.0])).tolist()
    [0.0, 1.0, 0.0]
    """
    falling = np.sort(x)[::-1]
    excess = (np.cumsum(falling) - 1) / np.arange(1, len(x) + 1)
    return np.maximum(x - excess[np.flatnonzero(falling > excess)[-1]], 0)


def _moved(space: Space, counts: Sequence[int], index: int, change: int) -> list[int]:
    """Counts with one moved by `change` within 0 and `steps`, and the others in their old proportions."""
    target = min(max(counts[index] + change, 0), space.steps)
    others = np.array(counts, dtype=np.float64)
    others[index] = 0
    if not others.any():
        others[:] = 1
        others[index] = 0
    shares = others / others.sum() * (space.steps - target)
    shares[index] = target
    return space.nearest(shares)


def _promising(space: Space, places: np.ndarray, scores: np.ndarray) -> list[int] | None:
    """The counts halfway between the two neighbours to be parted next; None where all are one step apart."""
    apart = np.linalg.norm(places[:, None] - places[None], axis=2) / space.steps
    known = {tuple(place) for place in places.tolist()}
    whole = hypervolume(scores, np.zeros(scores.shape[1]))
    most, chosen = 0.0, None
    for i, j in itertools.combinations(range(len(places)), 2):
        middle = space.nearest(places[i] + places[j])
        if tuple(middle) in known or (np.maximum(apart[i], apart[j]) < apart[i, j]).any():
            continue
        corner = np.maximum(scores[i], scores[j])
        promise = hypervolume(np.vstack([scores, corner]), np.zeros(len(corner))) - whole + WIDTH * apart[i, j]
        if promise > most:
            most, chosen = float(promise), middle
    return chosen
