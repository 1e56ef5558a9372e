"""Model Stock: how far towards the mean of the experts follows from the angle between their task vectors."""

from __future__ import annotations

import torch
from torch import Tensor

from merge.methods.blocks import grams, identical
from merge.methods.linear import average
from merge.methods.method import Tensors


def model_stock(tensors: Tensors, *, filter_wise: bool, name: str = "") -> Tensor:
    """`(1 - t) * base + t * mean(experts)`, `t = k cos / (1 + (k - 1) cos)`, cos the mean cosine of pairs of the k
    task vectors (Jang et al. 2024, equation 4 and its extension to k models).

    t is clamped to [0, 1]: a negative cosine would walk away from the experts without bound. With `filter_wise` every
    row of the tensor flattened behind its first axis has its own t.
    """
    base, *experts = tensors
    if identical(tensors):
        return base.clone()
    rows = base.shape[0] if filter_wise and base.dim() > 1 else 1
    columns = base.numel() // max(rows, 1)
    flat, *others = (tensor.reshape(rows, columns) for tensor in tensors)
    ratio = _ratio(grams(others, flat), len(experts))[:, None].to(flat.dtype)
    mean = average(others, weights=[1 / len(experts)] * len(experts))
    return torch.lerp(flat, mean, ratio).view(base.shape)


def _ratio(products: Tensor, count: int) -> Tensor:
    norms = products.diagonal(dim1=1, dim2=2).sqrt()
    cosines = products / (norms[:, :, None] * norms[:, None, :])
    cosines = torch.where(products == 0, 0.0, cosines)  # an expert equal to the base has no direction
    cosine = cosines.tril(-1).sum((1, 2)) / (count * (count - 1) / 2)
    return (count * cosine / (1 + (count - 1) * cosine)).where(cosine > 0, cosine.clamp(min=0)).clamp(0, 1)
