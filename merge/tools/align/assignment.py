"""The best one-to-one assignment of units, given how much every pair has in common."""

# SciPy tells no types.
# pyright: reportUnknownVariableType=false, reportUnknownMemberType=false, reportMissingTypeStubs=false

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from merge.errors import MergeError
from merge.tools.align.spec import PermutationSpec


def assign(gain: Tensor) -> Tensor:
    """Find the permutation p that makes the sum of `gain[i, p[i]]` largest.

    Raises MergeError for infinite and NaN gains, and without SciPy.
    """
    try:
        from scipy.optimize import linear_sum_assignment  # optional: the extra `align`
    except ImportError:
        raise MergeError("aligning networks needs SciPy: pip install 'unival-merge[align]'") from None
    if not bool(gain.isfinite().all()):
        raise MergeError("units with infinite or NaN weights or activations cannot be matched: `doctor` tells where")
    solve: Any = linear_sum_assignment
    return torch.from_numpy(solve(gain.numpy(), maximize=True)[1])


def assign_blocks(spec: PermutationSpec, group: str, gain: Tensor, within: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Find the best order of a group and of all groups within its units, where these do not depend on each other.

    `gain` (n x n) is what the units have in common, `within` (n x m x n x m) what the inner units have, by inner group.
    Every pair of outer units is worth its own gain and that of the best assignment of their inner units.
    """
    size = spec.sizes[group]
    total = gain.clone()
    best: dict[str, Tensor] = {}
    for inner, common in within.items():
        best[inner] = torch.empty(size, size, spec.sizes[inner], dtype=torch.long)
        for i in range(size):
            for j in range(size):
                order = best[inner][i, j] = assign(common[i, :, j])
                total[i, j] += common[i, torch.arange(len(order)), j, order].sum()
    units = assign(total)
    chosen = {inner: orders[torch.arange(size), units] for inner, orders in best.items()}
    as_is = {inner: torch.arange(spec.sizes[inner]).expand(size, -1) for inner in spec.inner(group)}
    return {group: units, **as_is, **chosen}
