"""Metrics of torchmetrics: one number of a model's answers to a whole split."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from experiments.errors import StudyError
from experiments.grid.modules import answer, placed
from experiments.study.study import Task
from experiments.tasks.data import Data, Scored, batches_of, halves


def torchmetric(
    metric: Any,
    loader: Data,
    *,
    batch_size: int = 256,
    name: str = "",
    unit: str = "",
    higher_is_better: bool | None = None,
    output: Callable[[Any], Any] | None = None,
    expert: str = "",
) -> Task:
    """Return the task that a metric of torchmetrics scores (extra `torchmetrics`): one number, without an interval.

    `loader` has by name of a split, or as a function of that name, loaders of batches (inputs, target), or what
    `classification` takes. The metric, one or a collection of them, is asked `update(model(inputs), target)` and
    `compute()`; `output` says what of the model's output it is given, by default its `logits` where it has them.
    Rows are called after the metric's class, or `name`. Whether higher is better is what the metric says.

    Raises StudyError for a metric that does not say so, and one that computes several numbers.
    """
    members = dict(metric.items()) if hasattr(metric, "items") else {name or type(metric).__name__: metric}
    better: dict[str, bool] = {}
    for own, one in members.items():
        told = getattr(one, "higher_is_better", None) if higher_is_better is None else higher_is_better
        if told is None:
            raise StudyError(f"{own} does not say whether higher is better: give higher_is_better=")
        better[own] = told
    score = Measured(
        "torchmetric", loader, metric, "" if hasattr(metric, "items") else next(iter(members)), batch_size, output
    )
    return Task(score, expert=expert, metric=next(iter(members)), unit=unit, higher_is_better=better)


@dataclass(frozen=True)
class Measured(Scored):
    """What a metric makes of a model's answers; `metric_name` is "" for a collection, whose members have theirs."""

    metric: Any
    metric_name: str
    batch_size: int
    output: Callable[[Any], Any] | None

    @property
    def options(self) -> list[Any]:
        """Return the metrics, each with what it was made with."""
        metric = copy.deepcopy(self.metric)
        metric.reset()
        members = dict(metric.items()) if hasattr(metric, "items") else {self.metric_name: metric}
        return [[name, type(one).__name__, made_with(one)] for name, one in members.items()]

    def __call__(self, model: nn.Module, split: str) -> dict[str, float]:
        """Return a number by name of a metric."""
        device = next((tensor.device for tensor in model.parameters()), torch.device("cpu"))
        metric = copy.deepcopy(self.metric).to(device)
        metric.reset()
        for batch in batches_of(self.of(split), self.batch_size):
            inputs, target = halves(batch)
            found = answer(model, placed(inputs, model))
            found = self.output(found) if self.output else getattr(found, "logits", found)
            metric.update(found, torch.as_tensor(target).to(device))
        computed = metric.compute()
        named = dict(computed) if isinstance(computed, Mapping) else {self.metric_name: computed}
        for name, value in named.items():
            if torch.as_tensor(value).numel() != 1:
                raise StudyError(f"{name} computes {torch.as_tensor(value).numel()} numbers: choose an average of them")
        return {name: float(value) for name, value in named.items()}


def made_with(metric: Any) -> dict[str, Any]:
    """Return the plain values that a metric holds under public names."""
    plain = (bool, int, float, str, type(None))
    return {
        name: value for name, value in vars(metric).items() if isinstance(value, plain) and not name.startswith("_")
    }
