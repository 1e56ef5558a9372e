"""The arithmetic of one tensor, in one place: streamed files, state dicts in memory and live models all pass here.

Computing happens in float32 (or wider) and is rounded once, to the result's dtype.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from merge.errors import MergeError
from merge.methods import Method
from merge.plan.checks import leave
from merge.plan.policy import Policy
from merge.plan.rows import aligned, assembled
from merge.plan.units import Unit

HALVES = (torch.float16, torch.bfloat16)
_WIDE = (torch.float64, torch.complex128)


def merged(
    unit: Unit, tensors: Sequence[Tensor], method: Method, points: Iterable[Mapping[str, Any]], policy: Policy
) -> Iterator[tuple[Tensor, int]]:
    """Yield one unit's result, in the unit's dtype, and how many infinite and NaN values it has, for every set of the
    method's parameters.

    `tensors` are the unit's sources as they are stored; of an elementwise method's unit that has no assembly they may
    be a block of each, flat. A result may be one of them.
    """
    parts = aligned(tensors, unit.assembly)
    worked: list[Tensor] = []
    for parameters in points:
        narrow: Tensor | None = None  # all finite
        # Parameters that mean one input alone give that input's own bits: nothing of the others can leak in.
        alone = unit.kind == "copy" or len(parts) < method.inputs[0] + method.takes_base
        single = 0 if alone else method.single(len(parts), parameters)
        if single is not None:
            result = parts[single]  # carried as it is stored; what was dequantised is in float32 until here
            if unit.kind != "copy" or (result.dtype == torch.float32 and unit.element.name != "float32"):
                result = rounded(result, unit.dtype)
        elif unit.kind == "maximum":  # counters, between the ends
            result = functools.reduce(torch.maximum, parts)
        elif (narrow := _unwidened(unit, parts, method, parameters, policy)) is not None:
            result = narrow
        else:
            worked = worked or to_compute(unit, parts, method, policy)
            result = method.function(worked, name=unit.name, **parameters)
            result = torch.view_as_complex(result) if unit.element.is_complex else result
            result = rounded(result, unit.dtype)
        result = assembled(tensors, unit.assembly, result, unit.shape)
        yield result, 0 if result is narrow else nonfinite(result)


def _unwidened(
    unit: Unit, tensors: Sequence[Tensor], method: Method, parameters: Mapping[str, Any], policy: Policy
) -> Tensor | None:
    """Give the result of one `torch.lerp` over 16-bit tensors as they are: half the time, the same bits.

    None where those are not certain: for other arithmetic, on other devices, and for infinite and NaN values.
    """
    dtype = unit.dtype
    if dtype not in HALVES or policy.compute_dtype != "float32" or not method.lerp(len(tensors), parameters):
        return None
    if any(tensor.dtype != dtype or tensor.device.type != "cpu" for tensor in tensors) or not rounds_once(dtype):
        return None
    result = method.function(tensors, name=unit.name, **parameters)
    return None if nonfinite(result) else result


def rounded(result: Tensor, dtype: torch.dtype) -> Tensor:
    """Round to a dtype; what an 8-bit float cannot hold is NaN, where newer versions of torch give the largest one."""
    if result.dtype == dtype:
        return result
    if dtype.itemsize == 1 and dtype.is_floating_point and result.is_floating_point():
        limits = torch.finfo(dtype)
        step = limits.eps * 2.0 ** math.floor(math.log2(limits.max))
        beyond = result.abs() >= limits.max + step / 2
        result = result.masked_fill(beyond, math.nan) if bool(beyond.any()) else result
    return result.to(dtype)


@functools.cache
def rounds_once(dtype: torch.dtype) -> bool:
    """Tell whether this torch's lerp of 16-bit tensors computes in float32 and rounds once; without AVX2 it may not.

    Asked once, of every finite value of the dtype beside another.
    """
    first = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16).view(dtype)
    first = first[first.isfinite()]
    pairs = [(first, first.roll(shift)) for shift in (1, 12_345)]
    pairs += [(a[: len(a) // 8 * 8 - 1], b[: len(a) // 8 * 8 - 1]) for a, b in pairs]  # what vectors leave over, too
    for a, b in pairs:
        for ratio in (0.3, 0.7):
            narrow, wide = torch.lerp(a, b, ratio), torch.lerp(a.float(), b.float(), ratio).to(dtype)
            if not torch.equal(narrow.view(torch.int16), wide.view(torch.int16)):
                return False
    return True


def to_compute(unit: Unit, tensors: Sequence[Tensor], method: Method, policy: Policy) -> list[Tensor]:
    """Give tensors in the computing dtype, complex ones as pairs of real numbers.

    Raises MergeError for complex tensors in a method that is not elementwise.
    """
    dtype = computing_dtype(tensors, policy)
    if tensors[0].dtype.is_complex:
        if not method.elementwise:
            raise MergeError(f"{unit.name} is complex: this method has no meaning for it; {leave(unit.name)}")
        tensors = [torch.view_as_real(tensor.resolve_conj()) for tensor in tensors]
    return [tensor if tensor.dtype == dtype else tensor.to(dtype) for tensor in tensors]


def computing_dtype(tensors: Sequence[Tensor], policy: Policy) -> torch.dtype:
    """Give the dtype of the arithmetic: the policy's, or float64 where a tensor has it already."""
    for tensor in tensors:
        if tensor.dtype in _WIDE:
            return torch.float64
    return torch.float64 if policy.compute_dtype == "float64" else torch.float32


def nonfinite(result: Tensor) -> int:
    """Count infinite and NaN elements. One pass; only a suspicious sum is looked at more closely."""
    if not (result.is_floating_point() or result.is_complex()):
        return 0
    real = torch.view_as_real(result) if result.dtype.is_complex else result
    if real.dtype.itemsize == 1:
        real = real.to(torch.float32)  # float8 has no sums
    if math.isfinite(real.sum().item()):  # of 16-bit tensors summed in float32: what overflows is looked at again
        return 0
    return int((~torch.isfinite(real)).sum().item())


def refuse_nonfinite(unit: Unit, count: int, policy: Policy) -> None:
    """Raise MergeError where a tensor has infinite or NaN values and the policy does not allow them."""
    if count and not policy.allow_nonfinite:
        raise MergeError(f"{unit.name}: {count} infinite or NaN values in the result; pass allow_nonfinite=True")
