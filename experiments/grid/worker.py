"""Evaluating cells with one model that moves from point to point; merged weights are never files.

A `Worker` holds the weights that the current point is made of. Engines make one in every process and give it groups.
"""

from __future__ import annotations

import fnmatch
import time
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from torch import nn

from experiments.errors import StudyError
from experiments.grid.rows import Row, content_key
from experiments.grid.subject import Subject, opened
from experiments.study.points import Cell, Expert, Point
from merge import Checkpoint, LivePath, Policy


@dataclass(frozen=True)
class Job:
    """A cell to evaluate with the experts of a seed: `keys` are those of its rows by metric (see `keys_of`), `inputs`
    the digests of its experts by name, `data` that of its split; `precision` is that of the model's arithmetic."""

    study: str
    cell: Cell
    seed: int
    keys: Mapping[str, str]
    inputs: Mapping[str, str]
    data: str
    precision: str = "fp32"


@dataclass(frozen=True)
class Done:
    """A finished job: its rows with their per-example scores, and seconds; `switching` were spent on weights."""

    job: Job
    rows: list[tuple[Row, np.ndarray]]
    seconds: float
    switching: float


class Worker:
    """Evaluates jobs one after the other; jobs of one point in a row cost one change of weights."""

    def __init__(self, subject: Subject, device: str = "cpu") -> None:
        self.subject, self.device = subject, device
        self.layouts: dict[Any, Hashable] = {}
        self.built: tuple[Hashable, nn.Module] | None = None  # the model that moves
        self.path: tuple[Any, LivePath] | None = None
        self.members: tuple[Any, list[nn.Module]] | None = None  # of an ensemble
        self.place: Any = None  # where the model is

    def evaluate(self, jobs: Sequence[Job]) -> Iterator[Done]:
        """Yield the jobs, each when it is finished."""
        for job in jobs:
            began = time.perf_counter()
            model = self.model_for(job)
            wait_for(self.device)  # what was only asked of a GPU is done when it is measured
            switched = time.perf_counter()
            rows = self.rows(job, model)
            yield Done(job, rows, time.perf_counter() - began, switched - began)

    def rows(self, job: Job, model: nn.Module) -> list[tuple[Row, np.ndarray]]:
        """Return a row for every metric of a job, with its scores by example."""
        began, point = time.perf_counter(), job.cell.point
        with numbers_of(self.device, job.precision):
            scores = self.subject.evaluate(model, job.cell)
        seconds = time.perf_counter() - began
        found: list[tuple[Row, np.ndarray]] = []
        for metric, key in keys_of(job.keys, list(scores)).items():
            own = scores[metric]
            row = Row(
                study=job.study,
                shares=point.held,
                experts=point.kind,
                method=point.method,
                batchnorm=point.batchnorm,
                task=job.cell.task,
                split=job.cell.split,
                metric=metric,
                value=own.value,
                lo=own.lo,
                hi=own.hi,
                n=own.n,
                seconds=seconds,
                seed=job.seed,
                versions=versions(),
                inputs=job.inputs,
                data=job.data,
                key=key,
                note=own.note,
                parameters=point.parameters,
                unit=own.unit,
                higher_is_better=own.higher_is_better,
                device=kind_of(self.device),
                precision=job.precision,
            )
            found.append((row, own.per_example))
        return found

    # -- the model at a point

    def model_for(self, job: Job) -> nn.Module:
        """Return the model at a job's point; a model that is there already is not touched."""
        point, task, first = job.cell.point, job.cell.task, next(iter(job.cell.point.experts.values()))
        layout = self.layout(first, job.seed, task)
        if point.method == "ensemble":
            return self.ensemble(job, layout)
        place = (job.seed, point.id, layout, task if point.batchnorm == "recalibrate:task" else "")
        if place == self.place and self.built is not None:
            return self.built[1]
        self.place = None  # an error on the way leaves the model nowhere
        if self.built is None or self.built[0] != layout:
            self.path = self.built = None
            self.built = layout, self.subject.build(layout).to(self.device)
        model = self.built[1]
        if point.method == "single":
            copy_weights(self.open(first, job.seed), model)
        else:
            self.move(job.seed, point, layout, model)
        if point.batchnorm.startswith("recalibrate:"):
            mixture = tuple(dict.fromkeys(expert.task for expert in point.experts.values()))
            self.subject.recalibrate(model, (task,) if point.batchnorm == "recalibrate:task" else mixture)
        self.place = place
        return model

    def move(self, seed: int, point: Point, layout: Hashable, model: nn.Module) -> None:
        """Set the model to a merge of experts. Only the last path is kept: its ends are all that is in memory."""
        batchnorm = point.batchnorm if point.batchnorm.startswith("from:") else "average"
        base = None if point.base is None else point.base.id
        key = (seed, layout, point.method, batchnorm, base, tuple(expert.id for expert in point.experts.values()))
        if self.path is None or self.path[0] != key:
            self.path = None
            files = {name: self.open(expert, seed) for name, expert in point.experts.items()}
            start = None if point.base is None else self.open(point.base, seed)
            unused = self.subject.unused(layout)
            self.path = key, path_between(model, point.method, files, start, batchnorm, unused)
        self.path[1].set_parameters(**point.arguments)

    def ensemble(self, job: Job, layout: Hashable) -> nn.Module:
        """Return the experts' models as one; the models stay as long as the experts are the same."""
        point = job.cell.point
        key = (job.seed, layout, tuple(expert.id for expert in point.experts.values()))
        if self.members is None or self.members[0] != key:
            self.members = None
            models: list[nn.Module] = []
            for expert in point.experts.values():
                own = self.subject.build(self.layout(expert, job.seed, job.cell.task)).to(self.device)
                copy_weights(self.open(expert, job.seed), own)
                models.append(own)
            self.members = key, models
        return self.subject.ensemble(self.members[1], list(point.shares.values()))

    def layout(self, expert: Expert, seed: int, task: str) -> Hashable:
        """Say what an expert's model has to be for a task; asked once."""
        key = (expert.id, seed, task)
        if key not in self.layouts:
            self.layouts[key] = self.subject.layout(self.open(expert, seed), task)
        return self.layouts[key]

    def open(self, expert: Expert, seed: int) -> Checkpoint:
        """Return an expert's checkpoint."""
        return opened(self.subject.source(expert, seed))


@cache
def versions() -> dict[str, str]:
    """Return the versions of the packages that scores hang on; reading them takes as long as scoring a small model."""
    return {name: version(name) for name in ("torch", "unival-merge")}


def check_device(device: str) -> None:
    """Raise StudyError for a device that this machine lacks."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise StudyError(f"--device {device}: {str(error).splitlines()[0]}") from None


@contextmanager
def one_thread(device: str) -> Iterator[None]:
    """Run what is on a processor in one thread: that gives the same bits everywhere."""
    threads = torch.get_num_threads()
    if device == "cpu":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@torch.no_grad()
def copy_weights(file: Checkpoint, model: nn.Module) -> None:
    """Make the model the one in a file, whatever else that holds."""
    own = {name: value for name, value in model.state_dict().items() if isinstance(value, torch.Tensor)}
    found = {tensor.data_ptr() for name, tensor in own.items() if name in file}  # of tied names one is enough
    if missing := [name for name, tensor in own.items() if name not in file and tensor.data_ptr() not in found]:
        raise StudyError(f"{file.path} lacks {missing[0]} and {len(missing) - 1} more tensors of the model")
    for name, tensor in own.items():
        if name in file:
            tensor.copy_(file[name])


def path_between(
    model: nn.Module,
    method: str,
    files: Mapping[str, Checkpoint],
    base: Checkpoint | None,
    batchnorm: str,
    unused: Sequence[str],
) -> LivePath:
    """Return the path on which all merges of some experts by a method lie, without the tensors (globs) that the model
    goes without."""
    names = {name for file in (*files.values(), *([] if base is None else [base])) for name in file}
    drop = tuple(glob for glob in unused if fnmatch.filter(names, glob))
    # Experts may be stored in different dtypes. One that is not finite costs the cells it has a share of, no others.
    policy = Policy(drop=drop, batchnorm=batchnorm, dtype=torch.float32, allow_nonfinite=True)
    ends = [*files.values(), *([] if base is None else [base])]
    return LivePath(model, method, files, base, policy=policy, resident=fits(model, ends))


def fits(model: nn.Module, files: Sequence[Checkpoint]) -> bool:
    """Tell whether a model's device has room for the endpoints besides what its answers take, once as much as itself.

    On a processor the files' maps are as near as copies of them would be.
    """
    device = next((tensor.device for tensor in model.state_dict().values() if isinstance(tensor, torch.Tensor)), None)
    if device is None or device.type != "cuda":
        return True
    free, _ = torch.cuda.mem_get_info(device)
    return sum(file.nbytes for file in files) + max(file.nbytes for file in files) <= free


def wait_for(device: str) -> None:
    """Wait until a GPU has done what was asked of it."""
    if kind_of(device) == "cuda":
        torch.cuda.synchronize(device)


def keys_of(keys: Mapping[str, str], metrics: Sequence[str]) -> dict[str, str]:
    """Return the keys of a job's rows by metric, in the order in which they are written.

    Metrics that are known beforehand have keys of their own. Where a scoring function names them, the job has one key
    under "", which is that of the row written last: where it stands, all of the cell's rows do.
    """
    if "" not in keys:
        return dict(keys)
    *others, last = metrics
    return {**{metric: content_key(cell=keys[""], metric=metric) for metric in others}, last: keys[""]}


def kind_of(device: str) -> str:
    """Return the kind of a device: cuda of cuda:1."""
    return device.partition(":")[0]


PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def numbers_of(device: str, precision: str) -> AbstractContextManager[Any]:
    """Return a context in which models answer with arithmetic of a precision (`PRECISIONS`); weights stay float32."""
    dtype = PRECISIONS[precision]
    return nullcontext() if dtype is None else torch.autocast(kind_of(device), dtype)
