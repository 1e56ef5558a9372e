"""Finding the k-th largest of many values without sorting them, and keeping what is above it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from merge.methods.blocks import WIDE, blocks

# Elements looked at first: enough for bounds on the cut that hold 1 % of all values, few enough to cost nothing.
SAMPLE = 65_536
# How far the bounds lie from the expected rank in the sample, in its standard deviations.
DEVIATIONS = 3

Magnitudes = Callable[[slice], Tensor]


@dataclass(frozen=True)
class Cut:
    """Where the kept part of a tensor ends: magnitudes beyond `above`, and beyond `below` before index `until`.

    No value lies between the two but the one at the cut, whose lowest indices are kept.
    """

    above: float
    below: float = math.nan
    until: int = 0

    def mask(self, magnitudes: Tensor, part: slice) -> Tensor:
        """1 for the elements of the block `part` that are kept, else 0, in the dtype of the magnitudes."""
        kept = torch.empty_like(magnitudes)
        for piece, limit in self._pieces(part):
            torch.gt(magnitudes[piece], limit, out=kept[piece])
        return kept

    def keep(self, values: Tensor, part: slice) -> Tensor:
        """Give the block `part` of a tensor with what is not kept set to zero; NaNs stay."""
        pieces = [torch.hardshrink(values[piece], limit) for piece, limit in self._pieces(part)]
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)

    def _pieces(self, part: slice) -> list[tuple[slice, float]]:
        """The block in one piece, or in two around `until`, with the limit of each."""
        head = min(max(self.until - part.start, 0), part.stop - part.start)
        pieces = [(slice(0, head), self.below), (slice(head, part.stop - part.start), self.above)]
        return pieces[:1] if part.stop <= self.until else pieces[1:] if not head else pieces


@dataclass(frozen=True)
class Kth:
    """A k-th largest value, how many of the elements equal to it are among the k, how many there are in each block."""

    value: float
    remaining: int
    tied: Sequence[int]


NOTHING = Cut(math.inf)
EVERYTHING = Cut(-1.0)


def find_cut(magnitudes: Magnitudes, like: Tensor, keep: int) -> Cut:
    """The cut that keeps the `keep` largest of `like.numel()` magnitudes; of equal ones at the cut the lowest indices.

    `magnitudes(part)` computes the non-negative values of a slice, which may have a step. The order of a sample bounds
    the cut, and one pass counts what lies above the bounds and collects what lies between.
    """
    if keep <= 0:
        return NOTHING
    if keep >= like.numel():
        return EVERYTHING
    found = kth_largest(magnitudes, like, keep)
    under = below(found.value, like.dtype)
    if found.remaining == sum(found.tied):
        return Cut(under)
    return Cut(found.value, under, _position(magnitudes, like, found) + 1)


def below(value: float, dtype: torch.dtype) -> float:
    """Give the largest number of a dtype that is smaller; infinity stays."""
    here = torch.tensor(value, dtype=dtype)
    return float(torch.nextafter(here, torch.full_like(here, -math.inf))) if value < math.inf else value


def kth_largest(magnitudes: Magnitudes, like: Tensor, keep: int) -> Kth:
    """Give the keep-th largest value of `find_cut`'s magnitudes."""
    if like.device.type != "cpu" or like.dtype not in (torch.float32, torch.float64):
        values = torch.cat([magnitudes(part) for part in blocks(like, WIDE)]).to(
            torch.promote_types(like.dtype, torch.float32)
        )
        value = float(values.kthvalue(like.numel() - keep + 1).values)
        tied = [int((values[part] == value).sum()) for part in blocks(like, WIDE)]
        return Kth(value, keep - int((values > value).sum()), tied)
    above, between = _collect(magnitudes, like, *_bounds(magnitudes, like, keep))
    if not above < keep <= above + sum(map(len, between)):
        above, between = _collect(magnitudes, like, -math.inf, math.inf)
    candidates = np.concatenate(between)
    rank = len(candidates) - (keep - above)
    value = float(np.partition(candidates, rank)[rank])
    larger = above + int(np.count_nonzero(candidates > value))
    return Kth(value, keep - larger, [int(np.count_nonzero(part == value)) for part in between])


def ascending(magnitudes: Tensor) -> Tensor:
    """Give the order of each row's non-negative values, of equal ones the lower index first."""
    if magnitudes.dtype != torch.float32 or magnitudes.device.type != "cpu":
        return magnitudes.argsort(dim=1, stable=True)
    # Bits of non-negative floats are ordered as the floats are; whole integers sort ten times faster than by index.
    keys = magnitudes.view(torch.int32).long() << 32 | torch.arange(magnitudes.shape[1])
    return torch.as_tensor(np.sort(keys.numpy(), axis=1)) & 0xFFFFFFFF


def _bounds(magnitudes: Magnitudes, like: Tensor, keep: int) -> tuple[float, float]:
    """Two values between which the keep-th largest very probably lies, from an evenly spread sample."""
    step = like.numel() // SAMPLE | 1  # odd: not in step with rows of even length
    if step == 1:
        return -math.inf, math.inf
    sample = magnitudes(slice(0, like.numel(), step)).numpy()
    share = keep / like.numel()
    rank, margin = (
        round((1 - share) * len(sample)),
        math.ceil(DEVIATIONS * math.sqrt(share * (1 - share) * len(sample))),
    )
    low, high = rank - margin - 1, rank + margin
    sample = np.partition(sample, [min(max(place, 0), len(sample) - 1) for place in (low, high)])
    return float(sample[low]) if low >= 0 else -math.inf, float(sample[high]) if high < len(sample) else math.inf


def _collect(
    magnitudes: Magnitudes, like: Tensor, low: float, high: float
) -> tuple[int, list[NDArray[np.floating[Any]]]]:
    """How many values are above `high`, and each block's values from `low` to `high`."""
    above, between = 0, list[NDArray[np.floating[Any]]]()
    for part in blocks(like, WIDE):
        values = magnitudes(part).numpy()
        larger = values > high
        above += int(np.count_nonzero(larger))
        between.append(values[(values >= low) != larger])
    return above, between


def _position(magnitudes: Magnitudes, like: Tensor, found: Kth) -> int:
    """The index of the last element equal to the k-th largest that is among the k: the lowest indices are."""
    count = found.remaining
    for part, tied in zip(blocks(like, WIDE), found.tied, strict=True):
        if count <= tied:
            return part.start + int((magnitudes(part) == found.value).nonzero()[count - 1])
        count -= tied
    return like.numel() - 1
