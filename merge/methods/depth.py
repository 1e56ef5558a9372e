"""LiNeS: a merged change grows with the depth of its block, which is read from the names."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from merge.errors import MergeError
from merge.methods import sparse, whole
from merge.methods.blocks import blocks
from merge.methods.method import Tensors
from merge.methods.survey import Model, Surveyed

_SHOWN = 3


def lines(tensors: Tensors, *, factor: float, **given: Any) -> Tensor:
    """`base + factor * change`, the change a sum of task vectors or TIES' sum of what agrees of them.

    The factor is found by a survey (`factors`). LiNeS (arXiv 2410.17146), equation 2.
    """
    if len(tensors) == 2 and factor == 1 and given["change"] == "sum":
        return tensors[1].clone()
    return _merged(tensors, factor, given)


def factors(model: Model) -> Surveyed:
    """Give every tensor's `factor`: `alpha + beta * l / (L - 1)` in block l of L, alpha where a name has no number.

    "auto" for alpha is, over the whole model, the L1 norm of the summed task vectors over that of the change, over
    their number; for beta it is 1 - alpha. With one block, l / (L - 1) is 0.
    """
    parameters, surveyed = model.parameters, whole.cuts(model)
    found: dict[str, dict[str, Any]] = {name: dict(surveyed.parameters.get(name, {})) for name in parameters}
    notes = list(surveyed.notes)
    places, told = _places(parameters)
    notes.append(told)
    alpha = 0.0
    if any(given["alpha"] == "auto" for given in parameters.values()):
        alpha = _alpha(model, found)
        notes.append(f"alpha is {alpha:.6g}")
    for name, given in parameters.items():
        mine = alpha if given["alpha"] == "auto" else given["alpha"]
        growth = 1 - mine if given["beta"] == "auto" else given["beta"]
        found[name]["factor"] = mine + growth * places[name]
    return Surveyed(found, notes)


def _merged(tensors: Tensors, factor: float, given: Mapping[str, Any]) -> Tensor:
    """The base and a factor times the change."""
    count = len(tensors) - 1
    common: dict[str, Any] = {"weights": [1.0] * count, "scale": factor, "rescale_l1": False}
    if given["change"] == "sum":
        return sparse.summed(tensors, **common)
    keys = ("density", "threshold", "cut", "tie")
    return sparse.ties(tensors, **{key: given[key] for key in keys if key in given}, normalize=False, **common)


# -- depth -----------------------------------------------------------------------------------------------------------


def numbers(name: str) -> list[int]:
    """Give the numbers that are whole parts of a name: [2, 0] of "blocks.2.adapter.0.weight"."""
    return [int(part) for part in re.split(r"[./]", name) if part.isascii() and part.isdigit()]


def _places(parameters: Mapping[str, Mapping[str, Any]]) -> tuple[dict[str, float], str]:
    """Where every tensor lies between the first block, 0, and the last, 1; and in words which blocks there are."""
    found = {name: numbers(name) for name in parameters}
    deepest = max((mine[0] for mine in found.values() if mine), default=-1) + 1
    places: dict[str, float] = {}
    lists: dict[str, set[int]] = {}
    for name, given in parameters.items():
        count = deepest if given["blocks"] == "auto" else int(given["blocks"])
        if given["block"] == "first":
            mine = found[name][:1]
            if mine and mine[0] >= count:
                raise MergeError(f"blocks {count}: {name} lies in block {mine[0]}, beyond the last; leave blocks out")
        else:
            mine = sorted(number for number in found[name] if number < count)[:1]
        places[name] = mine[0] / (count - 1) if mine and count > 1 else 0.0
        if mine:
            before = re.split(rf"(?:^|[./]){mine[0]}(?:[./]|$)", name, maxsplit=1)[0]
            lists.setdefault(before, set()).add(mine[0])
    outside = sum(not mine for mine in found.values())
    told = [f"{before or 'the model'} with {len(mine)}" for before, mine in lists.items()]
    more = f" and {len(told) - _SHOWN} more lists" if len(told) > _SHOWN else ""
    listed = f" ({', '.join(told[:_SHOWN])}{more})" if told else ""
    return places, f"depth is by numbers in names: {deepest} blocks{listed}, {outside} tensors in none"


# -- alpha -----------------------------------------------------------------------------------------------------------


def _alpha(model: Model, found: Mapping[str, Mapping[str, Any]]) -> float:
    """The L1 norm of the summed task vectors over that of the change, over the number of experts."""

    def look(name: str, tensors: Tensors) -> tuple[int, float, float]:
        given = {**model.parameters[name], **found[name]}
        vectors = [expert - tensors[0] for expert in tensors[1:]]
        summed = _norm(sparse.add(vectors))
        if given["change"] == "sum":
            return len(vectors), summed, summed
        return len(vectors), summed, _norm(_merged([torch.zeros_like(tensors[0]), *vectors], 1.0, given))

    seen = list(model.each(look))
    count = max((number for number, _, _ in seen), default=1)
    total, changed = (math.fsum(item[index] for item in seen) for index in (1, 2))
    return (total / changed if changed else 1.0) / count


def _norm(vector: Tensor) -> float:
    flat = vector.reshape(-1)
    return math.fsum(float(flat[part].double().abs_().sum()) for part in blocks(flat))
