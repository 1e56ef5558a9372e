"""Thresholds by selection: the kept entries are those of a stable sort, whatever the path that finds them."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from merge.methods import selection
from merge.methods.blocks import BLOCK, blocks
from merge.methods.selection import Kth, ascending, find_cut, kth_largest


def by_sorting(values: Tensor, keep: int) -> Tensor:
    mask = torch.zeros(values.numel(), dtype=torch.bool)
    mask[values.abs().argsort(descending=True, stable=True)[:keep]] = True
    return mask


def by_selection(values: Tensor, keep: int) -> tuple[Tensor, Tensor]:
    """The mask and the kept values, put together from blocks."""
    cut = find_cut(lambda part: values[part].abs(), values, keep)
    parts = list(blocks(values)) or [slice(0, 0)]
    masks = torch.cat([cut.mask(values[part].abs(), part) for part in parts])
    return masks.bool(), torch.cat([cut.keep(values[part], part) for part in parts])


def check(values: Tensor, keep: int) -> None:
    mask, kept = by_selection(values, keep)
    wanted = by_sorting(values, keep)
    assert torch.equal(mask, wanted)
    assert torch.equal(kept, torch.where(wanted, values, 0))


@settings(max_examples=200)
@given(
    st.lists(st.integers(-3, 3), max_size=12),
    st.integers(0, 12),
    st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]),
)
def test_small_tensors_with_many_ties(values: list[int], keep: int, dtype: torch.dtype) -> None:
    check(torch.tensor(values, dtype=dtype), min(keep, len(values)))


def kinds(count: int) -> dict[str, Tensor]:
    normal = torch.randn(count, generator=torch.Generator().manual_seed(count))
    return {
        "normal": normal,
        "sorted": normal.sort().values,
        "rounded": (normal * 2).round(),
        "mostly zero": normal * (normal > 1),
        "all equal": torch.full((count,), -3.0),
    }


@pytest.mark.parametrize("kind", list(kinds(1)))
@pytest.mark.parametrize("share", [0.0, 1e-5, 0.2, 0.5, 0.97, 1.0])
@pytest.mark.parametrize("count", [BLOCK, 100_003, 200_000])
def test_large_tensors_of_every_kind(kind: str, share: float, count: int) -> None:
    check(kinds(count)[kind], int(share * count))


def test_a_sample_that_misleads_costs_time_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    count = 200_000
    step = count // selection.SAMPLE | 1
    values = torch.rand(count, generator=torch.Generator().manual_seed(0)) + 10
    values[::step] -= 10  # just what the sample sees
    collected: list[tuple[float, float]] = []
    collect = selection._collect
    monkeypatch.setattr(
        selection, "_collect", lambda *arguments: collected.append(arguments[2:]) or collect(*arguments)
    )
    check(values, 100_000)
    assert len(collected) == 2
    assert collected[1] == (-math.inf, math.inf)


def test_of_equal_magnitudes_the_lowest_index_is_kept() -> None:
    values = torch.tensor([1.0, -2.0, 2.0, -1.0, 2.0, 1.0])
    assert by_selection(values, 2)[0].tolist() == [False, True, True, False, False, False]
    assert by_selection(values, 4)[0].tolist() == [True, True, True, False, True, False]


def test_the_kth_largest_and_its_ties() -> None:
    values = torch.tensor([5.0, 1.0, 3.0, 3.0, 3.0, 0.0])
    assert [kth_largest(lambda part: values[part], values, k) for k in range(1, 7)] == [
        Kth(5.0, 1, [1]),
        Kth(3.0, 1, [3]),
        Kth(3.0, 2, [3]),
        Kth(3.0, 3, [3]),
        Kth(1.0, 1, [1]),
        Kth(0.0, 1, [1]),
    ]


def test_nans_survive_the_cut() -> None:
    values = torch.tensor([math.nan, 1.0, 2.0, 3.0])
    kept = find_cut(lambda part: values[part].abs(), values, 2).keep(values, slice(0, 4))
    assert kept[0].isnan()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_order_by_rows_is_stable(dtype: torch.dtype) -> None:
    values = torch.randint(0, 5, (4, 50), generator=torch.Generator().manual_seed(0)).to(dtype) / 7
    assert torch.equal(ascending(values), values.argsort(dim=1, stable=True))
    assert ascending(torch.empty(3, 0, dtype=dtype)).shape == (3, 0)
