"""The methods by hand-worked values, one family after the other."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from merge import MergeError
from merge.methods import METHODS, shortcuts, trimming
from merge.methods.linear import average
from tests.merge.made import in_memory


def merged(
    method: str, *values: Any, base: Any = None, dtype: torch.dtype = torch.float32, **parameters: Any
) -> Tensor:
    """One tensor `w` merged; inputs are lists, in order a, b, c, ..."""
    inputs = {"abcdefg"[i]: {"w": torch.tensor(value, dtype=dtype)} for i, value in enumerate(values)}
    start = None if base is None else {"w": torch.tensor(base, dtype=dtype)}
    return in_memory(method, inputs, parameters, base=start)["w"]


def near(got: Tensor, wanted: Any, tolerance: float = 1e-6) -> None:
    torch.testing.assert_close(got, torch.tensor(wanted, dtype=got.dtype), rtol=0, atol=tolerance)


HALF = math.sqrt(0.5)
QUARTER = math.pi / 8  # a quarter of a right angle
TO_TEN = [float(value) for value in range(1, 11)]
# 1st: both agree; 2nd: 5 outvotes -3; 3rd: nobody is left; 4th: a tie elects +. Untrimmed, 3rd: both agree.
VOTERS = [4.0, -3.0, 1.0, 2.0], [2.0, 5.0, 0.5, -2.0]
DIAGONALS = [torch.diag(torch.tensor(values)).tolist() for values in ([4.0, 2.0, 0.0], [4.0, 0.0, 1.0])]


class Case(NamedTuple):
    """A merge worked out by hand."""

    inputs: tuple[Any, ...]
    wanted: Any
    base: Any
    parameters: dict[str, Any]


def case(*inputs: Any, to: Any, base: Any = None, **parameters: Any) -> Case:
    return Case(inputs, to, base, parameters)


# Every method has a row here: test_methods_table.py asks for it.
VALUES: dict[str, list[Case]] = {
    "interpolate": [case([1.0, 2.0], [3.0, 6.0], to=[1.5, 3.0], ratio=0.25)],
    "average": [
        case([1.0, 2.0], [3.0, 6.0], [5.0, 1.0], to=[2.5, 2.75], weights=[0.5, 0.25, 0.25]),
        case([1.0, 2.0], [3.0, 6.0], to=[2.0, 4.0]),
    ],
    "task-arithmetic": [
        case([2.0, 1.0], [1.0, 4.0], base=[1.0, 1.0], to=[1.5, 2.5], scale=0.5),
        case([2.0, 1.0], [1.0, 4.0], base=[1.0, 1.0], to=[3.0, -2.0], scale=1, weights=[2, -1]),
        case([1.5, 2.0], base=[1.0, 2.0], to=[0.5, 2.0], scale=-1),  # negation
    ],
    "linear": [
        case([1.0, 2.0], [3.0, 6.0], to=[2.5, 5.0], weights=[1, 3]),
        case([1.0, 2.0], [3.0, 6.0], to=[10.0, 20.0], weights=[1, 3], normalize=False),
        case([1.0, 2.0], to=[0.5, 1.0], weights=[0.5], normalize=False),
        case([1.0], [math.inf], [3.0], to=[2.0], weights=[1, 0, 1]),  # a weight of 0 keeps infinities out
    ],
    "add-difference": [case([1.0, 2.0], [3.0, 6.0], [2.0, 6.0], to=[1.5, 2.0], scale=0.5)],
    "series": [
        case([1.0, 2.0], [3.0, 6.0], [5.0, 1.0], to=[3.0, 3.0]),
        case([1.0, 2.0], [3.0, 6.0], [5.0, 1.0], to=[22 / 6, 17 / 6], weights=[1, 2, 3]),
        case([1.0, 2.0], [3.0, 6.0], to=[5.0, 10.0], weights=[-1, 2]),  # of averages up to 1 and 2, what lies between
        case([1.0], [math.inf], [3.0], to=[2.0], weights=[1, 0, 1]),
    ],
    "ema": [case([1.0, 2.0], [3.0, 6.0], [5.0, 1.0], to=[3.5, 2.5], decay=0.5)],
    "slerp": [case([1.0, 0.0], [0.0, 1.0], to=[math.sqrt(0.75), 0.5], ratio=1 / 3)],
    "nuslerp": [
        case([2.0, 0.0], [0.0, 2.0], to=[2 * HALF, 2 * HALF]),
        case([1.0, 0.0], [0.0, 1.0], to=[math.cos(QUARTER), math.sin(QUARTER)], weights=[3, 1]),
    ],
    "nuslerp-base": [case([2.0, 1.0], [1.0, 2.0], base=[1.0, 1.0], to=[1 + HALF, 1 + HALF])],
    "multislerp": [case([2.0, 0.0], [0.0, 2.0], to=[2 * HALF, 2 * HALF])],
    "multislerp-base": [case([3.0, 1.0], [1.0, 3.0], base=[1.0, 1.0], to=[1 + 2 * HALF, 1 + 2 * HALF])],
    "karcher": [
        case([2.0, 0.0], [0.0, 2.0], to=[2 * HALF, 2 * HALF]),
        case([1.0, 0.0], [-3.0, 0.0], to=[2.0, 0.0]),  # antipodal: starts at the first
        case([0.0, 0.0], [3.0, 4.0], to=[1.5, 2.0]),  # a zero vector has a length
        case([0.0, 0.0], [0.0, 0.0], [0.0, 0.0], to=[0.0, 0.0]),
    ],
    "ties": [
        case(*VOTERS, base=[0.0] * 4, to=[3.0, 5.0, 0.0, 2.0], density=0.75),
        case(*VOTERS, base=[0.0] * 4, to=[6.0, 5.0, 0.0, 2.0], density=0.75, normalize=False),
        case(*VOTERS, base=[0.0] * 4, to=[1.5, 2.5, 0.0, 1.0], density=0.75, scale=0.5),
        case([5.0, -2.0], [3.0, 6.0], base=[1.0, 1.0], to=[4.0, 6.0], density=1.0),
        case([1.0, 1.0], [-2.0, 3.0], base=[0.0, 0.0], to=[1.0, 1.5], density=1, weights=[3, 1]),
        case([1.0, 3.0], [0.0, 0.0], base=[0.0, 0.0], to=[0.0, 3.0], density=0.01),  # at least one entry
        case([1.0, 3.0], [2.0, 0.0], base=[0.0, 0.0], to=[2.0, 0.0], density=[0, 1]),  # none at density 0
        case([1.0, 3.0], base=[0.0, 0.0], to=[0.0, 4.0], density=0.5, rescale_l1=True),
    ],
    "dare-linear": [case(*VOTERS, base=[1.0] * 4, to=[5.0, 1.0, 0.5, -1.0], density=1)],
    "dare-ties": [case(*VOTERS, base=[0.0] * 4, to=[3.0, 5.0, 0.75, 2.0], density=1)],
    "della-linear": [case(*VOTERS, base=[1.0] * 4, to=[5.0, 1.0, 0.5, -1.0], density=1, epsilon=0)],
    "della": [case(*VOTERS, base=[0.0] * 4, to=[3.0, 5.0, 0.75, 2.0], density=1, epsilon=0)],
    "breadcrumbs": [
        case(TO_TEN, base=[0.0] * 10, to=[0.0, *TO_TEN[1:8], 0.0, 0.0], density=0.7, gamma=0.2),
        case(TO_TEN, base=[0.0] * 10, to=[*TO_TEN[:9], 0.0], density=0.9, gamma=0.5),
    ],
    "breadcrumbs-ties": [
        case(
            [1.0, 2.0, 3.0, 9.0],
            [1.0, -3.0, 2.0, 9.0],
            base=[0.0] * 4,
            to=[0.0, -3.0, 2.5, 0.0],
            density=0.5,
            gamma=0.25,
        )
    ],
    "tsv": [
        case([[3.0, 0.0], [0.0, 1.0]], [[0.0, 0.0], [0.0, 2.0]], base=[[0.0] * 2] * 2, to=[[3.0, 0.0], [0.0, 2.0]]),
        case([[4.0, 0.0], [0.0, 1.0]], [[4.0, 0.0], [0.0, 1.0]], base=[[0.0] * 2] * 2, to=[[4.0, 0.0], [0.0, 0.0]]),
        case([[1.0, 3.0]], [[1.0, 5.0]], base=[[1.0, 1.0]], to=[[1.0, 2.5]], scale=0.5),  # one row: averaged
        case([[3.0, 0.0]], [[1.0, 2.0]], base=[[0.0, 0.0]], to=[[2.0, 1.0]], exclude=["x", "[v-x]"]),
    ],
    "iso-c": [
        case([[3.0, 0.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 1.0]], base=[[0.0] * 2] * 2, to=[[2.0, 0.0], [0.0, 2.0]]),
        case([[3.0, 0.0], [0.0, 0.0]], [[1.0, 0.0], [0.0, 0.0]], base=[[0.0] * 2] * 2, to=[[4.0, 0.0], [0.0, 0.0]]),
    ],
    "iso-cts": [
        # one direction of the sum (8), one of each expert (2 and 1): the mean is 11 / 3
        case(*DIAGONALS, base=[[0.0] * 3] * 3, to=(torch.eye(3) * 11 / 3).tolist(), common_space_fraction=0.34),
        case(*DIAGONALS, base=[[0.0] * 3] * 3, to=(torch.eye(3) * 11 / 3).tolist(), common_space_fraction=1),
    ],
    "wudi": [
        case([[2.0]], [[1.0]], base=[[0.0]], to=[[2.5]], steps=1, learning_rate=0.5),
        case([[2.0, 0.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 4.0]], base=[[0.0] * 2] * 2, to=[[2.0, 0.0], [0.0, 4.0]]),
    ],
    "emr": [case(*VOTERS, base=[0.0] * 4, to=[4.0, 5.0, 1.0, -2.0])],
    "consensus": [
        case([4.0, 1.0, 0.0], [1.0, 1.0, 0.0], base=[0.0] * 3, to=[0.0, 2.0, 0.0], tall_lambda=0.5, scale=1),
        case([4.0, 1.0, 0.0], [1.0, 1.0, 0.0], base=[0.0] * 3, to=[2.5, 1.0, 0.0], tall_lambda=0.5, scale=0.5, k=1),
        case([4.0, 1.0, 0.0], [1.0, 1.0, 0.0], base=[1.0] * 3, to=[4.0, 1.0, -1.0], scale=1, k=0),
    ],
    "model-stock": [
        # 60 degrees: t = 2 * 0.5 / 1.5
        case([1.0, 0.0], [0.5, math.sqrt(0.75)], base=[0.0, 0.0], to=[0.5, math.sqrt(0.75) / 3]),
        case([1.0, 0, 0], [1.0, 0, 0], [0, 1.0, 0], base=[0.0] * 3, to=[0.4, 0.2, 0.0]),  # the mean cosine
        case([2.0, 0.0], [0.0, 1.0], base=[1.0, 1.0], to=[1.0, 1.0]),  # experts pull apart
        case([2.0, 1.0], [1.0, 1.0], base=[1.0, 1.0], to=[1.0, 1.0]),
        case(
            [[1.0, 0.0], [1.0, 0.0]],
            [[1.0, 0.0], [-1.0, 0.0]],
            base=[[0.0, 0.0]] * 2,
            to=[[1.0, 0.0], [0.0, 0.0]],
            filter_wise=True,
        ),
    ],
    "sce": [
        # the two of largest variance of the two that differ: positions 1 and 2; energies 16 and 4 + 9
        case([1.0, 4.0, 0.0, 2.0], [1.0, -2.0, 3.0, 2.0], base=[0.0] * 4, to=[1.0, 4.0, 3.0, 2.0], density=1.0),
        case([1.0, 4.0, 0.0, 2.0], [1.0, -2.0, 3.0, 2.0], base=[0.0] * 4, to=[0.0, 4.0, 0.0, 0.0], density=0.5),
    ],
    "ram": [case([1.0, 2.0, 0.0, 0.0], [3.0, 0, 0, 5.0], [0.0, 0, 0, 4.0], base=[0.0] * 4, to=[2.0, 2.0, 0.0, 4.5])],
    "ram-plus": [
        # the first shares 1 of 2 changes, so its own one grows by 10 % of min(1 / 1, 0.2)
        case([1.0, 2.0, 0.0, 0.0], [3.0, 0, 0, 5.0], [0.0, 0, 0, 4.0], base=[0.0] * 4, to=[2.0, 2.04, 0.0, 4.5])
    ],
    "nearswap": [
        case([1.05, 3.0, 1.0, -1.0], base=[1.0] * 4, to=[1.05, 1.1, 1.0, 0.9], t=0.1),
        case([1.05, math.nan], base=[1.0, 2.0], to=[1.0, 2.0], t=0),
    ],
    "arcee-fusion": [case([[1.0, -1.0]], base=[[0.0, 0.0]], to=[[1.0, -1.0]])],  # all equally important
    "lines": [
        case([2.0, 0.0], [0.0, 4.0], base=[0.0, 0.0], to=[1.0, 2.0]),  # no blocks: alpha, which is 1 / n
        case([2.0, 1.0], base=[1.0, 1.0], to=[1.25, 1.0], alpha=0.25),
    ],
    "pcb": [
        # of four the largest is clamped to the second, and with half of them the best alone counts more than 0
        case([0.0, 1.0, -2.0, 4.0], base=[0.0] * 4, to=[0.0, 1.0, -2.0, 2.0], density=1),
        case([0.0, 1.0, -2.0, 4.0], base=[1.0, 0, 0, 0], to=[1.0, 0.0, 0.0, 2.0], density=0.5),
        case([3.0], [0.0], base=[0.0], to=[3.0], density=0.5),  # an expert without change counts for nothing
        case([0.0], [0.0], base=[0.0], to=[0.0], density=0.5),
    ],
    "fisher": [
        case([1.0] * 3, [3.0] * 3, [1.0, 0.0, 3.0], [1.0, 2.0, 1.0], to=[2.0, 3.0, 1.5], floor=0),
        case([1.0] * 3, [3.0] * 3, [0.0] * 3, [0.0] * 3, to=[2.0] * 3),
    ],
    "regmean": [
        # without correlations a weighted average of columns
        case(
            [[1.0, 2.0], [3.0, 4.0]],
            [[3.0, 6.0], [5.0, 0.0]],
            [[1.0, 7.0], [7.0, 3.0]],
            [[3.0, -5.0], [-5.0, 1.0]],
            to=[[2.5, 3.0], [4.5, 3.0]],
            shrink=0,
            floor=0,
        )
    ],
}


@pytest.mark.parametrize("method", VALUES)
def test_values_worked_out_by_hand(method: str) -> None:
    for inputs, wanted, base, parameters in VALUES[method]:
        near(merged(method, *inputs, base=base, **parameters), wanted)


# -- sums ------------------------------------------------------------------------------------------------------------


def test_linear_of_weights_that_cancel_is_refused_or_meant() -> None:
    with pytest.raises(MergeError, match="w: the weights 1, -1 sum to 0 and cannot be normalized"):
        merged("linear", [1.0], [3.0], weights=[1, -1])
    near(merged("linear", [1.0], [3.0], weights=[-1, 1], normalize=False), [2.0])


def test_an_analogy_is_task_arithmetic_from_its_first_word() -> None:
    a, b, c = torch.tensor([1.0, 2.0]), torch.tensor([1.5, 0.0]), torch.tensor([3.0, 2.0])
    near(merged("task-arithmetic", b.tolist(), c.tolist(), base=a.tolist(), scale=1), (c + b - a).tolist())


# -- spheres ---------------------------------------------------------------------------------------------------------


def test_nuslerp_by_rows_and_columns() -> None:
    a, b = [[1.0, 0.0], [1.0, 1.0]], [[0.0, 1.0], [2.0, 2.0]]
    near(merged("nuslerp", a, b, flatten=False), [[HALF, HALF], [1.5, 1.5]])
    by_columns = merged("nuslerp", a, b, flatten=False, row_wise=True)
    wanted = [METHODS["slerp"].function([torch.tensor(a)[:, i], torch.tensor(b)[:, i]], ratio=0.5) for i in (0, 1)]
    near(by_columns, torch.stack(wanted, 1).tolist())
    whole = METHODS["slerp"].function([torch.tensor(a).flatten(), torch.tensor(b).flatten()], ratio=0.5)
    near(merged("nuslerp", a, b), whole.view(2, 2).tolist())


@pytest.mark.parametrize("method", ["slerp", "nuslerp"])
def test_a_straight_line_for_zero_and_antipodal_vectors(method: str) -> None:
    at = {"ratio": 0.25} if method == "slerp" else {"weights": [3, 1]}
    near(merged(method, [0.0, 0.0], [4.0, 8.0], **at), [1.0, 2.0])
    near(merged(method, [4.0, 8.0], [-4.0, -8.0], **at), [2.0, 4.0])
    near(merged(method, [0.0, 0.0], [0.0, 0.0], **at), [0.0, 0.0])


def test_multislerp_refuses_directions_that_balance_out() -> None:
    with pytest.raises(MergeError, match="w: its directions balance out and have no mean; pass keep='w'"):
        merged("multislerp", [1.0, 2.0], [-2.0, -4.0])
    near(merged("multislerp", [0.0, 0.0], [0.0, 0.0]), [0.0, 0.0])


def test_karcher_is_where_the_weighted_logarithms_cancel() -> None:
    vectors = torch.randn(4, 6, generator=torch.Generator().manual_seed(3), dtype=torch.float64).abs()
    weights = [0.1, 0.2, 0.3, 0.4]
    mean = METHODS["karcher"].function(list(vectors), weights=weights, iterations=100, tolerance=1e-12)
    point = mean / mean.norm()
    pull = torch.zeros(6, dtype=torch.float64)
    for vector, weight in zip(vectors, weights, strict=True):
        unit = vector / vector.norm()
        angle = torch.acos(unit @ point)
        pull += weight * angle / torch.sin(angle) * (unit - (unit @ point) * point)
    assert pull.norm() < 1e-9
    assert mean.norm() == pytest.approx(sum(w * float(v.norm()) for v, w in zip(vectors, weights, strict=True)))


def test_multislerp_is_one_step_of_karcher() -> None:
    vectors = [[1.0, 0.0, 0.2], [0.0, 1.0, 0.0], [0.3, 0.0, 1.0]]
    shares = {"weights": [0.5, 0.3, 0.2]}
    one = merged("karcher", *vectors, iterations=1, tolerance=0, **shares)
    near(merged("multislerp", *vectors, **shares), one.tolist())


# -- sparse task vectors ---------------------------------------------------------------------------------------------


def test_density_is_by_input_and_by_module() -> None:
    base = {"x.w": torch.zeros(2), "y.w": torch.zeros(2)}
    experts = {"a": {name: torch.tensor([1.0, 3.0]) for name in base}, "b": {name: torch.zeros(2) for name in base}}
    rules = {"x.*": {"a": 0.5, "b": 1.0}, "*": 1.0}
    result = in_memory("ties", experts, {"density": rules}, base=base)
    assert result["x.w"].tolist() == [0.0, 3.0]
    assert result["y.w"].tolist() == [1.0, 3.0]


def test_dare_divides_what_it_keeps_by_the_density() -> None:
    count = 20_000
    ones = merged("dare-linear", [1.0] * count, base=[0.0] * count, density=0.25)
    assert set(ones.tolist()) == {0.0, 4.0}
    assert ones.mean().item() == pytest.approx(1.0, abs=0.05)
    unscaled = merged("dare-linear", [1.0] * count, base=[0.0] * count, density=0.25, rescale=False)
    assert torch.equal(unscaled * 4, ones)
    restored = merged("dare-linear", [1.0] * count, base=[0.0] * count, density=0.25, rescale_l1=True)
    assert restored.sum().item() == pytest.approx(count)


@pytest.mark.parametrize("method", ["dare-linear", "dare-ties", "della", "della-linear"])
def test_random_masks_depend_on_seed_and_name_alone(method: str) -> None:
    generator = torch.Generator().manual_seed(0)
    names = ["first", "second", "third"]
    base = {name: torch.zeros(40, 5) for name in names}
    experts = [{name: torch.randn(40, 5, generator=generator) for name in names} for _ in range(2)]
    merge_all = lambda order, seed: in_memory(  # noqa: E731
        method,
        {str(i): {name: expert[name] for name in order} for i, expert in enumerate(experts)},
        {"density": 0.5, "seed": seed},
        base={name: base[name] for name in order},
    )
    one, turned, other = merge_all(names, 1), merge_all(names[::-1], 1), merge_all(names, 2)
    assert all(torch.equal(one[name], turned[name]) for name in names)
    assert not any(torch.equal(one[name], other[name]) for name in names)
    assert not torch.equal(one["first"] == 0, one["second"] == 0)


def test_a_mask_does_not_depend_on_the_weights() -> None:
    values = torch.randn(2, 500, generator=torch.Generator().manual_seed(0)).tolist()
    zero = [0.0] * 500
    alone = merged("dare-linear", *values, base=zero, density=0.5, weights=[0, 1])
    second = merged("dare-linear", zero, values[1], base=zero, density=0.5)
    assert torch.equal(alone, second)


def test_della_keeps_large_entries_more_often() -> None:
    rows = torch.arange(1.0, 11.0).repeat(4000, 1)
    kept = merged("della-linear", rows.tolist(), base=torch.zeros_like(rows).tolist(), density=0.5, epsilon=0.3)
    share = (kept != 0).float().mean(0)
    wanted = 0.2 + 0.6 * torch.arange(10) / 9
    torch.testing.assert_close(share, wanted, atol=0.03, rtol=0)
    torch.testing.assert_close(kept.mean(0), rows[0], atol=0.3, rtol=0.1)  # divided by its own probability


def test_della_of_a_scalar_has_the_density() -> None:
    draws = [trimming.Draw(torch.Generator().manual_seed(seed), rescale=True) for seed in range(400)]
    trims = [trimming.by_rank(torch.zeros(()), torch.ones(()), draw, density=0.5, epsilon=0.1) for draw in draws]
    values = torch.cat([trim(torch.ones(1), slice(0, 1)) for trim in trims])
    assert set(values.tolist()) == {0.0, 2.0}
    assert values.mean().item() == pytest.approx(1.0, abs=0.2)


@pytest.mark.parametrize("method", [name for name in METHODS if METHODS[name].single is shortcuts.by_density])
def test_whole_task_vectors_and_none(method: str) -> None:
    options = {"epsilon": 0.0} if method.startswith("della") else {}
    a, base = torch.randn(2, 30, generator=torch.Generator().manual_seed(0)).tolist()
    near(merged(method, a, base=base, density=1, **options), a, 0)
    near(merged(method, a, base=base, density=1, scale=0, **options), base, 0)
    near(merged(method, a, base=base, density=0, **options), base, 0)


# -- others ----------------------------------------------------------------------------------------------------------


def test_arcee_fusion_takes_what_stands_out() -> None:
    base = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))
    expert = base + 0.1 * torch.randn(6, 8, generator=torch.Generator().manual_seed(1))
    first, second = torch.log_softmax(base.double(), 1), torch.log_softmax(expert.double(), 1)
    importance = (expert - base).abs() * (second.exp() * (second - first)).sum(1, keepdim=True)
    q1, q2, q3 = (importance.flatten().quantile(q, interpolation="lower") for q in (0.25, 0.5, 0.75))
    chosen = importance >= q2 + 1.5 * (q3 - q1)
    assert 0 < chosen.sum() < 12
    near(merged("arcee-fusion", expert.tolist(), base=base.tolist()), torch.where(chosen, expert, base).tolist())


def test_statistics_must_pair_with_experts() -> None:
    with pytest.raises(MergeError, match="experts and then one file of statistics each, not 5 files"):
        merged("fisher", *[[1.0]] * 5)


def test_regmean_fits_both_layers_where_each_has_data() -> None:
    w = torch.randn(2, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x = torch.randn(2, 50, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    got = METHODS["regmean"].function([*w, *(v.T @ v for v in x)], shrink=1.0, floor=1e-6)
    inputs, outputs = torch.cat(list(x)), torch.cat([v @ m.T for v, m in zip(x, w, strict=True)])
    torch.testing.assert_close(got, torch.linalg.lstsq(inputs, outputs).solution.T)


def test_regmean_averages_features_that_nobody_saw() -> None:
    a, b = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 6.0]])
    seen = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    got = METHODS["regmean"].function([a, b, seen, 3 * seen], shrink=0.9, floor=1e-6)
    near(got, [[2.5, 4.0]])


def test_regmean_without_correlations_is_a_weighted_average_of_columns() -> None:
    a, b = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 6.0]])
    products = torch.tensor([[1.0, 7.0], [7.0, 3.0]]), torch.tensor([[3.0, -5.0], [-5.0, 1.0]])
    near(METHODS["regmean"].function([a, b, *products], shrink=0.0, floor=0.0), [[2.5, 3.0]])


def test_regmean_refuses_statistics_of_another_layer() -> None:
    with pytest.raises(MergeError, match=r"w has shape \[1, 2\]: its statistics cannot have shape \[3, 3\]"):
        METHODS["regmean"].function([torch.ones(1, 2)] * 2 + [torch.eye(3)] * 2, shrink=0.9, floor=0.0, name="w")


def test_average_and_linear_agree_but_for_rounding() -> None:
    values = list(torch.randn(3, 1000, generator=torch.Generator().manual_seed(0)))
    linear = METHODS["linear"].function(values, weights=[0.5, 0.3, 0.2], normalize=True)
    torch.testing.assert_close(linear, average(values, weights=[0.5, 0.3, 0.2]), rtol=0, atol=1e-6)


def test_an_unknown_parameter_names_the_nearest() -> None:
    with pytest.raises(MergeError, match="ties has no parameter 'densities'; did you mean 'density'"):
        merged("ties", [1.0], base=[0.0], densities=0.5)
    with pytest.raises(MergeError, match="needs the parameter 'density'"):
        merged("ties", [1.0], base=[0.0])
    with pytest.raises(MergeError, match="unknown method 'dare'"):
        merged("dare", [1.0], base=[0.0])
