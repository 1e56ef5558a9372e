"""Classification: whether the highest of a model's logits is the label's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from experiments.errors import StudyError
from experiments.grid.modules import answer, placed
from experiments.study.study import Task
from experiments.tasks.data import Data, Scored, batches_of, digest_of, halves, logits_of

METRICS = {"accuracy": ("", True), "nll": ("nats", False)}  # unit, whether higher is better
IGNORED = -100  # the label of positions that do not count, as in torch's losses
SEEN = 2048  # examples of split train, evenly spread, that BatchNorm statistics are measured on


def classification(
    data: Data, *, batch_size: int = 256, metrics: str | Sequence[str] = "accuracy", expert: str = ""
) -> Task:
    """Return the task of classifying examples: per example the share of its labels that are met (of one: 0 or 1).

    `data` are by name of a split, or a function of that name: a tuple of arrays (inputs, labels), where inputs may be
    arrays by name of an argument; a data set of such pairs; or a loader of batches (inputs, labels), or mappings with
    labels under `labels`. Of a split `train`, where given, inputs are taken to measure BatchNorm statistics on.

    The model returns logits, or what has them under `logits`: (n, classes) for labels (n,), with the classes second or
    last where an example has labels at many places; or as many logits as labels of 0 and 1. Labels of -100 do not
    count. `metrics` are accuracy and nll (the negative log-likelihood of the label, in nats); `expert` is whose own
    task it is (`Task`).

    Raises StudyError for data, labels and outputs that do not fit.
    """
    chosen = (metrics,) if isinstance(metrics, str) else tuple(metrics)
    for name in chosen:
        if name not in METRICS:
            raise StudyError(f"classification has no metric {name!r}: choose of {', '.join(METRICS)}")
    score = Classified("classification", data, batch_size, chosen)
    return Task(
        score,
        expert=expert,
        metric=chosen[0],
        unit={name: METRICS[name][0] for name in chosen},
        higher_is_better={name: METRICS[name][1] for name in chosen},
        inputs=Inputs(score) if isinstance(data, Mapping) and "train" in data else None,
    )


@dataclass(frozen=True)
class Classified(Scored):
    """Scores of a model's logits against labels."""

    batch_size: int
    metrics: tuple[str, ...]

    @property
    def options(self) -> list[Any]:
        """Return the metrics."""
        return [self.metrics]

    def __call__(self, model: nn.Module, split: str) -> dict[str, list[float]]:
        """Return the scores of every example by metric."""
        found: dict[str, list[float]] = {name: [] for name in self.metrics}
        for batch in batches_of(self.of(split), self.batch_size):
            inputs, labels = halves(batch)
            logits = logits_of(answer(model, placed(inputs, model)))
            right, loss = marked(logits.float(), torch.as_tensor(labels, device=logits.device))
            for name, own in (("accuracy", right), ("nll", loss)):
                if name in found:
                    found[name] += own.tolist()
        return found


@dataclass(frozen=True)
class Inputs:
    """The inputs of split train, without their labels."""

    score: Classified

    def __call__(self) -> list[Any]:
        """Return them in batches."""
        return [halves(batch)[0] for batch in batches_of(self.score.of("train"), self.score.batch_size, SEEN)]

    def digest(self) -> str:
        """Return what tells these inputs from others."""
        return digest_of(self.score.of("train"))


def marked(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the share of labels met (n,) and their mean negative log-likelihood (n,), per example.

    >>> marked(torch.tensor([[0.0, 9.0], [9.0, 0.0]]), torch.tensor([1, 1]))[0]
    tensor([1., 0.])
    """
    if labels.is_floating_point():
        raise StudyError(f"labels are {str(labels.dtype).removeprefix('torch.')}: give whole numbers")
    labels = labels.long()
    counted = labels != IGNORED
    if logits.shape[:-1] == labels.shape and logits.shape[-1] > 1:
        logits = logits.movedim(-1, 1)
    if logits.dim() == labels.dim() + 1 and logits.shape[1] > 1 and logits[:, 0].shape == labels.shape:
        if (highest := int(labels.max()) if labels.numel() else 0) >= logits.shape[1]:
            raise StudyError(f"there is a label {highest}, and the model has logits of {logits.shape[1]} classes")
        right = logits.argmax(1) == labels
        loss = functional.cross_entropy(logits, labels, reduction="none", ignore_index=IGNORED)
    elif logits.numel() == labels.numel() and not ((labels != 0) & (labels != 1) & counted).any():
        logits = logits.reshape(labels.shape)
        right = (logits > 0) == labels.bool()
        loss = functional.binary_cross_entropy_with_logits(logits, labels.float(), reduction="none")
    else:
        raise StudyError(f"logits of shape {list(logits.shape)} do not fit labels of shape {list(labels.shape)}")
    many = counted.reshape(len(labels), -1)
    share = lambda values: (values.reshape(len(labels), -1) * many).sum(1) / many.sum(1)  # noqa: E731
    return share(right.float()), share(loss)
