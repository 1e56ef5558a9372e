"""The loop of every search: one cache, one budget, the whole history."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from experiments.errors import StudyError
from experiments.searches.methods import SEARCHES
from experiments.searches.space import OBJECTIVES, Key, Scores, Shares, Space, Trial
from experiments.statistics.fronts import relative_hypervolume
from merge import share_label


@dataclass(frozen=True, repr=False)
class History:
    """A search from its first point to its last.

    `evaluations` were made by it, `cached` were known before; the trials are both, each point once. `ended` is
    "budget", "method" (it had nothing more to ask) or "interrupted" (Ctrl-C).
    """

    method: str
    objective: str
    budget: int
    seed: int
    trials: tuple[Trial, ...]
    evaluations: int
    cached: int
    ended: str

    def __repr__(self) -> str:
        best, told = self.best, ""
        if best is not None:
            told = f"best {share_label(best.shares)} ({self.objective} {best.value:.4f}), "
        cost = f"{self.evaluations} of {self.budget} evaluations, {self.cached} points were known"
        return f"<History of {self.method}: {told}{cost}; ended by {self.ended}>"

    @property
    def best(self) -> Trial | None:
        """Return the best trial, of equal ones the first; None before the ends are known."""
        known = [trial for trial in self.trials if not math.isnan(trial.value)]
        return max(known, key=lambda trial: trial.value, default=None)


def search(
    space: Space,
    method: str,
    evaluate: Callable[[Shares], Scores],
    budget: int,
    seed: int = 0,
    *,
    objective: str = "joint",
    known: Iterable[tuple[Shares, Scores]] = (),
) -> History:
    """Look for good shares with at most `budget` evaluations.

    `evaluate` takes shares by expert and returns scores by task. The ends (each expert alone) come first, because every
    score is measured by them. `known` are points evaluated before: like points asked for twice
    they are not evaluated and cost no budget. The objective is "joint" (mean retention) or "hypervolume" (what a
    point dominates alone, of the box up to the corner of the experts' own scores). Ctrl-C ends the search and keeps
    what was evaluated. Raises StudyError for unknown names, a budget below 1 and scores that are missing.
    """
    for name, table in ((method, SEARCHES), (objective, OBJECTIVES)):
        if name not in table:
            raise StudyError(f"unknown {name!r}: known are {', '.join(table)}")
    if budget < 1:
        raise StudyError(f"budget {budget}: give 1 or more evaluations")
    session = _Session(space, evaluate, budget, objective, {space.key(shares): scores for shares, scores in known})
    ended = "method"
    try:
        ends = session.begin()
        asks = SEARCHES[method].function(space, ends, budget, np.random.default_rng(seed))
        asked = next(asks, None)
        while asked is not None:
            told = [session.trial(shares) for shares in asked]
            try:
                asked = asks.send(told)
            except StopIteration:
                asked = None
    except _Spent:
        ended = "budget"
    except KeyboardInterrupt:
        ended = "interrupted"
    trials = tuple(session.trials.values())
    cached = sum(trial.cached for trial in trials)
    return History(method, objective, budget, seed, trials, session.evaluations, cached, ended)


class _Spent(Exception):
    """The budget is used up."""


class _Session:
    """The points of one search, and what they are worth once the ends are known."""

    def __init__(
        self,
        space: Space,
        evaluate: Callable[[Shares], Scores],
        budget: int,
        objective: str,
        known: dict[Key, Scores],
    ):
        self._space, self._evaluate, self._budget = space, evaluate, budget
        self._worth, self._known = OBJECTIVES[objective], known
        self._ends: np.ndarray | None = None
        self.trials: dict[Key, Trial] = {}
        self.evaluations = 0

    def begin(self) -> list[Trial]:
        """Evaluate the ends, then give every trial its worth."""
        count = len(self._space.names)
        ends = [self._space.point([int(i == j) for i in range(count)]) for j in range(count)]
        scores = [self.trial(end).scores for end in ends]
        self._ends = np.array([self._space.row(row) for row in scores])
        first, self.trials = self.trials, {}
        for key, trial in first.items():
            self.trials[key] = self._judged(trial.shares, trial.scores, trial.cached)
        return list(self.trials.values())

    def trial(self, shares: Shares) -> Trial:
        """Return the trial of a point: an old one, one of a known point, or a new evaluation."""
        key = self._space.key(shares)
        if key not in self.trials:
            cached = key in self._known
            if not cached and self.evaluations == self._budget:
                raise _Spent
            scores = self._known[key] if cached else self._evaluate(shares)
            self.evaluations += not cached
            self.trials[key] = self._judged(shares, scores, cached)
        return self.trials[key]

    def _judged(self, shares: Shares, scores: Scores, cached: bool) -> Trial:
        row = self._space.row(scores)
        if self._ends is None:
            return Trial(shares, scores, math.nan, math.nan, math.nan, cached)
        value = self._worth(self._space, row, self._ends)
        best = max([value, *(trial.value for trial in self.trials.values())])
        rows = [*(self._space.row(trial.scores) for trial in self.trials.values()), row]
        return Trial(shares, scores, value, best, self._volume(rows), cached)

    def _volume(self, rows: list[list[float]]) -> float:
        assert self._ends is not None
        rising = self._space.rising
        try:
            return relative_hypervolume(rising(rows), rising(self._ends), self._space.owners)
        except StudyError:  # some expert is not the best of its own task
            return math.nan
