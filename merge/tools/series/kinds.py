"""How checkpoints along a training are averaged: the weights of each kind, and the recipe that they make."""

# What a file holds has no type until it is looked at.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false, reportUnknownMemberType=false

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from merge.checkpoint.open import find_checkpoint
from merge.errors import MergeError
from merge.plan.policy import Policy, policy_of
from merge.recipe.recipe import Input, Recipe
from merge.tools.series.steps import Series, find_series

AVERAGES = "model_avg"  # where icefall keeps the average of all steps so far

# What is left of the learning rate at the time t of a decay, from 0 to 1.
SHAPES: dict[str, Callable[[float], float]] = {
    "sqrt": lambda t: 1 - math.sqrt(t),
    "linear": lambda t: 1 - t,
    "cosine": lambda t: (1 + math.cos(math.pi * t)) / 2,
}


@dataclass(frozen=True)
class Kind:
    """How checkpoints are averaged: the method, and its parameters for a number of checkpoints.

    Attributes:
        takes: the option that it takes, which is the second argument of `parameters`.
        default: of the option.
    """

    method: str
    parameters: Callable[[int, Any], dict[str, Any]]
    takes: str = ""
    default: str = ""


def _merge_weights(count: int, shape: Any) -> dict[str, Any]:
    """c_j = g((j - 1) / n) - g(j / n): merged so, the checkpoints are what a decay g of their updates would give.

    The way from checkpoint j to the next counts g(j / n) times, the sum of the weights after j (arXiv 2507.17634).
    """
    if shape not in SHAPES:
        raise MergeError(f"shape={shape!r}: must be one of {', '.join(SHAPES)}")
    left = [SHAPES[shape](j / count) for j in range(count + 1)]
    return {"weights": [left[j] - left[j + 1] for j in range(count)]}


KINDS: dict[str, Kind] = {
    "uniform": Kind("series", lambda count, _: {}),
    "ema": Kind("ema", lambda count, decay: {"decay": decay}, "decay"),
    "wma": Kind("series", lambda count, _: {"weights": list(range(1, count + 1))}),
    "wsm": Kind("series", _merge_weights, "shape", "sqrt"),
    "between": Kind("series", lambda _, counts: {"weights": [-counts[0], counts[1]]}, "counts"),
}


def averaging(kind: str, found: Series, options: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Give the method and its parameters for a kind of average of these checkpoints.

    `options` are decay, shape and counts, None where they are not given. Raises MergeError for options of other kinds.
    """
    if kind not in KINDS:
        raise MergeError(f"kind={kind!r}: must be one of {', '.join(KINDS)}")
    entry = KINDS[kind]
    for key, value in options.items():
        if value is not None and key != entry.takes:
            of = ", ".join(name for name, other in KINDS.items() if other.takes == key)
            raise MergeError(f"{key}={value!r} is for kind {of}, not {kind}")
    value = options.get(entry.takes)
    if kind == "between":
        value = _counts(found, value)
    if entry.takes and value is None:
        if not entry.default:
            raise MergeError(f"kind {kind} needs {entry.takes}=...")
        value = entry.default
    return entry.method, entry.parameters(len(found.paths), value)


def _counts(found: Series, given: Any) -> list[float]:
    """The steps that two cumulative averages are of: given, as icefall notes them in the files, or of the names."""
    if len(found.paths) != 2:
        raise MergeError(f"kind between takes 2 cumulative averages, {len(found.paths)} checkpoints were given")
    if given is not None:
        counts = list(given)
        if len(counts) != 2 or not 0 < counts[0] < counts[1]:
            raise MergeError(f"counts={given!r}: must be two rising numbers of steps, one of each average")
        return counts
    trees: list[Any] = [getattr(find_checkpoint(path).content.kept, "tree", None) for path in found.paths]
    noted: list[Any] = [tree.get("batch_idx_train") if isinstance(tree, Mapping) else None for tree in trees]
    if not all(type(count) is int for count in noted):
        noted = [step[0] for step in found.steps if len(step) == 1]
    if len(noted) < 2 or not 0 < noted[0] < noted[1]:
        raise MergeError("kind between needs counts=...: how many steps each of the two averages is of")
    return noted


def section_for(kind: str, found: Series) -> str:
    """Give the section that is meant where none is given: the cumulative averages, where files name them."""
    if kind != "between":
        return "auto"
    return AVERAGES if all(AVERAGES in find_checkpoint(path).content.sections for path in found.paths) else "auto"


def series(
    sources: str | Path | Sequence[str | Path],
    *,
    kind: str = "uniform",
    decay: float | None = None,
    shape: str | None = None,
    counts: Sequence[float] | None = None,
    last: int | None = None,
    every: int = 1,
    match: str = "",
    as_given: bool = False,
    section: str = "auto",
    policy: Policy | None = None,
) -> Recipe:
    """Give the recipe of an average along a training run: of a run's folder, or of files and folders in any order.

        >>> recipe = series("run", last=5)                                                  # doctest: +SKIP
        >>> merge.run(recipe, "average.safetensors")                                        # doctest: +SKIP

    Kinds: "uniform"; "ema" with `decay`; "wma", whose weights rise by one; "wsm", whose weights are what a decay of the
    learning rate of this `shape` would have made of the updates; "between", the average of the steps between two
    cumulative averages over `counts` steps. See `find_series` for `match` and `as_given`, docs/series.md for all.

    Raises MergeError where the order is not sure, and for options of another kind.
    """
    found = find_series(sources, match=match, as_given=as_given).thinned(last, every)
    method, parameters = averaging(kind, found, {"decay": decay, "shape": shape, "counts": counts})
    section = section_for(kind, found) if section == "auto" else section
    inputs = [Input(name, path, section) for name, path in zip(found.labels, found.paths, strict=True)]
    return Recipe(method, tuple(inputs), parameters, None, policy_of(policy))
