"""What guessing scores: one answer to every row, whatever it shows."""

from __future__ import annotations

from collections import Counter
from typing import Any

from unival_core import METRICS
from unival_core.data import Task, TsvTable


def most_common(task: Task, trained: TsvTable) -> str:
    """Return the target most frequent among the rows of training; of equally frequent ones the first by name."""
    counts = Counter(str(task.target(trained[row], None)) for row in range(len(trained)))
    return max(sorted(counts), key=counts.__getitem__)


def constant_score(task: Task, answer: Any, asked: TsvTable, metric: str, limit: int | None) -> float:
    """Return the score of one answer to the first `limit` rows (None: all), in the metric's own unit."""
    count = len(asked) if limit is None else min(limit, len(asked))
    references = [task.reference(asked[row]) for row in range(count)]
    return METRICS[metric]([answer] * count, references).value
