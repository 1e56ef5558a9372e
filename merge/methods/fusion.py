"""Two checkpoints and a rule per entry: take what lies near (Nearswap), or what matters (Arcee Fusion)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from merge.methods.blocks import grams, identical
from merge.methods.method import Tensors
from merge.methods.selection import kth_largest


def nearswap(tensors: Tensors, *, t: float, name: str = "", out: Tensor | None = None) -> Tensor:
    """Entries nearer than `t` are taken from the second, the others move towards it by `t` (QuartetAnemoi, 2024).

    `w * second + (1 - w) * base` with `w = min(t / |second - base|, 1)`, and 1 where they are equal.
    """
    base, second = tensors
    share = (t / (second - base).abs_()).nan_to_num_(nan=1.0).clamp_(max=1)
    return torch.add(second * share, base * (1 - share), out=out)


def arcee_fusion(tensors: Tensors, *, name: str = "") -> Tensor:
    """Take the entries of the expert whose importance is an outlier (Arcee Fusion, mergekit 0.1).

    The importance is `|expert - base|` times the Kullback-Leibler divergence, from the base's to the expert's, of the
    softmaxes along the last axis; an outlier is at or above `median + 1.5 (Q3 - Q1)`, quantiles taken downwards.
    """
    if identical(tensors):
        return tensors[0].clone()
    base, expert = (tensor.reshape(-1, tensor.shape[-1] if tensor.dim() else 1) for tensor in tensors)
    divergence = _divergence(base, expert)
    importance = ((expert - base).abs_() * divergence[:, None]).reshape(-1)
    first, middle, third = (_quantile(importance, share) for share in (0.25, 0.5, 0.75))
    chosen = importance >= middle + 1.5 * (third - first)
    return (base + (expert - base).mul_(chosen.view(base.shape))).view(tensors[0].shape)


def _divergence(base: Tensor, expert: Tensor) -> Tensor:
    """KL(softmax(expert) || softmax(base)) of every row."""
    logs = torch.log_softmax(expert, 1)
    return grams([logs.exp(), logs - torch.log_softmax(base, 1)])[:, 0, 1].to(base.dtype)


def _quantile(values: Tensor, share: float) -> float:
    """The value at rank `share * (n - 1)`, rounded down."""
    below = math.floor(share * (values.numel() - 1))
    return kth_largest(lambda part: values[part], values, values.numel() - below).value
