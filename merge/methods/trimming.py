"""Keeping a part of a task vector: the largest entries, a random part, or all but the extremes.

A trim is made for one expert and then called on its task vector block by block, in any order.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from merge.methods.blocks import BLOCK, blocks
from merge.methods.selection import Magnitudes, ascending, find_cut

Trim = Callable[[Tensor, slice], Tensor]


def generator_for(seed: int, name: str) -> torch.Generator:
    """Random numbers that depend on the seed and the tensor's name alone, not on the order of the tensors."""
    return torch.Generator().manual_seed(zlib.crc32(f"{seed}:{name}".encode()))


def largest(base: Tensor, expert: Tensor, density: float) -> Trim:
    """The `density * n` entries of largest magnitude, at least one unless the density is 0 (TIES, section 3)."""
    count = max(int(density * base.numel()), 1) if density > 0 else 0
    return find_cut(_magnitudes(base, expert), base, count).keep


def without_extremes(base: Tensor, expert: Tensor, density: float, gamma: float) -> Trim:
    """All but the `gamma * n` largest entries and the smallest, so that `density * n` remain (Breadcrumbs, section 3).

    Where both do not fit, fewer of the largest are left out. Of equal magnitudes the lower index counts as the larger.
    """
    count = int(density * base.numel())
    outliers = min(int(gamma * base.numel()), base.numel() - count)
    low = find_cut(_magnitudes(base, expert), base, outliers + count)
    high = find_cut(_magnitudes(base, expert), base, outliers)
    return lambda delta, part: low.keep(delta, part) - high.keep(delta, part)


def at_random(base: Tensor, density: float, generator: torch.Generator, rescale: bool) -> Trim:
    """Every entry with the same probability, divided by it if `rescale` (DARE, section 3)."""
    mask = torch.empty(base.numel(), dtype=torch.bool)
    for part in blocks(mask):
        mask[part] = torch.bernoulli(torch.full((part.stop - part.start,), density), generator=generator).bool()
    factor = 1 / density if rescale and density > 0 else 1.0
    return partial(_masked, mask.to(base.device), factor)


def by_rank(
    base: Tensor, expert: Tensor, densities: tuple[float, float], generator: torch.Generator, rescale: bool
) -> Trim:
    """Entries with a probability that rises with their rank of magnitude in their row, from the first density to the
    second; divided by it if `rescale` (DELLA, section 3.1).

    `base` and `expert` are matrices; the only entry of a row has the middle probability. Of equal magnitudes the lower
    index has the lower rank.
    """
    low, high = densities
    kept = torch.empty(base.shape, dtype=base.dtype, device=base.device)
    height = max(BLOCK // max(base.shape[1], 1), 1)
    for start in range(0, base.shape[0], height):
        top = slice(start, start + height)
        magnitudes = (expert[top] - base[top]).abs_()
        order = ascending(magnitudes).cpu()
        places = torch.arange(order.shape[1], dtype=torch.float32).expand(order.shape)
        ranks = torch.empty(order.shape).scatter_(1, order, places)
        shares = ranks / (ranks.shape[1] - 1) if ranks.shape[1] > 1 else ranks + 0.5
        probabilities = (low + shares * (high - low)).clamp_(0, 1)
        mask = torch.bernoulli(probabilities, generator=generator)
        kept[top] = (mask / probabilities.clamp_(min=1e-12) if rescale else mask).to(base)
    return partial(_masked, kept.reshape(-1), 1.0)


def rescaled(trim: Trim, base: Tensor, expert: Tensor) -> Trim:
    """The trim with what it keeps brought back to the L1 norm of the whole task vector."""
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
    return lambda part: (expert[part] - base[part]).abs_()
