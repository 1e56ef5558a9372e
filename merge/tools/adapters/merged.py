"""Adapters merged into one adapter, in memory."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from merge.engine.kernel import nonfinite
from merge.errors import MergeError
from merge.tools.adapters.combined import combined, truncated
from merge.tools.adapters.factors import (
    averaged,
    concatenated,
    distance_of,
    notes_on,
    parts_of,
    recompressed,
    saved_of,
    shares_of,
    stored,
)
from merge.tools.adapters.folder import Adapter, Factors, open_adapter
from merge.tools.adapters.modes import EXACT
from merge.tools.adapters.rows import averaged_rows, common_copies


@dataclass(frozen=True)
class MergedAdapter:
    """The result of `merge_adapters`: every module's factors, of one rank and scale 1.

    Attributes:
        modules: the factors by module, named as in the base.
        saved: tensors that the adapters trained whole, and their rows of tokens, averaged; copies of the base's.
        distance: relative Frobenius distance ||result - exact|| / ||exact|| over all modules, rounding left aside.
        discarded: the share of the exact sum's squared Frobenius norm that a smaller rank left out.
        notes: what a user should know, one line each.
    """

    modules: Mapping[str, Factors]
    saved: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])
    distance: float = 0.0
    discarded: float = 0.0
    notes: tuple[str, ...] = ()

    @property
    def rank(self) -> int:
        return next(iter(self.modules.values())).rank


def merge_adapters(
    adapters: Sequence[Adapter | str | Path],
    *,
    weights: Sequence[float] | None = None,
    mode: str = "exact",
    rank: int | None = None,
    **parameters: Any,
) -> MergedAdapter:
    """Add up adapters (open, or the folders of peft's layout): `sum_i w_i s_i B_i A_i` as one adapter.

    "exact" puts the factors side by side (rank: the sum of the ranks); the numbers w_i s_i go into B, so that A keeps
    its bits. "factors" averages A and B separately, which is another change: `distance` says how far off. `rank`
    recompresses the exact sum by its singular values, without forming a whole matrix. A module that an adapter lacks
    counts as zero. Without `weights` all are 1 / n; they need to sum to 1 only where whole modules were trained.

    Any method of `METHODS` that takes a base is a mode too, with its `parameters`, and so is "knots"
    (docs/adapters.md): they merge the changes `s_i B_i A_i`. Their weights are the method's own, 1 where none are
    given. The result is cut to `rank`, or to the sum of the ranks; `discarded` is what that leaves out.

    Raises MergeError for ranks and shapes that do not fit together and for weights that are no finite numbers.
    """
    adapters = [each if isinstance(each, Adapter) else open_adapter(each) for each in adapters]
    if rank is not None and (mode == "factors" or rank < 1):
        raise MergeError(f"rank {rank}: must be 1 or more, and is not for mode 'factors', which keeps the rank")
    if mode not in EXACT:
        made = _by_method(adapters, weights, mode, rank, parameters)
    elif parameters:
        raise MergeError(f"mode {mode} has no parameter {next(iter(parameters))!r}")
    else:
        made = _summed(adapters, weights, mode, rank)
    shares = shares_of(adapters, weights)
    found = parts_of(adapters, shares if mode in EXACT else [1.0] * len(adapters))
    largest = max(factors.rank for factors in made.modules.values())
    saved = {
        **saved_of(adapters, weights),
        **averaged_rows({adapter.name: adapter.rows for adapter in adapters}, shares),
        **common_copies({adapter.name: adapter.copies for adapter in adapters}),
    }
    for name, value in saved.items():
        if nonfinite(value):
            raise MergeError(f"{name}: infinite or NaN values in what was trained whole")
    modules = {module: stored(factors, found[module], largest) for module, factors in made.modules.items()}
    return MergedAdapter(modules, saved, made.distance, made.discarded, notes_on(adapters))


def _summed(adapters: Sequence[Adapter], weights: Sequence[float] | None, mode: str, rank: int | None) -> MergedAdapter:
    """The sum of the changes, or the averages of the factors."""
    found = parts_of(adapters, shares_of(adapters, weights))
    exact = {module: concatenated(module, parts) for module, parts in found.items()}
    if mode == "factors":
        modules = {module: averaged(module, parts) for module, parts in found.items()}
        return MergedAdapter(modules, distance=distance_of(modules, exact))
    if rank is None:
        return MergedAdapter(exact)
    modules, discarded = recompressed(exact, rank)
    return MergedAdapter(modules, distance=math.sqrt(discarded), discarded=discarded)


def _by_method(
    adapters: Sequence[Adapter],
    weights: Sequence[float] | None,
    mode: str,
    rank: int | None,
    parameters: Mapping[str, Any],
) -> MergedAdapter:
    """The changes merged by a method, module by module, and cut to a rank."""
    change = combined(adapters, weights, mode, parameters)
    modules: dict[str, Factors] = {}
    kept = lost = 0.0
    for module, parts in parts_of(adapters, [1.0] * len(adapters)).items():
        most = rank or sum(part.factors.rank for part in parts)
        modules[module], inside, outside = truncated(change(module), most, parts[0].factors)
        kept, lost = kept + inside, lost + outside
    discarded = lost / (kept + lost) if kept + lost else 0.0
    return MergedAdapter(modules, distance=math.sqrt(discarded), discarded=discarded)
