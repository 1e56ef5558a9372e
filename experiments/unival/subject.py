"""UnIVAL as the grid asks for it (`experiments.grid.subject`), at either setup."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from experiments.errors import StudyError
from experiments.grid.subject import Score
from experiments.grid.units import unit_in_rows
from experiments.study.points import Cell, Expert
from experiments.unival.chance import constant_score
from experiments.unival.setups import CONFIDENCE, CONTENT, LOSS, PocketSetup, Setup
from merge import Checkpoint, Input, recalibrate_batchnorm
from unival_core import (
    COMPUTED,
    MEDIA,
    METRICS,
    TASKS,
    Ensemble,
    NotFinite,
    Prediction,
    UnivalConfig,
    UnivalError,
    UnivalModel,
    config_of,
    evaluate,
)
from unival_core.data import Batch, MediaCache, TaskDataset, collate
from unival_core.metrics import Scores, not_computed, score_interval

RECALIBRATION = 512  # training inputs that BatchNorm statistics are measured on
BATCH = 64
MEASURES = {  # of the setups too; the last one is a mean of numbers, as that is which it is made of
    **METRICS,
    CONTENT: replace(METRICS["confidence"], label="described facts recognised in the image", of="answer"),
}
OPTIONAL_MEDIA = MEDIA[1:]  # every model sees images


@dataclass
class UnivalSubject:
    """UnIVAL models and tasks at a setup; of every split the first `limit` rows count (None: all).

    Decoded media and tokenised rows stay for the next cell, and behind when the subject is pickled.
    """

    setup: Setup
    limit: int | None = None
    _cache: MediaCache = field(default_factory=MediaCache, init=False, repr=False)
    _data: dict[tuple[str, str, int], TaskDataset] = field(default_factory=dict[Any, Any], init=False, repr=False)
    _inputs: dict[tuple[str, ...], list[Batch]] = field(default_factory=dict[Any, Any], init=False, repr=False)

    def __reduce__(self) -> tuple[Any, ...]:
        return UnivalSubject, (self.setup, self.limit)

    def expected(self, experts: Sequence[Expert], seed: int, places: Sequence[tuple[str, str]]) -> dict[Path, str]:
        """Return the setup's files."""
        return self.setup.expected(experts, seed, places)

    def source(self, expert: Expert, seed: int) -> Input:
        """Return the setup's checkpoint."""
        return self.setup.source(expert, seed)

    def files(self, experts: Iterable[Expert], seeds: Iterable[int]) -> dict[str, dict[str, list[str]]]:
        """Return path and section of every expert, by its id and the seed."""
        return {
            expert.id: {
                str(seed): [str(own.path), own.section] for seed in seeds for own in [self.source(expert, seed)]
            }
            for expert in experts
        }

    def data_digest(self, task: str, split: str) -> str:
        """Return the digest of the rows, and of the answers that the task allows."""
        return self.setup.data_digest(task, split)

    def metrics(self, cell: Cell) -> Mapping[str, Sequence[float]]:
        """Return the cell's, or those quoted for its task; then the loss and, where answers are limited, confidence.

        Boxes are small and large by the setup's areas.
        """
        names = [*(cell.metrics or self.setup.metrics(cell.task))]
        if unknown := [name for name in names if name not in MEASURES]:
            raise StudyError(f"no metric {unknown[0]!r}: choose from {', '.join(METRICS)}")
        names += [LOSS, CONFIDENCE] if self.setup.limits_answers(cell.task) else [LOSS]
        return {name: self.setup.areas() if MEASURES[name].size else () for name in names}

    def chance(self, cells: Iterable[Cell]) -> dict[str, dict[str, float]]:
        """Return by task and split what guessing scores, by the metric that counts of each."""
        found: dict[str, dict[str, float]] = {}
        metrics = {(cell.task, cell.split): next(iter(self.metrics(cell))) for cell in cells}
        for task in dict.fromkeys(task for task, _ in metrics):
            answer, splits = self.setup.guess(task), [split for own, split in metrics if own == task]
            if floors := self.setup.floors(task):
                found[task] = {split: floors[split] for split in splits if split in floors}
            for split in splits if answer is not None else ():
                try:
                    table = self.setup.table(task, split)
                except UnivalError:  # a missing file, which is named with all others that are
                    continue
                level = constant_score(TASKS[task], answer, table, metrics[task, split], self.limit)
                if math.isfinite(level):
                    found.setdefault(task, {})[split] = level
        return found

    def conditions(self, task: str) -> Mapping[str, Any]:
        """Say how answers are searched for, and the limit of rows."""
        return {"generation": asdict(self.setup.generation(task)), "limit": self.limit}

    def clusters(self, task: str, split: str) -> list[str]:
        """Return the image, video or audio of every row, by its digest."""
        if TASKS[task].medium is None:
            return []
        table = self.setup.table(task, split)
        count = len(table) if self.limit is None else min(self.limit, len(table))
        return [sha256(table[row]["media"].encode()).hexdigest() for row in range(count)]

    def recalibration(self, tasks: Sequence[str]) -> list[str]:
        """Return the number of training inputs, and what they are."""
        return [str(RECALIBRATION), *(self.setup.data_digest(task, "train") for task in tasks)]

    def layout(self, checkpoint: Checkpoint, task: str) -> UnivalConfig:
        """Return the checkpoint's config without networks of media that the task does not show: experts need not share
        those.

        Every task looks at images, also one without any.
        """
        return replace(config_of(checkpoint), **{name: None for name in OPTIONAL_MEDIA if name != TASKS[task].medium})

    def build(self, layout: Hashable) -> UnivalModel:
        """Return a model of a config; drawing its first weights leaves the random state alone."""
        assert isinstance(layout, UnivalConfig)
        with torch.random.fork_rng(devices=[]):
            return UnivalModel(layout).eval()

    def unused(self, layout: Hashable) -> list[str]:
        """Return the globs of tensors that are computed, or belong to the networks that a config leaves out."""
        gone = [name for name in OPTIONAL_MEDIA if getattr(layout, name) is None]
        parts = ("embed_{}s.*", "{}_proj.*", "embed_{}_positions.*")
        return [*COMPUTED, *(f"encoder.{part.format(name)}" for name in gone for part in parts)]

    def ensemble(self, models: Sequence[nn.Module], shares: Sequence[float]) -> Ensemble:
        """Return the mean of next-token probabilities."""
        return Ensemble([model for model in models if isinstance(model, UnivalModel)], shares).eval()

    def recalibrate(self, model: nn.Module, tasks: Sequence[str]) -> None:
        """Measure the statistics of the networks of media anew."""
        assert isinstance(model, UnivalModel)
        key, device = tuple(tasks), next(model.parameters()).device
        if key not in self._inputs:
            self._inputs = {key: list(mixed([self.dataset(task, "train", model.config) for task in tasks]))}
        batches = [batch.to(device) for batch in self._inputs[key]]
        recalibrate_batchnorm(model, batches, lambda _, batch: model.encoder.embed_media(batch.inputs))

    def evaluate(self, model: nn.Module, cell: Cell) -> dict[str, Score]:
        """Return the scores of a model's answers; none, and why, where its numbers are not finite."""
        assert isinstance(model, UnivalModel | Ensemble)
        names = tuple(self.metrics(cell))
        dataset = self.dataset(cell.task, cell.split, model.config)
        try:
            result = evaluate(
                model,
                dataset,
                options=self.setup.generation(cell.task),
                metrics=[name for name in names if name in METRICS],
                batch_size=BATCH,
                limit=self.limit,
                progress=False,
            )
        except NotFinite as error:
            count = len(dataset) if self.limit is None else min(self.limit, len(dataset))
            return {name: scored(name, not_computed(count, str(error)), str(error)) for name in names}
        answers, references = ([getattr(p, name) for p in result.predictions] for name in ("answer", "reference"))
        broken = f"{len(result.broken)} broken rows left out" if result.broken else ""
        found: dict[str, Score] = {}
        for name in names:
            if name == CONTENT:
                found[name] = scored(name, self.content(dataset, result.predictions), broken)
                continue
            own = result.scores[name]
            if METRICS[name].size:  # boxes are small and large by the setup's areas, not by the published ones
                own = METRICS[name](answers, references, areas=self.setup.areas())
            found[name] = scored(name, own, "; ".join(filter(None, (own.note, broken))))
        return found

    def content(self, dataset: TaskDataset, predictions: Sequence[Prediction]) -> Scores:
        """Score the images of predicted codes by the captions of their rows."""
        assert isinstance(self.setup, PocketSetup)
        told = {dataset.table[row]["uniq_id"]: dataset.table[row]["caption"] for row in range(len(dataset))}
        captions = [told[prediction.name] for prediction in predictions]
        return MEASURES[CONTENT](self.setup.contents([p.answer for p in predictions], captions), captions)

    def dataset(self, task: str, split: str, config: UnivalConfig) -> TaskDataset:
        """Return the rows of a split; made once for models with as many codes, with media decoded once for all."""
        key = task, split, config.codes
        if key not in self._data:
            self._data[key] = self.setup.dataset(task, split, self.setup.tokenizer(config), config, self._cache)
        return self._data[key]


def scored(name: str, own: Scores, note: str) -> Score:
    """Return the scores of a metric as rows keep them, with their interval and unit.

    Of numbers that a model tells of itself, rows keep nine binary digits: that is a fifth of the bytes.
    """
    metric = MEASURES[name]
    if metric.of != "answer":
        short = shortened(own.per_example)
        own = replace(own, value=float(short.mean()) if len(short) else math.nan, per_example=short)
    unit, rises = unit_in_rows(metric.unit), metric.higher_is_better
    return Score(own.value, *score_interval(own), own.n, own.per_example, note, unit, rises)


def shortened(values: np.ndarray) -> np.ndarray:
    """Round numbers to nine binary digits, a relative error of 1 / 512 at most."""
    mantissas, exponents = np.frexp(values)
    return np.ldexp(np.round(mantissas * 512) / 512, exponents)


def mixed(datasets: Sequence[TaskDataset]) -> Iterator[Batch]:
    """Yield batches with as many rows of every data set, RECALIBRATION in all or fewer: the mixture is in every batch,
    as the variance of a mixture is not the mean of its parts' variances."""
    rows = min(RECALIBRATION // len(datasets), *(len(data) for data in datasets))
    examples = [data.get(row) for row in range(rows) for data in datasets]
    sound = [replace(example, target=[]) for example in examples if example is not None]
    step = min(BATCH, len(sound))
    for start in range(0, len(sound) - step + 1, step):
        yield collate(sound[start : start + step])
