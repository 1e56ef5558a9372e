"""What a metric is, and what it returns."""

from collections.abc import Callable, Sequence, Sized
from dataclasses import dataclass, field
from typing import Any

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


@dataclass(frozen=True)
class Metric:
    """A score of predictions against references, and what its numbers mean.

    Call it with predictions and references, one each and in one order; options of `function` may follow. `range` holds
    the least and the greatest value there can be; `unit` is that of values times `factor`, as they are printed.
    `is_mean` says that the value is the mean of the scores of single examples, which can then be compared and
    resampled. `size` is the size of the only boxes that are right ("small", "medium", "large"), whose bounds the
    option `areas` moves. `of` names what is scored of a `Prediction`: its answer, or a number that the model told of
    itself.
    """

    function: Callable[..., Scores]
    label: str
    unit: str = "%"
    range: tuple[float, float] = (0.0, 1.0)
    higher_is_better: bool = True
    is_mean: bool = True
    size: str | None = None
    factor: float = 100.0
    of: str = "answer"

    def __call__(self, predictions: Any, references: Any, **options: Any) -> Scores:
        sized = {} if self.size is None else {"size": self.size}
        return self.function(predictions, references, **sized, **options)


def mean_scores(per_example: np.ndarray, note: str = "") -> Scores:
    """Make scores whose value is the mean of the examples."""
    values = np.asarray(per_example, dtype=np.float64)
    return Scores(float(values.mean()), values, len(values), note)


def told_mean(numbers: Sequence[float], references: Sized) -> Scores:
    """Compute the mean of numbers that a model told of itself, one a reference."""
    check_pairs(numbers, references)
    return mean_scores(np.array(numbers))


def not_computed(n: int, reason: str) -> Scores:
    """Make scores of a metric that this machine cannot compute, with the reason."""
    return Scores(float("nan"), np.empty(0), n, f"not computed: {reason}")


def check_pairs(predictions: Sized, references: Sized) -> None:
    """Raise UnivalError unless there is at least one prediction and as many references."""
    if len(predictions) != len(references):
        raise UnivalError(f"{len(predictions)} predictions but {len(references)} references: give one each, in order")
    if len(predictions) == 0:
        raise UnivalError("nothing to score: the list of predictions is empty")
