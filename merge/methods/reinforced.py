"""RAM: entries that one expert alone has changed are kept whole, those that several have changed are averaged."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from merge.methods.blocks import blocks, identical
from merge.methods.method import Tensors


def ram(tensors: Tensors, *, threshold: float, name: str = "", out: Tensor | None = None) -> Tensor:
    """`base` + the mean of the changes over the experts that have one, larger than `threshold` (Yuan et al. 2026)."""
    base, *experts = tensors
    return torch.add(
        base, _mean_change([expert - base for expert in experts], threshold, [1.0] * len(experts)), out=out
    )


def ram_plus(tensors: Tensors, *, threshold: float, gain: float, limit: float, name: str = "") -> Tensor:
    """As `ram`, where what one expert alone has changed is stretched by `1 + gain * min(shared / alone, limit)`.

    `shared` and `alone` count the expert's changes that others have too or have not, tensor by tensor (RAM+, Yuan et
    al. 2026, section 4.3).
    """
    if identical(tensors):
        return tensors[0].clone()
    base, *experts = (tensor.reshape(-1) for tensor in tensors)
    changed, alone = [0] * len(experts), [0] * len(experts)
    for part in blocks(base):
        marks = [_marks(torch.hardshrink(expert[part] - base[part], threshold)) for expert in experts]
        once = _equal_one(_sum(marks))
        for index, mark in enumerate(marks):
            changed[index] += int(mark.sum(dtype=torch.float64))
            alone[index] += int(mark.mul_(once).sum(dtype=torch.float64))
    gains = [1 + gain * min((c - a) / a, limit) if a else 1.0 for c, a in zip(changed, alone, strict=True)]
    result = base.clone()
    for part in blocks(base):
        result[part] += _mean_change([expert[part] - base[part] for expert in experts], threshold, gains)
    return result.view(tensors[0].shape)


def _mean_change(deltas: Sequence[Tensor], threshold: float, gains: Sequence[float]) -> Tensor:
    """The mean over the experts that changed an entry; the only one's change times its gain. NaNs stay."""
    changes = [torch.hardshrink(delta, threshold) for delta in deltas]
    counts = _sum([_marks(change) for change in changes])
    if any(gain != 1 for gain in gains):
        once = _equal_one(counts)  # a lerp at 0 or 1 takes one side exactly
        changes = [torch.lerp(change, change * gain, once) for change, gain in zip(changes, gains, strict=True)]
    return _sum(changes) / counts.clamp_(min=1)


def _sum(values: Sequence[Tensor]) -> Tensor:
    total = values[0]
    for value in values[1:]:
        total = total + value
    return total


def _marks(changes: Tensor) -> Tensor:
    """1 where there is a change, else 0."""
    return changes.abs().sign_()


def _equal_one(counts: Tensor) -> Tensor:
    return torch.eq(counts, 1, out=torch.empty_like(counts))
