"""What every metric returns."""

from collections.abc import Callable, Sized
from dataclasses import dataclass, field

import numpy as np

from unival_core.errors import UnivalError


@dataclass(frozen=True)
class Scores:
    """A score and what it is made of.

    `value` is the published score of the whole set: NaN where it could not be computed, and then `note` says why.
    `per_example` holds one float a prediction in their order, empty where nothing was computed. `value` is its mean,
    except for corpus scores (BLEU, METEOR); those that add up example by example before one closing formula carry
    `statistics` (n, k) and `combine`, which maps means of its rows (..., k) to scores (...), so that an interval can
    be resampled.
    `note` says what a reader of the number has to know, such as the tokenisation.
    """

    value: float
    per_example: np.ndarray
    n: int
    note: str = ""
    statistics: np.ndarray | None = field(default=None, repr=False)
    combine: Callable[[np.ndarray], np.ndarray] | None = field(default=None, repr=False)


def mean_scores(per_example: np.ndarray, note: str = "") -> Scores:
    """Scores whose value is the mean of the examples."""
    values = np.asarray(per_example, dtype=np.float64)
    return Scores(float(values.mean()), values, len(values), note)


def not_computed(n: int, reason: str) -> Scores:
    """Scores of a metric that this machine cannot compute, with the reason."""
    return Scores(float("nan"), np.empty(0), n, f"not computed: {reason}")


def check_pairs(predictions: Sized, references: Sized) -> None:
    """Raise UnivalError unless there is at least one prediction and as many references."""
    if len(predictions) != len(references):
        raise UnivalError(f"{len(predictions)} predictions but {len(references)} references: give one each, in order")
    if len(predictions) == 0:
        raise UnivalError("nothing to score: the list of predictions is empty")
