"""Changes of adapters merged by a method of task vectors, over a base of zeros, or in one basis (KnOTS)."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from merge.checkpoint.formats.elements import element_of
from merge.engine.kernel import nonfinite
from merge.engine.survey import Walk, survey
from merge.errors import MergeError, nearest
from merge.methods import Method
from merge.methods.matrices import decomposed, one_thread
from merge.plan.units import Unit
from merge.recipe.parameters import check, check_inputs, parameters_for, value_of
from merge.recipe.recipe import Input, Recipe
from merge.tools.adapters.factors import parts_of, shares_of
from merge.tools.adapters.folder import EMBEDDING, Adapter, Factors
from merge.tools.adapters.knots import knots
from merge.tools.adapters.modes import method_of

# A module's merged change, shaped and turned as `B A`: [outputs, inputs], with more axes for a convolution.
Changes = Callable[[str], Tensor]


def combined(
    adapters: Sequence[Adapter], weights: Sequence[float] | None, mode: str, parameters: Mapping[str, Any]
) -> Changes:
    """Give the merged change of a module by its name, of one module at a time. Raises MergeError.

    A module that an adapter lacks is unchanged by it. `weights` are the method's own: 1 where none are given.
    """
    method = method_of(mode)
    shares_of(adapters, None)  # names that differ, and one way to turn matrices
    found = {module: parts[0].factors for module, parts in parts_of(adapters, [1.0] * len(adapters)).items()}
    biased = next(
        (adapter for adapter in adapters if any(one.bias is not None for one in adapter.modules.values())), None
    )
    if biased is not None:
        raise MergeError(
            f"{biased.name} changes biases (lora_bias), which mode {mode} does not merge: choose mode='exact'"
        )
    given = {**parameters, **({} if weights is None else {"weights": list(weights)})}
    for key in given:
        if key not in method.parameters:
            raise MergeError(f"mode {mode} has no parameter {key!r}{nearest(key, method.parameters)}")
    inputs = tuple(Input(adapter.name, Path(adapter.name)) for adapter in adapters)
    recipe = Recipe(mode, inputs, given, Input("base", Path("base")))
    if mode == "knots":
        resolved = {
            key: check(recipe, key, item, value_of(recipe, key, item)) for key, item in method.parameters.items()
        }
        of = {module: partial(_matrices, adapters, module, like) for module, like in found.items()}
        factors = functools.cache(lambda: knots(of, **resolved))

        def product(module: str) -> Tensor:
            first, second = factors()[module]
            return _checked(module, (first @ second).reshape(_shape(found[module])))

        return product
    check_inputs(recipe, method)
    turned = bool(adapters[0].config.get("fan_in_fan_out"))
    whole = _Whole(adapters, found, turned)
    (surveyed,) = survey(method, whole.units, [parameters_for(recipe, whole.units)], recipe.policy, Walk(whole.read))
    return lambda module: _checked(module, whole.merged(module, method, surveyed.parameters))


class _Whole:
    """The changes of all adapters as task vectors of a base of zeros, turned as the base's weights."""

    def __init__(self, adapters: Sequence[Adapter], found: Mapping[str, Factors], turned: bool):
        self._adapters, self._found, self._turned = adapters, found, turned
        self._units = {module: self._unit(module) for module in found}
        self.units = list(self._units.values())

    def _unit(self, module: str) -> Unit:
        shape = _shape(self._found[module])
        shape = shape[::-1] if self._is_turned(module) else shape
        return Unit(
            (f"{module}.weight",), "merge", tuple(range(len(self._adapters) + 1)), element_of(torch.float32), shape
        )

    def _is_turned(self, module: str) -> bool:
        return self._turned or self._found[module].ends == EMBEDDING

    def read(self, unit: Unit) -> list[Tensor]:
        """Give zeros and every adapter's change of a module."""
        module = unit.name.removesuffix(".weight")
        changes = _matrices(self._adapters, module, self._found[module])
        changes = [change.T.contiguous() if self._is_turned(module) else change for change in changes]
        return [torch.zeros(unit.shape), *(change.float().reshape(unit.shape) for change in changes)]

    def merged(self, module: str, method: Method, parameters: Mapping[str, Mapping[str, Any]]) -> Tensor:
        """Give the merged change of a module, turned as `B A`."""
        unit = self._units[module]
        tensors, mine = self.read(unit), parameters[unit.name]
        single = method.single(len(tensors), mine)
        change = method.function(tensors, name=unit.name, **mine) if single is None else tensors[single]
        return change.T if self._is_turned(module) else change


def _matrices(adapters: Sequence[Adapter], module: str, like: Factors) -> list[Tensor]:
    """Every adapter's change of a module as a matrix, in float64; zeros where it has none."""
    found: list[Tensor] = []
    with one_thread():
        for adapter in adapters:
            own = adapter.modules.get(module)
            if own is None:
                found.append(torch.zeros(like.b.shape[0], like.a[0].numel(), dtype=torch.float64))
            else:
                found.append((own.b.double().flatten(1) * own.scale) @ own.a.double().flatten(1))
    return found


def _shape(factors: Factors) -> tuple[int, ...]:
    return (factors.b.shape[0], *factors.a.shape[1:])


def _checked(module: str, change: Tensor) -> Tensor:
    if nonfinite(change):
        raise MergeError(f"{module}: infinite or NaN values in its merged change")
    return change


def truncated(change: Tensor, rank: int, like: Factors) -> tuple[Factors, float, float]:
    """Give the factors of a change's largest singular triples, and the energy that they hold and leave out."""
    with one_thread():
        left, values, right = decomposed(change.double().flatten(1), min(change.flatten(1).shape), 0.0)
    kept, lost = values[:rank].square().sum().item(), values[rank:].square().sum().item()
    root = values[:rank].sqrt()
    a = (right[:, :rank] * root).T.reshape(-1, *change.shape[1:])
    b = (left[:, :rank] * root).reshape(change.shape[0], -1, *like.b.shape[2:])
    return Factors(a, b, 1.0, like.ends), kept, lost
