"""The grid: evaluates the cells of a study that have no row yet, and appends a row as soon as each is finished.

Rows are keyed by all that they depend on: digests of tensors and data, shares, method, BatchNorm policy, generation
options, limit, and `EVALUATION`. So a killed run loses the cell in flight, a second run finds nothing to do, and a
changed input redoes its own rows only. A cell that another study has evaluated already is copied.

An engine is what evaluates: `engine(groups, setting) -> iterator of Done`. A group is the jobs of one point in the
order in which they should run (`experiments.grid.worker.Worker.evaluate` runs one); `setting` says where weights and
data are; both can be pickled. Engines yield every job when it is finished, in any order, and leave nothing behind when
they are closed early. Rows are written here, by one process. `experiments.grid.engines` lists engines.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm import tqdm

from experiments.errors import StudyError
from experiments.grid.rows import Row, append_row, content_key, read_rows, read_scores
from experiments.grid.worker import RECALIBRATION, Done, Job, Setting, media_of
from experiments.study.study import STUDIES, AnyStudy, Cell, Choice, Expert, held
from experiments.unival.pocket.cache import user_cache
from experiments.unival.pocket.experts import make_experts
from experiments.unival.setups import BOXES, PocketScale, Scale
from merge import digest, open_checkpoint

EVALUATION = 1  # to be raised when a change of the code changes scores
ROWS = "rows.jsonl"

Group = list[Job]
Engine = Callable[[Sequence[Group], Setting], Iterator[Done]]


@dataclass
class Summary:
    """What a run did: cells by what happened to them, and seconds (of all processes together) by what they went to."""

    evaluated: int = 0
    copied: int = 0
    known: int = 0
    evaluating: float = 0.0
    switching: float = 0.0
    bookkeeping: float = 0.0

    def __str__(self) -> str:
        cells = f"{self.evaluated} cells evaluated, {self.copied} taken from other studies, {self.known} there already"
        whole = self.evaluating + self.switching + self.bookkeeping
        if not self.evaluated:
            return cells
        shares = (f"{getattr(self, name) / whole:.1%} {name}" for name in ("evaluating", "switching", "bookkeeping"))
        return f"{cells}; {whole:.0f} s: {', '.join(shares)}"


@dataclass
class Plan:
    """Jobs of a study, and the keys of their rows. Every file is digested once a run."""

    study: AnyStudy
    choice: Choice
    setting: Setting
    digests: dict[tuple[int, str], str] = field(default_factory=dict[tuple[int, str], str])
    data: dict[tuple[int, str, str], str] = field(default_factory=dict[tuple[int, str, str], str])

    def jobs(self) -> list[Job]:
        """All of them, those of one point together; StudyError if files are missing."""
        if missing := [f"{file} ({how})" for file, how in self.expected().items() if not file.exists()]:
            more = f" and {len(missing) - 1} more files" if missing[1:] else ""
            raise StudyError(f"study {self.study.name} lacks {missing[0]}{more}: --dry-run lists what it needs")
        cells = self.study.cells(self.choice)
        return [self.job(cell, seed) for seed in self.setting.scales for cell in cells]

    def expected(self) -> dict[Path, str]:
        """The files that all cells need, each with where it comes from."""
        cells = self.study.cells(self.choice)
        places = list(dict.fromkeys((cell.task, cell.split) for cell in cells))
        found: dict[Path, str] = {}
        for scale in self.setting.scales.values():
            found |= scale.expected(experts_of(cells), places)
        return found

    def job(self, cell: Cell, seed: int) -> Job:
        """A cell as it is evaluated with the experts of a seed."""
        inputs = {name: self.digest(cell.point.experts[name], seed) for name in held(cell.point.shares)}
        keys = self.keys(self.study.name, cell, seed)
        return Job(self.study.name, cell, seed, keys, inputs, self.data_digest(seed, cell.task, cell.split))

    def keys(self, study: str, cell: Cell, seed: int) -> dict[str, str]:
        """The keys of a cell's rows in a study, by metric."""
        scale, point = self.setting.scales[seed], cell.point
        parts: dict[str, Any] = {
            "evaluation": EVALUATION,
            "study": study,
            "weights": {name: self.digest(point.experts[name], seed) for name in held(point.shares)},
            "shares": {name: point.shares[name] for name in held(point.shares)},
            "kind": point.kind,
            "method": point.method,
            "batchnorm": self.batchnorm(cell, seed),
            "task": cell.task,
            "split": cell.split,
            "data": self.data_digest(seed, cell.task, cell.split),
            "generation": asdict(scale.generation(cell.task)),
            "limit": self.setting.limit,
        }
        names = cell.metrics or scale.metrics(cell.task)
        return {name: content_key(**parts, metric=[name, *areas_of(name, scale)]) for name in names}

    def batchnorm(self, cell: Cell, seed: int) -> list[str]:
        """A policy, and the data that it sees."""
        policy = cell.point.batchnorm
        if not policy.startswith("recalibrate:"):
            return [policy]
        own = dict.fromkeys(expert.task for expert in cell.point.experts.values())
        tasks = [cell.task] if policy == "recalibrate:task" else own
        return [policy, str(RECALIBRATION), *(self.data_digest(seed, task, "train") for task in tasks)]

    def digest(self, expert: Expert, seed: int) -> str:
        """Of an expert's tensors."""
        place = (seed, expert.id)
        if place not in self.digests:
            scale = self.setting.scales[seed]
            self.digests[place] = digest(open_checkpoint(scale.expert_file(expert), scale.section(expert)))
        return self.digests[place]

    def data_digest(self, seed: int, task: str, split: str) -> str:
        """Of a split."""
        place = (seed, task, split)
        if place not in self.data:
            self.data[place] = self.setting.scales[seed].data_digest(task, split)
        return self.data[place]


def run_study(plan: Plan, folder: Path, engine: Engine, *, progress: bool = True) -> Summary:
    """Evaluates what is missing in `folder/rows.jsonl`. Stopped in any way, the next call goes on."""
    began = time.perf_counter()
    file, summary = folder / ROWS, Summary()
    jobs = unique(plan.jobs())
    todo = missing_jobs(jobs, file)
    todo, summary.copied = copy_known(plan, todo, file)
    summary.known = len(jobs) - len(todo) - summary.copied
    clock = Clock(file, todo)
    summary.bookkeeping = time.perf_counter() - began
    layout = "{desc} {n_fmt}/{total_fmt} cells |{bar}| {elapsed}{postfix}"
    with tqdm(desc=plan.study.name, total=len(todo), bar_format=layout, disable=not (progress and todo)) as bar:
        bar.set_postfix_str(clock.left())
        for done in engine(groups(todo), plan.setting):
            received = time.perf_counter()
            for row, scores in done.rows:
                append_row(file, row, scores)
            summary.evaluated += 1
            summary.evaluating += done.seconds - done.switching
            summary.switching += done.switching
            clock.tick(done)
            bar.set_postfix_str(clock.left(), refresh=False)
            bar.update()
            summary.bookkeeping += time.perf_counter() - received
    return summary


def train_missing(plan: Plan, processes: int) -> None:
    """Finetunes the experts that the study needs and has not, at pocket scale."""
    experts = experts_of(plan.study.cells(plan.choice))
    for scale in plan.setting.scales.values():
        if not isinstance(scale, PocketScale):
            raise StudyError(f"no recipe trains all experts at {scale.name} scale: finetune with unival-merge train")
        make_experts(scale.pocket, experts, processes, cache=user_cache())


def groups(jobs: Sequence[Job]) -> list[Group]:
    """Jobs of one point, seed and kind of media together, in order of appearance."""
    found: dict[Any, Group] = {}
    for job in jobs:
        found.setdefault((job.seed, job.cell.point.id, media_of(job.cell.task)), []).append(job)
    return list(found.values())


def known_rows(file: Path) -> pd.DataFrame:
    """The rows of a file, none if there is no file."""
    return read_rows(file) if file.exists() else pd.DataFrame(columns=[*Row.__dataclass_fields__, "point"])


def unique(jobs: Sequence[Job]) -> list[Job]:
    """Jobs without those of the same content: seeds may share a model."""
    return list({tuple(job.keys.values()): job for job in reversed(jobs)}.values())[::-1]


def missing_jobs(jobs: Sequence[Job], file: Path) -> list[Job]:
    """The jobs that lack a row."""
    known = set(known_rows(file)["key"])
    return [job for job in jobs if not known >= set(job.keys.values())]


def experts_of(cells: Sequence[Cell]) -> list[Expert]:
    """The experts that take part, each once."""
    return list({expert.id: expert for cell in cells for expert in cell.point.experts.values()}.values())


def copy_known(plan: Plan, jobs: Sequence[Job], file: Path) -> tuple[list[Job], int]:
    """Appends rows of other studies with the same content; the jobs that remain, and the number of those copied."""
    rows = known_rows(file)
    by_key: dict[str, Any] = {row["key"]: row for row in rows.to_dict("records")}
    twins: dict[str, str] = {}  # the new key of a row by the known one
    copied: set[int] = set()
    for place, job in enumerate(jobs):
        for other in STUDIES:
            keys = plan.keys(other, job.cell, job.seed) if by_key else {}
            if keys and set(keys.values()) <= set(by_key):
                twins |= {known: job.keys[metric] for metric, known in keys.items()}
                copied.add(place)
                break
    scores = read_scores(file, twins) if twins else {}
    for known, key in twins.items():
        row = Row(**{name: value for name, value in by_key[known].items() if name != "point"})
        append_row(file, replace(row, study=plan.study.name, key=key), scores[known])
    return [job for place, job in enumerate(jobs) if place not in copied], len(copied)


def areas_of(metric: str, scale: Scale) -> tuple[float, ...]:
    """The areas that a metric goes by, if it does."""
    return scale.areas() if metric in BOXES else ()


class Clock:
    """An honest guess of the time left: the mean of what cells of the same task took, in this run or in rows."""

    def __init__(self, file: Path, jobs: Sequence[Job]) -> None:
        self.waiting = [_weight(job) for job in jobs]
        self.seconds: dict[tuple[str, int], list[float]] = {}
        self.began, self.spent = time.perf_counter(), 0.0
        for row in known_rows(file).to_dict("records"):
            models = len(row["shares"]) if row["method"] == "ensemble" else 1
            self.seconds.setdefault((row["task"], models), []).append(row["seconds"])

    def tick(self, done: Done) -> None:
        """A job is finished."""
        kind = _weight(done.job)
        self.waiting.remove(kind)
        self.seconds.setdefault(kind, []).append(done.seconds)
        self.spent += done.seconds

    def left(self) -> str:
        """Time until the last cell, at the pace of the processes so far; nothing before anything was measured."""
        if not self.seconds or not self.waiting:
            return ""
        known = {kind: sum(values) / len(values) for kind, values in self.seconds.items()}
        mean = sum(known.values()) / len(known)
        wall = time.perf_counter() - self.began
        pace = wall / self.spent if self.spent else 1.0
        rest = pace * sum(known.get(kind, mean) for kind in self.waiting)
        return f"about {tqdm.format_interval(rest)} left"


def _weight(job: Job) -> tuple[str, int]:
    """What the time of a job depends on: its task, and the number of models that answer."""
    point = job.cell.point
    return job.cell.task, len(held(point.shares)) if point.method == "ensemble" else 1
