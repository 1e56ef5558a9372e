"""Tasks of EleutherAI's lm-evaluation-harness, asked of the model as it is in memory."""

from __future__ import annotations

import importlib
import io
import itertools
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from torch import nn

from experiments.errors import StudyError
from experiments.study.study import Task
from experiments.tasks.data import Scored, digest_of

FEWSHOT_SEED = 1234  # the harness's own


def lm_harness(
    task: str | Mapping[str, str],
    tokenizer: Any,
    *,
    limit: int | None = None,
    include_path: str | Path | Sequence[str | Path] | None = None,
    metric: str = "",
    num_fewshot: int | None = None,
    batch_size: int = 8,
    expert: str = "",
) -> Task:
    """Return a task, or group of tasks, of the harness (lm-eval 0.4, extra `harness`), with a score per document.

    Of `task`, split test is what the harness evaluates, and val what comes before it: the documents of the task's
    validation split, or of its training split where it has no test documents. A mapping names a task of the harness for
    each split. `tokenizer` is that of the model, which is one of transformers, or the folder or name of one.
    `include_path` are folders with tasks (YAML) besides the harness's own; `limit` takes the first documents of each
    task. `metric` is by default the first that the task names; metrics without a score per document, as F1, give the
    one number of the whole. Documents of a group count alike.

    Raises StudyError for tasks that the harness does not have. A model that is not of transformers, as an ensemble is
    not, costs its own rows.
    """
    names = {"val": task, "test": task} if isinstance(task, str) else dict(task)
    paths = (include_path,) if isinstance(include_path, (str, Path)) else tuple(include_path or ())
    score = Harnessed(
        "lm_harness",
        names,
        isinstance(task, str),
        tokenizer,
        limit,
        tuple(str(Path(path).absolute()) for path in paths),
        metric,
        num_fewshot,
        batch_size,
    )
    last = list(names)[-1] if "test" not in names else "test"
    shown, better = score.shown(last)
    return Task(score, expert=expert, metric=shown, higher_is_better=better)


@dataclass(frozen=True)
class Harnessed(Scored):
    """Scores of a model by the harness; `divided` says that one task's splits are the study's val and test."""

    divided: bool
    tokenizer: Any
    limit: int | None
    include: tuple[str, ...]
    metric: str
    num_fewshot: int | None
    batch_size: int
    _loaded: dict[str, list[Any]] = field(default_factory=dict[str, list[Any]], init=False, repr=False, compare=False)

    def __reduce__(self) -> tuple[Any, ...]:
        """Leave the tasks that were loaded behind: another process loads its own."""
        given = (self.divided, self.tokenizer, self.limit, self.include, self.metric, self.num_fewshot, self.batch_size)
        return Harnessed, (self.name, self.data, *given)

    def __call__(self, model: nn.Module, split: str) -> dict[str, Any]:
        """Return the scores of documents by the metric, or one number."""
        config = getattr(model, "config", None)
        if not hasattr(config, "model_type") or not hasattr(model, "device"):
            raise TypeError(f"lm_harness asks models of transformers; this is a {type(model).__name__}")
        evaluator, models = imported("lm_eval.evaluator"), imported("lm_eval.models.huggingface")
        tasks = self.tasks(split)
        for one in tasks:
            one.set_fewshot_seed(seed=FEWSHOT_SEED)
        with quiet():  # `simple_evaluate` would look through the whole machine each time, and set global seeds
            live = models.HFLM(pretrained=model, tokenizer=self.tokenizer, batch_size=self.batch_size)
            given = {"tasks": {one.config.task: one for one in tasks}}
            answers = evaluator.evaluate(live, given, limit=self.limit, bootstrap_iters=0)
        name, _ = self.shown(split)
        scores: list[float] = []
        for task, samples in answers["samples"].items():
            first = samples[0]["filter"] if samples else ""
            own = [sample[name] for sample in samples if sample["filter"] == first]
            if not all(isinstance(value, (int, float)) for value in own):
                if len(answers["samples"]) > 1:
                    raise StudyError(f"lm_harness: {name} of {task} has no score per document, to be put with others'")
                return {name: float(answers["results"][task][f"{name},{first}"])}
            scores += map(float, own)
        return {name: scores}

    def tasks(self, split: str) -> list[Any]:
        """Return the tasks of the harness for a split, loaded once."""
        if split not in self._loaded:
            name = self.of(split)
            found = tasks_named(name, self.include)
            for one in found.values() if self.divided and split == "val" else ():
                before = one.config.validation_split if one.config.test_split else one.config.training_split
                if before is None:
                    raise StudyError(
                        f"lm_harness: {one.config.task} has only one split: give a task for each, as "
                        f"{{'val': ..., 'test': {name!r}}}"
                    )
                one.set_config("test_split", before)
            for one in found.values():
                shots = one.get_config("num_fewshot") if self.num_fewshot is None else self.num_fewshot
                one.set_config("num_fewshot", shots or 0)
            self._loaded[split] = [*found.values()]
        return self._loaded[split]

    def shown(self, split: str) -> tuple[str, bool]:
        """Return the metric, and whether higher is better."""
        better = self.tasks(split)[0].higher_is_better()
        name = self.metric or next(iter(better), "")
        if name not in better:
            raise StudyError(f"lm_harness: {self.of(split)} has no metric {name!r}: choose of {', '.join(better)}")
        return name, bool(better[name])

    def digest(self, split: str) -> str:
        """Return what tells the tasks, with the documents that are asked, from others."""
        parts: list[Any] = [self.limit, self.metric, imported("lm_eval").__version__]
        for task in self.tasks(split):
            documents = itertools.islice(task.eval_docs, self.limit)
            text = json.dumps([task.dump_config(), *documents], default=_named, sort_keys=True)
            parts += [text, self.tokenizer if isinstance(self.tokenizer, str) else self.tokenizer.encode(text[-2000:])]
        return digest_of(parts)


def _named(value: Any) -> str:
    """What JSON does not hold, without its place in memory."""
    return getattr(value, "__qualname__", type(value).__name__)


def tasks_named(name: str, include: tuple[str, ...]) -> dict[str, Any]:
    """Return a task of the harness, or those of a group, by name; folders are looked into first, which is quick."""
    manager = imported("lm_eval.tasks").TaskManager
    with quiet():
        if include:
            with suppress(KeyError, ValueError):
                return manager(include_path=list(include), include_defaults=False).load([name])["tasks"]
        try:
            return every_task(include).load([name])["tasks"]
        except KeyError:
            where = f" nor in {', '.join(include)}" if include else "; include_path= names folders"
            raise StudyError(f"lm_harness: no task {name!r} in the harness{where}") from None


@cache
def every_task(include: tuple[str, ...]) -> Any:
    """Return the harness's index of its own tasks and those of folders: half a minute, so once a process."""
    return imported("lm_eval.tasks").TaskManager(include_path=list(include) or None)


def imported(name: str) -> Any:
    """Load a module of the harness. StudyError where it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise StudyError(f"lm_harness needs lm-eval ({error}): pip install 'unival-merge[harness]'") from None


@contextmanager
def quiet() -> Iterator[None]:
    """Keep back what the harness tells about its work, and its bars: a study has one of its own."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(before)
