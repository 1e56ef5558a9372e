"""From a study to its cells: the one way, whatever model it is of.

>>> experts = {name: Expert(name, name, "plain") for name in ("upright", "turned")}
>>> ask = lambda point: [Cell(point, "upright", "test")]
>>> own = Outline(experts=experts, mixtures=[("upright", "turned")], points=3, ask=ask)
>>> [cell.point.label for cell in own.cells()][1:]
['1.00 turned (plain, single)', '0.50 upright + 0.50 turned (plain, interpolate)']
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from experiments.errors import StudyError
from experiments.study.methods import Sweep
from experiments.study.points import (
    POLICIES,
    PRETRAINED,
    START,
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


@dataclass(frozen=True, kw_only=True)
class Outline:
    """What a study comes down to: experts of one kind, what is mixed of them and how, and what a point is asked.

    Attributes:
        experts: by the names of their shares.
        mixtures: names, or shares by name; of a single name there are only the methods that take one expert.
        ask: returns the cells of a point.
        points: on the line of a pair, the ends included.
        simplex: whether mixtures of three or more names have as many points along every edge, and the lattice inside.
        methods: with the values to try of their parameters; those with a base start from the pretrained model.
        policies: BatchNorm policies of merged weights; "all" is each there is.
        ensembles: whether models that answer with the mean of predictions stand beside every mixture.
    """

    experts: Mapping[str, Expert]
    mixtures: Sequence[Mixture]
    ask: Callable[[Point], Iterable[Cell]]
    points: int = 11
    simplex: bool = False
    methods: Sequence[Sweep] = (("interpolate", {}),)
    policies: Sequence[str] = ("average",)
    ensembles: bool = False

    def cells(self) -> list[Cell]:
        """List every cell once, those of one point together: experts as they are, and their merges by mixture."""
        names = dict.fromkeys(name for mixture in self.mixtures for name in mixture) or self.experts
        found = [single(self.experts[name]) for name in names]
        for mixture in self.mixtures:
            found += self.merges(mixture)
        return together(cell for point in found for cell in self.ask(point))

    def merges(self, mixture: Mixture) -> Iterator[Point]:
        """Yield the merges of a mixture by every method that takes as many experts, under every BatchNorm policy, then
        the ensembles.

        A method that shares say nothing to has the point of equal shares alone, and one that merges a single expert
        into its base a point of each. Statistics come from experts that have a part.
        """
        every = ["average", *(f"from:{name}" for name in mixture), *POLICIES[1:]]
        policies = [policy for policy in every if policy in self.policies or "all" in self.policies]
        for named, values in self.methods:
            method = "average" if named == "interpolate" and len(mixture) > 2 else named
            base = START if METHODS[method].takes_base else None
            for given, policy in itertools.product(itertools.product(*values.values()), policies):
                for shares in self.shares_of(mixture, method):
                    if policy.removeprefix("from:") in (*POLICIES, *shares):
                        own = {name: self.experts[name] for name in shares}
                        yield Point(own, shares, method, policy, dict(zip(values, given, strict=True)), base)
        if self.ensembles:
            experts = {name: self.experts[name] for name in mixture}
            yield from (Point(experts, shares, "ensemble") for shares in self.shares_of(mixture, "average"))

    def shares_of(self, mixture: Mixture, method: str) -> list[Shares]:
        """Return the shares at which a method merges a mixture; none where it does not take so many experts."""
        names, (_, most) = tuple(mixture), METHODS[method].inputs
        if most == 1:
            return [{name: 1.0} for name in names]
        if len(names) < 2 or (most is not None and len(names) > most):
            return []
        if isinstance(mixture, Mapping):
            return [mixture] if share_parameter(method) or len(set(mixture.values())) == 1 else []
        if share_parameter(method) and (len(names) == 2 or self.simplex):
            return [shares for shares in line(names, self.points) if sum(map(bool, shares.values())) > 1]
        return [dict.fromkeys(names, 1 / len(names))]


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

    def ask(point: Point) -> Iterator[Cell]:
        tasks = study.tasks if is_even(point) else study.own_tasks(point.experts)
        return (Cell(point, task, one) for task in tasks for one in splits)

    found = Outline(
        experts={name: expert_named(study, name) for name in study.experts},
        mixtures=study.all_mixtures if only is None else chosen(study, only),
        ask=ask,
        points=points or study.points,
        simplex=study.simplex,
        methods=study.all_methods,
        policies=study.batchnorm,
        ensembles=bool(study.ensembles),
    ).cells()
    return together([*(ask(single(START)) if study.pretrained is not None else ()), *found])


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
    return START if name == PRETRAINED else Expert(name, mixture_label(study.own_tasks([name])), KIND)


def is_even(point: Point) -> bool:
    """Tell whether a point is a model as it is, or has equal shares of all its experts."""
    return len(set(point.shares.values())) == 1
