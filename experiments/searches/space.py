"""What is searched: shares of experts, each with tasks of its own, and what a point is worth."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from experiments.errors import StudyError
from experiments.statistics.fronts import scaled
from experiments.statistics.retention import NONE, form_of, retention
from experiments.statistics.selection import check_choosing
from experiments.study.points import Shares

Scores = Mapping[str, float]
Key = tuple[float, ...]


@dataclass(frozen=True)
class Trial:
    """One point: its shares by expert, its scores by task, and its worth by the objective (of which larger is better).

    `best` is the best worth so far, `hypervolume` the relative hypervolume of all points so far; both NaN until every
    end is known, and the latter also where a specialist does not beat the others on its own task. `cached` marks
    a point that was known before.
    """

    shares: Shares
    scores: Scores
    value: float
    best: float
    hypervolume: float
    cached: bool


@dataclass(frozen=True)
class Space:
    """Convex combinations of experts.

    `specialists` names every expert with the task, or the tasks, that are its own. `steps` is the finest division of
    the whole (shares are i / steps, or i / n for fewer parts), and `split` the one that is evaluated. `lower_is_better`
    names tasks of such scores, `pretrained` the scores of the model that the experts started from, which worth is
    measured by where ratios of scores mean nothing. Raises StudyError for fewer than two experts, none with a task, a
    task of two experts, and a split that is not for validation.
    """

    specialists: Mapping[str, str | Sequence[str]]
    steps: int = 100
    split: str = "val"
    lower_is_better: Collection[str] = ()
    pretrained: Scores | None = None

    def __post_init__(self) -> None:
        check_choosing(self.split)
        if len(self.specialists) < 2 or not self.tasks or len(set(self.tasks)) < len(self.tasks):
            named = ", ".join(f"{name} for {'+'.join(own) or 'none'}" for name, own in self.own_tasks.items())
            raise StudyError(f"experts {named or 'none'}: a search needs two or more, each for a task of its own")
        if self.steps < 2:
            raise StudyError(f"steps {self.steps}: give 2 or more")

    @property
    def names(self) -> list[str]:
        """Return the experts, in the order of every point."""
        return list(self.specialists)

    @property
    def own_tasks(self) -> dict[str, tuple[str, ...]]:
        """Return the tasks of every expert."""
        return {name: (own,) if isinstance(own, str) else tuple(own) for name, own in self.specialists.items()}

    @property
    def tasks(self) -> list[str]:
        """Return the tasks, in the order of their experts."""
        return [task for own in self.own_tasks.values() for task in own]

    @property
    def owners(self) -> list[int]:
        """Return the place of every task's own expert among the names."""
        return [place for place, own in enumerate(self.own_tasks.values()) for _ in own]

    def point(self, counts: Sequence[int]) -> dict[str, float]:
        """Return the shares `counts[i] / sum(counts)`.

        >>> Space({"upright": "upright", "turned": "turned"}).point([1, 3])
        {'upright': 0.25, 'turned': 0.75}
        """
        whole = sum(counts)
        return {name: count / whole for name, count in zip(self.names, counts, strict=True)}

    def nearest(self, shares: Sequence[float] | np.ndarray) -> list[int]:
        """Return counts of sum `steps` nearest to shares >= 0 of any sum > 0: rounded down, the rest to the largest
        remainders."""
        exact = np.asarray(shares, dtype=np.float64)
        exact = exact / exact.sum() * self.steps
        counts = np.floor(exact + 1e-9).astype(int)
        order = np.argsort(counts - exact, kind="stable")
        counts[order[: self.steps - counts.sum()]] += 1
        return counts.tolist()

    def counts(self, shares: Shares) -> list[int]:
        """Return the nearest counts of a point."""
        return self.nearest([shares[name] for name in self.names])

    def key(self, shares: Shares) -> Key:
        """Say what tells points from each other. Raises StudyError for names that are not the experts'."""
        if set(shares) - set(self.names):
            raise StudyError(f"a point has shares of {', '.join(shares)}: the experts are {', '.join(self.names)}")
        return tuple(float(shares.get(name, 0.0)) for name in self.names)

    def row(self, scores: Scores) -> list[float]:
        """Return scores in the order of the tasks. Raises StudyError where one is missing or not a number."""
        missing = [task for task in self.tasks if not np.isfinite(scores.get(task, np.nan))]
        if missing:
            raise StudyError(f"no score of {missing[0]} on {self.split}: a search needs one at every point")
        return [float(scores[task]) for task in self.tasks]

    def rising(self, rows: Sequence[Sequence[float]] | np.ndarray) -> np.ndarray:
        """Return rows (m, tasks) with the sign that makes larger better in every task."""
        return np.array(rows, dtype=np.float64) * [-1 if task in self.lower_is_better else 1 for task in self.tasks]


def joint(space: Space, row: Sequence[float], ends: np.ndarray) -> float:
    """Return the mean retention over the tasks: 1 keeps every skill whole. `ends` are (experts, tasks).

    StudyError where a task's retention cannot be reckoned (`experiments.statistics.retention`).
    """
    kept: list[float] = []
    for place, (task, owner) in enumerate(zip(space.tasks, space.owners, strict=True)):
        own, start = ends[owner, place], None if space.pretrained is None else space.pretrained.get(task)
        better = {"higher_is_better": task not in space.lower_is_better}
        form = form_of(own, ends[:, place], has_start=start is not None, **better)  # one form for all points
        value = float(retention(own, row[place], start, form=form, **better))
        if np.isnan(value):
            why = form if form == NONE else f"its expert scores {own:g}, the pretrained model {start:g}"
            raise StudyError(f"retention of {task} cannot be reckoned ({why})")
        kept.append(value)
    return float(np.mean(kept))


def volume(space: Space, row: Sequence[float], ends: np.ndarray) -> float:
    """Return the volume that the point alone dominates, of the box from the worst experts to the corner where each task
    is at its own expert's score."""
    return float(np.prod(np.maximum(0, scaled(space.rising([row]), space.rising(ends), space.owners)[0])))


OBJECTIVES: dict[str, Callable[[Space, Sequence[float], np.ndarray], float]] = {"joint": joint, "hypervolume": volume}
