"""Surveys: what a method finds out about the whole model before any tensor is merged, for every way of merging."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from merge.engine.kernel import to_compute
from merge.engine.planned import Plan
from merge.engine.workers import on_threads
from merge.methods import Method
from merge.methods.survey import Surveyed
from merge.plan.policy import Policy
from merge.plan.rows import aligned
from merge.plan.units import Unit
from merge.recipe.parameters import method_named

Seen = TypeVar("Seen")
Parameters = Mapping[str, Mapping[str, Any]]  # by the first name of a unit


@dataclass(frozen=True)
class Walk:
    """How a survey comes to the tensors of a merge.

    Attributes:
        read: gives a unit's sources as they are stored.
        threads: how many tensors are looked at at a time, each on one thread; 0: as many as torch uses.
        device: where they are looked at.
        begun: called when a pass over the inputs begins, with its number.
        progress: called with the bytes of a unit's sources.
    """

    read: Callable[[Unit], Sequence[Tensor]]
    threads: int = 0
    device: str = ""
    begun: Callable[[int], object] | None = None
    progress: Callable[[int], object] | None = None


def survey(
    method: Method, units: Sequence[Unit], points: Sequence[Parameters], policy: Policy, walk: Walk
) -> list[Surveyed]:
    """Give for every point the parameters of each unit, with what the method's survey found, and the survey's notes.

    Points that agree in all that the survey depends on share one. Without a survey they are as they were.
    """
    if method.survey is None:
        return [Surveyed(point) for point in points]
    computed = [unit for unit in units if unit.kind == "merge"]
    names = [unit.name for unit in computed]
    done: list[tuple[Parameters, Surveyed]] = []
    found: list[Surveyed] = []
    for point in points:
        asked = {name: {key: point[name][key] for key in method.survey.of} for name in names}
        known = next((surveyed for other, surveyed in done if other == asked), None)
        if known is None:
            known = method.survey.function(_Whole(method, computed, asked, policy, walk))
            done.append((asked, known))
        parameters = {name: {**mine, **known.parameters.get(name, {})} for name, mine in point.items()}
        found.append(Surveyed(parameters, known.notes))
    return found


def surveyed(plan: Plan) -> Plan:
    """Give a plan with what its method's survey of the files finds."""
    options, method = plan.options, method_named(plan.recipe.method)

    def begun(number: int) -> None:
        if options.stage:
            options.stage(f"{plan.recipe.method}, survey {number}", plan.bytes_read)

    def read(unit: Unit) -> list[Tensor]:
        return [plan.checkpoints[index].read(unit.name) for index in unit.sources]

    walk = Walk(read, options.threads or min(4, os.cpu_count() or 1), options.device, begun, options.progress)
    found = survey(method, plan.units, [target.parameters for target in plan.targets], plan.recipe.policy, walk)
    if options.stage:
        options.stage(plan.recipe.method, plan.bytes_read)
    pairs = zip(plan.targets, found, strict=True)
    return replace(plan, targets=[replace(to, parameters=one.parameters, found=one.notes) for to, one in pairs])


class _Whole:
    """All tensors that a merge computes, for one point: a `merge.methods.survey.Model`."""

    def __init__(self, method: Method, units: Sequence[Unit], parameters: Parameters, policy: Policy, walk: Walk):
        self.parameters, self._method, self._policy, self._walk = parameters, method, policy, walk
        self._units = {unit.name: unit for unit in units}
        self._passes = 0

    def each(self, look: Callable[[str, Sequence[Tensor]], Seen], names: Iterable[str] | None = None) -> Iterator[Seen]:
        """Call `look(name, tensors)` for every unit, or for some, and yield what it gives in their order."""
        self._passes += 1
        if self._walk.begun:
            self._walk.begun(self._passes)
        units = map(self._units.__getitem__, self._units if names is None else names)
        threads = self._walk.threads or torch.get_num_threads()
        yield from on_threads(lambda unit: self._seen(unit, look), units, threads)

    def _seen(self, unit: Unit, look: Callable[[str, Sequence[Tensor]], Seen]) -> Seen:
        stored = self._walk.read(unit)
        size = sum(tensor.numel() * tensor.element_size() for tensor in stored)
        if self._walk.device not in ("", "cpu"):
            stored = [tensor.to(self._walk.device) for tensor in stored]
        with torch.no_grad():
            seen = look(unit.name, to_compute(unit, aligned(stored, unit.assembly), self._method, self._policy))
        if self._walk.progress:
            self._walk.progress(size)
        return seen
