"""The grid: evaluates the cells that have no row yet, and appends a row as soon as each is finished.

Rows are keyed by all that they depend on: digests of tensors and data, shares, method, BatchNorm policy, what the
subject says, and `EVALUATION`. So a killed run loses the cell in flight, a second run finds nothing to do, and a
changed input redoes its own rows only. A cell that another study has evaluated already is copied.

An engine is what evaluates: `engine(groups, subject, device) -> generator of Done`. A group is the jobs of one point in
the order in which they should run (`Worker.evaluate` runs one). Engines yield every job when it is finished, in any
order, and leave nothing behind when they are closed early. Rows are written here, by one process.
`experiments.grid.engines` lists engines.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm import tqdm

from experiments.errors import StudyError
from experiments.grid.children import refuse_in_script
from experiments.grid.clusters import append_clusters, known_clusters
from experiments.grid.lines import files_of
from experiments.grid.notes import Notes, read_notes, write_notes
from experiments.grid.rows import ROW_DIGEST, Row, append_rows, content_key, names_in, read_rows, read_scores
from experiments.grid.subject import Subject, opened
from experiments.grid.worker import Done, Job, keys_of, kind_of
from experiments.study.points import Cell, Expert
from merge import alone, digest

EVALUATION = 1  # to be raised when a change of the code changes scores
ROWS = "rows.jsonl"
SYNC = 1.0  # seconds between rows that are waited for until they are on the disk: a wait costs as much as a small cell

Group = list[Job]
Engine = Callable[[Sequence[Group], Subject, str], Generator[Done]]


@dataclass
class Summary:
    """What a run did: cells by what happened to them, and seconds (of all processes together) by what they went to."""

    evaluated: int = 0
    failed: int = 0
    copied: int = 0
    known: int = 0
    evaluating: float = 0.0
    switching: float = 0.0
    bookkeeping: float = 0.0
    note: str = ""  # why the first of those that failed did

    def __str__(self) -> str:
        cells = f"{self.evaluated} cells evaluated, {self.copied} taken from other studies, {self.known} there already"
        if self.failed:
            cells += f"; {self.failed} could not be scored ({self.note})"
        whole = self.evaluating + self.switching + self.bookkeeping
        if not self.evaluated:
            return cells
        shares = (f"{getattr(self, name) / whole:.1%} {name}" for name in ("evaluating", "switching", "bookkeeping"))
        return f"{cells}; {whole:.0f} s: {', '.join(shares)}"


@dataclass
class Grid:
    """The cells of a study, by its name, as jobs with the keys of their rows. Every file is digested once.

    `notes` say what the study is about, for the pages made of its rows; None leaves what the folder says. `chance`
    gives by task and split what guessing scores, and is asked of what is evaluated, or not noted yet.
    """

    study: str
    subject: Subject
    seeds: tuple[int, ...] = (0,)
    device: str = "cpu"
    notes: Notes | None = None
    precision: str = "fp32"
    chance: Callable[[Sequence[Cell]], Mapping[str, Mapping[str, float]]] | None = None
    _weights: dict[tuple[int, str], str] = field(default_factory=dict[tuple[int, str], str], repr=False)
    _data: dict[tuple[str, str], str] = field(default_factory=dict[tuple[str, str], str], repr=False)

    def jobs(self, cells: Sequence[Cell]) -> list[Job]:
        """Return a job for every cell and seed, each content once, as seeds may share a model; those of one point
        together.

        StudyError if files are missing.
        """
        if missing := [f"{file} ({how})" for file, how in self.expected(cells).items() if not file.exists()]:
            more = f" and {len(missing) - 1} more files" if missing[1:] else ""
            raise StudyError(f"study {self.study} lacks {missing[0]}{more}: --dry-run lists what it needs")
        jobs = [self.job(cell, seed) for seed in self.seeds for cell in cells]
        return list({tuple(job.keys.values()): job for job in reversed(jobs)}.values())[::-1]

    def expected(self, cells: Sequence[Cell]) -> dict[Path, str]:
        """Return the files that cells need, each with where it comes from."""
        places = list(dict.fromkeys((cell.task, cell.split) for cell in cells))
        found: dict[Path, str] = {}
        for seed in self.seeds:
            found |= self.subject.expected(experts_of(cells), seed, places)
        return found

    def job(self, cell: Cell, seed: int) -> Job:
        """Return a cell as it is evaluated with the experts of a seed."""
        inputs = self.inputs(cell, seed)
        data = self.data_digest(cell.task, cell.split)
        return Job(self.study, cell, seed, self.keys(cell, seed), inputs, data, self.precision)

    def keys(self, cell: Cell, seed: int, study: str = "") -> dict[str, str]:
        """Return the keys of a cell's rows by metric, in this study or another one."""
        point, batchnorm = cell.point, [cell.point.batchnorm]
        if point.batchnorm.startswith("recalibrate:"):
            own = dict.fromkeys(expert.task for expert in point.experts.values())
            tasks = [cell.task] if point.batchnorm == "recalibrate:task" else list(own)
            batchnorm += self.subject.recalibration(tasks)
        parts: dict[str, Any] = {
            "evaluation": EVALUATION,
            "study": study or self.study,
            "weights": self.inputs(cell, seed),
            "shares": point.held,
            "kind": point.kind,
            "method": point.method,
            "batchnorm": batchnorm,
            "task": cell.task,
            "split": cell.split,
            "data": self.data_digest(cell.task, cell.split),
            **self.subject.conditions(cell.task),
        }
        if point.parameters:
            parts["parameters"] = dict(point.parameters)
        if (machine := (kind_of(self.device), self.precision)) != ("cpu", "fp32"):  # keys of old rows stay
            parts["machine"] = machine
        metrics = self.subject.metrics(cell) or {"": ()}
        return {name: content_key(**parts, metric=[name, *numbers]) for name, numbers in metrics.items()}

    def inputs(self, cell: Cell, seed: int) -> dict[str, str]:
        """Return the digests of the tensors that a point is made of by the names of its experts, and of its base."""
        files = cell.point.files
        for expert in files.values():
            if (seed, expert.id) not in self._weights:
                self._weights[seed, expert.id] = digest(opened(self.subject.source(expert, seed)), ROW_DIGEST)
        return {name: self._weights[seed, expert.id] for name, expert in files.items()}

    def data_digest(self, task: str, split: str) -> str:
        """Return the digest of a split."""
        if (task, split) not in self._data:
            self._data[task, split] = self.subject.data_digest(task, split)
        return self._data[task, split]


def run_cells(grid: Grid, cells: Sequence[Cell], folder: Path, engine: Engine, *, progress: bool = True) -> Summary:
    """Evaluate what is missing in `folder/rows.jsonl`. Stopped in any way, the next call goes on.

    Two runs in one folder follow each other; the second says on stderr that it waits. StudyError where a script that
    is not guarded by its `__name__` runs again in a process of the first.
    """
    refuse_in_script()
    with alone(folder):
        return _run_cells(grid, cells, folder, engine, progress)


def _run_cells(grid: Grid, cells: Sequence[Cell], folder: Path, engine: Engine, progress: bool) -> Summary:
    began = time.perf_counter()
    file, summary = folder / ROWS, Summary()
    jobs = grid.jobs(cells)
    todo = missing_jobs(jobs, file)
    if grid.notes is not None:
        write_notes(folder, grid.study, with_chance(grid, grid.notes, jobs, todo, folder))
    note_clusters(grid, jobs, file)
    summary.known = len(jobs) - len(todo)
    todo, summary.copied = copy_known(grid, todo, file)
    clock = Clock(file, todo)
    summary.bookkeeping = time.perf_counter() - began
    synced = -math.inf
    log = logging.getLogger(__name__)
    log.info("%s: %d cells are known, %d copied, %d to evaluate", grid.study, summary.known, summary.copied, len(todo))
    layout = "{desc} {n_fmt}/{total_fmt} cells |{bar}| {elapsed}{postfix}"
    with (
        tqdm(desc=grid.study, total=len(todo), bar_format=layout, disable=None if progress and todo else True) as bar,
        closing(engine(groups(todo), grid.subject, grid.device)) as finished,  # stopped here, its processes end
    ):
        bar.set_postfix_str(clock.left())
        for done in finished:
            received = time.perf_counter()
            durable = received - synced > SYNC or len(clock.waiting) == 1
            synced = received if durable else synced
            append_rows(file, done.rows, durable=durable)
            summary.evaluated += 1
            cell = done.job.cell
            log.info("%s on %s %s took %.1f s", cell.point.label, cell.task, cell.split, done.seconds)
            if notes := [row.note for row, _ in done.rows if math.isnan(row.value)]:
                summary.failed += 1
                summary.note = summary.note or notes[0]
            summary.evaluating += done.seconds - done.switching
            summary.switching += done.switching
            clock.tick(done)
            bar.set_postfix_str(clock.left(), refresh=False)
            bar.update()
            summary.bookkeeping += time.perf_counter() - received
    return summary


def with_chance(grid: Grid, notes: Notes, jobs: Sequence[Job], todo: Sequence[Job], folder: Path) -> Notes:
    """Add what guessing scores on what is to be evaluated, or is not in the folder's notes: reckoning it reads rows."""
    if grid.chance is None:
        return notes
    noted = read_notes(folder, grid.study).chance
    anew = {(job.cell.task, job.cell.split) for job in todo}
    asked = {(job.cell.task, job.cell.split): job.cell for job in jobs}
    wanted = [
        cell for (task, split), cell in asked.items() if (task, split) in anew or split not in noted.get(task, {})
    ]
    return replace(notes, chance=grid.chance(wanted))


def note_clusters(grid: Grid, jobs: Sequence[Job], file: Path) -> None:
    """Note which examples of the jobs' splits share an image or the like, where that is not known yet."""
    known = known_clusters(file)
    for task, split, data in dict.fromkeys((job.cell.task, job.cell.split, job.data) for job in jobs):
        key = content_key(task=task, split=split, data=data, **grid.subject.conditions(task))
        if key not in known and len(given := grid.subject.clusters(task, split)):
            append_clusters(file, key, (task, split, data), given)


def groups(jobs: Sequence[Job]) -> list[Group]:
    """Return jobs of one point and seed together, in order of appearance."""
    found: dict[tuple[int, str], Group] = {}
    for job in jobs:
        found.setdefault((job.seed, job.cell.point.id), []).append(job)
    return list(found.values())


def known_rows(file: Path) -> pd.DataFrame:
    """Return the rows of a file, none if there is no file."""
    if files_of(file) or file.exists():
        return read_rows(file)
    return pd.DataFrame(columns=[*Row.__dataclass_fields__, "point"])


def missing_jobs(jobs: Sequence[Job], file: Path) -> list[Job]:
    """Return the jobs that lack a row."""
    known = set(known_rows(file)["key"])
    return [job for job in jobs if not known >= set(job.keys.values())]


def experts_of(cells: Sequence[Cell]) -> list[Expert]:
    """Return the experts that take part, and the bases of their merges, each once."""
    points = {cell.point.id: cell.point for cell in cells}.values()
    return list({one.id: one for point in points for one in (*point.experts.values(), *point.files.values())}.values())


def copy_known(grid: Grid, jobs: Sequence[Job], file: Path) -> tuple[list[Job], int]:
    """Append rows of other studies with the same content; the jobs that remain, and the number of those copied."""
    by_key: dict[str, Any] = {row["key"]: row for row in known_rows(file).to_dict("records")}
    others = names_in(list(by_key.values()), "study")
    twins: dict[str, str] = {}  # the new key of a row by the known one
    left: list[Job] = []
    for job in jobs:
        known = (grid.keys(job.cell, job.seed, other) for other in others)
        found = next((keys for keys in known if set(keys.values()) <= set(by_key)), None)
        if found is None:
            left.append(job)
        else:
            metrics = [row["metric"] for row in by_key.values() if is_of(row, job.cell, found)]
            twins |= dict(zip(keys_of(found, metrics).values(), keys_of(job.keys, metrics).values(), strict=True))
    scores = read_scores(file, twins) if twins else {}
    copies = [Row(**{name: value for name, value in by_key[known].items() if name != "point"}) for known in twins]
    append_rows(file, [(replace(row, study=grid.study, key=twins[row.key]), scores[row.key]) for row in copies])
    return left, len(jobs) - len(left)


def is_of(row: Mapping[str, Any], cell: Cell, keys: Mapping[str, str]) -> bool:
    """Tell whether a row is one of a cell with these keys (`keys_of`)."""
    if (row["task"], row["split"]) != (cell.task, cell.split):
        return False
    return row["key"] in keys.values() or row["key"] == content_key(cell=keys.get("", ""), metric=row["metric"])


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
        """Note that a job is finished."""
        kind = _weight(done.job)
        self.waiting.remove(kind)
        self.seconds.setdefault(kind, []).append(done.seconds)
        self.spent += done.seconds

    def left(self) -> str:
        """Return the time until the last cell, at the pace of the processes so far; nothing before anything was
        measured."""
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
    return job.cell.task, len(point.held) if point.method == "ensemble" else 1
