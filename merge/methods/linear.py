"""Straight lines between checkpoints: interpolation, averages, task arithmetic."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from merge.methods.method import Tensors


def interpolate(tensors: Tensors, *, ratio: float, name: str = "", out: Tensor | None = None) -> Tensor:
    """`(1 - ratio) * first + ratio * second`, as `torch.lerp` computes it.

    Equal finite elements stay equal (a negative zero may lose its sign); equal infinities become NaN.
    """
    first, second = tensors
    return torch.lerp(first, second, ratio, out=out)


def average(tensors: Tensors, *, weights: Sequence[float], name: str = "", out: Tensor | None = None) -> Tensor:
    """`sum(weights[i] * tensors[i])`.

    Computed as a balanced tree of lerps, times the sum of the weights: equal elements stay equal, two tensors give the
    bits of `interpolate`, and rounding errors grow with the depth of the tree instead of the number of tensors. Weights
    of mixed signs, whose partial sums may vanish, are plain multiply-adds.
    """
    terms = [(tensor, weight) for tensor, weight in zip(tensors, weights, strict=True) if weight != 0]
    if not terms:
        result = torch.zeros_like(tensors[0])
    elif any(weight < 0 for _, weight in terms):
        result = terms[0][0] * terms[0][1]
        for tensor, weight in terms[1:]:
            result = torch.add(result, tensor, alpha=weight)
    else:
        while len(terms) > 1:
            pairs = zip(terms[0::2], terms[1::2], strict=False)
            odd = terms[-1:] if len(terms) % 2 else []
            terms = [(torch.lerp(a, b, wb / (wa + wb)), wa + wb) for (a, wa), (b, wb) in pairs] + odd
        result, total = terms[0]
        if not math.isclose(total, 1.0, rel_tol=1e-12):
            result = result * total
    return result if out is None else out.copy_(result)


def task_arithmetic(
    tensors: Tensors, *, scale: float, weights: Sequence[float], name: str = "", out: Tensor | None = None
) -> Tensor:
    """`base + scale * sum(weights[i] * (experts[i] - base))` (Ilharco et al. 2023).

    One expert is a lerp from the base, so that scale 1 gives the expert and elements equal to the base stay equal.
    """
    base, *experts = tensors
    if len(experts) == 1:
        return torch.lerp(base, experts[0], scale * weights[0], out=out)
    result = base
    for expert, weight in zip(experts, weights, strict=True):
        if scale * weight != 0:
            result = torch.add(result, expert - base, alpha=scale * weight)
    return result.clone() if out is None else out.copy_(result)


def add_difference(tensors: Tensors, *, scale: float, name: str = "", out: Tensor | None = None) -> Tensor:
    """`A + scale * (B - C)` in float64, whose differences of stored numbers are exact but for those far apart.

    Elements of which B and C are equal are A's to the bit.
    """
    first, second, third = tensors
    moved = second.to(torch.float64, copy=True).sub_(third).mul_(scale).add_(first)
    result = torch.where(second == third, first.to(torch.float64), moved)
    return result if out is None else out.copy_(result)
