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
    shared, alone = [0] * len(experts), [0] * len(experts)
    for part in blocks(base):
        changed = torch.stack([(expert[part] - base[part]).abs_() > threshold for expert in experts])
        several = changed.sum(0) > 1
        for index, mine in enumerate(changed):
            common = int((mine & several).sum())
            shared[index] += common
            alone[index] += int(mine.sum()) - common
    gains = [1 + gain * min(s / a, limit) if a else 1.0 for s, a in zip(shared, alone, strict=True)]
    result = base.clone()
    for part in blocks(base):
        result[part] += _mean_change([expert[part] - base[part] for expert in experts], threshold, gains)
    return result.view(tensors[0].shape)


def _mean_change(deltas: Sequence[Tensor], threshold: float, gains: Sequence[float]) -> Tensor:
    """The mean over the experts that changed an entry; the only one's change times its gain. NaNs stay."""
    changes = [torch.hardshrink(delta, threshold) for delta in deltas]
    counts = torch.zeros_like(changes[0])
    for change in changes:
        counts += change.abs().sign_()
    total = torch.zeros_like(changes[0])
    for change, gain in zip(changes, gains, strict=True):
        total += change if gain == 1 else torch.where(counts == 1, change * gain, change)
    return total / counts.clamp_(min=1)
