"""The same merges on state dicts in memory: mappings in, a new dict out, inputs untouched."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from merge.engine.kernel import refuse_nonfinite, result_of, work
from merge.errors import MergeError
from merge.plan.policy import Policy
from merge.plan.units import Unit, by_name, plan
from merge.recipe.recipe import Input, Recipe, method_named, parameters_for

StateDict = Mapping[str, Tensor]


def interpolate(
    first: StateDict, second: StateDict, ratio: float | Mapping[str, float], policy: Policy | None = None
) -> dict[str, Tensor]:
    """`(1 - ratio) * first + ratio * second`: the ratio is the share of the second (UnIVAL, section 5).

        >>> a, b = {"w": torch.tensor([0.0, 1.0])}, {"w": torch.tensor([1.0, 1.0])}
        >>> interpolate(a, b, 0.25)["w"]
        tensor([0.2500, 1.0000])

    `ratio` may be a mapping from globs to ratios ("*" required, the first match wins). Raises MergeError.
    """
    return merge_state_dicts("interpolate", {"first": first, "second": second}, {"ratio": ratio}, policy)


def average(
    checkpoints: Mapping[str, StateDict] | Sequence[StateDict],
    weights: Mapping[str, float] | Sequence[float] | None = None,
    policy: Policy | None = None,
) -> dict[str, Tensor]:
    """`sum_i weights_i * checkpoints_i`; equal weights where none are given (model soups, arXiv 2203.05482)."""
    named = _named(checkpoints)
    return merge_state_dicts("average", named, {} if weights is None else {"weights": weights}, policy)


def slerp(
    first: StateDict, second: StateDict, ratio: float | Mapping[str, float], policy: Policy | None = None
) -> dict[str, Tensor]:
    """Spherical interpolation, tensor by tensor; the ratio is the share of the second (Shoemake 1985)."""
    return merge_state_dicts("slerp", {"first": first, "second": second}, {"ratio": ratio}, policy)


def ratios(points: int) -> list[float]:
    """`points` ratios from 0 to 1, made as `i / n` so that results join on them.

        >>> ratios(5)
        [0.0, 0.25, 0.5, 0.75, 1.0]

    Raises MergeError for fewer than two points.
    """
    if points < 2:
        raise MergeError(f"a sweep needs at least 2 points, not {points}")
    return [i / (points - 1) for i in range(points)]


def sweep(
    first: StateDict, second: StateDict, ratios: Iterable[float], policy: Policy | None = None
) -> Iterator[tuple[float, dict[str, Tensor]]]:
    """Yield `(ratio, state_dict)` for every ratio, one at a time: only the point in hand is in memory."""
    for ratio in ratios:
        yield ratio, interpolate(first, second, ratio, policy)


def task_vector(base: StateDict, expert: StateDict, policy: Policy | None = None) -> dict[str, Tensor]:
    """`expert - base` in the computing dtype, for the tensors that a merge would touch (arXiv 2212.04089).

    Integer tensors and tensors kept by the policy have no task vector and are left out.
    """
    policy = policy or Policy()
    units = plan([base, expert], ["base", "expert"], policy, has_base=True)
    method = method_named("task-arithmetic")
    vectors: dict[str, Tensor] = {}
    for unit in (unit for unit in units if unit.kind == "merge"):
        if unit.assembly is not None:
            raise MergeError(f"{unit.name}: its parts are of different origins, which no task vector says; --drop it")
        start, end = work([(base, expert)[index][unit.name] for index in unit.sources], method, unit, policy)
        difference = torch.view_as_complex(end - start) if unit.dtype.is_complex else end - start
        vectors.update(dict.fromkeys(unit.names, difference))
    return vectors


def add_task_vectors(
    base: StateDict,
    experts: Mapping[str, StateDict] | Sequence[StateDict],
    scale: float | Mapping[str, float],
    policy: Policy | None = None,
) -> dict[str, Tensor]:
    """`base + scale * sum_i (experts_i - base)` (task arithmetic, arXiv 2212.04089).

    `experts` are finetuned state dicts, not differences: so one expert at scale 1 is that expert to the bit.
    """
    return merge_state_dicts("task-arithmetic", _named(experts), {"scale": scale}, policy, base=base)


def merge_state_dicts(
    method: str,
    inputs: Mapping[str, StateDict],
    parameters: Mapping[str, Any],
    policy: Policy | None = None,
    base: StateDict | None = None,
) -> dict[str, Tensor]:
    """Any method of `METHODS` on named state dicts. Tied tensors come out tied; nothing is shared with the inputs.

    Raises MergeError for every difference that the policy does not resolve, and for infinite or NaN results.
    """
    recipe = Recipe(
        method,
        tuple(Input(name, Path(name)) for name in inputs),
        parameters,
        None if base is None else Input("base", Path("base")),
        policy or Policy(),
    )
    sources = [*([] if base is None else [base]), *inputs.values()]
    units = plan(sources, [item.name for item in recipe.sources], recipe.policy, has_base=base is not None)
    resolved = parameters_for(recipe, units)
    result: dict[str, Tensor] = {}
    for unit in units:
        tensors = [sources[index][unit.name].detach() for index in unit.sources]
        value = compute(unit, tensors, recipe, resolved.get(unit.name, {}))
        result.update(dict.fromkeys(unit.names, value))
    return {name: result[name] for name in by_name(units, sources)}


def compute(unit: Unit, tensors: Sequence[Tensor], recipe: Recipe, parameters: Mapping[str, Any]) -> Tensor:
    """One unit's new tensor. Raises MergeError where it has infinite or NaN values that the policy does not allow."""
    value = result_of(tensors, method_named(recipe.method), parameters, unit, recipe.policy)
    refuse_nonfinite(unit, value, recipe.policy)
    return value.clone() if any(value.data_ptr() == tensor.data_ptr() for tensor in tensors) else value


def _named(checkpoints: Mapping[str, StateDict] | Sequence[StateDict]) -> dict[str, StateDict]:
    if isinstance(checkpoints, Mapping):
        return dict(checkpoints)
    return {str(index): checkpoint for index, checkpoint in enumerate(checkpoints)}
