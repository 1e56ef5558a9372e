"""The cells of a study of any model: which points there are, and what each is asked."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence

from experiments.errors import StudyError
from experiments.study.points import (
    POLICIES,
    PRETRAINED,
    Cell,
    Expert,
    Point,
    Shares,
    line,
    share_parameter,
    single,
    together,
)
from experiments.study.study import Mixture, Study
from merge import METHODS

KIND = "expert"  # of experts that differ in nothing but their names


def cells_of(
    study: Study,
    *,
    points: int | None = None,
    only: str | Mixture | Sequence[str | Mixture] | None = None,
    split: str | Sequence[str] | None = None,
) -> list[Cell]:
    """List every cell of a study once, those of one point together.

    A point is asked its experts' own tasks, on every split; the experts as they are, points of equal shares and the
    pretrained model also all other tasks. `points`, `only` (mixtures) and `split` narrow what the study says.
    StudyError for what it does not have.
    """
    if points is not None and (isinstance(points, bool) or points < 2):
        raise StudyError(f"points={points!r}: give 2 or more, the ends count")
    splits = (split,) if isinstance(split, str) else tuple(split or study.splits)
    for name in splits:
        if name not in study.splits:
            raise study.unknown("no split", name, study.splits)
    mixtures = study.all_mixtures if only is None else chosen(study, only)
    names = dict.fromkeys(name for mixture in mixtures for name in mixture) or dict.fromkeys(study.experts)
    found = [
        single(expert_named(study, name)) for name in ([PRETRAINED] if study.pretrained is not None else []) + [*names]
    ]
    for mixture in mixtures:
        found += merges(study, mixture, points or study.points)
    return together(Cell(point, task, one) for point in found for task in tasks_of(study, point) for one in splits)


def chosen(study: Study, only: str | Mixture | Sequence[str | Mixture]) -> list[Mixture]:
    """Return the mixtures of a study that are named, in any order of experts; a tuple of experts is one mixture."""
    one = isinstance(only, (str, Mapping)) or (isinstance(only, tuple) and set(only) <= set(study.experts))
    found: list[Mixture] = []
    for wanted in [only] if one else only:
        names = set(wanted.split("+") if isinstance(wanted, str) else wanted)
        own = [mixture for mixture in study.all_mixtures if set(mixture) == names]
        if not own:
            label = wanted if isinstance(wanted, str) else "+".join(map(str, wanted))
            raise study.unknown("no mixture", label, map(mixture_label, study.all_mixtures))
        found += own
    return found


def mixture_label(names: Iterable[str]) -> str:
    """Return the name of a mixture: its experts joined by "+"."""
    return "+".join(names)


def expert_named(study: Study, name: str) -> Expert:
    """Return an expert of a study, all of one kind, with its own tasks; or the pretrained model."""
    if name == PRETRAINED:
        return Expert(name, "", PRETRAINED)
    return Expert(name, mixture_label(study.own_tasks([name])), KIND)


def tasks_of(study: Study, point: Point) -> list[str]:
    """Return the tasks of a point: its experts' own, or all for an expert as it is and for equal shares."""
    return [*study.tasks] if len(set(point.held.values())) == 1 else study.own_tasks(point.experts)


def merges(study: Study, mixture: Mixture, points: int) -> Iterator[Point]:
    """Yield the merges of a mixture by every method that takes as many experts, under every BatchNorm policy, then the
    ensembles.

    A method that shares say nothing to has the point of equal shares alone, and one that merges a single expert into
    its base a point of each.
    """
    experts = {name: expert_named(study, name) for name in mixture}
    for named, values in study.all_methods:
        method = "average" if named == "interpolate" and len(experts) > 2 else named
        entry = METHODS[method]
        base = expert_named(study, PRETRAINED) if entry.takes_base else None
        for shares in shares_of(mixture, points, method):
            own = {name: experts[name] for name in shares}
            for given in itertools.product(*values.values()):
                parameters = dict(zip(values, given, strict=True))
                for policy in policies_of(study, own):
                    yield Point(own, shares, method, policy, parameters, base)
    if study.ensembles:
        yield from (Point(experts, shares, "ensemble") for shares in shares_of(mixture, points, "average"))


def shares_of(mixture: Mixture, points: int, method: str) -> list[Shares]:
    """Return the shares at which a method merges a mixture; none where it does not take so many experts."""
    names, (_, most) = tuple(mixture), METHODS[method].inputs
    if most == 1:
        return [{name: 1.0} for name in names]
    if most is not None and len(names) > most:
        return []
    if isinstance(mixture, Mapping):
        return [mixture] if share_parameter(method) or len(set(mixture.values())) == 1 else []
    if len(names) == 2 and share_parameter(method):
        return [shares for shares in line(names, points) if all(shares.values())]
    return [dict.fromkeys(names, 1 / len(names))]


def policies_of(study: Study, experts: Iterable[str]) -> list[str]:
    """Return the BatchNorm policies that a study wants of merged weights; statistics come from experts that have a
    part."""
    every = ["average", *(f"from:{name}" for name in experts), *POLICIES[1:]]
    return [policy for policy in every if policy in study.batchnorm or "all" in study.batchnorm]
