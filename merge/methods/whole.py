"""TIES' threshold over the whole model, which its authors take: the k-th largest magnitude of a whole task vector."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from merge.methods.method import Tensors
from merge.methods.selection import below
from merge.methods.sparse import add
from merge.methods.survey import Model, Surveyed, common, order_statistics, pieces


def cuts(model: Model) -> Surveyed:
    """Give each expert's `cut`, and as published the sign that a sum of 0 elects, `tie`, where a tensor asks for them.

    TIES (arXiv 2306.01708), as its authors' program has it: of d entries the d - k smallest are dropped but for the
    last of them, with k = density * d.
    """
    asked = {
        name: given
        for name, given in model.parameters.items()
        if given["threshold"] != "tensor" and given.get("change") != "sum"
    }
    if not asked:
        return Surveyed()
    given = common(asked, ("density", "threshold"))
    published = given["threshold"] == "published"
    density: Sequence[float] = given["density"]
    found = order_statistics(model, magnitudes, lambda count: [_places(count, x, published) for x in density], asked)
    cut = tuple(_cut(values, x) for values, x in zip(found, density, strict=True))
    extra: dict[str, Any] = {"cut": cut, "tie": _majority(model, asked, cut) if published else 1}
    told = ", ".join(f"{value:.6g}" for value in cut)
    return Surveyed(dict.fromkeys(asked, extra), [f"of the whole model, changes of {told} and more were kept"])


def magnitudes(tensors: Tensors) -> list[Tensor]:
    """Give the magnitudes of every expert's task vector."""
    return [(expert - tensors[0]).abs_() for expert in tensors[1:]]


def _places(count: int, density: float, published: bool) -> list[int]:
    """The place of the smallest magnitude that is kept among all in their order; none where all or none are."""
    if not 0 < density < 1 or not count:
        return []
    kept = int(density * count)
    return [max(count - kept - 1, 0) if published else count - max(kept, 1)]


def _cut(values: Sequence[float], density: float) -> float:
    """The smallest magnitude that is kept: all of 0 or more where all are, infinity where none is."""
    return values[0] if values else 0.0 if density > 0 else math.inf


def _majority(model: Model, asked: Mapping[str, Mapping[str, Any]], cut: Sequence[float]) -> int:
    """The sign that most entries of the whole model elect, minus where they balance."""

    def look(name: str, tensors: Tensors) -> int:
        total, weights = 0, asked[name].get("weights", [1.0] * len(cut))
        for base, *experts in pieces(tensors):
            kept = [
                torch.hardshrink(expert - base, below(limit, base.dtype)) * weight
                for expert, limit, weight in zip(experts, cut, weights, strict=True)
            ]
            total += int(torch.sign(add(kept)).sum(dtype=torch.float64))
        return total

    return 1 if sum(model.each(look, asked)) > 0 else -1
