"""Task vectors as values."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import merge
from merge import MergeError
from merge.tools.task_vector import TaskVector
from tests.merge.made import assert_same, copied, weights

BASE, ONE, TWO = (weights(seed) for seed in (9, 1, 2))
for _state in (ONE, TWO):  # experts of one base share its counters
    _state["encoder.image.bn.num_batches_tracked"] = BASE["encoder.image.bn.num_batches_tracked"].clone()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_base_plus_task_vector_is_the_expert_to_the_bit(dtype: torch.dtype) -> None:
    base, expert = weights(9, dtype), weights(1, dtype)
    expert["encoder.image.bn.num_batches_tracked"] = base["encoder.image.bn.num_batches_tracked"]
    result = TaskVector.between(base, expert).apply(base)
    assert_same(result, expert)
    assert result["encoder.embed.weight"].data_ptr() == result["decoder.output.weight"].data_ptr()


@given(st.floats(-3, 3, width=32), st.floats(-3, 3, width=32))
def test_the_algebra_is_that_of_vectors(r: float, s: float) -> None:
    one, two = TaskVector.between(BASE, ONE), TaskVector.between(BASE, TWO)
    for left, right in [
        (one + two, two + one),
        (one - two, one + -two),
        (r * (one + two), one * r + two * r),
        ((r * one) * s, (r * s) * one),
        (one - one, 0 * one),
    ]:
        for name, value in left.tensors.items():
            torch.testing.assert_close(value, right.tensors[name], rtol=1e-12, atol=1e-12)


def test_arithmetic_agrees_with_the_method() -> None:
    vector = TaskVector.between(BASE, ONE) + TaskVector.between(BASE, TWO)
    wanted = merge.task_arithmetic(BASE, [ONE, TWO], 0.3)
    for name, value in vector.apply(BASE, 0.3).items():
        torch.testing.assert_close(value, wanted[name])


def test_an_analogy() -> None:
    states = [{"w": torch.tensor(value)} for value in ([1.0, 2.0], [1.5, 0.0], [3.0, 2.0])]
    a, b, c = states
    assert TaskVector.between(a, b).apply(c)["w"].tolist() == [3.5, 0.0]


def test_applying_leaves_everything_alone() -> None:
    vector, before = TaskVector.between(BASE, ONE), copied(BASE)
    kept = copied(dict(vector.tensors))
    for value in vector.apply(BASE).values():
        value.fill_(1)
    assert_same(BASE, before)
    assert_same(dict(vector.tensors), kept)


def test_integers_and_what_the_policy_keeps_have_no_vector() -> None:
    vector = TaskVector.between(BASE, ONE, policy=merge.Policy(keep=("decoder.*",)))
    assert "encoder.positions" not in vector.tensors
    assert "decoder.scale" not in vector.tensors
    assert torch.equal(vector.apply(BASE)["decoder.scale"], BASE["decoder.scale"])


def one(values: list[float] | float) -> dict[str, Tensor]:
    return {"w": torch.tensor(values)}


def test_what_does_not_fit_is_named() -> None:
    vector = TaskVector.between(one([1.0, 2.0]), one([2.0, 2.0]))
    with pytest.raises(MergeError, match=r"only the first has \['w'\], only the second \['v'\]"):
        vector + TaskVector({"v": torch.zeros(2)})
    with pytest.raises(MergeError, match=r"w has shape \[3\] and \[2\] in the other task vector"):
        vector - TaskVector({"w": torch.zeros(3)})
    with pytest.raises(MergeError, match="the base lacks 1 tensors of the task vector: w"):
        vector.apply({"v": torch.zeros(2)})
    with pytest.raises(MergeError, match=r"w has shape \[2\] and \[\] in the base"):
        vector.apply(one(1.0))
    with pytest.raises(MergeError, match=r"w: 1 infinite or NaN values in base \+ 1e\+39 \* task vector"):
        vector.apply(one([1.0, 2.0]), 1e39)
    with pytest.raises(MergeError, match="infinite or NaN"):
        TaskVector.between(one([1.0]), one([math.nan])).apply(one([1.0]))
