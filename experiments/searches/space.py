"""What is searched: shares of experts, each a specialist of one task, and what a point is worth."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from experiments.errors import StudyError
from experiments.statistics.curves import joint_score
from experiments.statistics.fronts import scaled
from experiments.study.points import Shares

Scores = Mapping[str, float]
Key = tuple[float, ...]


@dataclass(frozen=True)
class Trial:
    """One point: its shares by expert, its scores by task, and its worth by the objective (larger is better).

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

    `specialists` names every expert with the task it was finetuned for. `steps` is the finest division of the whole
    (shares are i / steps, or i / n for fewer parts), and `split` the one that is evaluated. Raises StudyError for
    fewer than two experts, a task with two specialists, and a split that is not for validation.
    """

    specialists: Mapping[str, str]
    steps: int = 100
    split: str = "val"

    def __post_init__(self) -> None:
        self.check_split(self.split)
        if len(self.specialists) < 2 or len(set(self.tasks)) < len(self.specialists):
            named = ", ".join(f"{name} for {task}" for name, task in self.specialists.items())
            raise StudyError(f"experts {named or 'none'}: a search needs two or more, each for a task of its own")
        if self.steps < 2:
            raise StudyError(f"steps {self.steps}: give 2 or more")

    @staticmethod
    def check_split(split: str) -> None:
        """Raise StudyError for a split that is not for validation."""
        if not split.startswith("val"):
            raise StudyError(f"points chosen on split {split!r} look too good there: search on 'val'")

    @property
    def names(self) -> list[str]:
        """Return the experts, in the order of every point."""
        return list(self.specialists)

    @property
    def tasks(self) -> list[str]:
        """Return the tasks, in the order of their specialists."""
        return list(self.specialists.values())

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


def joint(row: Sequence[float], ends: np.ndarray) -> float:
    """Return the mean over the tasks of merged over expert: 1 keeps every skill whole."""
    return float(joint_score(np.array(row)[:, None], ends)[0])


def volume(row: Sequence[float], ends: np.ndarray) -> float:
    """Return the volume that the point alone dominates, of the box from the worst experts to the corner of all
    specialists."""
    return float(np.prod(np.maximum(0, scaled([row], ends)[0])))


OBJECTIVES: dict[str, Callable[[Sequence[float], np.ndarray], float]] = {"joint": joint, "hypervolume": volume}
