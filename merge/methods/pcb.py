"""PCB-Merging: entries compete within each task vector and with the other experts'; the best of each are averaged."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from merge.methods.blocks import blocks, identical
from merge.methods.method import Tensors
from merge.methods.survey import Model, Surveyed, common, order_statistics
from merge.methods.whole import magnitudes

_LARGEST = 80.0  # exponent, well within float32


class Version(NamedTuple):
    """How one of the authors' three programs differs: the part clamped at both ends, against what an entry is held, and
    a factor of every task vector."""

    clamped: float
    against_signs: bool
    factor: float


VERSIONS = {
    "general": Version(0.0001, False, 1.0),
    "nlp": Version(0.01, False, 1.0),
    "vision": Version(0.01, True, 1.2),
}


class Range(NamedTuple):
    """The smallest and the largest of some values."""

    low: float
    high: float

    def share(self, values: Tensor) -> Tensor:
        """Give 0 at the smallest to 1 at the largest; 0 where there is no range."""
        if self.high == self.low:
            return torch.zeros_like(values)
        return (values - self.low) / (self.high - self.low)


def pcb(
    tensors: Tensors,
    *,
    density: Sequence[float],
    version: str,
    weights: Sequence[float],
    scale: float,
    sizes: Sequence[Range] = (),
    scores: Sequence[Range] = (),
    name: str = "",
) -> Tensor:
    """`base + scale * sum_i weights_i s_i A_i sign(X_i - base) / sum_i s_i`, entry by entry.

    A_i are the magnitudes, clamped to `sizes`; s_i the scores (`_scores`), 0 at the smallest of `scores` to 1 at their
    largest, both of the whole model and found by a survey (`ranges`). PCB-Merging (arXiv 2410.02396).
    """
    if identical(tensors):
        return tensors[0].clone()
    base, *experts = (tensor.reshape(-1) for tensor in tensors)
    result, factor = torch.empty_like(base), VERSIONS[version].factor
    for part in blocks(base):
        block = [base[part], *(expert[part] for expert in experts)]
        change, total = torch.zeros_like(base[part]), torch.zeros_like(base[part])
        for index, score in enumerate(_scores(block, version, sizes)):
            vector = block[index + 1] - block[0]
            limits = scores[index]
            if limits.high > limits.low:
                share = limits.share(score.clamp(limits.low, limits.high))
            else:  # one value is the best alone
                share = ((score >= limits.high) & (vector != 0)).to(score.dtype)
            share = share * (density[index] > 0)
            size = vector.abs().clamp(sizes[index].low, sizes[index].high)
            change += torch.sign(vector) * size * share * (weights[index] * factor)
            change += vector - vector  # an infinity, which is clamped, shows in the result
            total += share
        torch.add(base[part], change / total.clamp(min=1e-12), alpha=scale, out=result[part])
    return result.view(tensors[0].shape)


def ranges(model: Model) -> Surveyed:
    """Give for every expert the `sizes` to which magnitudes are clamped and the range of `scores` that count."""
    if not model.parameters:
        return Surveyed()
    given = common(model.parameters, ("density", "version"))
    version, density = given["version"], given["density"]
    clamped = VERSIONS[version].clamped

    def ends(count: int) -> list[list[int]]:
        top = max(math.floor(count * (1 - clamped) - 1), 0)
        return [[min(math.floor(count * clamped), top), top] if count else [] for _ in density]

    def best(count: int) -> list[list[int]]:
        return [[min(math.floor(count * (1 - share)), count - 1), count - 1] if count else [] for share in density]

    sizes = [Range(*values) for values in order_statistics(model, magnitudes, ends) if values]
    scores = order_statistics(model, lambda tensors: _in_blocks(tensors, version, sizes), best)
    found = {"sizes": sizes, "scores": [Range(*values) for values in scores if values]}
    return Surveyed(dict.fromkeys(model.parameters, found))


def _in_blocks(tensors: Tensors, version: str, sizes: Sequence[Range]) -> list[Tensor]:
    """The scores, computed in the very blocks in which they are merged: their bits may depend on it."""
    parts = [_scores([item[part] for item in tensors], version, sizes) for part in blocks(tensors[0])]
    return [torch.cat(mine) for mine in zip(*parts, strict=True)]


def _scores(tensors: Tensors, version: str, sizes: Sequence[Range]) -> list[Tensor]:
    """Each expert's `exp(n m^2) * tanh((X_i - base) * s)`: balancing within the expert, and with the other ones.

    m is the clamped magnitude from 0 to 1, n the number of experts, s the sum of the task vectors or of their m with
    their signs. Only the order and the proportions of an expert's scores count, so that a factor keeps them finite.
    """
    vectors = [expert - tensors[0] for expert in tensors[1:]]
    shares = [
        limits.share(vector.abs().clamp(limits.low, limits.high)) for vector, limits in zip(vectors, sizes, strict=True)
    ]
    total = torch.zeros_like(vectors[0])
    for vector, share in zip(vectors, shares, strict=True):
        total += torch.sign(vector) * share if VERSIONS[version].against_signs else vector
    count = len(vectors)
    shift = max(count - _LARGEST, 0.0)
    return [
        torch.exp(count * share.square() - shift) * torch.tanh(vector * total)
        for vector, share in zip(vectors, shares, strict=True)
    ]
