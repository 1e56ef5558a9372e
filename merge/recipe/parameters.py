"""The parameters of a recipe: completed, checked, and resolved where they differ from tensor to tensor."""

# Values of any type are checked here.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import fnmatch
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from merge.errors import MergeError, nearest, shortened
from merge.methods import METHODS, Method, Parameter
from merge.plan.layers import places
from merge.plan.policy import why_idle
from merge.plan.units import Unit
from merge.recipe.recipe import Recipe

_LARGEST = 3.4e38  # arithmetic is in float32


def parameters_for(recipe: Recipe, units: Sequence[Unit]) -> dict[str, Mapping[str, Any]]:
    """Give every unit's parameters by its first name, checked: ranges, counts, finite sums, rules by module resolved.

    Raises MergeError for an unknown method or parameter (with the nearest known one), for a value out of its range and
    for rules that part names which are one tensor.
    """
    method = method_named(recipe.method)
    check_inputs(recipe, method)
    for name in recipe.parameters:
        if name not in method.parameters:
            raise MergeError(
                f"{recipe.method} has no parameter {shortened(name)}{nearest(str(name), method.parameters)}"
            )
    computed = [unit for unit in units if unit.kind != "copy"]
    names = [name for unit in computed for name in unit.names]
    depths: dict[str, float] = {}
    if any(map(_runs, recipe.parameters.values())):
        depths = {name: place.depth for name, place in places([n for unit in units for n in unit.names]).items()}
    common: dict[str, Any] = {}
    by_module: dict[str, dict[str, Any]] = {}
    for key, parameter in method.parameters.items():
        value = value_of(recipe, key, parameter)
        if varies(value):
            rules = {str(glob): item for glob, item in value.items()} if is_rules(value) else {"*": value}
            for item in rules.values():
                for depth in _knots(item):
                    check(recipe, key, parameter, at_depth(item, depth))
            decided = resolve(rules, names) if names else {}
            by_module[key] = {
                name: check(recipe, key, parameter, at_depth(item, depths.get(name, 0.0)))
                for name, (_, item) in decided.items()
            }
        else:
            common[key] = check(recipe, key, parameter, value)
    found: dict[str, Mapping[str, Any]] = {}
    for unit in computed:
        first, *others = unit.names
        for key, values in by_module.items():
            other = next((other for other in others if values[other] != values[first]), None)
            if other is not None:
                both = f"{values[first]} and {values[other]}"
                raise MergeError(f"{first} and {other} are one tensor, but the rules for {key} give {both}")
        mine = {**common, **{key: values[first] for key, values in by_module.items()}} if by_module else common
        inputs = [index - (recipe.base is not None) for index in unit.sources if index or recipe.base is None]
        if (recipe.policy.missing == "union" or recipe.layers) and inputs != list(range(len(recipe.inputs))):
            mine = {
                key: _among(inputs, value, method.parameters[key], scaled=not recipe.layers)
                for key, value in mine.items()
            }
        found[first] = mine
    return found


def _among(sources: Sequence[int], value: Any, parameter: Parameter, *, scaled: bool) -> Any:
    """A parameter for some of the inputs: shares are scaled to the sum 1, equal where all were 0.

    Not `scaled` are weights that only count relatively, as a method that shall not divide by their sum takes them.
    """
    if not parameter.each:
        return value
    mine = tuple(value[index] for index in sources)
    if not (parameter.simplex or (parameter.relative and scaled)):
        return mine
    total = math.fsum(mine)
    return tuple(number / total for number in mine) if total else (1 / len(mine),) * len(mine)


def value_of(recipe: Recipe, key: str, parameter: Parameter) -> Any:
    """Give a parameter as the recipe or the method's default has it: a value for all tensors, or rules by name."""
    value = recipe.parameters.get(key, 1 / len(recipe.inputs) if parameter.simplex else parameter.default)
    if isinstance(value, Mapping) and not parameter.each and not varies(value):
        resolve(value, ())  # says that "*" is missing
    if value is None:
        raise MergeError(f"{recipe.method} needs the parameter {key!r}: {parameter.help}")
    return value


def check(recipe: Recipe, key: str, parameter: Parameter, given: Any) -> Any:
    """Give one value of a parameter as the method takes it: a number, one for each input, globs. Raises MergeError."""
    if parameter.kind is tuple:
        return _patterns(key, given)
    if parameter.input:
        return _place(recipe, key, given)
    if not parameter.each:
        return _number(recipe, key, parameter, given)
    named, value = [item.name for item in recipe.inputs], given
    if isinstance(value, Mapping):
        if set(value) != set(named):
            raise MergeError(f"{key} names {', '.join(map(str, given))}; the inputs are {', '.join(named)}")
        value = [given[name] for name in named]
    if isinstance(value, (int, float)):
        value = [value] * len(named)
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise MergeError(f"{key} must be a list of numbers or a mapping by name, not {shortened(given)}")
    if len(value) != len(named):
        raise MergeError(f"{len(value)} {key} were given for {len(named)} inputs ({', '.join(named)})")
    numbers = tuple(_number(recipe, key, parameter, item) for item in value)
    total = math.fsum(numbers)
    if parameter.simplex and not math.isclose(total, 1, abs_tol=1e-6) and not (recipe.policy.extrapolate and total):
        advice = "pass extrapolate=True to mean it" if total else "which erases every tensor"
        raise MergeError(f"{key} {', '.join(f'{x:g}' for x in numbers)} sum to {total:g}, not to 1: {advice}")
    if parameter.simplex and not recipe.policy.extrapolate:
        return tuple(number / total for number in numbers)  # 0.333 three times means a third
    return numbers


def _patterns(key: str, given: Any) -> tuple[str, ...]:
    listed = [given] if isinstance(given, str) else given
    if not isinstance(listed, Sequence) or not all(isinstance(item, str) for item in listed):
        raise MergeError(f"{key} must be globs or parts of tensors' names, one or a list, not {shortened(given)}")
    return tuple(item for item in listed if item)


def _place(recipe: Recipe, key: str, given: Any) -> int:
    names = [item.name for item in recipe.inputs]
    places = {"": -1, **{str(place): place for place in range(len(names))}, **{name: i for i, name in enumerate(names)}}
    if isinstance(given, bool) or str(given) not in places:
        raise MergeError(f"{key} must be one of the inputs, not {shortened(given)}{nearest(str(given), names)}")
    return places[str(given)]


def _number(recipe: Recipe, key: str, parameter: Parameter, value: Any) -> Any:
    if parameter.kind is bool and isinstance(value, bool):
        return value
    if isinstance(value, str) and value in parameter.words:
        return value
    if parameter.kind is str:
        raise MergeError(
            f"{key} must be one of {parameter.range}, not {shortened(value)}{nearest(str(value), parameter.words)}"
        )
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value != value or abs(value) == math.inf:
        other = "".join(f"{word!r} or " for word in parameter.words)
        raise MergeError(f"{key} must be {other}a finite number, not {shortened(value)}")
    if abs(value) > _LARGEST:
        raise MergeError(f"{key} must be a finite number, below {_LARGEST:g}, which is what float32 holds")
    share = key == "ratio" or parameter.simplex
    if not parameter.low <= value <= parameter.high and not (recipe.policy.extrapolate and share):
        beyond = "; pass extrapolate=True to go beyond" if share else ""
        beyond = f": for {value:g} % give {value / 100:g}{beyond}" if share and 2 < value <= 100 else beyond
        raise MergeError(f"{key} {value} is outside [{parameter.low:g}, {parameter.high:g}]{beyond}")
    if parameter.kind is int and value != int(value):
        raise MergeError(f"{key} must be a whole number, not {value}")
    return parameter.kind(value)


def method_named(name: str) -> Method:
    """Give the method, or raise MergeError with the nearest known name."""
    if name not in METHODS:
        raise MergeError(f"unknown method {shortened(name)}{nearest(str(name), METHODS)}")
    return METHODS[name]


def check_inputs(recipe: Recipe, method: Method) -> None:
    """Raise MergeError where the number of inputs, their names or the base do not fit the method."""
    names = [item.name for item in recipe.sources]
    for name in names:
        if names.count(name) > 1:
            raise MergeError(f"two inputs are called {shortened(name)}; tell them apart with name='NAME'")
        if not name or name == "*" or "/" in name or "\\" in name:
            raise MergeError(
                f"an input is called {shortened(name)}; choose a name='NAME' without slashes that is not '*'"
            )
    low, high = method.inputs
    base = recipe.base.name if recipe.base is not None else None
    stretches = [ranges for its in recipe.layers.values() for ranges in its]
    counts = [len(set(ranges) - {base}) for ranges in stretches] or [len(recipe.inputs)]
    for number, count in enumerate(counts):
        alone = bool(stretches) and count + (base is not None) == 1  # one alone is taken as it is
        if not alone and (count < low or (high is not None and count > high)):
            wanted = f"{low}" if low == high else f"at least {low}"
            where = f"in layers[{number}] " if stretches else ""
            raise MergeError(f"{recipe.method} takes {wanted} checkpoints, {where}{count} were given")
    if method.takes_base != (recipe.base is not None):
        raise MergeError(f"{recipe.method} {'needs' if method.takes_base else 'takes no'} base")


# -- coefficients along the depth ------------------------------------------------------------------------------------


def is_gradient(value: Any) -> bool:
    """Tell whether a value runs along the depth: `{"gradient": [0, 0.5, 1]}`, evenly spaced from the first layer (and
    what lies before) to the last (and what lies behind)."""
    return isinstance(value, Mapping) and set(value) == {"gradient"}


def varies(value: Any) -> bool:
    """Tell whether a parameter's value differs from tensor to tensor: by module, or along the depth."""
    if isinstance(value, Mapping):
        return is_rules(value) or is_gradient(value) or any(map(varies, value.values()))
    return isinstance(value, (list, tuple)) and any(map(is_gradient, value))


def at_depth(value: Any, depth: float) -> Any:
    """Give a value without gradients, as it is at a depth from 0 to 1. Raises MergeError for what is no gradient.

    >>> at_depth([{"gradient": [0, 1]}, {"gradient": [1, 0.5, 0]}], 0.25)
    [0.25, 0.75]
    """
    if is_gradient(value):
        knots = value["gradient"]
        numbers = [x for x in knots if type(x) in (int, float)] if isinstance(knots, (list, tuple)) else []
        if not numbers or len(numbers) != len(knots):
            raise MergeError(f"a gradient is a list of numbers along the depth, not {shortened(knots)}")
        return along(numbers, depth)
    if isinstance(value, Mapping):
        return {key: at_depth(item, depth) for key, item in value.items()}
    return [at_depth(item, depth) for item in value] if isinstance(value, (list, tuple)) else value


def along(numbers: Sequence[float], depth: float) -> float:
    """Interpolate between numbers that are evenly spaced from 0 to 1."""
    at = depth * (len(numbers) - 1)
    low = min(int(at), len(numbers) - 1)
    high = min(low + 1, len(numbers) - 1)
    return numbers[low] + (at - low) * (numbers[high] - numbers[low])


def _knots(value: Any) -> list[float]:
    """Depths at which a value with gradients is looked at before there are tensors: its ends; 0 where it has none."""
    return [0.0, 1.0] if _runs(value) else [0.0]


def _runs(value: Any) -> bool:
    """Whether there is a gradient in a value."""
    if is_gradient(value):
        return True
    items = value.values() if isinstance(value, Mapping) else value if isinstance(value, (list, tuple)) else ()
    return any(map(_runs, items))


# -- coefficients by module ------------------------------------------------------------------------------------------


def is_rules(value: Any) -> bool:
    """Tell whether a parameter's value is given by module: a mapping from globs with a "*"."""
    return isinstance(value, Mapping) and "*" in value


def resolve(rules: Mapping[str, Any], names: Sequence[str]) -> dict[str, tuple[str, Any]]:
    """Give for every name the first glob of `rules` that fits it, and its value.

    Raises MergeError where "*" is absent or a glob decides no name (a typing mistake, or hidden by an earlier one).
    """
    if "*" not in rules:
        raise MergeError(f"coefficients by module need a rule '*' for the rest; given are {', '.join(rules)}")
    order = {glob: number for number, glob in enumerate(rules)}
    globs = [glob for glob in rules if re.search(r"[*?[]", glob)]  # others are whole names, of which there may be many
    resolved: dict[str, tuple[str, Any]] = {}
    for name in names:
        glob = next(glob for glob in globs if fnmatch.fnmatchcase(name, glob))
        glob = name if name in rules and order[name] < order[glob] else glob
        resolved[name] = (glob, rules[glob])
    used = {glob for glob, _ in resolved.values()}
    idle = [glob for glob in rules if glob not in used and glob != "*"]
    if idle:
        raise MergeError(f"coefficient rule {idle[0]!r} decides no tensor: {why_idle(idle[0], names)}")
    return resolved
