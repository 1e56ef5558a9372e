"""What is evaluated, as data: experts, points between them, cells. Nothing here knows a model, a task or a study.

>>> experts = {task: Expert(task, task, "plain") for task in ("upright", "turned")}
>>> [merged(experts, shares).label for shares in line([*experts], 3)][1]
'0.50 upright + 0.50 turned (plain, interpolate)'
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from experiments.errors import StudyError
from merge import METHODS, share_label

WHOLE = ("single", "ensemble")  # methods of points that merge no weights
POLICIES = ("average", "recalibrate:mixture", "recalibrate:task")  # and from:<name of an expert>
PRETRAINED = "pretrained"
Shares = Mapping[str, float]


@dataclass(frozen=True)
class Expert:
    """A model that takes part: `name` is the word used in shares, `task` what it was finetuned on (tasks joined by "+"
    for a joint finetuning, "" for the pretrained model), `kind` how."""

    name: str
    task: str
    kind: str

    @property
    def id(self) -> str:
        """Tell experts of different kinds apart."""
        return self.kind if self.kind == PRETRAINED else f"{self.kind}/{self.name}"


START = Expert(PRETRAINED, "", PRETRAINED)


@dataclass(frozen=True)
class Point:
    """One model to evaluate: experts by the names of their shares, put together by `method`.

    `single` is one expert as it is; `ensemble` is the mean of the experts' predictions; any other is a key of METHODS,
    which merges weights, with `parameters` besides what the shares say, and from a `base` where it takes one.
    `batchnorm` says where the statistics of merged weights come from: `average`, `from:<name>` (an expert's),
    `recalibrate:mixture` (measured on training inputs of all the experts' tasks) or `recalibrate:task` (on those of the
    task that is evaluated). Other points have their own: `average`.
    """

    experts: Mapping[str, Expert]
    shares: Shares
    method: str
    batchnorm: str = "average"
    parameters: Mapping[str, Any] = field(default_factory=dict[str, Any])
    base: Expert | None = None

    def __post_init__(self) -> None:
        if set(self.experts) != set(self.shares) or not self.shares:
            raise StudyError(f"a point of experts {sorted(self.experts)} with shares of {sorted(self.shares)}")
        if self.method not in (*WHOLE, *METHODS):
            raise StudyError(f"no method {self.method!r}: choose one of {', '.join((*WHOLE, *METHODS))}")

    @property
    def held(self) -> dict[str, float]:
        """Return the shares that are not 0."""
        return {name: share for name, share in self.shares.items() if share}

    @property
    def kind(self) -> str:
        """Say how its experts were finetuned."""
        return "+".join(dict.fromkeys(expert.kind for expert in self.experts.values()))

    @property
    def label(self) -> str:
        """Return the point in words."""
        how = "".join(f", {name} {value}" for name, value in self.parameters.items())
        policy = f", BatchNorm {self.batchnorm}" if self.batchnorm != "average" else ""
        return f"{share_label(self.shares)} ({self.kind}, {self.method}{how}{policy})"

    @property
    def id(self) -> str:
        """Return an id that equal points share."""
        parts = [f"{share!r} {self.experts[name].id}" for name, share in self.shares.items()]
        how = "".join(f" {name}={value!r}" for name, value in sorted(self.parameters.items()))
        return f"{self.method}{how} {self.batchnorm} {' + '.join(parts)}"

    @property
    def files(self) -> dict[str, Expert]:
        """Return the experts whose weights are read by name, the base under its own."""
        held = {name: self.experts[name] for name in self.held}
        return held if self.base is None else {**held, self.base.name: self.base}

    @property
    def arguments(self) -> dict[str, Any]:
        """Return the parameters of the method that merges: what the shares mean for it, and the others."""
        carrier = share_parameter(self.method)
        if carrier == "ratio":
            return {**self.parameters, carrier: [*self.shares.values()][1]}
        return {**self.parameters, carrier: [*self.shares.values()]} if carrier else dict(self.parameters)


@dataclass(frozen=True)
class Cell:
    """A point on a split of a task; `metrics` are names, () for those that the task has."""

    point: Point
    task: str
    split: str
    metrics: tuple[str, ...] = ()


def single(expert: Expert) -> Point:
    """Return an expert as it is, the same point whatever mixture it is an end of."""
    return Point({expert.name: expert}, {expert.name: 1.0}, "single")


def merged(experts: Mapping[str, Expert], shares: Shares, batchnorm: str = "average") -> Point:
    """Return the weights of experts mixed in these shares; an expert without a share counts as one with 0."""
    whole = {name: float(shares.get(name, 0)) for name in experts}
    return Point(experts, whole, "interpolate" if len(experts) == 2 else "average", batchnorm)


def share_parameter(method: str) -> str:
    """Name the parameter of a method that shares are given to: `ratio`, or `weights` of which only proportions count or
    whose sum is 1; "" for methods of task vectors, whose experts each count whole.

    >>> share_parameter("slerp"), share_parameter("average"), share_parameter("ties")
    ('ratio', 'weights', '')
    """
    parameters = METHODS[method].parameters if method in METHODS else {}
    if "ratio" in parameters:
        return "ratio"
    weights = parameters.get("weights")
    return "weights" if weights is not None and (weights.simplex or weights.relative) else ""


def line(names: Sequence[str], points: int) -> list[dict[str, float]]:
    """Return the shares of so many points along every edge between names (of three or more: and inside), made as i /
    n."""
    parts = points - 1
    return [dict(zip(names, (part / parts for part in own), strict=True)) for own in lattice(len(names), parts)]


def lattice(count: int, parts: int) -> list[tuple[int, ...]]:
    """Return all ways to give `parts` equal parts to `count` experts, the first one's falling.

    >>> lattice(2, 2)
    [(2, 0), (1, 1), (0, 2)]
    """
    if count == 1:
        return [(parts,)]
    return [(own, *rest) for own in range(parts, -1, -1) for rest in lattice(count - 1, parts - own)]


def together(cells: Iterable[Cell]) -> list[Cell]:
    """Return every cell once, in the place of the first and with the metrics of the last; those of one point
    together."""
    unique = {(cell.point.id, cell.task, cell.split): cell for cell in cells}
    groups: dict[str, list[Cell]] = {}
    for cell in unique.values():
        groups.setdefault(cell.point.id, []).append(cell)
    return [cell for group in groups.values() for cell in group]
