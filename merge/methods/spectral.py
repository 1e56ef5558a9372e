"""Task vectors merged matrix by matrix: by their singular vectors (TSV, Iso-C, Iso-CTS), or by descent (WUDI).

What is no matrix, or excluded, is averaged. Where singular values vanish the published formulas depend on the vectors
that a library happens to choose; here such directions are left out (docs/methods.md, "Vanishing singular values").
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from merge.methods.blocks import identical
from merge.methods.matrices import (
    Triples,
    decomposed,
    fits,
    largest_value,
    noise,
    one_thread,
    polar,
    side_by_side,
    summed,
    task_vectors,
)
from merge.methods.method import Tensors


def by_matrix(
    change: Callable[..., Tensor],
    tensors: Tensors,
    *,
    scale: float,
    exclude: Sequence[str],
    name: str = "",
    **parameters: float,
) -> Tensor:
    """`base + scale * change(tensors)` of a matrix; `base + scale * mean of the task vectors` of anything else.

    `change` is in float64. Names that fit a pattern of `exclude` are no matrices.
    """
    base = tensors[0]
    if identical(tensors):
        return base.clone()
    if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors):
        return torch.full_like(base, math.nan)  # no value of a decomposition is free of it
    with one_thread():
        found = mean(tensors) if base.dim() != 2 or fits(name, exclude) else change(tensors, **parameters)
        return found.mul_(scale).add_(base).to(base.dtype)


def mean(tensors: Tensors) -> Tensor:
    """Give the mean of the task vectors."""
    return summed(tensors).div_(len(tensors) - 1)


def tsv_change(tensors: Tensors, *, tolerance: float) -> Tensor:
    """Add up each expert's largest singular triples, its vectors made orthogonal to those of the others.

    Of r = min(rows, columns) directions each of the T experts gets floor(r / T); both blocks of singular vectors are
    replaced by the nearest ones with orthonormal columns (TSV-Merge, Gargiulo et al. 2024, section 4.2). Where r < T
    nobody would get any, and the change would be lost: such matrices are averaged.
    """
    each = min(tensors[0].shape) // (len(tensors) - 1)
    if not each:
        return mean(tensors)
    pairs = zip(tensors[1:], task_vectors(tensors), strict=True)
    block = side_by_side([decomposed(vector, each, tolerance, noise(expert)) for expert, vector in pairs])
    return (polar(block.left, tolerance) * block.values) @ polar(block.right, tolerance).T


def iso_c_change(tensors: Tensors, *, tolerance: float) -> Tensor:
    """Give the sum of the task vectors with all its singular values made equal, at their mean.

    Iso-C, Marczak et al. 2025, section 4; the mean is over the values that do not vanish.
    """
    floor = math.hypot(*map(noise, tensors[1:]))
    left, values, right = decomposed(summed(tensors), min(tensors[0].shape), tolerance, floor)
    return left @ right.T * (values.sum() / max(len(values), 1))


def iso_cts_change(tensors: Tensors, *, common_space_fraction: float, tolerance: float) -> Tensor:
    """Give the common directions of the sum and each expert's own beside them, at one singular value.

    Of r directions `fraction * r` are those of the sum; the T experts share the rest, rounded to the nearest k for
    each; what rounding takes too much or leaves over is the sum's loss or gain. An expert's own directions are those of
    its task vector without its projection on the common ones (Iso-CTS, Marczak et al. 2025, section 5). Where rounding
    up would take more than there is, k is rounded down.
    """
    rank, count = min(tensors[0].shape), len(tensors) - 1
    free = rank - math.floor(common_space_fraction * rank)
    each = round(free / count)
    if each * count > rank:
        each = free // count
    floors = [noise(expert) for expert in tensors[1:]]
    common = decomposed(summed(tensors), rank - each * count, tolerance, math.hypot(*floors))
    parts: list[Triples] = []
    for vector, floor in zip(task_vectors(tensors), floors, strict=True) if each else ():
        own = vector - common.left @ (common.left.T @ vector)
        parts.append(decomposed(own, each, tolerance, floor, largest_value(vector)))
    parts.append(common)
    block = side_by_side(parts)
    change = polar(block.left, tolerance) @ polar(block.right, tolerance).T
    return change * (block.values.sum() / max(len(block.values), 1))


def wudi_change(tensors: Tensors, *, steps: int, learning_rate: float) -> Tensor:
    """Move the sum of the task vectors towards `min_x sum_i |(x - t_i) t_i^T|^2 / |t_i|^2`, by Adam.

    WUDI-Merging, Cheng et al. 2025, equation 9 and algorithm 1. An expert that left the matrix as it was would divide
    zero by zero; it has no part in the sum.
    """
    x, weighted = summed(tensors), list[Tensor]()
    pull = torch.zeros_like(x)
    for vector in task_vectors(tensors):
        energy = float(vector.square().sum())
        if energy:
            weighted.append(vector * math.sqrt(2 / energy))
            pull.addmm_(vector @ weighted[-1].T, weighted[-1])
    rows = torch.cat(weighted) if weighted else x
    # The gradient is x (rows^T rows) - pull: the product of the rows is made once where that is less work.
    factors = [rows.T @ rows] if rows.shape[1] <= 2 * rows.shape[0] else [rows.T, rows]
    first, second = torch.zeros_like(x), torch.zeros_like(x)
    for step in range(1, steps + 1):
        gradient = functools.reduce(torch.matmul, factors, x) - pull
        first.lerp_(gradient, 0.1)
        second.lerp_(gradient.square_(), 0.001)
        size = (second / (1 - 0.999**step)).sqrt_().add_(1e-8)
        x.addcdiv_(first, size, value=-learning_rate / (1 - 0.9**step))
    return x


tsv = partial(by_matrix, tsv_change)
iso_c = partial(by_matrix, iso_c_change)
iso_cts = partial(by_matrix, iso_cts_change)
wudi = partial(by_matrix, wudi_change)
