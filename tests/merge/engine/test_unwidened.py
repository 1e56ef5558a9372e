"""16-bit tensors that are not widened first give the bits of those that are: every value beside others, many ratios."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import merge
from merge import Policy
from merge.engine import kernel
from merge.methods import METHODS
from tests.merge.made import bits

HALVES = [torch.float16, torch.bfloat16]
RATIOS = [i / 10 for i in range(1, 10)] + [1 / 3, 2 / 7, 1e-8, 1 - 1e-8, 0.5 - 1e-9, 0.49999997, -0.5, 1.5, 3.7]
ANY = Policy(extrapolate=True, allow_nonfinite=True)


def every(dtype: torch.dtype) -> Tensor:
    """All 65,536 values, infinities, NaNs of every payload and both zeros among them."""
    return torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16).view(dtype)


def partners(dtype: torch.dtype) -> dict[str, Tensor]:
    """For every value: any other, one nearby, and each of the odd ones."""
    values, generator = every(dtype), torch.Generator().manual_seed(0)
    chosen = [values[torch.randint(len(values), (len(values),), generator=generator)] for _ in range(3)]
    near = (values.float() * (1 + 0.1 * torch.randn(len(values), generator=generator))).to(dtype)
    limits = torch.finfo(dtype)
    odd = torch.tensor(
        [0.0, -0.0, torch.inf, -torch.inf, torch.nan, limits.max, limits.tiny, limits.smallest_normal / 8]
    )
    columns = [*chosen, near, values.clone(), *(value.to(dtype).expand(len(values)) for value in odd)]
    return {f"w{index}": column.contiguous() for index, column in enumerate(columns)}


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> list[torch.dtype]:
    """The dtypes in which the methods were asked to compute, in turn."""
    seen: list[torch.dtype] = []
    for name in ("interpolate", "average", "task-arithmetic"):
        method = METHODS[name]

        def spy(tensors: list[Tensor], *, code: Any = method.function, **given: Any) -> Tensor:
            seen.append(tensors[0].dtype)
            return code(tensors, **given)

        monkeypatch.setitem(METHODS, name, replace(method, code=spy))
    return seen


@pytest.mark.parametrize("dtype", HALVES)
def test_every_value_has_the_bits_of_widening_and_rounding_once(dtype: torch.dtype) -> None:
    second = partners(dtype)
    first = {name: every(dtype)[: len(column) - index] for index, (name, column) in enumerate(second.items())}
    second = {name: column[: len(first[name])] for name, column in second.items()}  # of lengths that leave a rest
    for ratio in RATIOS:
        merged = merge.interpolate(first, second, ratio, policy=ANY)
        for name, value in merged.items():
            wanted = torch.lerp(first[name].float(), second[name].float(), ratio).to(dtype)
            assert torch.equal(bits(value), bits(wanted)), (name, ratio)


@pytest.mark.parametrize("dtype", HALVES)
def test_finite_values_are_not_widened_and_others_are(dtype: torch.dtype, narrow: list[torch.dtype]) -> None:
    if not kernel.rounds_once(dtype):
        pytest.skip("this processor computes them otherwise, so they are widened")
    a, b = torch.randn(2, 1000, generator=torch.Generator().manual_seed(1)).to(dtype).unbind()
    wanted = torch.lerp(a.float(), b.float(), 0.25).to(dtype)
    for value in (
        merge.interpolate({"w": a}, {"w": b}, 0.25),
        merge.average([{"w": a}, {"w": b}], weights=[0.75, 0.25]),
        merge.task_arithmetic({"w": a}, [{"w": b}], 0.25),
    ):
        assert torch.equal(bits(value["w"]), bits(wanted))
    assert narrow == [dtype] * 3
    narrow.clear()
    merge.average([{"w": a}, {"w": b}, {"w": a}])
    merge.interpolate({"w": a}, {"w": b}, 0.25, policy=Policy(compute_dtype="float64"))
    merge.interpolate({"w": a}, {"w": b}, 0.25, policy=Policy(dtype="float32"))
    assert narrow == [torch.float32, torch.float64, torch.float32]
    narrow.clear()
    merge.interpolate({"w": a}, {"w": torch.full_like(b, torch.inf)}, 0.25, policy=ANY)
    assert narrow == [dtype, torch.float32]


def test_a_sum_beyond_float16_is_no_infinity() -> None:
    large = torch.full((1000,), 1000.0, dtype=torch.float16)
    assert kernel.nonfinite(large) == 0
    large[3] = torch.nan
    assert kernel.nonfinite(large) == 1


def test_where_torch_rounds_otherwise_tensors_are_widened(
    monkeypatch: pytest.MonkeyPatch, narrow: list[torch.dtype]
) -> None:
    monkeypatch.setattr(kernel, "rounds_once", lambda dtype: False)  # pyright: ignore[reportUnknownArgumentType,reportUnknownLambdaType]
    merge.interpolate({"w": torch.ones(3).half()}, {"w": torch.zeros(3).half()}, 0.25)
    assert narrow == [torch.float32]
