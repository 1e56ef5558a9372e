"""A mixture of a study as a space to search: a point's scores are cells of the grid, and rows are the cache."""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from experiments.errors import StudyError
from experiments.grid.grid import ROWS, Grid, is_of, known_rows, run_cells
from experiments.grid.subject import Subject
from experiments.grid.worker import Done, Job, Worker, check_device, one_thread
from experiments.searches.space import Scores, Shares, Space
from experiments.study.points import Cell, Expert, Point, merged, single
from merge import share_label


class Mixture:
    """Points between experts of one seed (the grid's first), under one BatchNorm policy, on a validation split.

    Scores are those of the first metric of a task, and which tasks are better lower is known as soon as rows are.
    `pretrained` is the model that the experts started from, whose scores measure worth where ratios mean nothing.
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
        pretrained: Expert | None = None,
    ) -> None:
        self.grid, self.experts, self.folder = grid, experts, folder
        self.batchnorm, self.metrics = batchnorm, metrics or {}
        self.worker: Worker | None = None
        self.lower_is_better: set[str] = set()
        own = {name: expert.task.split("+") if expert.task else () for name, expert in experts.items()}
        self.space = Space(own, split=split, lower_is_better=self.lower_is_better)
        if pretrained is not None:
            self.space = replace(self.space, pretrained=self.scored(single(pretrained)))

    def point(self, shares: Shares) -> Point:
        """Return the point of shares: an expert as it is, or weights mixed."""
        whole = [name for name, share in shares.items() if share]
        return single(self.experts[whole[0]]) if len(whole) == 1 else merged(self.experts, shares, self.batchnorm)

    def cells(self, point: Point) -> list[Cell]:
        """Return a point's cells, one for every task of the mixture."""
        return [Cell(point, task, self.space.split, self.metrics.get(task, ())) for task in self.space.tasks]

    def evaluate(self, shares: Shares) -> Scores:
        """Evaluate what has no row yet, write rows, return a point's scores by task; StudyError where one is NaN."""
        return self.scored(self.point(shares))

    def scored(self, point: Point) -> Scores:
        """Evaluate a point (`evaluate`)."""
        cells = self.cells(point)
        run_cells(self.grid, cells, self.folder, self.engine, progress=False)
        rows = self.rows(cells)
        assert rows is not None  # run_cells has written them
        for task, row in rows.items():
            if math.isnan(row["value"]):
                label = share_label(point.shares)
                raise StudyError(f"{label} has no score of {task} on {self.space.split}: {row['note']}")
        return {task: float(row["value"]) for task, row in rows.items()}

    def known(self) -> list[tuple[Shares, Scores]]:
        """Return the points whose scores are there, of just these weights and data."""
        wanted: dict[tuple[float, ...], Shares] = {}
        for shares in known_rows(self.folder / ROWS)["shares"]:
            if set(shares) <= set(self.experts):
                wanted[self.space.key(shares)] = shares
        found: list[tuple[Shares, Scores]] = []
        for shares in wanted.values():
            rows = self.rows(self.cells(self.point(shares)))
            if rows is not None and not any(math.isnan(row["value"]) for row in rows.values()):
                found.append((shares, {task: float(row["value"]) for task, row in rows.items()}))
        return found

    def rows(self, cells: Sequence[Cell]) -> dict[str, dict[str, Any]] | None:
        """Return the row of every cell by task, by the first metric of the task; None where one is missing."""
        there = {row["key"]: row for row in known_rows(self.folder / ROWS).to_dict("records")}
        found: dict[str, dict[str, Any]] = {}
        for cell in cells:
            keys = self.grid.keys(cell, self.grid.seeds[0])
            if not set(keys.values()) <= set(there):
                return None
            first = next(iter(keys))  # "" where only scores name the metrics: rows have them in order
            row = there[keys[first]] if first else next(row for row in there.values() if is_of(row, cell, keys))
            found[cell.task] = row
            if not row["higher_is_better"]:
                self.lower_is_better.add(cell.task)
        return found

    def engine(self, groups: Sequence[Sequence[Job]], subject: Subject, device: str) -> Generator[Done]:
        """Yield one worker of this process for all points: models and data stay."""
        check_device(device)
        with one_thread(device):
            self.worker = self.worker or Worker(subject, device)
            for group in groups:
                yield from self.worker.evaluate(group)
