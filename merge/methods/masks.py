"""One vector for all experts and a mask for each: EMR's unified task vector, and the consensus of TALL masks.

Sums over experts are in float64, so that what hangs on their sign does not depend on the order of the experts; in
blocks that stay in the core's cache.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from merge.errors import MergeError
from merge.methods.blocks import blocks
from merge.methods.matrices import summed, task_vectors
from merge.methods.method import Tensors
from merge.methods.selection import below
from merge.methods.sparse import elect
from merge.methods.survey import Model, Surveyed, common


def emr(
    tensors: Tensors,
    *,
    scale: float,
    expert: int,
    rescaler: str = "entries",
    factor: float = 1.0,
    name: str = "",
    out: Tensor | None = None,
) -> Tensor:
    """Elect the sign of the mean task vector and take the largest magnitude that an expert has with it, by entry.

    EMR-Merging, Huang et al. 2024, section 3.2. A sum of exactly 0 elects the negative sign. With an expert's place,
    its own model: what its mask leaves of the vector, times `factor`, which a survey finds (`rescalers`).
    """

    def change(parts: Tensors) -> Tensor:
        unified, mask = _unified(parts, expert)
        return unified if mask is None else unified.mul_(mask).mul_(factor)

    return _by_blocks(change, tensors, scale, out)


def rescalers(model: Model) -> Surveyed:
    """Give the `factor` of an expert's model: the L1 norm of its task vector over that of what its mask leaves.

    Over all entries of the model (equation 5), or with "tensors" of the means of every tensor, as the authors' program
    has it, where a bias counts as much as a matrix. An expert of which nothing is left has 1.
    """
    asked = {name: given for name, given in model.parameters.items() if given["expert"] >= 0}
    if not asked:
        return Surveyed()
    given = common(asked, ("expert", "rescaler"))
    expert: int = given["expert"]

    def look(name: str, tensors: Tensors) -> tuple[float, float]:
        own = left = 0.0
        flat = [tensor.reshape(-1) for tensor in tensors]
        for part in blocks(flat[0]):
            parts = [tensor[part] for tensor in flat]
            unified, mask = _unified(parts, expert)
            own += float((parts[expert + 1] - parts[0]).abs_().sum(dtype=torch.float64))
            left += float(unified.mul_(mask).abs_().sum(dtype=torch.float64)) if mask is not None else 0.0
        size = max(len(flat[0]), 1) if given["rescaler"] == "tensors" else 1
        return own / size, left / size

    own, left = (math.fsum(norms) for norms in zip(*model.each(look, asked), strict=True))
    factor = own / left if left else 1.0
    note = f"what the mask leaves is multiplied by {factor:.6g}"
    return Surveyed({name: {"factor": factor} for name in asked}, [note])


def _unified(parts: Tensors, expert: int) -> tuple[Tensor, Tensor | None]:
    """The unified task vector, and an expert's mask."""
    base, *experts = parts
    sign = torch.gt(summed(parts), 0).to(base.dtype).mul_(2).sub_(1)
    largest, mask = torch.zeros_like(base), None
    for index, other in enumerate(experts):
        agreeing = (other - base).mul_(sign).relu_()
        largest = torch.maximum(largest, agreeing)
        mask = torch.sign(agreeing) if index == expert else mask
    return largest.mul_(sign), mask


def consensus(
    tensors: Tensors,
    *,
    scale: float,
    tall_lambda: Sequence[float],
    k: int,
    expert: int,
    change: str = "sum",
    cut: Sequence[float] = (),
    tie: int = 1,
    name: str = "",
    out: Tensor | None = None,
    **density: Any,
) -> Tensor:
    """Add the merged task vectors t where at least `k` experts' masks are set: `|t_i| > lambda_i * |t - t_i|`.

    TALL masks and Consensus TA, Wang et al. 2024, sections 4.1 and 4.3. t is the sum, or TIES' sum of what agrees of
    those changes that are at least each expert's `cut`, which a survey finds. With an expert's place, its own model: t
    where its mask is set. 0 is not above 0: what nobody has changed is in no mask. Raises MergeError for a `k` that is
    beyond the number of experts, which would erase all changes.
    """
    count = len(tensors) - 1
    if k > count and expert < 0:
        raise MergeError(f"k is {k}, and no entry is in the masks of more than all {count} experts: at most {count}")

    def agreed(parts: Tensors) -> Tensor:
        base, *experts = parts
        if change == "sum":
            total = summed(parts)
        else:
            kept = [torch.hardshrink(own - base, below(x, base.dtype)) for own, x in zip(experts, cut, strict=True)]
            total = elect(kept, [1.0] * count, normalize=False, tie=tie).double()
        votes = torch.zeros_like(total)
        for index, (vector, strictness) in enumerate(zip(task_vectors(parts), tall_lambda, strict=True)):
            if expert in (-1, index):
                votes += vector.abs() > strictness * (total - vector).abs_()
        return total.mul_(votes >= (k if expert < 0 else 1)).to(base.dtype)

    return _by_blocks(agreed, tensors, scale, out)


def _by_blocks(change: Callable[[Tensors], Tensor], tensors: Tensors, scale: float, out: Tensor | None) -> Tensor:
    """`base + scale * change`, of blocks of the tensors."""
    whole = out is not None and out.is_contiguous()
    result = out if out is not None and whole else torch.empty_like(tensors[0], memory_format=torch.contiguous_format)
    flat = [tensor.reshape(-1) for tensor in tensors]
    for part in blocks(flat[0]):
        pieces = [tensor[part] for tensor in flat]
        torch.add(pieces[0], change(pieces), alpha=scale, out=result.view(-1)[part])
    return result if out is None or whole else out.copy_(result)
