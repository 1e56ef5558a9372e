"""A mixture of a study as a space to search: a point's scores are cells of the grid, and rows are the cache."""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path

from experiments.errors import StudyError
from experiments.grid.grid import ROWS, Grid, known_rows, run_cells
from experiments.grid.subject import Subject
from experiments.grid.worker import Done, Job, Worker, check_device, one_thread
from experiments.searches.space import Scores, Shares, Space
from experiments.study.points import Cell, Expert, merged, single
from merge import share_label


class Mixture:
    """Points between experts of one seed (the grid's first), under one BatchNorm policy, on a validation split.

    StudyError where the split is not for validation, and where experts share a task.
    """

    def __init__(
        self,
        grid: Grid,
        experts: Mapping[str, Expert],
        folder: Path,
        *,
        split: str = "val",
        batchnorm: str = "average",
        metrics: Mapping[str, tuple[str, ...]] | None = None,
    ) -> None:
        self.grid, self.experts, self.folder = grid, experts, folder
        self.batchnorm, self.metrics = batchnorm, metrics or {}
        self.space = Space({name: expert.task for name, expert in experts.items()}, split=split)
        self.worker: Worker | None = None

    def cells(self, shares: Shares) -> list[Cell]:
        """Return a point's cells, one for every task of the mixture."""
        whole = [name for name, share in shares.items() if share]
        point = single(self.experts[whole[0]]) if len(whole) == 1 else merged(self.experts, shares, self.batchnorm)
        return [Cell(point, task, self.space.split, self.metrics.get(task, ())) for task in self.space.tasks]

    def evaluate(self, shares: Shares) -> Scores:
        """Evaluate what has no row yet, write rows, return a point's scores by task; StudyError where one is NaN."""
        run_cells(self.grid, self.cells(shares), self.folder, self.engine, progress=False)
        scores = self.scores(shares)
        assert scores is not None  # run_cells has written them
        if lacking := [task for task, value in scores.items() if math.isnan(value)]:
            keys = {key for cell in self.cells(shares) for key in self.grid.keys(cell, self.grid.seeds[0]).values()}
            rows = known_rows(self.folder / ROWS)
            note = "; ".join(dict.fromkeys(rows[rows["key"].isin(keys) & rows["value"].isna()]["note"]))
            raise StudyError(f"{share_label(shares)} has no score of {lacking[0]} on {self.space.split}: {note}")
        return scores

    def known(self) -> list[tuple[Shares, Scores]]:
        """Return the points whose scores are there, of just these weights and data."""
        wanted: dict[tuple[float, ...], Shares] = {}
        for shares in known_rows(self.folder / ROWS)["shares"]:
            if set(shares) <= set(self.experts):
                wanted[self.space.key(shares)] = shares
        scored = ((shares, self.scores(shares)) for shares in wanted.values())
        return [(own, scores) for own, scores in scored if scores and not any(map(math.isnan, scores.values()))]

    def scores(self, shares: Shares) -> Scores | None:
        """Return a point's scores by task from rows, each by the first metric of the task; None where a row is
        missing."""
        rows = known_rows(self.folder / ROWS)
        values = dict(zip(rows["key"], rows["value"], strict=True))
        keys = {cell.task: next(iter(self.grid.keys(cell, self.grid.seeds[0]).values())) for cell in self.cells(shares)}
        return {task: float(values[key]) for task, key in keys.items()} if set(keys.values()) <= set(values) else None

    def engine(self, groups: Sequence[Sequence[Job]], subject: Subject, device: str) -> Generator[Done]:
        """Yield one worker of this process for all points: models and data stay."""
        check_device(device)
        with one_thread(device):
            self.worker = self.worker or Worker(subject, device)
            for group in groups:
                yield from self.worker.evaluate(group)
