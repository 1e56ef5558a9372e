"""Small made state dicts, models that carry them, and comparison to the bit, for the tests of merging."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from merge.engine.memory import merge_with
from merge.methods import METHODS, Parameter
from merge.plan.policy import Policy
from merge.recipe.recipe import Input, Recipe

# A value well inside the range of each parameter that has no default.
INSIDE = 0.3


def weights(seed: int, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """A small model's state: matrices, a scalar, nothing at all, a tie, BatchNorm, a position table of integers."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    embedding = normal(7, 5)
    return {
        "encoder.embed.weight": embedding,
        "encoder.layers.0.fc.weight": normal(11, 5),
        "encoder.layers.0.fc.bias": normal(11),
        "encoder.image.bn.weight": normal(4),
        "encoder.image.bn.running_mean": normal(4),
        "encoder.image.bn.running_var": normal(4).abs(),
        "encoder.image.bn.num_batches_tracked": torch.tensor(100 + seed),
        "encoder.positions": torch.arange(6).view(2, 3),
        "decoder.scale": normal(),
        "decoder.nothing": normal(0, 5),
        "decoder.output.weight": embedding,
    }


def bits(value: Tensor) -> Tensor:
    """A tensor's bytes: NaNs and signed zeros are compared as they are."""
    return value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)


def assert_same(got: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    """Equal names in one order, dtypes, shapes and bits."""
    assert list(got) == list(wanted)
    for name, value in wanted.items():
        assert got[name].dtype == value.dtype, f"{name}: {got[name].dtype}, not {value.dtype}"
        assert got[name].shape == value.shape, f"{name}: {list(got[name].shape)}, not {list(value.shape)}"
        assert torch.equal(bits(got[name]), bits(value)), f"{name} differs"


def copied(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A deep copy that keeps ties."""
    done: dict[int, Tensor] = {}
    return {name: done.setdefault(id(value), value.clone()) for name, value in state.items()}


class Carrier(nn.Module):
    """A module whose state dict is the one given: parameters for floats, buffers for the rest, ties as in the dict."""

    def __init__(self, state: Mapping[str, Tensor], dtype: torch.dtype | None = None):
        super().__init__()
        made: dict[int, nn.Parameter | Tensor] = {}
        for name, value in state.items():
            *path, leaf = name.split(".")
            module: nn.Module = self
            for part in path:
                if part not in module._modules:
                    module.add_module(part, nn.Module())
                module = module.get_submodule(part)
            if id(value) not in made:
                buffer = "running_" in leaf or not value.dtype.is_floating_point
                copy = value.clone() if dtype is None or not value.dtype.is_floating_point else value.to(dtype)
                made[id(value)] = copy if buffer else nn.Parameter(copy)
            item = made[id(value)]
            if isinstance(item, nn.Parameter):
                module.register_parameter(leaf, item)
            else:
                module.register_buffer(leaf, item)

    def now(self) -> dict[str, Tensor]:
        """A copy of the present state."""
        return {name: value.clone() for name, value in self.state_dict().items()}


def ordered_as(state: Mapping[str, Tensor], names: Mapping[str, Any]) -> dict[str, Tensor]:
    """The same entries in another mapping's order (a module lists its parameters before its buffers)."""
    return {name: state[name] for name in names}


def count_of(method: str) -> int:
    """Three inputs where the method takes so many."""
    low, high = METHODS[method].inputs
    return max(low, min(3, high or 3))


def parameters_of(method: str, share: float = INSIDE) -> dict[str, Any]:
    """Defaults, a value inside the range for what has none, and few steps."""

    def value(parameter: Parameter) -> float:
        return share if parameter.low <= share <= parameter.high else max(parameter.low, 1.0)

    found: dict[str, Any] = {
        name: value(parameter)
        for name, parameter in METHODS[method].parameters.items()
        if parameter.default is None and not parameter.simplex
    }
    return found | ({"steps": 3} if "steps" in METHODS[method].parameters else {})  # of descents, which take their time


def recipe_of(
    method: str, folder: Path, suffix: str = ".safetensors", policy: Policy | None = None, **parameters: Any
) -> Recipe:
    """A recipe for files named `0<suffix>`, `1<suffix>`, ... and `base<suffix>` in a folder."""
    inputs = tuple(Input(f"in{index}", folder / f"{index}{suffix}") for index in range(count_of(method)))
    base = Input("base", folder / f"base{suffix}") if METHODS[method].takes_base else None
    return Recipe(method, inputs, {**parameters_of(method), **parameters}, base, policy or Policy())


def in_memory(
    method: str,
    inputs: Mapping[str, Any],
    parameters: Mapping[str, Any],
    policy: Policy | None = None,
    base: Any = None,
) -> dict[str, Tensor]:
    """`merge_with`, with the parameters in a mapping, as recipes have them."""
    return merge_with(method, inputs, base, policy=policy, **parameters)
