"""Merging along great circles: directions are averaged on the sphere, lengths apart.

Everything a method needs to know of large vectors is their table of inner products; the result is a combination of the
vectors with coefficients worked out in float64 from that table.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from merge.errors import MergeError
from merge.methods.blocks import blocks, dot, grams, identical
from merge.methods.method import Tensors

NEARLY_PARALLEL = 0.9995
# Where 1 - cos^2 is below this, two vectors lie within 1e-6 of one line and span no arc that float32 could tell.
ONE_LINE = 1e-12
# A mean of unit vectors shorter than this has no direction: they balance out.
BALANCED = 1e-7


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


def nuslerp(tensors: Tensors, *, weights: Sequence[float], flatten: bool, row_wise: bool, name: str = "") -> Tensor:
    """Spherical interpolation by weights, of whole tensors or of each of their vectors (NuSLERP of mergekit).

    Without `flatten` the vectors lie along the last axis, with `row_wise` along the first; a tensor of fewer than two
    axes is one vector. Vectors on one line, or zero, are interpolated linearly. Raises MergeError for weights of sum 0.
    """
    first, second = tensors
    if not sum(weights):
        raise MergeError(f"{name}: the weights {weights[0]:g} and {weights[1]:g} sum to 0, which means no ratio")
    if identical(tensors):
        return first.clone()
    ratio = weights[1] / sum(weights)
    axis = None if flatten or first.dim() < 2 else 0 if row_wise else -1
    a, b = (_rows(tensor, axis) for tensor in (first, second))
    shares, straight = _arcs(grams([a, b]), ratio)
    shares = shares.to(a.dtype)
    result = (a * shares[:, :1]).add_(b * shares[:, 1:])
    if straight.any():
        result[straight] = torch.lerp(a[straight], b[straight], ratio)
    if axis is None:
        return result.view(first.shape)
    return result.view(first.movedim(axis, -1).shape).movedim(-1, axis).contiguous()


def nuslerp_base(
    tensors: Tensors, *, weights: Sequence[float], flatten: bool, row_wise: bool, name: str = ""
) -> Tensor:
    """`base + nuslerp(first - base, second - base)`."""
    return _from_base(nuslerp, tensors, weights=weights, flatten=flatten, row_wise=row_wise, name=name)


def multislerp(tensors: Tensors, *, weights: Sequence[float], name: str = "") -> Tensor:
    """Take one step towards the mean on the sphere: from the normalized mean of the directions along the mean of their
    logarithms there; the length is the mean length (Goddard, "Multi-SLERP", 2025).

    Raises MergeError where the directions balance out, so that no mean direction exists.
    """
    if identical(tensors):
        return tensors[0].clone()
    return _on_sphere(tensors, weights, 1, 0.0, anywhere=False, name=name)


def multislerp_base(tensors: Tensors, *, weights: Sequence[float], name: str = "") -> Tensor:
    """`base + multislerp(experts - base)`."""
    return _from_base(multislerp, tensors, weights=weights, name=name)


def karcher(tensors: Tensors, *, weights: Sequence[float], iterations: int, tolerance: float, name: str = "") -> Tensor:
    """Give the Karcher (Riemannian) mean of the directions times the mean length (Karcher 1977).

    Iterated until a step is shorter than `tolerance`. A zero vector has no direction, but its length counts. Where the
    directions balance out, the first one is where the search starts.
    """
    if identical(tensors):
        return tensors[0].clone()
    return _on_sphere(tensors, weights, iterations, tolerance, anywhere=True, name=name)


def _from_base(method: Callable[..., Tensor], tensors: Tensors, **parameters: Any) -> Tensor:
    base, *experts = tensors
    return base + method([expert - base for expert in experts], **parameters)


def _rows(tensor: Tensor, axis: int | None) -> Tensor:
    """A matrix whose rows are the vectors along an axis, or the whole tensor."""
    if axis is None:
        return tensor.reshape(1, -1)
    moved = tensor.movedim(axis, -1)
    return moved.reshape(math.prod(moved.shape[:-1]), moved.shape[-1])


def _arcs(products: Tensor, ratio: float) -> tuple[Tensor, Tensor]:
    """The shares of two vectors on the arc between them, for every row, and the rows that have no arc."""
    norms = products.diagonal(dim1=1, dim2=2).sqrt()
    cosine = products[:, 0, 1] / (norms[:, 0] * norms[:, 1])
    straight = (1 - cosine**2).nan_to_num(nan=0.0) <= ONE_LINE
    angle = torch.acos(cosine.clamp(-1, 1))[:, None]
    shares = torch.cat([torch.sin((1 - ratio) * angle), torch.sin(ratio * angle)], 1) / torch.sin(angle)
    return shares, straight


def _on_sphere(
    tensors: Tensors, weights: Sequence[float], steps: int, tolerance: float, *, anywhere: bool, name: str
) -> Tensor:
    """The mean of tensors on the sphere; where directions balance out, from the first if `anywhere`, else an error."""
    used = [(tensor, weight) for tensor, weight in zip(tensors, weights, strict=True) if weight != 0]
    table = grams([tensor.reshape(1, -1) for tensor, _ in used])[0].cpu()
    factors = torch.tensor([weight for _, weight in used], dtype=torch.float64)
    norms = table.diagonal().sqrt()
    shares = torch.full_like(factors, math.nan)  # an infinity or a NaN in a tensor shows in the result
    if norms.isfinite().all():
        cosines = (table / torch.outer(norms, norms)).nan_to_num(nan=0.0).clamp(-1, 1)
        start = _mean_direction(cosines, factors * (norms > 0))
        if start is None and not anywhere:
            raise MergeError(
                f"{name}: its directions balance out and have no mean; pass keep={name!r} or other weights"
            )
        if start is None:
            start = torch.zeros_like(factors)
            start[int((norms > 0).nonzero()[0])] = 1
        mean = _walk(cosines, factors * (norms > 0), start, steps, tolerance)
        shares = (mean / norms).nan_to_num(nan=0.0) * (factors @ norms)
    result = torch.empty_like(used[0][0], memory_format=torch.contiguous_format)
    flat, vectors = result.view(-1), [tensor.reshape(-1) for tensor, _ in used]
    for part in blocks(flat):  # summed in float64: where directions nearly balance out large shares cancel
        total = vectors[0][part].double() * float(shares[0])
        for vector, share in zip(vectors[1:], shares[1:], strict=True):
            total.add_(vector[part], alpha=float(share))
        flat[part] = total
    return result


def _mean_direction(cosines: Tensor, weights: Tensor) -> Tensor | None:
    """The normalized weighted mean of unit vectors, as their coefficients; None where it is too short to have one.

    Without any unit vector (all tensors are zero) the coefficients are zero.
    """
    if not weights.any():
        return torch.zeros_like(weights)
    length = math.sqrt(max(float(weights @ cosines @ weights), 0.0))
    return None if length <= BALANCED * float(weights.abs().sum()) else weights / length


def _walk(cosines: Tensor, weights: Tensor, start: Tensor, steps: int, tolerance: float) -> Tensor:
    """Go along the weighted mean of the vectors' logarithms at a point, `steps` times or until it is shorter.

    Points are coefficients of unit vectors, of which `cosines` are the inner products.
    """
    point, shares = start, weights / weights.sum()
    for _ in range(steps if weights.any() else 0):
        towards = (cosines @ point).clamp(-1, 1)
        angles = torch.acos(towards)
        sines = torch.sin(angles)
        # A vector at the point, or opposite to it, has no logarithm there with a direction.
        stretch = shares * torch.where(sines > BALANCED, angles / sines, 1.0)
        tangent = stretch - (stretch @ towards) * point
        length = math.sqrt(max(float(tangent @ cosines @ tangent), 0.0))
        if length <= tolerance:
            break
        point = math.cos(length) * point + math.sin(length) / length * tangent
        point = point / math.sqrt(float(point @ cosines @ point))
    return point
