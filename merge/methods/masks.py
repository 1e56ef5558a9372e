"""One vector for all experts and a mask for each: EMR's unified task vector, and the consensus of TALL masks.

Sums over experts are in float64, so that what hangs on their sign does not depend on the order of the experts; in
blocks that stay in the core's cache.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from merge.errors import MergeError
from merge.methods.blocks import blocks
from merge.methods.matrices import summed, task_vectors
from merge.methods.method import Tensors


def emr(tensors: Tensors, *, scale: float, name: str = "", out: Tensor | None = None) -> Tensor:
    """Elect the sign of the mean task vector and take the largest magnitude that an expert has with it, by entry.

    EMR-Merging, Huang et al. 2024, section 3.2. A sum of exactly 0 elects the negative sign.
    """

    def unified(parts: Tensors) -> Tensor:
        base, *experts = parts
        sign = torch.gt(summed(parts), 0).to(base.dtype).mul_(2).sub_(1)
        largest = torch.zeros_like(base)
        for expert in experts:
            largest = torch.maximum(largest, (expert - base).mul_(sign).relu_())
        return largest.mul_(sign)

    return _by_blocks(unified, tensors, scale, out)


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

    def agreed(parts: Tensors) -> Tensor:
        total = summed(parts)
        votes = torch.zeros_like(total)
        for vector, strictness in zip(task_vectors(parts), tall_lambda, strict=True):
            votes += vector.abs() > strictness * (total - vector).abs_()
        return total.mul_(votes >= k).to(parts[0].dtype)

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
