"""What a merge does with every tensor, in plain words: printed by the commands and noted in recipes."""

from __future__ import annotations

from collections.abc import Sequence

from merge.engine.planned import Plan
from merge.plan.units import Unit
from merge.recipe.parameters import method_named

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
        fates.setdefault(_fate(unit, labels, plan), []).extend(unit.names)
    made = {name for unit in plan.units for name in unit.names}
    if absent := list(dict.fromkeys(name for one in plan.checkpoints for name in one if name not in made)):
        fates["was left out"] = absent
    return [_line(names, fate) for fate, names in sorted(fates.items(), key=lambda item: "was merged" not in item[0])]


def _fate(unit: Unit, labels: Sequence[str], plan: Plan) -> str:
    """What happens to a unit's tensors, told of one."""
    if unit.kind == "maximum":
        return "took the largest count"
    if unit.kind == "merge" and unit.why.startswith("from "):
        method, parameters = method_named(plan.recipe.method), plan.targets[0].parameters[unit.name]
        if method.inputs[0] + method.takes_base == 1 and method.single(1, parameters) is None:
            return f"was scaled, {unit.why}"
    if len(labels) == 1:
        return "was copied"
    if (unit.kind == "copy" and len(unit.sources) == 1 and unit.why) or unit.why.startswith("from "):
        reason = _REASONS.get(unit.why, "BatchNorm" if unit.why.startswith("from:") else "")
        return f"came unmerged from {labels[unit.sources[0]]}" + (f" ({reason})" if reason else "")
    if unit.kind == "copy":
        return "was copied, equal in all"
    return " ".join(["was merged", *filter(None, [_WAYS.get(unit.why)])])


def _line(names: Sequence[str], fate: str) -> str:
    """A fate with the number of its tensors, and the first names of those that nothing was merged into."""
    many, more = len(names) > 1, len(names) - _LISTED
    told = f"{len(names):,} tensor{'s' * many} {'were ' + fate[4:] if many and fate.startswith('was ') else fate}"
    shown = ", ".join(names[:_LISTED]) + (f" and {more:,} more" if more > 0 else "")
    return f"{told}: {shown}" if fate.startswith(("came", "was left")) else told
