"""Laws of merging that hold for any tensors: searched for exceptions with hypothesis."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import merge
from merge.methods import METHODS
from merge.plan.policy import Policy
from tests.merge.made import assert_same, copied, count_of, in_memory, parameters_of, weights

LAW = settings(deadline=None, max_examples=80)
DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]
SIGNED = st.floats(-1e4, 1e4, width=16, allow_subnormal=False)
FLOATS = SIGNED.map(lambda value: value + 0.0)  # arithmetic may take a negative zero's sign
RATIOS = st.integers(1, 40).flatmap(lambda n: st.integers(0, n).map(lambda i: i / n))


@st.composite
def states(draw: st.DrawFn, count: int, floats: st.SearchStrategy[float] = FLOATS) -> list[dict[str, Tensor]]:
    """`count` state dicts of the same few tensors."""
    dtype = draw(st.sampled_from(DTYPES))
    shapes = draw(st.lists(st.lists(st.integers(0, 3), max_size=2), min_size=1, max_size=3))
    return [
        {
            f"layer{i}.table": torch.tensor(
                draw(st.lists(floats, min_size=math.prod(shape), max_size=math.prod(shape))), dtype=dtype
            ).reshape(shape)
            for i, shape in enumerate(shapes)
        }
        for _ in range(count)
    ]


def assert_near(got: dict[str, Tensor], wanted: dict[str, Tensor], scales: list[dict[str, Tensor]]) -> None:
    """Equal to a few roundings of the largest value that took part."""
    for name, value in wanted.items():
        if value.numel():
            size = max(float(state[name].abs().max()) for state in scales)
            error = float((got[name].double() - value.double()).abs().max())
            assert error <= 8 * torch.finfo(value.dtype).eps * size + 1e-37, f"{name}: {error} of {size}"


@LAW
@given(states(2, SIGNED))
def test_endpoints_are_bitwise(pair: list[dict[str, Tensor]]) -> None:
    for function in (merge.interpolate, merge.slerp):
        assert_same(function(*pair, 0.0), pair[0])
        assert_same(function(*pair, 1.0), pair[1])


@LAW
@given(states(2), RATIOS)
def test_swapping_the_inputs_mirrors_the_ratio(pair: list[dict[str, Tensor]], ratio: float) -> None:
    a, b = pair
    for function in (merge.interpolate, merge.slerp):
        assert_near(function(a, b, ratio), function(b, a, 1 - ratio), pair)


@LAW
@given(states(2), RATIOS)
def test_the_ratio_is_the_share_of_the_second(pair: list[dict[str, Tensor]], ratio: float) -> None:
    a, b = pair
    wanted = {name: ((1 - ratio) * a[name].double() + ratio * b[name].double()).to(a[name].dtype) for name in a}
    assert_near(merge.interpolate(a, b, ratio), wanted, pair)


@LAW
@given(states(2), RATIOS)
def test_two_way_averages_are_interpolations_to_the_bit(pair: list[dict[str, Tensor]], ratio: float) -> None:
    assert_same(merge.average(pair, weights=[1 - ratio, ratio]), merge.interpolate(*pair, ratio))


@LAW
@given(st.integers(2, 6).flatmap(lambda n: states(n)))
def test_equal_weights_are_the_soup(models: list[dict[str, Tensor]]) -> None:
    soup = merge.average(models)
    assert_same(merge.average(models, weights=[1 / len(models)] * len(models)), soup)
    means = {
        name: torch.stack([model[name].double() for model in models]).mean(0).to(value.dtype)
        for name, value in models[0].items()
    }
    assert_near(soup, means, models)


@LAW
@given(states(3), st.permutations(range(3)))
def test_the_order_of_an_average_matters_only_to_rounding(models: list[dict[str, Tensor]], order: list[int]) -> None:
    shares = [0.5, 0.3, 0.2]
    merged = merge.average([models[i] for i in order], weights=[shares[i] for i in order])
    assert_near(merged, merge.average(models, weights=shares), models)


@LAW
@given(states(2, SIGNED))
def test_base_and_one_task_vector_are_the_expert(pair: list[dict[str, Tensor]]) -> None:
    base, expert = pair
    assert_same(merge.task_arithmetic(base, [expert], 1.0), expert)
    assert_same(merge.task_arithmetic(base, [expert], 0.0), base)
    vector = merge.TaskVector.between(base, expert, policy=Policy()).tensors
    for name, value in vector.items():
        wide = torch.float64 if base[name].dtype == torch.float64 else torch.float32
        assert value.dtype == wide
        assert torch.equal(value, expert[name].to(wide) - base[name].to(wide))


@LAW
@given(states(3), st.floats(-1, 2))
def test_task_vectors_add(models: list[dict[str, Tensor]], scale: float) -> None:
    base, a, b = models
    wanted = {
        name: (
            value.double() + scale * (a[name].double() - value.double()) + scale * (b[name].double() - value.double())
        ).to(value.dtype)
        for name, value in base.items()
    }
    merged = merge.task_arithmetic(base, [a, b], scale, policy=Policy(allow_nonfinite=True))
    finite = {name: value for name, value in wanted.items() if torch.isfinite(value).all()}
    assert_near(merged, finite, [{name: 4 * value for name, value in model.items()} for model in models])


@pytest.mark.parametrize("method", sorted(METHODS))
@settings(LAW, max_examples=25)
@given(data=st.data())
def test_a_checkpoint_merged_with_itself_is_unchanged(method: str, data: st.DataObject) -> None:
    state = data.draw(states(1))[0]
    inputs = {f"in{i}": copied(state) for i in range(count_of(method))}
    base = copied(state) if METHODS[method].takes_base else None
    merged = in_memory(method, inputs, parameters_of(method), base=base)
    assert_same(merged, state)


def test_a_negative_zero_merged_with_itself_is_zero() -> None:
    """Equal in value, not in bits: `torch.lerp` adds `ratio * (b - a)`, a positive zero."""
    zero = {"w": torch.tensor([-0.0])}
    assert torch.equal(merge.interpolate(zero, copied(zero), 0.5)["w"], zero["w"])
    assert_same(merge.interpolate(zero, copied(zero), 1.0), zero)


def method_inputs(method: str, dtype: torch.dtype = torch.float32) -> tuple[dict[str, dict[str, Tensor]], Any]:
    inputs = {f"in{i}": weights(i, dtype) for i in range(count_of(method))}
    return inputs, weights(9, dtype) if METHODS[method].takes_base else None


@pytest.mark.parametrize("method", sorted(METHODS))
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_method_keeps_dtypes_shapes_names_and_ties(method: str, dtype: torch.dtype) -> None:
    inputs, base = method_inputs(method, dtype)
    merged = in_memory(method, inputs, parameters_of(method), base=base)
    first = base or inputs["in0"]
    assert {name: (value.dtype, value.shape) for name, value in merged.items()} == {
        name: (value.dtype, value.shape) for name, value in first.items()
    }
    assert list(merged) == list(first)
    assert merged["encoder.embed.weight"].data_ptr() == merged["decoder.output.weight"].data_ptr()


@pytest.mark.parametrize("method", sorted(METHODS))
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_every_method_leaves_its_inputs_alone_and_shares_no_memory(method: str, share: float) -> None:
    inputs, base = method_inputs(method)
    before = {name: copied(state) for name, state in inputs.items()}
    base_before = copied(base) if base else None
    merged = in_memory(method, inputs, parameters_of(method, share), base=base)
    for value in merged.values():
        value.fill_(7)
    for name, state in inputs.items():
        assert_same(state, before[name])
    if base:
        assert_same(base, base_before)


@pytest.mark.parametrize("method", sorted(METHODS))
def test_every_method_moves_away_from_its_inputs(method: str) -> None:
    inputs, base = method_inputs(method)
    merged = in_memory(method, inputs, parameters_of(method), base=base)["encoder.layers.0.fc.weight"]
    for state in inputs.values():
        assert not torch.equal(merged, state["encoder.layers.0.fc.weight"])


@pytest.mark.parametrize("method", sorted(METHODS))
def test_every_method_gives_the_same_bits_twice(method: str) -> None:
    first, second = (
        in_memory(method, inputs, parameters_of(method), base=base)
        for inputs, base in (method_inputs(method), method_inputs(method))
    )
    assert_same(first, second)


def test_tensors_that_want_gradients_are_merged_without_a_graph() -> None:
    a, b = ({"w": torch.nn.Parameter(torch.ones(2) * k)} for k in (1.0, 3.0))
    merged = merge.interpolate(a, b, 0.5)["w"]
    assert not merged.requires_grad
    assert type(merged) is Tensor
    assert merged.tolist() == [2.0, 2.0]


def test_slerp_keeps_the_norm_between_orthogonal_tensors() -> None:
    a, b = {"w": torch.tensor([[3.0, 0.0]])}, {"w": torch.tensor([[0.0, 3.0]])}
    for ratio in (0.1, 0.25, 0.5, 0.9):
        merged = merge.slerp(a, b, ratio)["w"]
        angle = ratio * math.pi / 2
        assert torch.allclose(merged, 3 * torch.tensor([[math.cos(angle), math.sin(angle)]]), atol=1e-6)


@pytest.mark.parametrize("second", [[2.0, 4.0], [-1.0, -2.0], [0.0, 0.0], [1.0, 2.0001]])
def test_slerp_is_linear_where_there_is_no_arc(second: list[float]) -> None:
    a, b = {"w": torch.tensor([1.0, 2.0])}, {"w": torch.tensor(second)}
    assert_same(merge.slerp(a, b, 0.3), merge.interpolate(a, b, 0.3))


def test_slerp_of_tensors_whose_squares_leave_float32() -> None:
    a, b = {"w": torch.tensor([1e30, 0.0])}, {"w": torch.tensor([0.0, 1e30])}
    assert torch.allclose(merge.slerp(a, b, 0.5)["w"] / 1e30, torch.tensor([math.sqrt(0.5)] * 2))
