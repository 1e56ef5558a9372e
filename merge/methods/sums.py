"""Weighted sums as other tools write them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from merge.errors import MergeError
from merge.methods.method import Tensors


def linear(
    tensors: Tensors, *, weights: Sequence[float], normalize: bool, name: str = "", out: Tensor | None = None
) -> Tensor:
    """`sum_i weights_i X_i`, over the sum of the weights if `normalize` (mergekit's linear).

    Multiply-adds in the order of the inputs, then one division: the rounding of mergekit, where `average` keeps closer
    to the exact value. Normalized, equal elements stay equal. Raises MergeError for weights of sum 0 to be normalized.
    """
    terms = [(tensor, weight) for tensor, weight in zip(tensors, weights, strict=True) if weight != 0]
    total = sum(weights)
    if normalize and total == 0:
        raise MergeError(
            f"{name}: the weights {', '.join(f'{x:g}' for x in weights)} sum to 0 and cannot be normalized"
        )
    result = terms[0][0] * terms[0][1] if terms else torch.zeros_like(tensors[0])
    for tensor, weight in terms[1:]:
        result = torch.add(result, tensor, alpha=weight)
    if normalize:
        result = result / total
        equal = _equal([tensor for tensor, _ in terms])
        if equal.any():
            result = torch.where(equal, terms[0][0], result)
    return result if out is None else out.copy_(result)


def _equal(tensors: Sequence[Tensor]) -> Tensor:
    """Where all tensors have one value."""
    result = tensors[0] == tensors[-1]
    for tensor in tensors[1:-1]:
        result &= tensors[0] == tensor
    return result
