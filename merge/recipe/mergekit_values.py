"""Parameters of mergekit's recipes as ours: the nearest place wins, then the first filter; lists run along layers."""

# What a file holds has no type until it is looked at.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false, reportUnknownMemberType=false

from __future__ import annotations

import contextlib
import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from merge.checkpoint.formats.elements import Element
from merge.checkpoint.open import specs
from merge.errors import MergeError, shortened
from merge.methods import Mergekit
from merge.plan.layers import Place, places
from merge.recipe.inputs import Opening, open_inputs, restacked
from merge.recipe.mergekit_forms import Stretch
from merge.recipe.parameters import along
from merge.recipe.recipe import Recipe

_LARGEST = 1e38  # sums of larger numbers may have no float


@dataclass(frozen=True)
class Values:
    """What a recipe says of parameters.

    Attributes:
        form: how mergekit writes the method.
        common: the parameters of the whole recipe.
        lists: its slices, by module.
        called: our names of its models, by path, in the order of the recipe's sources.
        whole_depth: gradients run over all layers of the result, not over each slice.
    """

    form: Mergekit
    common: Mapping[str, Any]
    lists: Mapping[str, Sequence[Stretch]]
    called: Mapping[str, str]
    whole_depth: bool = False

    @property
    def stretches(self) -> list[Stretch]:
        """The slices of all modules."""
        return [stretch for its in self.lists.values() for stretch in its]

    def of(self, stretch: Stretch, inputs: Sequence[str], name: str, depth: float) -> dict[str, Any]:
        """Give our parameters of one tensor of a slice, for inputs of these names; those that lack it have 0."""
        given = {self.called[source.path]: source.parameters for source in stretch.sources}
        levels = [stretch.parameters, self.common]
        values: dict[str, Any] = dict(self.form.fixed)
        for key, (ours, default) in self.form.whole.items():
            values[ours] = _value(key, default, levels, name, depth)
        for key, (ours, default) in self.form.each.items():
            values[ours] = [
                _value(key, default, [given[label], *levels], name, depth) if label in given else 0.0
                for label in inputs
            ]
        if self.form.relative and _value(*self.form.relative, levels, name, depth):
            total = math.fsum(values["weights"])
            if total == 0:
                raise MergeError(f"the weights sum to 0 and cannot be normalized{f' for {name}' if name else ''}")
            values["weights"] = [weight / total for weight in values["weights"]]
        return values


def resolved(recipe: Recipe, values: Values, opening: Opening) -> dict[str, Any]:
    """Give our parameters; one that depends on the tensor has a rule for each name that is not as most are.

    `opening` opens the inputs where names of tensors decide.
    """
    inputs, stretches = [item.name for item in recipe.inputs], values.stretches
    given = [item for stretch in stretches for level in (values.common, *stretch.given) for item in level.items()]
    for key, value in given:
        for item in _entries(key, value) or [{"value": value}]:
            _number(key, item["value"], 0.0)
    if not any(isinstance(value, (list, dict)) for _, value in given):
        whole = [values.of(stretch, inputs, "", 0.0) for stretch in stretches]
        if recipe.layers and not any(level for stretch in stretches for level in stretch.given):
            # What every slice says alike holds for those that a slice leaves out, too.
            return {key: _alike([one[key] for one in whole]) for key in whole[0]}
        if all(one == whole[0] for one in whole):
            return whole[0]
    stack = restacked(recipe, open_inputs(recipe.sources, opening))
    floating = {n: None for its in stack.inputs for n, spec in specs(its).items() if _is_number(spec.element)}
    found = {
        name: place
        for name, place in places(list(dict.fromkeys(n for its in stack.inputs for n in its)), stack.lengths).items()
        if name in floating
    }
    lists = {
        **values.lists,
        **{name: values.lists[key] for key, name in zip(values.lists, recipe.layers, strict=False)},
    }
    only = next(iter(values.lists.values()))
    if list(recipe.layers) == [""]:
        lists |= dict.fromkeys(stack.lengths, only)
    rows: dict[str, dict[str, Any]] = {}
    for name, place in found.items():
        its = lists.get(place.list, only)
        stretch = its[min(place.stretch, len(its) - 1)]
        rows[name] = values.of(stretch, inputs, name, _along_layers(place, whole=values.whole_depth))
    parameters: dict[str, Any] = {}
    for key in next(iter(rows.values()), {}):
        usual = max(Counter(json.dumps(row[key]) for row in rows.values()).items(), key=lambda item: item[1])[0]
        rules = {_literal(name): row[key] for name, row in rows.items() if json.dumps(row[key]) != usual}
        parameters[key] = {**rules, "*": json.loads(usual)} if rules else json.loads(usual)
    return parameters


def _alike(values: Sequence[Any]) -> Any:
    """One value for all slices, of which each has 0 for the inputs that it leaves out."""
    if not isinstance(values[0], list):
        return values[0]
    return [next((value for value in column if value != 0), 0.0) for column in zip(*values, strict=True)]


def _is_number(element: Element) -> bool:
    return element.is_floating_point or element.is_complex


def _along_layers(place: Place, *, whole: bool) -> float:
    """Where a gradient is read: along the slice; a lone layer has the last value, what lies beside layers the first."""
    if whole:
        return place.depth
    if place.position is None:
        return 0.0
    return place.position / (place.length - 1) if place.length > 1 else 1.0


def _literal(name: str) -> str:
    """A glob that fits this name alone."""
    return re.sub(r"([*?[])", r"[\1]", name)


def _value(key: str, default: Any, levels: Sequence[Mapping[str, Any]], name: str, depth: float) -> Any:
    """The value of a parameter at the first level that has one for this tensor."""
    for level in levels:
        value = _filtered(key, level[key], name) if key in level else None
        if value is not None:
            return _number(key, value, depth)
    if default is None:
        raise MergeError(f"the parameter {key!r} is missing{f' for {name}' if name else ''}")
    return default


def _filtered(key: str, value: Any, name: str) -> Any:
    """The value of the first entry whose filter is part of the tensor's name; a plain value is for all."""
    entries = _entries(key, value)
    if not entries:
        return value
    for entry in entries:
        wanted = entry.get("filter")
        if wanted is None or wanted == "*" or str(wanted) in name:
            return entry["value"]
    return None


def _entries(key: str, value: Any) -> list[Any]:
    """The entries of a value by filters; none of any other. Raises MergeError."""
    entries: Any = [value] if isinstance(value, Mapping) else value
    if not isinstance(entries, list) or not any(isinstance(entry, Mapping) for entry in entries):
        return []
    for entry in entries:
        if not isinstance(entry, Mapping) or not {"value"} <= set(entry) <= {"value", "filter"}:
            raise MergeError(f"{key}: an entry must have a 'value' and may have a 'filter', not be {shortened(entry)}")
    return entries


def _number(key: str, value: Any, depth: float) -> Any:
    """A number, a switch, or a list of numbers along the layers, between which is interpolated."""
    if not isinstance(value, list):
        return _plain(key, value)
    numbers = [_plain(key, item) for item in value]
    if not numbers:
        raise MergeError(f"{key} must be a number or a list of numbers along the layers, not {shortened(value)}")
    return along(numbers, depth)


def _plain(key: str, value: Any) -> Any:
    """A number or a switch. YAML 1.1 reads 5e-1 as text, as it wants a point and a sign; mergekit makes it a number."""
    with contextlib.suppress(ValueError):
        value = float(value) if isinstance(value, str) else value
    if isinstance(value, (bool, int, float)) and abs(value) <= _LARGEST:
        return value
    raise MergeError(f"{key} must be a number or a list of numbers along the layers, not {shortened(value)}")
