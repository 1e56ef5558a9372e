"""Looking for good shares with few evaluations, of a study's experts or by any function of shares."""

# What users give is checked, whatever its type is said to be.
# pyright: reportUnnecessaryIsInstance=false

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from experiments.errors import StudyError
from experiments.results.grids import check_experts, grid_of
from experiments.searches.cells import Mixture
from experiments.searches.driver import History
from experiments.searches.driver import search as look
from experiments.searches.space import Scores, Shares, Space
from experiments.statistics.selection import check_choosing
from experiments.study.cells import chosen, expert_named, mixture_label
from experiments.study.points import START, Expert
from experiments.study.study import Study

Named = str | Sequence[str]  # a mixture: "a+b", or the names of its experts, in any order


def search(
    what: Study | Callable[[Shares], Scores],
    mixture: Named | Mapping[str, str | Sequence[str]] | None = None,
    folder: str | Path | None = None,
    *,
    method: str = "adaptive",
    budget: int = 12,
    objective: str = "joint",
    seed: int = 0,
    split: str = "val",
    batchnorm: str = "average",
    training_seed: int | None = None,
    device: str = "cpu",
    precision: str = "fp32",
    lower_is_better: Collection[str] = (),
    pretrained: Scores | None = None,
    known: Iterable[tuple[Shares, Scores]] = (),
) -> History:
    """Look for good shares with at most `budget` evaluations, and return the whole history; `history.best` is the best.

    >>> bump = lambda shares: {"a": 1 - shares["b"] ** 2, "b": 1 - shares["a"] ** 2}
    >>> search(bump, "a+b", budget=5).best.shares
    {'a': 0.5, 'b': 0.5}

    Of a study, `mixture` is one of its own (needed where there are several), and rows are kept in `folder`: points that
    have some cost nothing, and another run takes over those that are new. Experts are those of `training_seed`, by
    default the first, merged under one `batchnorm` policy; models answer on `device` in `precision`, as in
    `experiments.run`.

    A function takes shares by expert and returns scores by task. `mixture` then names the experts, each with the task,
    or tasks, that are its own; names alone are those of the tasks too. `lower_is_better` names tasks of such scores,
    `pretrained` gives the scores of the model that experts started from, `known` points that were evaluated before.

    `method` is a key of `experiments.searches.methods.SEARCHES`: grid, random, coordinate, adaptive, cma (extra
    `search`), greedy-soup. The `objective` is "joint", the mean retention over the tasks, or "hypervolume", what a
    point dominates of the box up to all experts' own scores. `seed` is that of methods that draw. Ctrl-C ends the
    search and keeps what was evaluated. Raises StudyError for unknown names, for a split that is not for choosing, and
    where a point has no score of a task.
    """
    check_choosing(split)
    options = {"seed": seed, "objective": objective}
    if isinstance(what, Study):
        if folder is None:
            raise StudyError(f"study {what.name}: say in which folder rows are kept: folder=")
        where = {"split": split, "batchnorm": batchnorm, "device": device, "precision": precision}
        own = space_in(what, mixture, Path(folder), seed=training_seed, **where)
        return look(own.space, method, own.evaluate, budget, known=own.known(), **options)
    if not callable(what) or mixture is None:
        given = f"a {type(what).__name__} with mixture={mixture!r:.60}"
        raise StudyError(f"{given}: give a study, or a function of shares and its experts")
    names = mixture.split("+") if isinstance(mixture, str) else mixture
    own_tasks = names if isinstance(names, Mapping) else {name: name for name in names}
    space = Space(own_tasks, split=split, lower_is_better=lower_is_better, pretrained=pretrained)
    return look(space, method, what, budget, known=known, **options)


def space_in(
    study: Study,
    mixture: Any,
    folder: Path,
    *,
    split: str,
    batchnorm: str,
    seed: int | None = None,
    file: str = "",
    **options: str,
) -> Mixture:
    """Return the mixture of a study that is meant, as a space whose points become rows in a folder.

    `options` are the device and the precision, `file` is what defines the study.
    """
    study, experts = _asked(study, mixture, split, batchnorm)
    grid = grid_of(study, folder, file=file, seeds=[study.all_seeds[0] if seed is None else seed], **options)
    start = None if study.pretrained is None else START
    check_experts(grid, [*experts.values(), *([] if start is None else [start])])
    return Mixture(grid, experts, folder, split=split, batchnorm=batchnorm, pretrained=start)


def _asked(study: Study, mixture: Any, split: str, batchnorm: str) -> tuple[Study, dict[str, Expert]]:
    """Return a study under one BatchNorm policy, and the experts of the mixture that is meant."""
    wanted = mixture if isinstance(mixture, (str, Mapping)) else tuple(mixture or ())
    found = chosen(study, wanted) if wanted else study.all_mixtures
    if len(found) != 1:
        known = ", ".join(map(mixture_label, found))
        raise StudyError(f"study {study.name} has {len(found)} mixtures: choose one of {known}")
    if split not in study.splits:
        raise study.unknown("no split", split, study.splits)
    return replace(study, batchnorm=batchnorm), {name: expert_named(study, name) for name in found[0]}
