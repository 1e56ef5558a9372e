"""A mixture of a study as a space to search: a point's scores are cells of the grid, and rows are the cache."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from experiments.errors import StudyError
from experiments.grid.grid import ROWS, Plan, known_rows, run_study
from experiments.grid.worker import Done, Job, Setting, Worker
from experiments.search.space import Scores, Shares, Space
from experiments.study.study import AnyStudy, Cell, Choice, Expert, Point, Study, held, single


@dataclass(frozen=True)
class OnePoint:
    """A point as a study of its own. It has the name of the whole, so that its rows join those."""

    name: str
    question: str
    source: str
    chosen: tuple[Cell, ...]

    def cells(self, choice: Choice) -> list[Cell]:
        """Those of the point."""
        return list(self.chosen)


class Mixture:
    """The experts of one mixture of a study, of one kind and seed. StudyError where the choice does not name one."""

    def __init__(self, study: AnyStudy, choice: Choice, setting: Setting, folder: Path) -> None:
        if not isinstance(study, Study):
            raise StudyError(f"study {study.name} has no mixtures to search: study list names others")
        mixtures = study.chosen_mixtures(choice)
        kinds = [kind for kind in study.chosen_kinds(choice) if kind != "joint"]
        if len(mixtures) > 1:
            known = ", ".join("+".join(names) for names in mixtures)
            raise StudyError(f"study {study.name} has {len(mixtures)} mixtures: choose one with --only of {known}")
        if len(kinds) != 1:
            raise StudyError(f"one kind of experts can be searched at a time, not {', '.join(kinds) or 'joint'}")
        self.study, self.choice, self.folder = study, choice, folder
        self.experts = {name: Expert(name, study.experts[name], kinds[0]) for name in mixtures[0]}
        self.space = Space({name: expert.task for name, expert in self.experts.items()}, split=choice.split)
        self.plan = Plan(study, choice, setting)
        self.worker: Worker | None = None

    def cells(self, shares: Shares) -> tuple[Cell, ...]:
        """A point's cells, one for every task of the mixture."""
        whole = held(shares)
        if len(whole) == 1:
            point = single(self.experts[whole[0]], whole[0])
        else:
            method = "interpolate" if len(self.experts) == 2 else "average"
            every = {name: float(shares.get(name, 0)) for name in self.experts}
            point = Point(self.experts, every, method, self.choice.batchnorm[0])
        return tuple(
            Cell(point, task, self.choice.split, self.study.metrics.get(task, ())) for task in self.space.tasks
        )

    def evaluate(self, shares: Shares) -> Scores:
        """Evaluates what has no row yet, writes rows, and returns the point's scores by task."""
        study = OnePoint(self.study.name, self.study.question, self.study.source, self.cells(shares))
        plan = Plan(study, self.choice, self.plan.setting, self.plan.digests, self.plan.data)
        run_study(plan, self.folder, self.engine, progress=False)
        scores = self.scores(shares)
        assert scores is not None  # run_study has written them
        return scores

    def known(self) -> list[tuple[Shares, Scores]]:
        """The points whose rows are there, of just these weights and data."""
        found = known_rows(self.folder / ROWS)
        wanted: dict[tuple[float, ...], Shares] = {}
        for shares in found["shares"]:
            if set(shares) <= set(self.experts):
                wanted[self.space.key(shares)] = shares
        scored = ((shares, self.scores(shares)) for shares in wanted.values())
        return [(shares, scores) for shares, scores in scored if scores is not None]

    def scores(self, shares: Shares) -> Scores | None:
        """A point's scores by task from rows, each by the first metric of the task; None where one is missing."""
        (seed,) = self.plan.setting.scales
        values: dict[str, Any] = dict(known_rows(self.folder / ROWS)[["key", "value"]].itertuples(index=False))
        keys = {
            cell.task: next(iter(self.plan.keys(self.study.name, cell, seed).values())) for cell in self.cells(shares)
        }
        if not set(keys.values()) <= set(values):
            return None
        return {task: float(values[key]) for task, key in keys.items()}

    def engine(self, groups: Sequence[Sequence[Job]], setting: Setting) -> Iterator[Done]:
        """One worker of this process for all points: models and data stay. On a processor it has one thread."""
        threads = torch.get_num_threads()
        if setting.device == "cpu":
            torch.set_num_threads(1)
        try:
            self.worker = self.worker or Worker(setting)
            for group in groups:
                yield from self.worker.evaluate(group)
        finally:
            torch.set_num_threads(threads)
