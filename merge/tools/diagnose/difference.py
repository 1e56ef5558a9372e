"""How two checkpoints differ: names, shapes and dtypes from the headers, distances and angles from the values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from merge.checkpoint.open import specs
from merge.checkpoint.source import Source, opened
from merge.plan.findings.kinds import counted
from merge.tools.diagnose.measure import Measured, Progress, measure_all, pooled
from merge.tools.diagnose.sources import labels_for
from merge.tools.diagnose.tables import Shown, module_of, number, part, table


@dataclass(frozen=True)
class Differing:
    """A tensor whose shape or dtype differs, with both values."""

    name: str
    first: str
    second: str


@dataclass(frozen=True)
class Distance:
    """How far the tensors of a module are apart.

    Attributes:
        tensors, equal: tensors compared, and how many of them are equal bit by bit (frozen).
        distance: `||first - second|| / ||first||` over the floating tensors; None where the first is zero.
        cosine: of the angle between the two; None where one is zero.
        nonfinite: infinite and NaN elements; the tensors that have them are left out of the sums.
    """

    name: str
    tensors: int
    equal: int
    distance: float | None
    cosine: float | None
    nonfinite: int


@dataclass(frozen=True, repr=False)
class Diff(Shown):
    """How two checkpoints differ. `modules` are those that do, the greatest relative distance first."""

    first: str
    second: str
    only_first: tuple[str, ...]
    only_second: tuple[str, ...]
    shapes: tuple[Differing, ...]
    dtypes: tuple[Differing, ...]
    total: Distance
    modules: tuple[Distance, ...]

    def __repr__(self) -> str:
        return f"<Diff of {_lines(self)[0]}>"

    def to_json(self) -> dict[str, Any]:
        """Everything as plain JSON data."""
        return asdict(self)

    def text(self) -> str:
        """As printed on a terminal."""
        return "\n".join(_lines(self))


def diff(
    first: Source,
    second: Source,
    section: str = "auto",
    *,
    second_section: str | None = None,
    progress: Progress | None = None,
) -> Diff:
    """Compare two checkpoints (paths, open checkpoints or state dicts), tensor by tensor, in bounded memory.

    `section` is opened of both, or `second_section` of the second: so a training file's weights can be compared with
    their moving average. `progress` is called with the bytes read. Sums are in float64 in a fixed order.
    Raises MergeError for a file that cannot be opened.
    """
    a, b = opened(first, section), opened(second, second_section or section)
    mine, theirs = specs(a), specs(b)
    label, other = labels_for([first, second])
    both = [name for name in mine if name in theirs]
    shapes = [name for name in both if mine[name].shape != theirs[name].shape]
    dtypes = [name for name in both if mine[name].element is not theirs[name].element]
    measured = measure_all([a, b], [name for name in both if name not in set(shapes)], progress=progress)
    return Diff(
        label,
        other,
        tuple(name for name in mine if name not in theirs),
        tuple(name for name in theirs if name not in mine),
        tuple(Differing(name, str(list(mine[name].shape)), str(list(theirs[name].shape))) for name in shapes),
        tuple(Differing(name, mine[name].element.name, theirs[name].element.name) for name in dtypes),
        _distance("total", measured),
        _modules(measured),
    )


def _modules(measured: Mapping[str, Measured]) -> tuple[Distance, ...]:
    parts: dict[str, dict[str, Measured]] = {}
    for name, item in measured.items():
        parts.setdefault(module_of(name), {})[name] = item
    found = [_distance(name, part) for name, part in parts.items()]
    found = [item for item in found if item.equal < item.tensors]
    return tuple(sorted(found, key=lambda item: (item.distance is not None, -(item.distance or 0), item.name)))


def _distance(name: str, measured: Mapping[str, Measured]) -> Distance:
    everything = [item.contrasts[0, 1] for item in measured.values()]
    sums = pooled(item.contrasts[0, 1] for item in measured.values() if item.finite)
    nonfinite = sum(sum(item.nonfinite) for item in measured.values())
    equal = sum(contrast.equal for contrast in everything)
    return Distance(name, len(everything), equal, sums.relative_distance, sums.cosine, nonfinite)


# -- text --------------------------------------------------------------------------------------------------------------


def _lines(diff: Diff) -> list[str]:
    lines = [
        f"{diff.first} and {diff.second}: {counted(diff.total.tensors, 'tensor')} compared, {diff.total.equal:,} equal"
    ]
    for label, names in ((diff.first, diff.only_first), (diff.second, diff.only_second)):
        lines += part(f"only in {label}: {len(names)}", names)
    for what, items in (("shapes", diff.shapes), ("dtypes", diff.dtypes)):
        lines += part(
            f"{what} differ: {len(items)}", [f"{item.name}: {item.first} and {item.second}" for item in items]
        )
    if diff.modules:
        rows = [_row(item) for item in (*diff.modules, diff.total)]
        lines += ["", *table(("module", "tensors", "equal", "distance", "cosine", "not finite"), rows)]
    return lines


def _row(item: Distance) -> tuple[str, ...]:
    return (
        item.name,
        f"{item.tensors:,}",
        f"{item.equal:,}",
        number(item.distance),
        number(item.cosine, 5),
        f"{item.nonfinite:,}" if item.nonfinite else "",
    )
