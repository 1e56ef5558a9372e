"""Averages along a training run: each checkpoint moves what came of those before it, as a trainer does it.

All in float64, by multiplications and subtractions of their own: the same bits on every device, in blocks of any size,
and from files or step by step in a training (`merge.RunningAverage`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from merge.errors import MergeError
from merge.methods.method import Tensors


def series(tensors: Tensors, *, weights: Sequence[float], name: str = "", out: Tensor | None = None) -> Tensor:
    """`sum_i weights_i X_i / sum_i weights_i` as a running sum: `m += weights_k / sum_(i<=k) weights_i (X_k - m)`.

    Raises MergeError where the first k weights sum to 0.
    """
    used = [(tensor, weight) for tensor, weight in zip(tensors, weights, strict=True) if weight != 0]
    if not used:
        raise MergeError(f"{name}: all weights are 0: there is nothing to average")
    return _along([tensor for tensor, _ in used], list(rates(weight for _, weight in used)), out)


def ema(tensors: Tensors, *, decay: float, name: str = "", out: Tensor | None = None) -> Tensor:
    """The exponential moving average that starts at the first: `m = decay m + (1 - decay) X_k`."""
    return _along(tensors, [1.0, *[1 - decay] * (len(tensors) - 1)], out)


def rates(weights: Iterable[float]) -> Iterable[float]:
    """Yield how far each of several moves the average of those before it. Raises MergeError for sums of 0."""
    total = 0.0
    for count, weight in enumerate(weights, 1):
        total += weight
        if total == 0:
            raise MergeError(f"the first {count} weights sum to 0, which nothing can be divided by")
        yield weight / total


def _along(tensors: Tensors, steps: Sequence[float], out: Tensor | None) -> Tensor:
    """The average after the last step; looked at more closely where values are infinite or NaN."""
    for careful in (False, True):
        total = tensors[0].to(torch.float64, copy=True)
        for tensor, rate in zip(tensors[1:], steps[1:], strict=True):
            move(total, tensor, rate, careful=careful)
        if math.isfinite(total.sum().item()):
            break
    return total if out is None else out.copy_(total)


def move(total: Tensor, tensor: Tensor, rate: float, *, careful: bool = True) -> None:
    """Move an average (float64, in place) towards a tensor: what is equal stays to the bit, infinities if `careful`."""
    if rate == 1:
        total.copy_(tensor)
    elif rate != 0:
        gap = total - tensor
        if careful:
            gap.masked_fill_(total == tensor, 0.0)
        total -= gap.mul_(rate)
