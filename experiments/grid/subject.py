"""The one seam between the grid and a model: what a `Subject` is asked."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from torch import nn

from experiments.study.points import Cell, Expert
from merge import Checkpoint, Input, open_checkpoint


@dataclass(frozen=True)
class Score:
    """What a model reached by one metric: `value` with its 95 % interval, in the metric's unit, over `n` examples.

    All three are NaN, and `per_example` (n,) empty, where the metric could not be computed; `note` says why. Without
    scores of single examples the ends of the interval are NaN, and `n` is 0.
    """

    value: float
    lo: float
    hi: float
    n: int
    per_example: np.ndarray
    note: str = ""
    unit: str = ""
    higher_is_better: bool = True


class Subject(Protocol):
    """What is studied: models of one architecture, their tasks and data.

    The grid moves weights and writes rows; all else it asks here. A subject is pickled into every process, so it keeps
    paths and options, and opens what they name only when it is asked. Methods raise StudyError, with the way out,
    where something is missing.
    """

    # -- asked by the grid, for keys and rows

    def expected(self, experts: Sequence[Expert], seed: int, places: Sequence[tuple[str, str]]) -> dict[Path, str]:
        """Return the files that experts and data (pairs of task and split) lie in, each with where it comes from."""
        ...

    def source(self, expert: Expert, seed: int) -> Input:
        """Say where the weights of an expert are, under the expert's name."""
        ...

    def data_digest(self, task: str, split: str) -> str:
        """Return the content of a split, and of all else that its scores are reckoned from."""
        ...

    def metrics(self, cell: Cell) -> Mapping[str, Sequence[Any]]:
        """Return the metrics of a cell by name, each with the numbers that its definition depends on here; none where
        only the scores will name them."""
        ...

    def conditions(self, task: str) -> Mapping[str, Any]:
        """Return all else that scores depend on, as JSON holds it: options of generation, a limit of rows, a
        version."""
        ...

    def clusters(self, task: str, split: str) -> Sequence[Hashable]:
        """Return one thing an example of a split, which examples of one image (or the like) share, of as many as are
        evaluated; none where examples share nothing."""
        ...

    def recalibration(self, tasks: Sequence[str]) -> list[str]:
        """Say what BatchNorm statistics measured on inputs of tasks depend on: digests of data, how many of them."""
        ...

    # -- asked by a worker, for scores

    def layout(self, checkpoint: Checkpoint, task: str) -> Hashable:
        """Say what the model of a checkpoint has to be for a task. Cells with one layout share one model."""
        ...

    def build(self, layout: Hashable) -> nn.Module:
        """Return a model of a layout, in evaluation mode, with any weights."""
        ...

    def unused(self, layout: Hashable) -> Sequence[str]:
        """Return the globs of the tensors in checkpoints that a model of the layout goes without."""
        ...

    def ensemble(self, models: Sequence[nn.Module], shares: Sequence[float]) -> nn.Module:
        """Return the models as one that answers with the mean of their predictions, in evaluation mode."""
        ...

    def recalibrate(self, model: nn.Module, tasks: Sequence[str]) -> None:
        """Measure BatchNorm statistics anew, on training inputs of tasks; labels play no part."""
        ...

    def evaluate(self, model: nn.Module, cell: Cell) -> Mapping[str, Score]:
        """Return the scores of a model on the split of a cell, by the cell's `metrics`."""
        ...


def opened(source: Input) -> Checkpoint:
    """Open what a source names, under the names that its rules give."""
    found = open_checkpoint(source.path, source.section)
    return found.renamed(source.rename) if source.rename else found
