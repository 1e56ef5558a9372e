"""Units of methods that weigh experts by statistics: the experts decide them, the statistics join what is merged."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from merge.checkpoint.open import specs
from merge.checkpoint.source import StateDict
from merge.errors import MergeError
from merge.methods import Method
from merge.plan.checks import leave
from merge.plan.findings import Finding
from merge.plan.policy import Policy
from merge.plan.units import Unit, plan

Item = TypeVar("Item")


def merging(method: Method, inputs: Sequence[Item]) -> Sequence[Item]:
    """Give the inputs that are merged: not those that are statistics of them, the second half of some methods'."""
    return inputs[: len(inputs) // 2] if method.statistics else inputs


def plan_for(
    method: Method,
    inputs: Sequence[StateDict],
    labels: Sequence[str],
    policy: Policy | None = None,
    *,
    has_base: bool = False,
    sources: Mapping[str, tuple[int, ...]] | None = None,
    told: Callable[[Finding], object] | None = None,
) -> list[Unit]:
    """Give the units of a merge by a method, as `plan` does; every merged tensor also has its statistics as sources.

    Raises MergeError also where statistics are of fewer or more inputs, lack a tensor or have another shape than it.
    """
    if len(inputs) % 2 and method.statistics:
        raise MergeError(f"the inputs are experts and then one file of statistics each, not {len(inputs)} files")
    experts = merging(method, inputs)
    units = plan(experts, labels[: len(experts)], policy, has_base=has_base, sources=sources, told=told)
    if not method.statistics:
        return units
    described = [specs(statistics) for statistics in inputs[len(experts) :]]
    problems: list[str] = []
    found: list[Unit] = []
    for unit in units:
        if unit.assembly is not None or 1 < len(unit.sources) < len(experts):
            raise MergeError(f"{unit.name}: statistics are of whole tensors that all experts have; {leave(unit.name)}")
        if unit.kind != "merge":
            found.append(unit)
            continue
        found.append(replace(unit, sources=(*unit.sources, *(len(experts) + index for index in unit.sources))))
        shapes = [unit.shape]
        if len(unit.shape) == 2 and not method.elementwise:  # inner products of a layer's inputs
            shapes.append((unit.shape[1], unit.shape[1]))
        for index, statistics in enumerate(described):
            expert = labels[index]
            if unit.name not in statistics:
                problems.append(
                    f"the statistics of {expert} lack {unit.name}; collect them on a model with the expert's names"
                )
            elif statistics[unit.name].shape not in shapes:
                given = list(statistics[unit.name].shape)
                problems.append(
                    f"{unit.name} has shape {list(unit.shape)}: the statistics of {expert} cannot have shape {given}"
                )
    if problems:
        raise MergeError("; ".join(problems[:5]) + f"; and {len(problems) - 5} more problems" * (len(problems) > 5))
    return found
