"""The arithmetic of one tensor, in one place: streamed files, state dicts in memory and live models all pass here.

Computing happens in float32 (or wider) and is rounded once, to the result's dtype.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from merge.errors import MergeError
from merge.methods import Method
from merge.plan.policy import Policy
from merge.plan.rows import aligned, assembled
from merge.plan.units import Unit

# Elements read, computed and written at a time: small enough for a core's cache, large enough that threads seldom meet
# at the interpreter's lock (blocks of 32,704 made two threads slower than one).
BLOCK = 1 << 17


def computing_dtype(dtypes: Sequence[torch.dtype], policy: Policy) -> torch.dtype:
    """The dtype of the arithmetic: the policy's, or float64 where a tensor has it already."""
    wide = torch.float64 in dtypes or torch.complex128 in dtypes
    return torch.float64 if wide else policy.compute_dtype


def work(tensors: Sequence[Tensor], method: Method, unit: Unit, policy: Policy) -> list[Tensor]:
    """The tensors in the computing dtype; complex ones as pairs of real numbers, counters as they are.

    Raises MergeError for complex tensors in a method that is not elementwise.
    """
    if unit.kind != "merge":
        return list(tensors)
    dtype = computing_dtype([tensor.dtype for tensor in tensors], policy)
    if tensors[0].dtype.is_complex:
        if not method.elementwise:
            raise MergeError(f"{unit.name} is complex: this method has no meaning for it; --keep or --drop it")
        tensors = [torch.view_as_real(tensor.resolve_conj()) for tensor in tensors]
    return [tensor.to(dtype) for tensor in tensors]


def combine(
    tensors: Sequence[Tensor], worked: Sequence[Tensor], method: Method, parameters: Mapping[str, Any], unit: Unit
) -> Tensor:
    """The result for one unit (or one block of it), in the unit's dtype.

    `tensors` are as stored, `worked` the same in the computing dtype (see `work`). Parameters that mean one input alone
    give that input's own bits, so nothing of the others can leak in. Counters take their maximum between the ends.
    """
    single = method.single(len(tensors), parameters)
    if single is not None:
        return tensors[single].to(unit.dtype)
    if unit.kind == "maximum":
        return functools.reduce(torch.maximum, tensors)
    result = method.function(worked, name=unit.name, **parameters)
    if unit.dtype.is_complex:
        result = torch.view_as_complex(result)
    return result.to(unit.dtype)


def result_of(
    tensors: Sequence[Tensor], method: Method, parameters: Mapping[str, Any], unit: Unit, policy: Policy
) -> Tensor:
    """The whole result for one unit from whole tensors; may be one of them."""
    parts = aligned(tensors, unit.assembly)
    if unit.kind == "copy":
        merged = parts[0]
    else:
        merged = combine(parts, work(parts, method, unit, policy), method, parameters, unit)
    return assembled(tensors, unit.assembly, merged, unit.shape)


def nonfinite(result: Tensor) -> int:
    """How many elements are infinite or NaN. One pass; only a suspicious sum is looked at more closely."""
    real = torch.view_as_real(result) if result.dtype.is_complex else result
    if real.dtype.itemsize == 1:
        real = real.to(torch.float32)  # float8 has no sums
    wide = torch.float64 if real.dtype == torch.float64 else torch.float32
    if math.isfinite(real.sum(dtype=wide).item()):
        return 0
    return int((~torch.isfinite(real)).sum().item())


def refuse_nonfinite(unit: Unit, result: Tensor, policy: Policy) -> None:
    """Raise MergeError where a merged tensor has infinite or NaN values that the policy does not allow."""
    count = 0 if unit.kind != "merge" or policy.allow_nonfinite else nonfinite(result)
    if count:
        raise MergeError(
            f"{unit.name}: {count} infinite or NaN values in the result; set allow_nonfinite to accept them"
        )
