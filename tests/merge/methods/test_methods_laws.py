"""Laws of every method, on made tensors: empty, 0-dimensional, zero, equal and opposite ones among them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from merge import MergeError
from merge.methods import METHODS
from merge.methods.blocks import BLOCK, blocks
from tests.merge.made import assert_same, bits, copied, count_of, in_memory, parameters_of

NAMES = sorted(METHODS)
PAIRED = ("fisher", "regmean")  # the second half of their inputs are statistics
# What is equal in all inputs stays equal entry by entry; on a sphere, in matrices and in RegMean others take part.
BY_ENTRY = [n for n in NAMES if METHODS[n].group not in ("great circles", "matrices") and n != "regmean"]
VALUES = st.floats(-100, 100, width=16, allow_subnormal=False).map(lambda value: value + 0.0)
DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]


@st.composite
def tensors(draw: st.DrawFn, count: int) -> list[Tensor]:
    """`count` tensors of one shape and dtype; some zero, equal to, or opposite to the one before."""
    shape = draw(st.lists(st.integers(0, 3), max_size=3))
    size = math.prod(shape)
    made: list[Tensor] = []
    for _ in range(count):
        kind = draw(st.sampled_from(["any", "any", "zero", "equal", "opposite"])) if made else "any"
        if kind == "any":
            values = torch.tensor(draw(st.lists(VALUES, min_size=size, max_size=size)), dtype=torch.float32)
            made.append(values.reshape(shape))
        else:
            made.append({"zero": 0.0, "equal": 1.0, "opposite": -1.0}[kind] * made[-1] + 0.0)
    dtype = draw(st.sampled_from(DTYPES))
    return [value.to(dtype) for value in made]


def states_of(method: str, made: list[Tensor]) -> tuple[dict[str, Any], Any]:
    inputs = {f"in{i}": {"w": made[i]} for i in range(count_of(method))}
    return inputs, {"w": made[-1]} if METHODS[method].takes_base else None


def merge_all(method: str, made: list[Tensor], **parameters: Any) -> Tensor:
    inputs, base = states_of(method, made)
    return in_memory(method, inputs, {**parameters_of(method), **parameters}, base=base)["w"]


def total(method: str) -> int:
    return count_of(method) + METHODS[method].takes_base


@pytest.mark.parametrize("method", NAMES)
@given(data=st.data())
def test_whatever_is_merged_keeps_dtype_and_shape_and_is_finite(method: str, data: st.DataObject) -> None:
    made = data.draw(tensors(total(method)))
    before = [value.clone() for value in made]
    result = merged_unless_balanced(method, made)
    if result is None:
        assert "slerp" in method
        return
    assert result.dtype == made[0].dtype
    assert result.shape == made[0].shape
    assert result.isfinite().all()
    assert all(torch.equal(bits(value), bits(old)) for value, old in zip(made, before, strict=True))


def merged_unless_balanced(method: str, made: list[Tensor]) -> Tensor | None:
    """The result, or None where directions balance out, or nearly, and the arc leads beyond what the dtype holds."""
    try:
        return merge_all(method, made)
    except MergeError as error:
        if "infinite" in str(error) and "nuslerp" in method:
            wide = merge_all(method, [value.double() for value in made])
            assert wide.isfinite().all()
            assert wide.abs().max() > 0.99 * torch.finfo(made[0].dtype).max
        elif "directions balance out" not in str(error) or "multislerp" not in method:
            raise
        return None


def test_an_arc_beyond_the_dtype_is_refused() -> None:
    nearly_opposite = [torch.tensor([62.0, 0.0]), torch.tensor([-10.0, 0.0078125])]
    assert merge_all("nuslerp", nearly_opposite)[0] > torch.finfo(torch.float16).max
    with pytest.raises(MergeError, match="1 infinite or NaN"):
        merge_all("nuslerp", [value.half() for value in nearly_opposite])


@pytest.mark.parametrize("method", NAMES)
@given(data=st.data())
def test_frozen_tensors_stay_frozen_to_the_bit(method: str, data: st.DataObject) -> None:
    value = data.draw(tensors(1))[0]
    weights = {"weights": [0.7, 0.3, 0.1][: count_of(method)]} if method == "linear" else {}
    assert torch.equal(bits(merge_all(method, [value.clone() for _ in range(total(method))], **weights)), bits(value))


@pytest.mark.parametrize("method", BY_ENTRY)
@given(data=st.data())
def test_entries_that_all_inputs_share_stay(method: str, data: st.DataObject) -> None:
    made = data.draw(tensors(total(method)))
    experts = count_of(method) // 2 if method in PAIRED else count_of(method)
    shared = made[:experts] + made[count_of(method) :]
    same = torch.stack([value == shared[0] for value in shared]).all(0)
    result = merge_all(method, made)
    assert torch.equal(result[same], shared[0][same])


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("method", NAMES)
def test_a_nan_or_an_infinity_anywhere_is_refused(method: str, bad: float) -> None:
    for index in range(total(method)):
        made = list(torch.randn(total(method), 6, 6, generator=torch.Generator().manual_seed(0)))
        made[index][2, 3] = bad
        if method in PAIRED and index >= count_of(method) // 2 and bad == -math.inf and method == "fisher":
            continue  # below the floor, like any negative statistic
        with pytest.raises(MergeError, match="infinite or NaN values"):
            merge_all(method, made)


@pytest.mark.parametrize("method", [name for name in NAMES if METHODS[name].elementwise])
def test_elementwise_means_that_blocks_give_the_same_bits(method: str) -> None:
    made = list(torch.randn(total(method), 1000, generator=torch.Generator().manual_seed(0)))
    if METHODS[method].takes_base:
        made = [made[-1], *made[:-1]]
    parameters = resolved(method)
    function = METHODS[method].function
    whole = function(made, name="w", **parameters)
    parts = [function([value[i : i + 77] for value in made], name="w", **parameters) for i in range(0, 1000, 77)]
    assert torch.equal(whole, torch.cat(parts))
    out = torch.empty(1000)
    assert function(made, name="w", out=out, **parameters).data_ptr() == out.data_ptr()
    assert torch.equal(out, whole.float())  # some compute in float64


def resolved(method: str) -> dict[str, Any]:
    """Parameters as a function gets them."""
    given, count = parameters_of(method), count_of(method)
    defaults = {
        name: -1 if p.input else 1 / count if p.simplex else p.default for name, p in METHODS[method].parameters.items()
    }
    return {
        name: [given.get(name, defaults[name])] * count if p.each else given.get(name, defaults[name])
        for name, p in METHODS[method].parameters.items()
    }


@pytest.mark.parametrize("method", NAMES)
def test_any_number_of_threads_gives_the_same_bits(method: str) -> None:
    generator = torch.Generator().manual_seed(0)
    made = list(torch.randn(total(method), 300, 300, generator=generator))
    results = [with_threads(count, lambda: merge_all(method, made)) for count in (1, 3)]
    assert torch.equal(bits(results[0]), bits(results[1]))


def with_threads(count: int, run: Callable[[], Tensor]) -> Tensor:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        return run()
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("method", [name for name in NAMES if METHODS[name].takes_base])
def test_a_base_alone_in_another_place_moves_the_result(method: str) -> None:
    made = list(torch.randn(total(method), 8, 8, generator=torch.Generator().manual_seed(0)))
    moved = [*made[:-1], made[-1] + 0.25]
    assert not torch.equal(merge_all(method, made), merge_all(method, moved))


def test_blocks_cover_a_tensor_once() -> None:
    for count in (0, 1, BLOCK, BLOCK + 1, 3 * BLOCK):
        parts = list(blocks(torch.empty(count)))
        assert [index for part in parts for index in (part.start, part.stop)] == [
            edge for start in range(0, count, BLOCK) for edge in (start, min(start + BLOCK, count))
        ]


def test_ties_in_the_state_are_merged_once() -> None:
    value = torch.randn(4, 4)
    state = {"a": value, "b": value}
    experts = {name: copied({key: item + shift for key, item in state.items()}) for name, shift in (("x", 1), ("y", 2))}
    for expert in experts.values():
        expert["b"] = expert["a"]
    result = in_memory("dare-ties", experts, {"density": 0.5}, base=state)
    assert_same({"w": result["a"]}, {"w": result["b"]})
    assert result["a"].data_ptr() == result["b"].data_ptr()
