"""The same merges in memory: checkpoints in, a new state dict out, inputs untouched."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from merge.checkpoint.scaled import dequantized
from merge.checkpoint.source import Source, StateDict, opened_all, whole
from merge.engine.files import computed
from merge.engine.kernel import merged, refuse_nonfinite
from merge.engine.survey import Walk, survey
from merge.engine.workers import on_threads, threads_for
from merge.errors import MergeError
from merge.methods import Method
from merge.plan.paired import merging, plan_for
from merge.plan.policy import Policy, policy_of
from merge.plan.units import Unit, by_name
from merge.recipe.inputs import restacked
from merge.recipe.parameters import check_inputs, method_named, parameters_for
from merge.recipe.recipe import Input, Recipe

Sources = Mapping[str, Source] | Sequence[Source]


def merge_with(
    method: str,
    inputs: Sources,
    base: Source | None = None,
    *,
    statistics: Sources | None = None,
    policy: Policy | None = None,
    layers: Any = None,
    **parameters: Any,
) -> dict[str, Tensor]:
    """Merge checkpoints by any method of `METHODS`, with that method's parameters; `layers` as a `Recipe` takes them.

        >>> import torch
        >>> base, expert = {"w": torch.tensor([1.0, 2.0])}, {"w": torch.tensor([3.0, 2.0])}
        >>> merge_with("ties", {"vqa": expert}, base, density=0.5)["w"]
        tensor([3., 2.])

    `statistics` are those of the inputs by the same names, for methods that weigh experts by them (`merge.statistics`).
    Every checkpoint may be a path (of a recipe, too), an open Checkpoint, a state dict or a module. Tied tensors come
    out tied; nothing is shared with the inputs. Raises MergeError for every difference that the policy does not
    resolve, and for infinite or NaN results.
    """
    named = with_statistics(method, opened_all(inputs, opening=computed), statistics)
    ancestor = [] if base is None else [computed(base, name="base")]
    recipe = replace(unplaced_recipe(method, list(named), base is not None, policy, parameters), layers=layers or {})
    chosen = method_named(method)
    check_inputs(recipe, chosen)
    sources = [*ancestor, *named.values()]
    if recipe.policy.dequantize:
        sources = [dequantized(source) for source in sources]
    stack = restacked(recipe, sources)
    sources, labels = stack.inputs, [item.name for item in recipe.sources]
    rest: dict[str, Any] = {"has_base": base is not None, "sources": stack.sources}
    units = plan_for(chosen, sources, labels, recipe.policy, **rest)

    def read(unit: Unit) -> list[Tensor]:
        return [whole(sources[i], unit.name).detach() for i in unit.sources]

    resolved = parameters_for(recipe, units)
    if chosen.survey is not None:
        (found,) = survey(chosen, units, [resolved], recipe.policy, Walk(read))
        resolved = found.parameters
    threads = threads_for(chosen, units)
    ahead = on_threads(lambda unit: _computed(unit, read(unit), chosen, resolved, recipe.policy), units, threads)
    result: dict[str, Tensor] = {}
    for unit in units:
        if threads > 1:
            tensors, (value, count) = next(ahead)
        else:
            tensors = read(unit)
            ((value, count),) = merged(unit, tensors, chosen, [resolved.get(unit.name, {})], recipe.policy)
        refuse_nonfinite(unit, count, recipe.policy)
        value = value.clone() if any(value.data_ptr() == tensor.data_ptr() for tensor in tensors) else value
        result.update(dict.fromkeys(unit.names, value))
    return {name: result[name] for name in by_name(units, merging(chosen, sources))}


def _computed(
    unit: Unit,
    tensors: Sequence[Tensor],
    method: Method,
    resolved: Mapping[str, Mapping[str, Any]],
    policy: Policy,
) -> tuple[Sequence[Tensor], tuple[Tensor, int]]:
    """Give a unit's tensors with what they are merged to."""
    with torch.no_grad():
        (result,) = merged(unit, tensors, method, [resolved.get(unit.name, {})], policy)
    return tensors, result


def with_statistics(method: str, inputs: dict[str, StateDict], statistics: Sources | None) -> dict[str, StateDict]:
    """Give the inputs and then the statistics of each. Raises MergeError where a method takes none, or one has none."""
    if statistics is None:
        return inputs
    if not method_named(method).statistics:
        raise MergeError(f"{method} takes no statistics; fisher and regmean do")
    found = opened_all(statistics, opening=computed)
    lacking = [name for name in inputs if name not in found]
    if lacking or set(found) - set(inputs):
        wrong = f"no statistics for {', '.join(lacking)}" if lacking else f"the inputs are {', '.join(inputs)}"
        raise MergeError(f"{wrong}; there are some for {', '.join(found) or 'nobody'}")
    return inputs | {f"statistics of {name}": found[name] for name in inputs}


def unplaced_recipe(
    method: str, names: Sequence[str], has_base: bool, policy: Policy | None, parameters: Mapping[str, Any]
) -> Recipe:
    """Give the recipe of a merge whose inputs may lie in no file: their names stand for their paths."""
    inputs = tuple(Input(name, Path(name)) for name in names)
    return Recipe(method, inputs, parameters, Input("base", Path("base")) if has_base else None, policy_of(policy))


def interpolate(
    first: Source, second: Source, ratio: float | Mapping[str, float], *, policy: Policy | None = None
) -> dict[str, Tensor]:
    """`(1 - ratio) * first + ratio * second`: the ratio is the share of the second (UnIVAL, section 5).

        >>> import torch
        >>> a, b = {"w": torch.tensor([0.0, 1.0])}, {"w": torch.tensor([1.0, 1.0])}
        >>> interpolate(a, b, 0.25)["w"]
        tensor([0.2500, 1.0000])

    `ratio` may be a mapping from globs to ratios ("*" required, the first match wins). Raises MergeError.
    """
    return merge_with("interpolate", {"first": first, "second": second}, policy=policy, ratio=ratio)


def average(
    inputs: Sources,
    *,
    weights: Mapping[str, float] | Sequence[float] | None = None,
    policy: Policy | None = None,
) -> dict[str, Tensor]:
    """`sum_i weights_i * inputs_i`; equal weights where none are given (model soups, arXiv 2203.05482)."""
    given: dict[str, Any] = {} if weights is None else {"weights": weights}
    return merge_with("average", inputs, None, policy=policy, **given)


def task_arithmetic(
    base: Source,
    experts: Sources,
    scale: float | Mapping[str, float],
    weights: Mapping[str, float] | Sequence[float] | None = None,
    *,
    policy: Policy | None = None,
) -> dict[str, Tensor]:
    """`base + scale * sum_i weights_i * (experts_i - base)`, weights of 1 by default (arXiv 2212.04089).

    `experts` are finetuned checkpoints, not differences: so one expert at scale 1 is that expert to the bit. For
    differences see `TaskVector`.
    """
    given: dict[str, Any] = {} if weights is None else {"weights": weights}
    return merge_with("task-arithmetic", experts, base, policy=policy, scale=scale, **given)


def slerp(
    first: Source, second: Source, ratio: float | Mapping[str, float], *, policy: Policy | None = None
) -> dict[str, Tensor]:
    """Spherical interpolation, tensor by tensor; the ratio is the share of the second (Shoemake 1985)."""
    return merge_with("slerp", {"first": first, "second": second}, policy=policy, ratio=ratio)


def sweep(
    first: Source, second: Source, ratios: Iterable[float], *, policy: Policy | None = None
) -> Iterator[tuple[float, dict[str, Tensor]]]:
    """Yield `(ratio, state_dict)` for every ratio, one at a time: only the point in hand is in memory."""
    for ratio in ratios:
        yield ratio, interpolate(first, second, ratio, policy=policy)
