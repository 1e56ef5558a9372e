"""Sparse task vectors added to the base: a trim keeps a part of each one, a join makes one vector of them.

TIES            largest           elect
DARE            at_random         add, elect
DELLA           by_rank           add, elect
Breadcrumbs     without_extremes  add, elect
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from merge.methods import trimming
from merge.methods.blocks import WIDE, blocks, identical
from merge.methods.method import Tensors
from merge.methods.trimming import Draw, Trim

# `join(vectors, weights, normalize)`: one vector of several, which come weighted and may be used up.
Join = Callable[[Sequence[Tensor], Sequence[float], bool], Tensor]


def sparse(
    make_trim: Callable[..., Trim],
    join: Join,
    tensors: Tensors,
    *,
    weights: Sequence[float],
    scale: float,
    rescale_l1: bool,
    rescale: bool = False,
    normalize: bool = False,
    seed: int = 0,
    name: str = "",
    generator: torch.Generator | None = None,
    **each: Sequence[float],
) -> Tensor:
    """`base + scale * join(weights_i * trim_i(expert_i - base))`, block by block.

    `make_trim(base, expert, draw, **each)` makes the trim of one expert (see `merge.methods.trimming`); `each` are its
    parameters by expert, such as the density. `rescale_l1` restores the L1 norm of each whole task vector, in place of
    `rescale`. `generator` replaces the one made of the seed and the name. An expert of weight 0 draws its random
    numbers and adds nothing, so that merges by other weights have the same masks.
    """
    if identical(tensors):
        return tensors[0].clone()
    draw = Draw(generator or trimming.generator_for(seed, name), rescale and not rescale_l1)
    trims = [
        make_trim(tensors[0], expert, draw, **{key: values[index] for key, values in each.items()})
        for index, expert in enumerate(tensors[1:])
    ]
    base, *experts = (tensor.reshape(-1) for tensor in tensors)
    used = [entry for entry in zip(trims, experts, weights, strict=True) if entry[2] != 0]
    if rescale_l1:
        used = [(trimming.rescaled(trim, base, expert), expert, weight) for trim, expert, weight in used]
    if not used:
        return tensors[0].clone()
    shares = [weight for _, _, weight in used]
    result = torch.empty_like(base)
    for part in blocks(base, WIDE):
        start = base[part]
        kept = [_times(trim(expert[part] - start, part), weight) for trim, expert, weight in used]
        torch.add(start, _times(join(kept, shares, normalize), scale), out=result[part])
    return result.view(tensors[0].shape)


def add(vectors: Sequence[Tensor], weights: Sequence[float] = (), normalize: bool = False) -> Tensor:
    """Give the sum of weighted vectors, in their order."""
    result = vectors[0]
    for vector in vectors[1:]:
        result = result + vector
    return result


def elect(
    vectors: Sequence[Tensor], weights: Sequence[float], normalize: bool, tie: int = 1, largest: bool = False
) -> Tensor:
    """Give the sum of the entries that have the sign of the sum of all (TIES, arXiv 2306.01708, section 3).

    With `normalize` over the sum of the weights that agree, or the largest alone. A sum of exactly zero elects the sign
    of `tie`; a zero agrees with none.
    """
    ballot = add(vectors)
    sign = (torch.ge if tie > 0 else torch.gt)(ballot, 0, out=torch.empty_like(ballot))
    sign = sign.mul_(2).sub_(1)  # several times faster than copysign
    agreeing = [vector.mul_(sign).relu_() for vector in vectors]
    merged = functools.reduce(torch.maximum, agreeing) if largest else add(agreeing)
    if normalize and not largest:
        shares = add([_times(torch.sign(vector), weight) for vector, weight in zip(agreeing, weights, strict=True)])
        if min(weights) > 0:
            shares.clamp_(min=min(weights))  # where nobody agrees: 0 over something
        else:
            shares[shares == 0] = 1
        merged = merged / shares
    return merged * sign


def _times(vector: Tensor, factor: float) -> Tensor:
    return vector if factor == 1 else vector.mul_(factor)


def ties(
    tensors: Tensors,
    *,
    threshold: str = "tensor",
    largest: bool = False,
    cut: Sequence[float] = (),
    tie: int = 1,
    **parameters: Any,
) -> Tensor:
    """TIES by the largest entries of each tensor, or of the whole model: those from each expert's `cut` on.

    `cut` and `tie` are found by a survey (see `merge.methods.whole`).
    """
    join = partial(elect, tie=tie, largest=largest)
    if threshold == "tensor":
        return sparse(trimming.largest, join, tensors, **parameters)
    return sparse(trimming.from_cut, join, tensors, cut=cut, **parameters)


summed = partial(sparse, trimming.everything, add)
dare_linear = partial(sparse, trimming.at_random, add)
dare_ties = partial(sparse, trimming.at_random, elect)
della_linear = partial(sparse, trimming.by_rank, add)
della = partial(sparse, trimming.by_rank, elect)
breadcrumbs = partial(sparse, trimming.without_extremes, add)
breadcrumbs_ties = partial(sparse, trimming.without_extremes, elect)
