"""Any module as the grid asks for it: a study's model, and the scoring functions of its tasks."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from experiments.errors import StudyError
from experiments.grid.subject import Score
from experiments.study.points import Cell, Expert
from experiments.study.study import Study, Task
from merge import Checkpoint, Input, recalibrate_batchnorm
from unival_core.metrics import bootstrap_interval, is_binary, wilson_interval


@dataclass
class ModuleSubject:
    """The model of a study whose experts all lie in files (`experiments.results.sources`).

    `remake` is a function and its arguments that make the subject anew in another process, where pickling the study
    would not do: one that a file defines.
    """

    study: Study
    remake: tuple[Callable[..., ModuleSubject], tuple[Any, ...]] | None = None
    _places: Mapping[str, tuple[int, tuple[int, ...]]] | None = field(default=None, init=False, repr=False)
    _seen: dict[str, str] = field(default_factory=dict[str, str], init=False, repr=False)
    _spare: nn.Module | None = field(default=None, init=False, repr=False)  # made to be looked at, not given yet

    def __reduce__(self) -> tuple[Any, ...]:
        return self.remake or (ModuleSubject, (self.study,))

    def expected(self, experts: Sequence[Expert], seed: int, places: Sequence[tuple[str, str]]) -> dict[Path, str]:
        """Return nothing: an expert that is not there is named when it is opened, before anything is evaluated."""
        return {}

    def source(self, expert: Expert, seed: int) -> Input:
        """Return where the study says that an expert lies."""
        given = self.study.source_of(expert.name, seed)
        assert isinstance(given, Input)
        return given

    def data_digest(self, task: str, split: str) -> str:
        """Return what a scoring function says of its data, by a method `digest(split)`; else the version stands for
        them."""
        digest = getattr(self.study.tasks[task].score, "digest", None)
        return str(digest(split)) if callable(digest) else ""

    def metrics(self, cell: Cell) -> Mapping[str, Sequence[Any]]:
        """Return none: scores name them."""
        return {}

    def conditions(self, task: str) -> Mapping[str, Any]:
        """Return the study's version."""
        return {"version": self.study.version}

    def clusters(self, task: str, split: str) -> Sequence[Hashable]:
        """Return what a scoring function says of its examples, by a method `clusters(split)`; else none."""
        clusters: Callable[[str], Iterable[Hashable]] | None = getattr(self.study.tasks[task].score, "clusters", None)
        return [] if clusters is None else list(clusters(split))

    def recalibration(self, tasks: Sequence[str]) -> list[str]:
        """Return the tasks whose inputs are seen, each with what these say of themselves by a method `digest()`."""
        found: list[str] = []
        for task in self.inputs_of(tasks):
            digest = getattr(self.study.tasks[task].inputs, "digest", None)
            if callable(digest) and task not in self._seen:
                self._seen[task] = str(digest())
            found += [task, self._seen[task]] if task in self._seen else [task]
        return found

    def layout(self, checkpoint: Checkpoint, task: str) -> Hashable:
        """Return the one layout there is, once the checkpoint is known to fit the model."""
        own = self.places
        found = {own[name][0] for name in checkpoint if name in own}  # of tied names one is enough
        lacking = [name for name, (place, _) in own.items() if name not in checkpoint and place not in found]
        extra = [name for name in checkpoint if name not in own]
        if lacking or extra:
            reasons = [f"it lacks {lacking[0]}{_more(lacking)}"] if lacking else []
            reasons += [f"the model lacks {extra[0]}{_more(extra)}"] if extra else []
            raise StudyError(f"{checkpoint.path} is no checkpoint of the study's model: {'; '.join(reasons)}")
        for name, entry in checkpoint.entries.items():
            if tuple(entry.shape) != own[name][1]:
                shapes = f"{list(entry.shape)} there and {list(own[name][1])} in the study's model"
                raise StudyError(f"{checkpoint.path}: {name} has shape {shapes}")
        return "model"

    @property
    def places(self) -> Mapping[str, tuple[int, tuple[int, ...]]]:
        """Return where each tensor of the model lies, the same of tied ones, and its shape, by name."""
        if self._places is None:
            self._spare = self.make()
            own = {name: value for name, value in self._spare.state_dict().items() if isinstance(value, Tensor)}
            self._places = {name: (value.data_ptr() or id(value), tuple(value.shape)) for name, value in own.items()}
        return self._places

    def make(self) -> nn.Module:
        """Return a model of the study's, which is not the user's own; the random state stays."""
        given = self.study.model
        if isinstance(given, nn.Module):
            return copy.deepcopy(given).eval()
        with torch.random.fork_rng(devices=[]):
            made = given()
        if not isinstance(made, nn.Module):
            raise StudyError(f"study {self.study.name}: its model is a {type(made).__name__}, no torch.nn.Module")
        return made.eval()

    def build(self, layout: Hashable) -> nn.Module:
        """Return a model of the study's, with any weights."""
        made, self._spare = self._spare, None
        return made if made is not None else self.make()

    def unused(self, layout: Hashable) -> Sequence[str]:
        """Return none: a checkpoint holds what the model has."""
        return ()

    def ensemble(self, models: Sequence[nn.Module], shares: Sequence[float]) -> nn.Module:
        """Return what the study makes of models, or the mean of their outputs."""
        make = self.study.ensembles
        return (make(models, shares) if callable(make) else MeanOutput(models, shares)).eval()

    def recalibrate(self, model: nn.Module, tasks: Sequence[str]) -> None:
        """Measure BatchNorm statistics anew, on the inputs of tasks, in every batch some of each task."""
        given = [self.study.tasks[task].inputs for task in self.inputs_of(tasks)]
        batches = [list(one() if callable(one) else one or ()) for one in given]
        recalibrate_batchnorm(model, (placed(batch, model) for batch in joined(batches)), answer)

    def inputs_of(self, tasks: Sequence[str]) -> list[str]:
        """Return the tasks whose inputs are seen: those named, in the order of the study."""
        named = {task for own in tasks for task in own.split("+")}
        return [task for task in self.study.tasks if task in named]

    def evaluate(self, model: nn.Module, cell: Cell) -> dict[str, Score]:
        """Return the scores of a model by the task's function; none, and why, where that raises an error."""
        task = self.study.tasks[cell.task]
        with torch.no_grad():
            try:
                answer = task.score(model.eval(), cell.split)
            except StudyError:
                raise
            except Exception as error:
                return {task.metric: unscored(task, task.metric, f"{type(error).__name__}: {error}")}
        named = dict(answer) if isinstance(answer, Mapping) else {task.metric: answer}
        if not named or not all(isinstance(name, str) and name for name in named):
            raise StudyError(f"task {cell.task}: its score returned {answer!r:.80}: give scores by name of a metric")
        first = [name for name in named if name == task.metric]
        return {name: scored(task, cell.task, name, named[name]) for name in dict.fromkeys([*first, *named])}


class MeanOutput(nn.Module):
    """Models that answer with the weighted mean of their outputs, whatever these are made of."""

    def __init__(self, models: Sequence[nn.Module], shares: Sequence[float]) -> None:
        super().__init__()
        self.models, self.shares = nn.ModuleList(models), list(shares)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return the mean of what the models return."""
        return mean([model(*args, **kwargs) for model in self.models], self.shares)


def mean(outputs: Sequence[Any], shares: Sequence[float]) -> Any:
    """Return the weighted mean of outputs of one structure: floating tensors, and lists, tuples, mappings of them.

    What is no number is taken from the first.
    """
    first = outputs[0]
    if isinstance(first, Tensor) and first.is_floating_point():
        return torch.stack([share * output for share, output in zip(shares, outputs, strict=True)]).sum(0)
    if isinstance(first, Mapping):
        made: Any = copy.copy(first)
        for name in first:  # one by one: outputs of transformers have no update
            made[name] = mean([output[name] for output in outputs], shares)
        return made
    if isinstance(first, (list, tuple)):
        found = [mean(parts, shares) for parts in zip(*outputs, strict=True)]
        return type(first)(*found) if hasattr(first, "_fields") else type(first)(found)
    return first


def scored(task: Task, name: str, metric: str, value: Any) -> Score:
    """Return a task's value for a metric, one number or one an example, with its 95 % interval.

    Wilson's for scores of 0 and 1, else a bootstrap's. StudyError for what is neither.
    """
    if isinstance(value, Tensor):
        value = value.detach().double().cpu().numpy()
    try:
        numbers = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError, RuntimeError):
        numbers = np.empty((0, 0))
    if numbers.ndim > 1 or value is None or isinstance(value, (str, bytes)):
        what = f"an array of shape {list(value.shape)}" if isinstance(value, np.ndarray) else f"{value!r:.60}"
        raise StudyError(
            f"task {name}: its score returned {what} for {metric}: give one number an example (n,), or one number, or "
            "either by name of a metric"
        )
    if strange := int((~np.isfinite(numbers)).sum()):
        of = f"{strange} of {numbers.size} scores are" if numbers.ndim else "the score is"
        return unscored(task, metric, f"{of} not finite")
    shown = {"unit": task.unit_of(metric), "higher_is_better": task.rises(metric)}
    if not numbers.ndim:
        return Score(float(numbers), math.nan, math.nan, 0, np.empty(0), **shown)
    if not numbers.size:
        return unscored(task, metric, "there are no examples")
    n = len(numbers)
    interval = wilson_interval(float(numbers.sum()), n) if is_binary(numbers) else bootstrap_interval(numbers)
    return Score(float(numbers.mean()), *interval, n, numbers, **shown)


def unscored(task: Task, metric: str, note: str) -> Score:
    """Return a score that could not be computed, and why."""
    note = " ".join(note.split())[:500]
    return Score(math.nan, math.nan, math.nan, 0, np.empty(0), note, task.unit_of(metric), task.rises(metric))


def joined(batches: Sequence[Sequence[Any]]) -> Iterator[Any]:
    """Yield the k-th batches of several tasks as one, as many as the fewest: the mixture is in every batch, since the
    variance of a mixture is not the mean of its parts' variances."""
    return (one[0] if len(one) == 1 else concatenated(one) for one in zip(*batches, strict=False))


def concatenated(batches: Sequence[Any]) -> Any:
    """Put batches of one structure together along the first axis. StudyError where they do not fit."""
    first = batches[0]
    if isinstance(first, Mapping):
        return {name: concatenated([batch[name] for batch in batches]) for name in first}
    if isinstance(first, (list, tuple)):
        return [concatenated(parts) for parts in zip(*batches, strict=True)]
    try:
        return torch.cat([torch.as_tensor(batch) for batch in batches])
    except (RuntimeError, TypeError) as error:
        raise StudyError(f"inputs of tasks do not fit into one batch ({error}): use recalibrate:task") from None


def placed(batch: Any, model: nn.Module) -> Any:
    """Return a batch as tensors where the model is, numbers with a fraction in its dtype (NumPy's are float64)."""
    if isinstance(batch, Mapping):
        return {name: placed(one, model) for name, one in batch.items()}
    if isinstance(batch, (list, tuple)):
        return [placed(one, model) for one in batch]
    held = torch.as_tensor(batch) if isinstance(batch, np.ndarray) else batch
    if not isinstance(held, Tensor):
        return held.to(_first(model).device) if hasattr(held, "to") else held
    like = _first(model)
    return held.to(like.device, like.dtype if held.is_floating_point() else held.dtype)


def answer(model: nn.Module, batch: Any) -> Any:
    """Run a model on a batch: a mapping holds arguments by name, a list several of them."""
    if isinstance(batch, Mapping):
        return model(**batch)
    return model(*batch) if isinstance(batch, list) else model(batch)


def _first(model: nn.Module) -> Tensor:
    """The first parameter with a fraction, which says where a model is and in which dtype."""
    return next((one for one in model.parameters() if one.is_floating_point()), torch.empty(0))


def _more(names: Iterable[str]) -> str:
    count = len(list(names)) - 1
    return f" and {count} more" if count else ""
