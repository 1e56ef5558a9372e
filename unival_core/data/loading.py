"""Streams of examples: endless for training, resumable, prepared ahead by threads; and one pass for evaluation."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Any, TypeVar

from unival_core.data.batch import Batch, Example, collate
from unival_core.data.dataset import TaskDataset
from unival_core.data.sampling import BalancedSampler, Draw
from unival_core.errors import UnivalError

_WINDOW = 32  # batches among which evaluation sorts by length
_AHEAD = 2  # batches
Item = TypeVar("Item")
Made = TypeVar("Made")
Note = TypeVar("Note")


class TrainingStream:
    """The examples that a sampler draws, one list a step, for `collate` or `collate_by_task`.

    `workers` threads read and decode up to two steps ahead (decoding leaves Python's lock; 0: no threads); what comes
    does not depend on their number. `state_dict` tells where the stream stands behind the last list it gave, whatever
    is prepared already, and iterating goes on from there.
    """

    def __init__(self, datasets: Mapping[str, TaskDataset], sampler: BalancedSampler, *, workers: int = 0) -> None:
        sizes = {name: len(data) for name, data in datasets.items()}
        if sizes != sampler.sizes:
            raise UnivalError(f"the sampler was made for rows {sampler.sizes}, the datasets have {sizes}")
        if untrained := [name for name, data in datasets.items() if not data.training]:
            raise UnivalError(f"dataset {untrained[0]} is for evaluation: make it with training=True")
        self.datasets, self.sampler, self.workers = datasets, sampler, workers
        self._state = sampler.state_dict()

    def __iter__(self) -> Iterator[list[Example]]:
        self.sampler.load_state_dict(self._state)
        for examples, state in _prepared(self._example, self._draws(), self.workers):
            self._state = state
            yield examples

    def state_dict(self) -> dict[str, Any]:
        """Tell where the stream stands, as plain values for JSON."""
        return self._state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on behind the list after which `state` was taken."""
        self.sampler.load_state_dict(state)
        self._state = self.sampler.state_dict()

    def _draws(self) -> Iterator[tuple[list[Draw], dict[str, Any]]]:
        for draws in self.sampler:
            yield draws, self.sampler.state_dict()

    def _example(self, draw: Draw) -> Example:
        return self.datasets[draw.task].draw(draw.row, draw.number)


def evaluation_batches(
    dataset: TaskDataset, batch_size: int, *, limit: int | None = None, workers: int = 0
) -> Iterator[tuple[list[int], Batch]]:
    """Return every valid row of a dataset once (of the first `limit` rows), with the numbers of the rows in each batch.

    Rows with prompts of similar length come together, so that little is padded; the order is the same every time.
    """
    rows = range(len(dataset) if limit is None else min(limit, len(dataset)))
    for group, numbers in _prepared(dataset.get, _by_length(dataset, rows, batch_size), workers):
        valid = [(number, example) for number, example in zip(numbers, group, strict=True) if example is not None]
        if valid:
            yield [number for number, _ in valid], collate([example for _, example in valid])


def _by_length(dataset: TaskDataset, rows: range, batch_size: int) -> Iterator[tuple[list[int], list[int]]]:
    """Sort row numbers into batches by length of prompt; each comes twice, as items and as their note."""
    for start in range(0, len(rows), batch_size * _WINDOW):
        window = sorted(rows[start : start + batch_size * _WINDOW], key=dataset.length)
        for first in range(0, len(window), batch_size):
            batch = window[first : first + batch_size]
            yield batch, batch


def _prepared(
    make: Callable[[Item], Made], groups: Iterator[tuple[list[Item], Note]], workers: int
) -> Iterator[tuple[list[Made], Note]]:
    """Make every item of every group, in order, with the group's note; threads work up to `_AHEAD` groups ahead."""
    if not workers:
        for items, note in groups:
            yield [make(item) for item in items], note
        return
    threads = ThreadPoolExecutor(workers, thread_name_prefix="reader")
    ahead: deque[tuple[list[Future[Made]], Note]] = deque()
    try:
        while True:
            for items, note in islice(groups, _AHEAD + 1 - len(ahead)):
                ahead.append(([threads.submit(make, item) for item in items], note))
            if not ahead:
                return
            futures, note = ahead.popleft()
            yield [future.result() for future in futures], note
    finally:
        threads.shutdown(wait=True, cancel_futures=True)
