"""Straight lines between checkpoints: interpolation, averages, task arithmetic."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from merge.methods.method import Tensors


def interpolate(tensors: Tensors, *, ratio: float, name: str = "", out: Tensor | None = None) -> Tensor:
    """`(1 - ratio) * first + ratio * second`, as `torch.lerp` computes it.

    Equal finite elements stay equal (a negative zero may lose its sign); equal infinities become NaN.
    """
    first, second = tensors
    return torch.lerp(first, second, ratio, out=out)


def interpolate_single(count: int, parameters: Mapping[str, Any]) -> int | None:
    """Ratio 0 is the first input, 1 the second."""
    return {0.0: 0, 1.0: 1}.get(parameters["ratio"])


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


def one_input(count: int, parameters: Mapping[str, Any], *, relative: bool = False) -> int | None:
    """All weight on one input (of any size if weights are relative); the inputs are the last of `count` tensors."""
    weights = list(parameters["weights"])
    holders = [index for index, weight in enumerate(weights) if weight != 0]
    if len(holders) == 1 and (relative or parameters.get("normalize") or weights[holders[0]] == 1):
        return count - len(weights) + holders[0]
    return None


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


def task_arithmetic_single(count: int, parameters: Mapping[str, Any]) -> int | None:
    """Scale 0 is the base; one expert at scale 1 is that expert."""
    shares = [parameters["scale"] * weight for weight in parameters["weights"]]
    if not any(shares):
        return 0
    return 1 if shares == [1.0] else None
