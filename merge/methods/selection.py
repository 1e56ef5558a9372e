"""Finding the k-th largest of many values without sorting them, and keeping what is above it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from merge.methods.blocks import blocks

# Elements looked at first: enough for bounds on the cut that hold some 2 % of all values, few enough to be sorted.
SAMPLE = 32_768
# How far the bounds lie from the expected rank in the sample, in its standard deviations.
DEVIATIONS = 3

Magnitudes = Callable[[slice], Tensor]


@dataclass(frozen=True)
class Cut:
    """Where the kept part of a tensor ends: magnitudes beyond `above`, and those of `tied` before index `until`."""

    above: float
    tied: float = math.nan
    until: int = 0

    def mask(self, magnitudes: Tensor, part: slice) -> Tensor:
        """Which elements of the block `part` are kept."""
        kept = magnitudes > self.above
        if part.start < self.until:
            kept[: self.until - part.start] |= magnitudes[: self.until - part.start] == self.tied
        return kept

    def keep(self, values: Tensor, part: slice) -> Tensor:
        """The block `part` of a tensor with what is not kept set to zero; NaNs stay."""
        kept = torch.hardshrink(values, self.above)
        if part.start < self.until:
            head = values[: self.until - part.start]
            kept[: self.until - part.start] += head * (head.abs() == self.tied)
        return kept


NOTHING = Cut(math.inf)
EVERYTHING = Cut(-1.0)


def find_cut(magnitudes: Magnitudes, like: Tensor, keep: int) -> Cut:
    """The cut that keeps the `keep` largest of `like.numel()` magnitudes; of equal ones at the cut the lowest indices.

    `magnitudes(part)` computes the non-negative values of a slice, which may have a step. Only a sample is sorted; its
    order bounds the cut, and one pass counts what lies above the bounds and collects what lies between.
    """
    if keep <= 0:
        return NOTHING
    if keep >= like.numel():
        return EVERYTHING
    value, remaining, tied = kth_largest(magnitudes, like, keep)
    if remaining == tied:
        here = torch.tensor(value, dtype=like.dtype)
        return Cut(float(torch.nextafter(here, torch.full_like(here, -math.inf))))
    return Cut(value, value, _position(magnitudes, like, value, remaining) + 1)


def kth_largest(magnitudes: Magnitudes, like: Tensor, keep: int) -> tuple[float, int, int]:
    """The keep-th largest value, how many values equal to it are to be kept, and how many there are."""
    if like.device.type != "cpu" or like.dtype not in (torch.float32, torch.float64):
        values = magnitudes(slice(0, like.numel())).to(torch.promote_types(like.dtype, torch.float32))
        value = float(values.kthvalue(like.numel() - keep + 1).values)
        return value, keep - int((values > value).sum()), int((values == value).sum())
    above, between = _collect(magnitudes, like, *_bounds(magnitudes, like, keep))
    if not above < keep <= above + len(between):
        above, between = _collect(magnitudes, like, -math.inf, math.inf)
    rank = keep - above
    value = float(np.partition(between, len(between) - rank)[len(between) - rank])
    return value, rank - int(np.count_nonzero(between > value)), int(np.count_nonzero(between == value))


def _bounds(magnitudes: Magnitudes, like: Tensor, keep: int) -> tuple[float, float]:
    """Two values between which the keep-th largest very probably lies, from an evenly spread sample."""
    step = like.numel() // SAMPLE | 1  # odd: not in step with rows of even length
    if step == 1:
        return -math.inf, math.inf
    sample = np.sort(magnitudes(slice(0, like.numel(), step)).numpy())
    share = keep / like.numel()
    rank, margin = (
        round((1 - share) * len(sample)),
        math.ceil(DEVIATIONS * math.sqrt(share * (1 - share) * len(sample))),
    )
    low, high = rank - margin - 1, rank + margin
    return float(sample[low]) if low >= 0 else -math.inf, float(sample[high]) if high < len(sample) else math.inf


def _collect(magnitudes: Magnitudes, like: Tensor, low: float, high: float) -> tuple[int, NDArray[np.floating]]:
    """How many values are above `high`, and all values from `low` to `high`."""
    above, between = 0, list[NDArray[np.floating]]()
    for part in blocks(like):
        values = magnitudes(part).numpy()
        larger = values > high
        above += int(np.count_nonzero(larger))
        between.append(values[(values >= low) != larger])
    return above, np.concatenate(between)


def _position(magnitudes: Magnitudes, like: Tensor, value: float, count: int) -> int:
    """The index of the `count`-th element equal to `value`."""
    for part in blocks(like):
        found = (magnitudes(part) == value).nonzero()
        if count <= len(found):
            return part.start + int(found[count - 1])
        count -= len(found)
    return like.numel() - 1
