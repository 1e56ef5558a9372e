"""Sparse task vectors added to the base, with or without an election of signs: TIES, DARE, DELLA, Breadcrumbs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from merge.methods import trimming
from merge.methods.blocks import blocks, identical
from merge.methods.method import Tensors
from merge.methods.trimming import Trim

# Makes the trim of one expert from the flat base, the flat expert and the expert's index.
Trimmer = Callable[[Tensor, Tensor, int], Trim]
# Joins weighted and trimmed task vectors; the second argument are the weights.
Join = Callable[[Sequence[Tensor], Sequence[float]], Tensor]


def ties(
    tensors: Tensors,
    *,
    weights: Sequence[float],
    density: Sequence[float],
    scale: float,
    normalize: bool,
    rescale_l1: bool,
    name: str = "",
) -> Tensor:
    """Trim to the largest entries, elect a sign per entry, average those that agree (Yadav et al. 2023)."""
    join = elected_mean if normalize else elected
    return _merge(tensors, _ties(density), weights, join, scale=scale, rescale_l1=rescale_l1)


def dare_linear(
    tensors: Tensors,
    *,
    weights: Sequence[float],
    density: Sequence[float],
    scale: float,
    rescale: bool,
    rescale_l1: bool,
    seed: int,
    name: str = "",
    generator: torch.Generator | None = None,
) -> Tensor:
    """Drop entries at random, divide the rest by the density, add (Yu et al. 2024).

    `rescale_l1` restores the L1 norm of each whole task vector instead. `generator` replaces the one made of the seed
    and the name.
    """
    drawn = generator or trimming.generator_for(seed, name)
    trim = _dare(density, drawn, rescale and not rescale_l1)
    return _merge(tensors, trim, weights, total, scale=scale, rescale_l1=rescale_l1)


def dare_ties(
    tensors: Tensors,
    *,
    weights: Sequence[float],
    density: Sequence[float],
    scale: float,
    normalize: bool,
    rescale: bool,
    rescale_l1: bool,
    seed: int,
    name: str = "",
    generator: torch.Generator | None = None,
) -> Tensor:
    """Drop entries at random as `dare_linear`, then elect signs as `ties`."""
    drawn = generator or trimming.generator_for(seed, name)
    trim = _dare(density, drawn, rescale and not rescale_l1)
    join = elected_mean if normalize else elected
    return _merge(tensors, trim, weights, join, scale=scale, rescale_l1=rescale_l1)


def della_linear(
    tensors: Tensors,
    *,
    weights: Sequence[float],
    density: Sequence[float],
    epsilon: Sequence[float],
    scale: float,
    rescale: bool,
    rescale_l1: bool,
    seed: int,
    name: str = "",
    generator: torch.Generator | None = None,
) -> Tensor:
    """As `dare_linear`, where an entry's probability grows with its rank of magnitude in its row (Deep et al. 2024).

    From `density - epsilon` for the smallest to `density + epsilon` for the largest, within [0, 1]. Rows are those of
    the tensor flattened behind its first axis; a vector is one row.
    """
    drawn = generator or trimming.generator_for(seed, name)
    trim = _della(tensors[0], density, epsilon, drawn, rescale and not rescale_l1)
    return _merge(tensors, trim, weights, total, scale=scale, rescale_l1=rescale_l1)


def della(
    tensors: Tensors,
    *,
    weights: Sequence[float],
    density: Sequence[float],
    epsilon: Sequence[float],
    scale: float,
    normalize: bool,
    rescale: bool,
    rescale_l1: bool,
    seed: int,
    name: str = "",
    generator: torch.Generator | None = None,
) -> Tensor:
    """Drop entries as `della_linear`, then elect signs as `ties`."""
    drawn = generator or trimming.generator_for(seed, name)
    trim = _della(tensors[0], density, epsilon, drawn, rescale and not rescale_l1)
    join = elected_mean if normalize else elected
    return _merge(tensors, trim, weights, join, scale=scale, rescale_l1=rescale_l1)


def breadcrumbs(
    tensors: Tensors,
    *,
    weights: Sequence[float],
    density: Sequence[float],
    gamma: Sequence[float],
    scale: float,
    rescale_l1: bool,
    name: str = "",
) -> Tensor:
    """Leave out the largest and the smallest entries, add the rest (Davari and Belilovsky 2024)."""
    trim = _breadcrumbs(density, gamma)
    return _merge(tensors, trim, weights, total, scale=scale, rescale_l1=rescale_l1)


def breadcrumbs_ties(
    tensors: Tensors,
    *,
    weights: Sequence[float],
    density: Sequence[float],
    gamma: Sequence[float],
    scale: float,
    normalize: bool,
    rescale_l1: bool,
    name: str = "",
) -> Tensor:
    """Leave out the largest and the smallest entries, then elect signs as `ties`."""
    trim = _breadcrumbs(density, gamma)
    join = elected_mean if normalize else elected
    return _merge(tensors, trim, weights, join, scale=scale, rescale_l1=rescale_l1)


def single(count: int, parameters: Mapping[str, Any]) -> int | None:
    """No weight at all is the base; all of one whole task vector is its expert."""
    weights, density = parameters["weights"], parameters["density"]
    active = [index for index, weight in enumerate(weights) if weight != 0 and density[index] > 0]
    if parameters["scale"] == 0 or not active:
        return 0
    first = active[0]
    if len(active) > 1 or density[first] < 1 or ("epsilon" in parameters and parameters["epsilon"][first] > 0):
        return None
    share = 1.0 if parameters.get("normalize") else weights[first]
    return first + 1 if parameters["scale"] * share == 1 else None


# -- trims -------------------------------------------------------------------------------------------------------------


def _ties(density: Sequence[float]) -> Trimmer:
    return lambda base, expert, i: trimming.largest(base, expert, density[i])


def _dare(density: Sequence[float], generator: torch.Generator, rescale: bool) -> Trimmer:
    return lambda base, expert, i: trimming.at_random(base, density[i], generator, rescale)


def _della(
    like: Tensor, density: Sequence[float], epsilon: Sequence[float], generator: torch.Generator, rescale: bool
) -> Trimmer:
    rows = like.shape[0] if like.dim() > 1 else 1
    columns = like.numel() // rows if rows else 0

    def make(base: Tensor, expert: Tensor, i: int) -> Trim:
        between = (density[i] - epsilon[i], density[i] + epsilon[i])
        return trimming.by_rank(base.view(rows, columns), expert.view(rows, columns), between, generator, rescale)

    return make


def _breadcrumbs(density: Sequence[float], gamma: Sequence[float]) -> Trimmer:
    return lambda base, expert, i: trimming.without_extremes(base, expert, density[i], gamma[i])


# -- adding ------------------------------------------------------------------------------------------------------------


def _merge(
    tensors: Tensors, trimmer: Trimmer, weights: Sequence[float], join: Join, *, scale: float, rescale_l1: bool
) -> Tensor:
    """`base + scale * join(weights_i * trim_i(expert_i - base))`, block by block.

    An expert of weight 0 draws its random numbers and adds nothing.
    """
    if identical(tensors):
        return tensors[0].clone()
    base, *experts = (tensor.reshape(-1) for tensor in tensors)
    trims = [trimmer(base, expert, index) for index, expert in enumerate(experts)]
    used = [entry for entry in zip(trims, experts, weights, strict=True) if entry[2] != 0]
    if rescale_l1:
        used = [(trimming.rescaled(trim, base, expert), expert, weight) for trim, expert, weight in used]
    if not used:
        return tensors[0].clone()
    shares = [weight for _, _, weight in used]
    result = torch.empty_like(base)
    for part in blocks(base):
        start = base[part]
        kept = [_times(trim(expert[part] - start, part), weight) for trim, expert, weight in used]
        torch.add(start, _times(join(kept, shares), scale), out=result[part])
    return result.view(tensors[0].shape)


def _times(vector: Tensor, factor: float) -> Tensor:
    return vector if factor == 1 else vector.mul_(factor)


def total(vectors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """The sum of weighted vectors, in their order; the first may be used up."""
    result = vectors[0]
    for vector in vectors[1:]:
        result = result + vector
    return result


def elected(vectors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """The sum of the entries that have the sign of the sum of all; the vectors come weighted and are used up.

    A sum of exactly zero elects the positive sign; a zero agrees with none.
    """
    sign = _elected_sign(vectors, weights)
    return total([vector.mul_(sign).relu_() for vector in vectors], weights) * sign


def elected_mean(vectors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """As `elected`, over the sum of the weights that agree."""
    sign = _elected_sign(vectors, weights)
    agreeing = [vector.mul_(sign).relu_() for vector in vectors]
    shares = total(
        [_times(torch.sign(vector), weight) for vector, weight in zip(agreeing, weights, strict=True)], weights
    )
    if min(weights) > 0:
        shares.clamp_(min=min(weights))  # where nobody agrees: 0 over something
    else:
        shares[shares == 0] = 1
    return (total(agreeing, weights) / shares).mul_(sign)


def _elected_sign(vectors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """1 where the sum is positive or zero, else -1."""
    ballot = total(vectors, weights)
    return torch.ge(ballot, 0, out=torch.empty_like(ballot)).mul_(2).sub_(1)  # several times faster than copysign
