"""Keeping a part of a task vector: the largest entries, a random part, or all but the extremes.

A trim is made for one expert from the base, the expert and its parameters, and then called on blocks of its flattened
task vector, in any order.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from merge.methods.blocks import BLOCK, blocks
from merge.methods.selection import Cut, Magnitudes, ascending, below, find_cut

# `trim(delta, part)`: the block `part` of a task vector with what is not kept set to zero.
Trim = Callable[[Tensor, slice], Tensor]


class Draw(NamedTuple):
    """Random numbers for one tensor, and whether what they keep is divided by its probability."""

    generator: torch.Generator
    rescale: bool


def generator_for(seed: int, name: str) -> torch.Generator:
    """Random numbers that depend on the seed and the tensor's name alone, not on the order of the tensors."""
    return torch.Generator().manual_seed(zlib.crc32(f"{seed}:{name}".encode()))


def largest(base: Tensor, expert: Tensor, draw: Draw, *, density: float) -> Trim:
    """Keep the `density * n` entries of largest magnitude, at least one unless the density is 0.

    TIES (arXiv 2306.01708), section 3, step 1.
    """
    count = max(int(density * base.numel()), 1) if density > 0 else 0
    return find_cut(_magnitudes(base, expert), base.reshape(-1), count).keep


def everything(base: Tensor, expert: Tensor, draw: Draw) -> Trim:
    """Keep all entries."""
    return lambda delta, part: delta


def from_cut(base: Tensor, expert: Tensor, draw: Draw, *, density: float, cut: float) -> Trim:
    """Keep the entries of at least the magnitude `cut`, which was found for the density elsewhere."""
    return Cut(below(cut, base.dtype)).keep


def without_extremes(base: Tensor, expert: Tensor, draw: Draw, *, density: float, gamma: float) -> Trim:
    """Keep all but the `gamma * n` largest entries and the smallest, so that `density * n` remain.

    Where both do not fit, fewer of the largest are left out. Of equal magnitudes the lower index counts as the larger.
    Model Breadcrumbs (arXiv 2312.06795), section 3.
    """
    count = int(density * base.numel())
    outliers = min(int(gamma * base.numel()), base.numel() - count)
    low, high = (find_cut(_magnitudes(base, expert), base.reshape(-1), keep) for keep in (outliers + count, outliers))
    return lambda delta, part: low.keep(delta, part) - high.keep(delta, part)


def at_random(base: Tensor, expert: Tensor, draw: Draw, *, density: float) -> Trim:
    """Keep every entry with the same probability, the density, divided by it if `rescale`.

    DARE (arXiv 2311.03099), section 3.
    """
    mask = torch.empty(base.numel(), dtype=torch.bool)
    for part in blocks(mask):
        mask[part] = torch.bernoulli(torch.full((part.stop - part.start,), density), generator=draw.generator).bool()
    factor = 1 / density if draw.rescale and density > 0 else 1.0
    return partial(_masked, mask.to(base.device), factor)


def by_rank(base: Tensor, expert: Tensor, draw: Draw, *, density: float, epsilon: float) -> Trim:
    """Entries with a probability that rises with their rank of magnitude in their row, and divided by it if `rescale`.

    From `density - epsilon` for the smallest to `density + epsilon` for the largest, within [0, 1]. Rows are those of
    the tensor flattened behind its first axis; a vector is one row, and the only entry of a row has the density. Of
    equal magnitudes the lower index has the lower rank. DELLA (arXiv 2406.11617), section 3.1.
    """
    low, high = density - epsilon, density + epsilon
    rows = base.shape[0] if base.dim() > 1 else 1
    base, expert = (tensor.reshape(rows, base.numel() // rows if rows else 0) for tensor in (base, expert))
    kept = torch.empty(base.shape, dtype=base.dtype, device=base.device)
    height = max(BLOCK // max(base.shape[1], 1), 1)
    for start in range(0, rows, height):
        top = slice(start, start + height)
        magnitudes = (expert[top] - base[top]).abs_()
        order = ascending(magnitudes).cpu()
        places = torch.arange(order.shape[1], dtype=torch.float32).expand(order.shape)
        ranks = torch.empty(order.shape).scatter_(1, order, places)
        shares = ranks / (ranks.shape[1] - 1) if ranks.shape[1] > 1 else ranks + 0.5
        probabilities = (low + shares * (high - low)).clamp_(0, 1)
        mask = torch.bernoulli(probabilities, generator=draw.generator)
        kept[top] = (mask / probabilities.clamp_(min=1e-12) if draw.rescale else mask).to(base)
    return partial(_masked, kept.reshape(-1), 1.0)


def rescaled(trim: Trim, base: Tensor, expert: Tensor) -> Trim:
    """Give the trim with what it keeps brought back to the L1 norm of the whole task vector."""
    whole = left = 0.0
    for part in blocks(base):
        delta = expert[part] - base[part]
        whole += float(delta.double().abs_().sum())
        left += float(trim(delta, part).double().abs_().sum())
    factor = whole / left if left > 0 else 1.0
    return lambda delta, part: trim(delta, part).mul_(factor)


def _masked(mask: Tensor, factor: float, delta: Tensor, part: slice) -> Tensor:
    return (delta * mask[part]).mul_(factor)


def _magnitudes(base: Tensor, expert: Tensor) -> Magnitudes:
    start, end = base.reshape(-1), expert.reshape(-1)
    return lambda part: (end[part] - start[part]).abs_()
