"""Averages weighted by statistics of the experts: Fisher information, RegMean's inner products of activations.

The inputs are n experts and then, in the same order, n checkpoints of statistics with the same names (see
`merge.tools.statistics`).
"""

# torch.linalg carries no types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import torch
from torch import Tensor

from merge.errors import MergeError
from merge.methods.blocks import identical
from merge.methods.matrices import one_thread
from merge.methods.method import Tensors


def fisher(tensors: Tensors, *, floor: float, name: str = "", out: Tensor | None = None) -> Tensor:
    """`sum_i F_i X_i / sum_i F_i`, entry by entry, F at least `floor` (Matena and Raffel 2022, equation 3).

    Entries that no Fisher information tells apart are averaged. Computed as a running mean: equal entries stay equal.
    Raises MergeError where the statistics do not pair with the experts.
    """
    experts, statistics = _paired(tensors)
    result, total = experts[0], statistics[0].clamp(min=floor)
    for expert, statistic in zip(experts[1:], statistics[1:], strict=True):
        weight = statistic.clamp(min=floor)
        total = total + weight
        result = torch.lerp(result, expert, weight / total)
    return torch.add(result, total - total, out=out)  # an infinite statistic shows in the result


def regmean(tensors: Tensors, *, shrink: float, floor: float, name: str = "") -> Tensor:
    """The linear layer nearest to all experts' outputs: `sum_i X_i G_i (sum_i G_i)^-1` (Jin et al. 2023, equation 2).

    X_i is (out, in) and its statistic G_i (in, in), the inner products of the inputs, whose entries off the diagonal
    are multiplied by `shrink`. Input features that no expert has seen are averaged. Statistics of a tensor's own shape
    (biases, norms) weight its entries as in `fisher`. Raises MergeError for other shapes and for values not finite.
    """
    experts, statistics = _paired(tensors)
    shape, wanted = tuple(statistics[0].shape), tuple(experts[0].shape)
    if len(wanted) != 2 or shape != (wanted[1], wanted[1]):
        if shape != wanted:
            raise MergeError(f"{name} has shape {list(wanted)}: its statistics cannot have shape {list(shape)}")
        return fisher(tensors, floor=floor, name=name)
    if identical(experts):
        return experts[0].clone()
    products = [_shrunk(statistic, shrink) for statistic in statistics]
    mean = experts[0]
    for count, expert in enumerate(experts[1:], 2):
        mean = torch.lerp(mean, expert, 1 / count)
    pull = torch.zeros_like(mean, dtype=torch.float64)
    for expert, product in zip(experts, products, strict=True):
        pull += (expert.double() - mean) @ product
    total = torch.stack(products).sum(0)
    if not total.isfinite().all():
        raise MergeError(f"{name}: its statistics have infinite or NaN values")
    return (mean + _divided(pull, total)).to(mean.dtype)


def _paired(tensors: Tensors) -> tuple[Tensors, Tensors]:
    half = len(tensors) // 2
    return tensors[:half], tensors[half:]


def _shrunk(statistic: Tensor, shrink: float) -> Tensor:
    """The inner products in float64 with their entries off the diagonal made smaller."""
    wide = statistic.double()
    return wide * shrink + torch.diag(wide.diagonal()) * (1 - shrink)


def _divided(values: Tensor, matrix: Tensor) -> Tensor:
    """`values @ matrix^-1` of a symmetric matrix; the pseudoinverse where it is not positive definite."""
    with one_thread():
        factor, failed = torch.linalg.cholesky_ex(matrix)
        if not failed:
            return torch.cholesky_solve(values.T, factor).T
        return values @ torch.pinverse(matrix, len(matrix) * torch.finfo(matrix.dtype).eps)
