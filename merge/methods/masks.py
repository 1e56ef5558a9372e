"""One vector for all experts and a mask for each: EMR's unified task vector, and the consensus of TALL masks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from merge.errors import MergeError
from merge.methods.matrices import summed, task_vectors
from merge.methods.method import Tensors


def emr(tensors: Tensors, *, scale: float, name: str = "", out: Tensor | None = None) -> Tensor:
    """Elect the sign of the mean task vector and take the largest magnitude that an expert has with it, by entry.

    EMR-Merging, Huang et al. 2024, section 3.2. A sum of exactly 0 elects the negative sign; it is taken in float64, so
    that the order of the experts plays no part.
    """
    base, *experts = tensors
    sign = torch.where(summed(tensors) > 0, 1.0, -1.0).to(base.dtype)
    unified = torch.zeros_like(base)
    for expert in experts:
        unified = torch.maximum(unified, (expert - base).mul_(sign).relu_())
    return torch.add(base, unified.mul_(sign), alpha=scale, out=out)


def consensus(
    tensors: Tensors, *, scale: float, tall_lambda: Sequence[float], k: int, name: str = "", out: Tensor | None = None
) -> Tensor:
    """Add the summed task vectors where at least `k` experts' masks are set: `|t_i| > lambda_i * |sum_j t_j - t_i|`.

    TALL masks and Consensus TA, Wang et al. 2024, sections 4.1 and 4.3. 0 is not above 0: what nobody has changed is in
    no mask. Raises MergeError for a `k` that is beyond the number of experts, which would erase all changes.
    """
    count = len(tensors) - 1
    if k > count:
        raise MergeError(f"k is {k}, and no entry is in the masks of more than all {count} experts: at most {count}")
    total = summed(tensors)
    votes = torch.zeros_like(total)
    for vector, strictness in zip(task_vectors(tensors), tall_lambda, strict=True):
        votes += vector.abs() > strictness * (total - vector).abs_()
    change = total.mul_(votes >= k).mul_(scale)
    return torch.add(tensors[0], change.to(tensors[0].dtype), out=out)
