"""SCE: entries chosen by their variance over the experts, experts weighted by the energy of what was chosen."""

from __future__ import annotations

import torch
from torch import Tensor

from merge.methods.blocks import blocks, identical
from merge.methods.method import Tensors
from merge.methods.selection import find_cut


def sce(tensors: Tensors, *, density: float, name: str = "") -> Tensor:
    """Select, calculate, erase (FuseChat, Wan et al. 2024, section 3.3).

    Of the entries in which the experts differ, the `density` part of largest variance is selected; each expert's weight
    is the share of its squared entries there; entries whose sign is not that of the sum of all are erased, and the
    weighted mean of the rest is added to the base.
    """
    if identical(tensors):
        return tensors[0].clone()
    base, *experts = (tensor.reshape(-1) for tensor in tensors)

    def variance(part: slice) -> Tensor:
        return _variance([expert[part] - base[part] for expert in experts])

    differing = sum(int(torch.sign(variance(part)).sum(dtype=torch.float64)) for part in blocks(base))
    cut = find_cut(variance, base, int(density * differing))

    def selected(part: slice) -> list[Tensor]:
        deltas = [expert[part] - base[part] for expert in experts]
        mask = cut.mask(_variance(deltas), part) if density < 1 else None
        return deltas if mask is None else [delta.mul_(mask) for delta in deltas]

    energy = [0.0] * len(experts)
    for part in blocks(base):
        for index, delta in enumerate(selected(part)):
            energy[index] += float(delta.double().square_().sum())
    whole = sum(energy)
    result = base.clone()
    for part in blocks(base) if whole != 0 else ():
        result[part] += _erase(selected(part), [value / whole for value in energy])
    return result.view(tensors[0].shape)


def _variance(values: list[Tensor]) -> Tensor:
    """The variance over the tensors, entry by entry; exactly zero where all are equal."""
    mean = torch.zeros_like(values[0])
    for value in values[1:]:
        mean += value - values[0]
    mean.div_(len(values)).add_(values[0])
    result = torch.zeros_like(mean)
    for value in values:
        result += (value - mean).square_()
    return result.div_(len(values))


def _erase(deltas: list[Tensor], weights: list[float]) -> Tensor:
    """The weighted mean of the entries that have the sign of their sum; zero elects the positive sign."""
    ballot = torch.stack(deltas).sum(0)
    sign = torch.copysign(torch.ones_like(ballot), ballot)
    result, shares = torch.zeros_like(ballot), torch.zeros_like(ballot)
    for delta, weight in zip(deltas, weights, strict=True):
        agreeing = (delta * sign).relu_()
        shares.add_(torch.sign(agreeing), alpha=weight)
        result.add_(agreeing.mul_(weight))
    return (result / shares.clamp_(min=1e-12)).mul_(sign)
