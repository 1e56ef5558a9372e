"""Evaluating the points of a study with one model that moves from point to point; merged weights are never files.

A `Worker` holds the experts that the current point is made of, and everything decoded, tokenised and batched so far.
Engines make one in every process and give it groups.
"""

from __future__ import annotations

import fnmatch
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from torch import Tensor

from experiments.errors import StudyError
from experiments.grid.rows import Row
from experiments.study.study import Cell, Expert, Point, held
from experiments.unival.setups import BOXES, Scale, scorers
from merge import Checkpoint, LinearPath, Policy, Simplex, open_checkpoint, recalibrate_batchnorm
from merge.engine.live import LivePath
from unival_core.checkpoint import COMPUTED, CONFIG_KEY, infer_config
from unival_core.config import UnivalConfig
from unival_core.data.batch import Batch, collate
from unival_core.data.dataset import TaskDataset
from unival_core.data.media_cache import MediaCache
from unival_core.ensemble import Ensemble
from unival_core.evaluation import evaluate
from unival_core.inputs import MEDIA
from unival_core.metrics import score_interval
from unival_core.model import UnivalModel
from unival_core.tasks import TASKS

RECALIBRATION = 512  # training inputs that BatchNorm statistics are measured on
BATCH = 64
OPTIONAL_MEDIA = MEDIA[1:]  # every model sees pictures


@dataclass(frozen=True)
class Job:
    """A cell to evaluate: `keys` are those of its rows by metric, `inputs` digests of its experts by name."""

    study: str
    cell: Cell
    seed: int
    keys: Mapping[str, str]
    inputs: Mapping[str, str]
    data: str


@dataclass(frozen=True)
class Setting:
    """What all jobs of a run share: scales by seed, rows to stop after, and the device."""

    scales: Mapping[int, Scale]
    limit: int | None = None
    device: str = "cpu"


@dataclass(frozen=True)
class Done:
    """A finished job: its rows with their per-example scores, and seconds; `switching` were spent on weights."""

    job: Job
    rows: list[tuple[Row, np.ndarray]]
    seconds: float
    switching: float


class Worker:
    """Evaluates jobs one after the other; jobs of one point in a row cost one change of weights."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.cache = MediaCache()
        self.data: dict[tuple[int, str, str], TaskDataset] = {}
        self.inputs: dict[tuple[int, tuple[str, ...]], list[Batch]] = {}
        self.model: UnivalModel | None = None
        self.path: tuple[Any, LivePath] | None = None
        self.together: tuple[Any, Ensemble] | None = None
        self.place: Any = None

    def evaluate(self, jobs: Sequence[Job]) -> Iterator[Done]:
        """The jobs, each when it is finished."""
        for job in jobs:
            began = time.perf_counter()
            model = self.model_for(job)
            switched = time.perf_counter()
            rows = self.rows(job, model)
            yield Done(job, rows, time.perf_counter() - began, switched - began)

    def rows(self, job: Job, model: UnivalModel | Ensemble) -> list[tuple[Row, np.ndarray]]:
        """A row for every metric of a job."""
        scale, task, names = self.setting.scales[job.seed], job.cell.task, tuple(job.keys)
        data = self.dataset(job.seed, task, job.cell.split, model.config)
        result = evaluate(
            model,
            data,
            options=scale.generation(task),
            metrics=names,
            batch_size=BATCH,
            limit=self.setting.limit,
            progress=False,
        )
        answers, references = ([getattr(p, name) for p in result.predictions] for name in ("answer", "reference"))
        sized = scorers(scale, tuple(name for name in names if name in BOXES))
        scores = result.scores | {name: score(answers, references) for name, score in sized.items()}
        row = blank_row(job, result.seconds, f"{len(result.broken)} broken rows left out" if result.broken else "")
        found: list[tuple[Row, np.ndarray]] = []
        for name, key in job.keys.items():
            own = scores[name]
            lo, hi = score_interval(own)
            note = "; ".join(filter(None, (own.note, row.note)))
            own_row = replace(row, metric=name, value=own.value, lo=lo, hi=hi, n=own.n, key=key, note=note)
            found.append((own_row, own.per_example))
        return found

    # -- the model at a point

    def model_for(self, job: Job) -> UnivalModel | Ensemble:
        """The model at a job's point; a model that is there already is not touched."""
        point, media = job.cell.point, media_of(job.cell.task)
        place = (job.seed, point.id, media, job.cell.task if point.batchnorm == "recalibrate:task" else "")
        if point.method == "ensemble":
            return self.ensemble(job, media)
        if place != self.place or self.model is None:
            self.place = None  # an error on the way leaves the model nowhere
            if point.method == "single":
                file = self.open(job.seed, next(iter(point.experts.values())))
                copy_weights(file, self.shaped(config_for(file, media)))
            else:
                move(self.path_for(job, media), point)
            assert self.model is not None
            if point.batchnorm.startswith("recalibrate:"):
                self.recalibrate(job, self.model)
            self.place = place
        return self.model

    def path_for(self, job: Job, media: tuple[str, ...]) -> LivePath:
        """The path that the job's point is on. Only the last one is kept: its endpoints are all that is in memory."""
        point = job.cell.point
        policy = point.batchnorm if point.batchnorm.startswith("from:") else "average"
        key = (job.seed, media, policy, tuple(point.experts[name].id for name in point.experts))
        if self.path is None or self.path[0] != key:
            files = {name: self.open(job.seed, expert) for name, expert in point.experts.items()}
            config = config_for(next(iter(files.values())), media)
            model = self.shaped(config)
            self.path = key, path_between(model, files, policy)
        return self.path[1]

    def shaped(self, config: UnivalConfig) -> UnivalModel:
        """The model that moves, a new one where it has to have other networks."""
        if self.model is None or self.model.config != config:
            self.path = self.model = None
            self.model = empty_model(config, self.setting.device)
        return self.model

    def ensemble(self, job: Job, media: tuple[str, ...]) -> Ensemble:
        """The experts' models, which stay as long as the experts are the same."""
        point = job.cell.point
        key = (job.seed, media, tuple(point.experts[name].id for name in point.experts))
        shares = [point.shares[name] for name in point.experts]
        if self.together is None or self.together[0] != key:
            self.together = None
            self.together = key, Ensemble([self.alone(job.seed, e, media) for e in point.experts.values()], shares)
        self.together[1].shares = shares
        return self.together[1].eval()

    def alone(self, seed: int, expert: Expert, media: tuple[str, ...]) -> UnivalModel:
        """The model of one expert."""
        file = self.open(seed, expert)
        model = empty_model(config_for(file, media), self.setting.device)
        copy_weights(file, model)
        return model

    def open(self, seed: int, expert: Expert) -> Checkpoint:
        """An expert's checkpoint."""
        scale = self.setting.scales[seed]
        return open_checkpoint(scale.expert_file(expert), scale.section(expert))

    def recalibrate(self, job: Job, model: UnivalModel) -> None:
        """BatchNorm statistics from training inputs, whose labels play no part."""
        own = tuple(dict.fromkeys(expert.task for expert in job.cell.point.experts.values()))
        tasks = (job.cell.task,) if job.cell.point.batchnorm == "recalibrate:task" else own
        key = (job.seed, tasks)
        if key not in self.inputs:
            self.inputs = {key: list(mixed([self.dataset(job.seed, t, "train", model.config) for t in tasks]))}
        batches = [batch.to(self.setting.device) for batch in self.inputs[key]]
        recalibrate_batchnorm(model, batches, lambda _, batch: model.encoder.embed_media(batch.inputs))

    def dataset(self, seed: int, task: str, split: str, config: UnivalConfig) -> TaskDataset:
        """The rows of a split; made once, with pictures decoded once for all."""
        key = (seed, task, split)
        if key not in self.data:
            scale = self.setting.scales[seed]
            file = scale.expert_file(Expert("pretrained", "", "pretrained"))
            self.data[key] = scale.dataset(task, split, scale.tokenizer(file, config), config, self.cache)
        return self.data[key]


def move(path: LivePath, point: Point) -> None:
    """Sets a path to a point."""
    if isinstance(path, LinearPath):
        path.set(point.shares[path.names[1]])
    else:
        path.set_parameters(weights=[point.shares[name] for name in path.names])


def empty_model(config: UnivalConfig, device: str) -> UnivalModel:
    """A model whose weights are still to come; drawing its first ones leaves the random state alone."""
    with torch.random.fork_rng(devices=[]):
        return UnivalModel(config).eval().to(device)


@torch.no_grad()
def copy_weights(file: Checkpoint, model: UnivalModel) -> None:
    """Makes the model the one in a file, whatever else that holds."""
    own = model.state_dict()
    if missing := [name for name in own if name not in file]:
        raise StudyError(f"{file.path} lacks {missing[0]} and {len(missing) - 1} more tensors of the model")
    for name, tensor in own.items():
        tensor.copy_(file[name])


def path_between(model: UnivalModel, files: Mapping[str, Checkpoint], batchnorm: str) -> LivePath:
    """The path on which all merges of some experts lie, without the tensors that the model does not have."""
    names = {name for file in files.values() for name in file}
    drop = tuple(glob for glob in (*COMPUTED, *globs_without(model.config)) if fnmatch.filter(names, glob))
    policy = Policy(drop=drop, batchnorm=batchnorm, dtype=torch.float32)  # experts may be stored in different ones
    sources: dict[str, Mapping[str, Tensor]] = dict(files)
    if len(sources) == 2:
        first, second = sources
        return LinearPath(model, sources[first], sources[second], names=(first, second), policy=policy)
    return Simplex(model, sources, policy=policy)


def config_for(file: Checkpoint, media: Sequence[str]) -> UnivalConfig:
    """A checkpoint's config without the networks of media that are not looked at: experts need not share those."""
    stored = file.metadata.get(CONFIG_KEY)
    config = UnivalConfig.from_json(stored) if stored is not None else infer_config(file)
    return replace(config, **{name: None for name in OPTIONAL_MEDIA if name not in media})


def globs_without(config: UnivalConfig) -> Iterator[str]:
    """Names of tensors that belong to the networks a config leaves out."""
    for name in OPTIONAL_MEDIA:
        if getattr(config, name) is None:
            yield from (f"encoder.embed_{name}s.*", f"encoder.{name}_proj.*", f"encoder.embed_{name}_positions.*")


def media_of(task: str) -> tuple[str, ...]:
    """What a task shows beside pictures."""
    medium = TASKS[task].medium
    return () if medium in (None, "image") else (medium,)


def mixed(datasets: Sequence[TaskDataset]) -> Iterator[Batch]:
    """Batches with as many rows of every data set, RECALIBRATION in all or fewer: the mixture is in every batch, as
    the variance of a mixture is not the mean of its parts' variances."""
    rows = min(RECALIBRATION // len(datasets), *(len(data) for data in datasets))
    examples = [data.get(row) for row in range(rows) for data in datasets]
    sound = [replace(example, target=[]) for example in examples if example is not None]
    step = min(BATCH, len(sound))
    for start in range(0, len(sound) - step + 1, step):
        yield collate(sound[start : start + step])


def blank_row(job: Job, seconds: float, note: str) -> Row:
    """A job's row but for its scores."""
    point = job.cell.point
    return Row(
        study=job.study,
        shares={name: point.shares[name] for name in held(point.shares)},
        experts=point.kind,
        method=point.method,
        batchnorm=point.batchnorm,
        task=job.cell.task,
        split=job.cell.split,
        metric="",
        value=float("nan"),
        lo=float("nan"),
        hi=float("nan"),
        n=0,
        seconds=seconds,
        seed=job.seed,
        versions={"torch": version("torch"), "unival-merge": version("unival-merge")},
        inputs=job.inputs,
        data=job.data,
        key="",
        note=note,
    )
