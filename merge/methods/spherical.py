"""Merging along great circles."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from merge.methods.method import Tensors

# Below torch's grain size (32,768 elements) an operation runs on the calling thread alone, so that sums over blocks of
# this size have one order whatever the number of threads.
BLOCK = 32_704
NEARLY_PARALLEL = 0.9995


def dot(first: Tensor, second: Tensor) -> float:
    """Inner product of two tensors of one shape, summed in float64 in a fixed order."""
    a, b = first.reshape(-1), second.reshape(-1)
    total = 0.0
    for start in range(0, a.numel(), BLOCK):
        stop = start + BLOCK
        total += float((a[start:stop].double() * b[start:stop].double()).sum())
    return total


def slerp(tensors: Tensors, *, ratio: float, name: str = "") -> Tensor:
    """Spherical interpolation of two tensors taken as flat vectors (Shoemake 1985).

    `sin((1-t)w)/sin(w) * first + sin(tw)/sin(w) * second` with w the angle between them; norms are not touched.
    Nearly parallel, antipodal-to-rounding or zero vectors have no such arc: they are interpolated linearly.
    """
    first, second = tensors
    norms = math.sqrt(dot(first, first) * dot(second, second))
    cosine = dot(first, second) / norms if norms > 0 else 1.0
    if not abs(cosine) <= NEARLY_PARALLEL:
        return torch.lerp(first, second, ratio)
    angle = math.acos(cosine)
    sine = math.sin(angle)
    return torch.add(first * (math.sin((1 - ratio) * angle) / sine), second, alpha=math.sin(ratio * angle) / sine)
