"""From names and files to what `train` needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar

import torch

from merge import open_checkpoint
from unival_core.config import UnivalConfig
from unival_core.data.answers import load_answers
from unival_core.data.dataset import TaskDataset
from unival_core.data.media_cache import MediaCache
from unival_core.data.table import TsvTable
from unival_core.errors import UnivalError
from unival_core.evaluation import evaluate
from unival_core.model import UnivalModel
from unival_core.tasks import find_task
from unival_core.training.options import TrainOptions
from unival_core.vocabulary import Tokenizer

Choice = TypeVar("Choice")


def tensors_digest(file: Path, section: str = "auto") -> str:
    """Return the SHA-256 of a checkpoint's tensors with their names, shapes and dtypes."""
    tensors, found = open_checkpoint(file, section), sha256()
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        found.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        found.update(tensor.view(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def setup_of(config: UnivalConfig) -> str:
    """Name the setup whose recipes fit a model."""
    return "base" if config.has_published_text else "pocket"


def choose(choices: Mapping[str, Choice], name: str, what: str) -> Choice:
    """Return the choice of this name; UnivalError if there is none."""
    if name not in choices:
        raise UnivalError(f"no {what} {name!r}: choose one of {', '.join(choices)}")
    return choices[name]


def change(options: TrainOptions, given: Mapping[str, Any]) -> TrainOptions:
    """Return the options with what was given (not None); a length given in updates or epochs replaces the other."""
    given = {name: value for name, value in given.items() if value is not None}
    if given.get("updates") and not given.get("epochs"):
        given["epochs"] = 0.0
    if given.get("epochs") and not given.get("updates"):
        given["updates"] = 0
    return replace(options, **given)


class Data:
    """Data sets of a folder with `<task>/<split>.tsv`; media are decoded once for all of them.

    `answers` is a file of allowed answers, for the tasks that have answers but no list of their own.
    """

    def __init__(
        self, folder: Path, model: UnivalModel, tokenizer: Tokenizer, *, answers: Path | None = None, seed: int = 0
    ) -> None:
        self.folder, self.config, self.tokenizer = folder, model.config, tokenizer
        self.answers, self.seed, self.cache = answers, seed, MediaCache()

    def __call__(
        self, task: str, split: str, *, training: bool = False, side: int | None = None, frames: int | None = None
    ) -> TaskDataset:
        """Return the rows of a split."""
        kind = find_task(task)
        limited = self.answers is not None and kind.takes_answers
        own = setup_of(self.config) == "pocket"  # whose media have one size
        return TaskDataset(
            kind,
            TsvTable(self.folder / task / f"{split}.tsv", kind.columns, kind.selected_cols),
            self.tokenizer,
            self.config,
            training=training,
            seed=self.seed,
            answers=load_answers(self.answers, kind) if limited and self.answers else (),
            side=None if own else side,
            frames=None if own else frames,
            cache=self.cache,
        )


def validation(data: TaskDataset, rows: int, workers: int) -> Callable[[UnivalModel], float]:
    """Return a function that scores a model on the first rows by the task's first metric."""
    metric = data.task.metrics[0]

    def score(model: UnivalModel) -> float:
        found = evaluate(model, data, metrics=(metric,), limit=rows, workers=workers, progress=False)
        return found.scores[metric].value

    return score


def use_threads(count: int | None) -> None:
    """Set the CPU threads of this process; None leaves them."""
    if count is not None:
        torch.set_num_threads(count)


__all__: Sequence[str] = [
    "Data", "change", "choose", "setup_of", "tensors_digest", "use_threads", "validation",
]  # fmt: skip
