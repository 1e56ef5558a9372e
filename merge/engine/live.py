"""Live interpolation: move a model along a path between checkpoints, in place, on its own device."""

# What users give is checked, whatever its type is said to be.
# pyright: reportUnnecessaryIsInstance=false

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from merge.checkpoint.scaled import dequantized
from merge.checkpoint.source import Source, StateDict, opened_all
from merge.engine.files import computed
from merge.engine.kernel import computing_dtype, merged, nonfinite, refuse_nonfinite
from merge.engine.memory import Sources, unplaced_recipe, with_statistics
from merge.engine.survey import Parameters, Walk, survey
from merge.errors import MergeError
from merge.plan.paired import plan_for
from merge.plan.policy import Policy
from merge.plan.units import Unit
from merge.recipe.inputs import restacked
from merge.recipe.parameters import is_rules, method_named, parameters_for, resolve


class LivePath:
    """A model whose weights are any method's result at coefficients that can be set again and again.

    The endpoints stay pristine, so that a point has the same bits however the model came there: those of the merged
    file for the same recipe. `set` writes into the model's own parameters and buffers; tied weights are written once.

    Args:
        model: any module; its state dict must have the names and shapes of the merged checkpoint.
        method: a key of `METHODS`.
        inputs: checkpoints (paths, open ones, state dicts or modules), by name or in a list.
        base: the common ancestor, for methods that take one.
        statistics: those of the inputs by the same names, for methods that weigh experts by them.
        layers: what the model's layers are made of, as a `Recipe` takes them.
        policy: see `Policy`; with `dtype=None` values are rounded to the checkpoints' dtype, as in a file.
        resident: keep the endpoints on the model's device; else they are read from the file's map at every `set`, for a
            GPU from pinned memory.

    Leaving its `with` block restores the weights that the model had on entering. Infinite and NaN values are refused
    as in files, but for one short cut: sums of finite float32 endpoints within [0, 1] are not looked at again. Raises
    MergeError, also where the model's tensors were replaced or moved after the path was made.
    """

    def __init__(
        self,
        model: nn.Module,
        method: str,
        inputs: Sources,
        base: Source | None = None,
        *,
        statistics: Sources | None = None,
        policy: Policy | None = None,
        layers: Any = None,
        resident: bool = True,
    ):
        if not isinstance(model, nn.Module):
            raise MergeError(f"model: a {type(model).__name__} is no nn.Module, whose weights could be set")
        named = with_statistics(method, opened_all(inputs, opening=computed), statistics)
        self.names = list(named)
        self._recipe = replace(unplaced_recipe(method, self.names, base is not None, policy, {}), layers=layers or {})
        self._method = method_named(method)
        self._model = model
        self._targets = self._tensors()
        sources = [*([] if base is None else [computed(base, name="base")]), *named.values()]
        if self._recipe.policy.dequantize:
            sources = [dequantized(source) for source in sources]
        labels = [item.name for item in self._recipe.sources]
        stack = restacked(self._recipe, sources)
        sources, rest = stack.inputs, dict[str, Any](has_base=base is not None, sources=stack.sources)
        self.units = plan_for(self._method, sources, labels, self._recipe.policy, **rest)
        self._check_targets(sources)
        own = {tensor.untyped_storage().data_ptr() for tensor in self._targets.values()}
        self._endpoints = {unit.name: self._gather(unit, sources, own, resident) for unit in self.units}
        self._saved: list[dict[str, Tensor]] = []
        self._set: Mapping[str, Any] | None = None

    def __enter__(self):
        self._saved.append({name: tensor.clone() for name, tensor in self._targets.items()})
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with torch.no_grad():
            for name, tensor in self._saved.pop().items():
                self._targets[name].copy_(tensor)

    def set_parameters(self, **parameters: Any) -> None:
        """Write the merged weights for these parameters of the method into the model."""
        recipe = self._recipe.with_parameters(**parameters)
        resolved: Parameters = parameters_for(recipe, self.units)
        if self._method.survey is not None:
            (found,) = survey(self._method, self.units, [resolved], recipe.policy, Walk(self.endpoints))
            resolved = found.parameters
        self.set_each(resolved)
        self._set = parameters

    def set_each(self, parameters: Parameters) -> None:
        """Write the merged weights for the method's whole parameters of every tensor, by name, as they are."""
        now = self._tensors()
        moved = next((k for k, v in self._targets.items() if k not in now or now[k].data_ptr() != v.data_ptr()), None)
        if moved is not None:
            raise MergeError(f"{moved} of the model was replaced or moved since this path was made; make a new one")
        with torch.no_grad():
            for unit, endpoints in zip(self.units, self._endpoints.values(), strict=True):
                point = parameters.get(unit.name, {})
                target, *others = self.targets(unit)
                tensors = [tensor.to(target.device, non_blocking=True) for tensor in endpoints]
                if self._in_place(unit, target, tensors) and self._method.single(len(tensors), point) is None:
                    self._method.function(tensors, name=unit.name, out=target, **point)
                else:
                    ((value, count),) = merged(unit, tensors, self._method, [point], self._recipe.policy)
                    refuse_nonfinite(unit, count, self._recipe.policy)
                    target.copy_(value)
                for other in others:  # tied in the checkpoints, not in the model
                    other.copy_(target)

    def endpoints(self, unit: Unit) -> Sequence[Tensor]:
        """Give the tensors of the checkpoints that a unit is merged from."""
        return self._endpoints[unit.name]

    def targets(self, unit: Unit) -> list[Tensor]:
        """Give the model's own tensors that a unit is written to: several where the model does not tie its names."""
        return list({self._targets[name].data_ptr(): self._targets[name] for name in unit.names}.values())

    def resolution(self) -> str:
        """Give a table of every merged tensor, the rule that decided it and its coefficient at the point last set."""
        if self._set is None:
            raise MergeError("no point has been set yet")
        kinds = {name: unit.kind for unit in self.units for name in unit.names}
        names = [name for name, kind in kinds.items() if kind != "copy"]
        lines: list[str] = []
        for key, value in self._set.items():
            rules: Mapping[str, Any] = value if is_rules(value) else {"*": value}
            decided = resolve(rules, names).items()
            lines += [f"{name}  {glob}  {key}={item}" for name, (glob, item) in decided if kinds[name] == "merge"]
        untouched = [f"{name}  -  {kind}" for name, kind in kinds.items() if kind != "merge"]
        return "\n".join(lines + untouched)

    def _tensors(self) -> dict[str, Tensor]:
        """The model's own tensors by name, sharing its memory."""
        return {name: value for name, value in self._model.state_dict().items() if isinstance(value, Tensor)}

    def _in_place(self, unit: Unit, target: Tensor, tensors: Sequence[Tensor]) -> bool:
        """Whether the arithmetic can be done straight into the model's memory: no conversion on the way in or out."""
        dtype = computing_dtype(tensors, self._recipe.policy)
        same = all(tensor.dtype == dtype for tensor in (target, *tensors))
        certain = self._method.elementwise and not self._recipe.policy.extrapolate
        enough = len(tensors) >= self._method.inputs[0] + self._method.takes_base
        whole = unit.kind == "merge" and unit.assembly is None and enough
        return whole and same and certain and unit.dtype == dtype

    def _gather(self, unit: Unit, sources: Sequence[StateDict], own: set[int], resident: bool) -> tuple[Tensor, ...]:
        """One unit's endpoints: on the model's device if resident, and never the model's own memory."""
        target = self._targets[unit.name]
        tensors = [sources[index][unit.name].detach() for index in unit.sources]
        if resident:
            tensors = [tensor.to(target.device) for tensor in tensors]
        elif target.device.type == "cuda":  # from here a GPU fetches them while it computes
            tensors = [tensor.pin_memory() for tensor in tensors]
        tensors = [tensor.clone() if tensor.untyped_storage().data_ptr() in own else tensor for tensor in tensors]
        for tensor in tensors:
            refuse_nonfinite(unit, nonfinite(tensor), self._recipe.policy)
        return tuple(tensors)

    def _check_targets(self, sources: Sequence[StateDict]) -> None:
        """Raise where the checkpoints do not fit the model. A name tied in the model is set by any of its names."""
        merged = {name: unit for unit in self.units for name in unit.names}
        reached = {self._targets[name].data_ptr() for name in merged if name in self._targets}
        lacking = sorted(set(merged) - set(self._targets))
        unset = sorted(k for k, v in self._targets.items() if k not in merged and v.data_ptr() not in reached)
        if lacking or unset:
            raise MergeError(
                f"the model and the checkpoints differ: not in the model {lacking[:20]}, not in the checkpoints "
                f"{unset[:20]}; drop='GLOB' leaves the first out; load a model that has no more than the checkpoints"
            )
        first: dict[int, str] = {}
        for name, unit in merged.items():
            target = self._targets[name]
            if tuple(target.shape) != unit.shape:
                shape = list(target.shape)
                raise MergeError(f"{name} has shape {list(unit.shape)} in the checkpoints and {shape} in the model")
            other = first.setdefault(target.data_ptr(), name) if target.numel() else name
            if merged[other] is not unit and any(not torch.equal(side[other], side[name]) for side in sources):
                raise MergeError(f"{other} and {name} are one tensor in the model and differ in the checkpoints")


class LinearPath(LivePath):
    """The straight line between two checkpoints: `path.set(0.3)` makes the model 0.7 first + 0.3 second.

    >>> model = nn.Linear(1, 1, bias=False)
    >>> path = LinearPath(model, {"weight": torch.tensor([[0.0]])}, {"weight": torch.tensor([[2.0]])})
    >>> path.set(0.25)
    >>> model.weight.item()
    0.5
    """

    def __init__(
        self,
        model: nn.Module,
        first: Source,
        second: Source,
        *,
        names: tuple[str, str] = ("first", "second"),
        policy: Policy | None = None,
        resident: bool = True,
    ):
        inputs = {names[0]: first, names[1]: second}
        super().__init__(model, "interpolate", inputs, policy=policy, resident=resident)

    def set(self, ratio: float | Mapping[str, float]) -> None:
        """Set the share of the second checkpoint: a number, or globs to numbers ("*" required, first match wins)."""
        self.set_parameters(ratio=ratio)


class Simplex(LivePath):
    """All weighted averages of several checkpoints."""

    def __init__(
        self,
        model: nn.Module,
        inputs: Sources,
        *,
        policy: Policy | None = None,
        resident: bool = True,
    ):
        super().__init__(model, "average", inputs, policy=policy, resident=resident)

    def set(self, weights: Mapping[str, Any] | Sequence[float]) -> None:
        """Set the share of every checkpoint: by name, in order, or globs to either."""
        self.set_parameters(weights=weights)
