"""Shares: how much of each checkpoint there is in a merge, and the words in which recipes and points are shown."""

# Values of any type are checked here.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import json
import math
from typing import Any

from merge.errors import MergeError
from merge.plan.layers import layers_in_words
from merge.recipe.label import share_label
from merge.recipe.parameters import check, is_rules, method_named, value_of, varies
from merge.recipe.recipe import Input, Recipe

SHARES = ("ratio", "scale", "weights")  # parameters that say how much of each checkpoint there is

_MOST = 1_000_000
_LISTED = 12


def ratios(points: int) -> list[float]:
    """Give `points` ratios from 0 to 1, made as `i / n` so that results join on them.

        >>> ratios(5)
        [0.0, 0.25, 0.5, 0.75, 1.0]

    Raises MergeError for fewer than two points, and for more than names with six digits can tell apart.
    """
    if not 2 <= points <= _MOST:
        raise MergeError(f"a sweep needs at least 2 points and at most {_MOST:,}, not {points:,}")
    return [i / (points - 1) for i in range(points)]


def shares(recipe: Recipe) -> dict[str, float] | None:
    """Give the coefficient of every checkpoint by name where one set holds for all tensors.

    None for rules by module and for methods that have no coefficient for each checkpoint (statistics or angles decide
    there). Raises MergeError for parameters that the method does not accept.
    """
    method, names = method_named(recipe.method), [item.name for item in recipe.inputs]
    known = method.parameters
    given = [value for key, value in recipe.parameters.items() if key in known]
    shared = method.shares or set(SHARES) & set(known)
    if not shared or any(map(varies, given)) or not _everywhere(recipe):
        return None
    if method.shares is not None:
        told = {key: check(recipe, key, item, value_of(recipe, key, item)) for key, item in known.items()}
        return dict(zip(names, method.shares(len(names), told), strict=True))
    used = [key for key in (*SHARES, "normalize") if key in known]
    values = {key: check(recipe, key, known[key], value_of(recipe, key, known[key])) for key in used}
    if "ratio" in values:
        return {names[0]: 1 - values["ratio"], names[1]: values["ratio"]}
    weights = values.get("weights", (1.0,) * len(names))
    total = math.fsum(weights)
    if "weights" in known and known["weights"].relative and values.get("normalize", True) and total:
        weights = [weight / total for weight in weights]
    return {name: values.get("scale", 1.0) * weight for name, weight in zip(names, weights, strict=True)}


def _everywhere(recipe: Recipe) -> bool:
    """Whether every input takes part in every layer."""
    names = {item.name for item in recipe.inputs}
    return all(names <= set(ranges) for stretches in recipe.layers.values() for ranges in stretches)


def file_stem(recipe: Recipe) -> str:
    """Name a file by the shares of all its checkpoints, with six decimals where two are too few.

    `0.20-vqa_0.80-caption`; where there are no shares, by the parameters.
    """
    parts = shares(recipe)
    if parts is None:
        return as_name(json.dumps(dict(recipe.parameters)))
    rounded = {name: math.isclose(share, round(share, 2), abs_tol=1e-9) for name, share in parts.items()}
    digits = {name: f"{share:.2f}" if rounded[name] else f"{share:.6f}".rstrip("0") for name, share in parts.items()}
    return "_".join(f"{digits[name]}-{name}".replace(" ", "-") for name in parts)


def as_name(text: str) -> str:
    """Replace what file names cannot hold."""
    return "".join(c if c.isalnum() or c in "._-" else "-" for c in text)


def describe(recipe: Recipe) -> str:
    """Put a recipe in words: shares where the method has them, else names, and what other parameters it gives."""
    parts = shares(recipe)
    base = [] if recipe.base is None else [recipe.base.name]
    names = [item.name for item in recipe.inputs]
    if parts:
        text = " + ".join([*base, _label(parts)])
    elif method_named(recipe.method).statistics:
        half = len(names) // 2
        collected = [name.removeprefix("statistics of ") for name in names[half:]]
        text = f"{', '.join(names[:half])} by statistics {', '.join(collected)}"
    else:
        text = ", ".join([*base, *names])
    rest = [f"{k} {_plain(v)}" for k, v in recipe.parameters.items() if not parts or k not in SHARES]
    stacked = f", layers {layers_in_words(recipe.layers)}" if recipe.layers else ""
    rules = [rule.rpartition("=") for rule in (*recipe.policy.pick, *recipe.policy.slices)]
    picked = "".join(f", {what} from {name or 'none'}" for what, _, name in rules)
    return f"{recipe.method}: {text}" + (f" ({', '.join(rest)})" if rest else "") + stacked + picked


def made_of(recipe: Recipe, above: str = "") -> list[tuple[str, Input]]:
    """Give all inputs with their names, those of recipes that inputs are made by behind these: `a/b` is b of a."""
    found: list[tuple[str, Input]] = []
    for item in recipe.sources:
        found += [(above + item.name, item)]
        found += made_of(item.recipe, f"{above}{item.name}/") if item.recipe is not None else []
    return found


def _label(parts: dict[str, float]) -> str:
    """The shares, of very many the first and the last."""
    if len(parts) <= _LISTED:
        return share_label(parts)
    items = list(parts.items())
    return f"{share_label(dict(items[:3]))} + ... + {share_label(dict(items[-3:]))} ({len(items)} checkpoints)"


def _plain(value: Any) -> str:
    if is_rules(value) and len(value) > _LISTED:
        return f"by {len(value)} rules"
    return json.dumps(list(value) if isinstance(value, tuple) else value)
