"""What a merge does with every tensor, in plain words: printed by the commands and noted in recipes."""

from __future__ import annotations

from collections.abc import Sequence

from merge.engine.files import Plan
from merge.plan.units import Unit

_LISTED = 3
# Why tensors are not merged as a whole, as the units have it, in words; "picked" and others need no reason.
_REASONS = {"kept": "kept", "codebook": "codebooks", "missing: keep-first": "others lack them"}
_WAYS = {"missing: union": "among the inputs that have them", "by row": "row by row", "sliced": "by slices"}


def summary(plan: Plan) -> list[str]:
    """Say how many tensors were merged, came unmerged from which input, or were left out; a line for each fate.

    A name counts, also where it is one tensor with others.
    """
    labels = [source.name for source in plan.recipe.sources]
    fates: dict[str, list[str]] = {}
    for unit in plan.units:
        fates.setdefault(_fate(unit, labels), []).extend(unit.names)
    order = sorted(fates, key=lambda fate: not fate.startswith("{} {} merged"))
    lines = [fate.format(_counted(len(fates[fate])), "was" if len(fates[fate]) == 1 else "were") for fate in order]
    made = {name for unit in plan.units for name in unit.names}
    absent = list(dict.fromkeys(name for one in plan.checkpoints for name in one if name not in made))
    left = f"{_counted(len(absent))} {'was' if len(absent) == 1 else 'were'} left out: {_listed(absent)}"
    return lines + [left] * bool(absent)


def _fate(unit: Unit, labels: Sequence[str]) -> str:
    """What happens to a unit's tensors, with places for their number and "was" or "were"."""
    if unit.kind == "maximum":
        return "{} took the largest count"
    if len(labels) == 1:
        return "{} {} copied"
    if unit.kind == "copy" and len(unit.sources) == 1 and unit.why:
        reason = _REASONS.get(unit.why, "BatchNorm" if unit.why.startswith("from:") else "")
        return f"{{}} came unmerged from {labels[unit.sources[0]]}" + (f" ({reason})" if reason else "")
    if unit.kind == "copy":
        return "{} {} copied, equal in all"
    return " ".join(["{} {} merged", *filter(None, [_WAYS.get(unit.why)])])


def _counted(count: int) -> str:
    return f"{count:,} tensor{'s' * (count != 1)}"


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _LISTED
    return ", ".join(names[:_LISTED]) + (f" and {more:,} more" if more > 0 else "")
