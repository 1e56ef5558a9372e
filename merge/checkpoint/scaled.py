"""8-bit floats with scales beside them, seen as the weights that they stand for: codes times scales, in float32.

DeepSeek's `weight_scale_inv` (blocks of 128 x 128), compressed-tensors', modelopt's and FBGEMM's `weight_scale` (one
number, one a row, blocks) and ComfyUI's `scale_weight` are all factors that the codes are multiplied by.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, overload

from merge.checkpoint.formats.elements import ELEMENTS
from merge.checkpoint.formats.tensors import Decoded, Spec, TensorEntry, raw_bytes
from merge.checkpoint.open import Checkpoint, specs
from merge.errors import MergeError

if TYPE_CHECKING:
    from torch import Tensor

RESULT = "bfloat16"  # of a merge: 8 bits of precision, where codes have 3 or 4
BLOCK = 128  # the usual size of blocks, where a configuration does not say another
# Scales of activations and caches, and marks: they belong to the codes, and nothing is left for them to scale.
_LEFT_OVER = re.compile(
    r"(input|output|activation|act)_scale(_inv|_ub)?|scale_(input|output)|comfy_quant|weight_format|[qkv]_scale|prob_scale"
)
_TOP = ("scaled_fp8",)


class Scaled(Decoded):
    """The bytes of one tensor that is computed of codes and scales."""

    stated = ELEMENTS[RESULT]


class Dequantized(dict[str, "Tensor"]):
    """A state dict in which the tensors `scaled` were computed of codes and scales."""

    scaled: frozenset[str] = frozenset()


def pairs_of(tensors: Mapping[str, Spec | TensorEntry]) -> dict[str, str]:
    """Give names of 8-bit codes that a scale lies beside, each with the scale's name."""
    found: dict[str, str] = {}
    for name, spec in tensors.items():
        if spec.element.name.startswith(("float8_e4m3", "float8_e5m2")) and spec.shape:
            module = name.rpartition(".")[0]
            for scale in (f"{name}_scale_inv", f"{name}_scale", f"{module}.scale_weight".lstrip("."), f"{name}_scales"):
                if scale in tensors and _fits(tensors[scale], spec):
                    found[name] = scale
                    break
    return found


def _fits(scale: Spec | TensorEntry, codes: Spec | TensorEntry) -> bool:
    """Whether the shape of a scale is one number, one a row, or one a block."""
    if not scale.element.is_floating_point or (scale.element.bits == 8 and "e8m0" not in scale.element.name):
        return False
    rows = len(scale.shape) == 1 and scale.shape == codes.shape[:1]
    blocks = len(scale.shape) == len(codes.shape) and all(
        0 < some <= size for some, size in zip(scale.shape, codes.shape, strict=True)
    )
    return math.prod(scale.shape) == 1 or rows or blocks


def stated(tensors: Mapping[str, Tensor]) -> Mapping[str, Spec | TensorEntry]:
    """Dtypes, shapes and ties by name, as a merge keeps them: what was computed of codes is bfloat16 in the result.

    Rows that were made up may be given more exactly than their table is stored.
    """
    described = specs(tensors)
    if isinstance(tensors, Checkpoint):
        files = {name: entry.file for name, entry in tensors.entries.items() if isinstance(entry.file, Decoded)}
        kept = {name: file.stated for name, file in files.items() if file.stated is not None}
    else:
        kept = dict.fromkeys(tensors.scaled if isinstance(tensors, Dequantized) else (), ELEMENTS[RESULT])
    if not kept:
        return described
    return {
        **described,
        **{name: Spec(element, described[name].shape, described[name].tie) for name, element in kept.items()},
    }


@overload
def dequantized(tensors: Checkpoint) -> Checkpoint: ...
@overload
def dequantized(tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]: ...
def dequantized(tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Give the same checkpoint with codes and scales as the weights that they stand for; others as they are.

    Of an open checkpoint nothing is read before a tensor is asked for. Raises MergeError where the sizes of blocks
    cannot be told.
    """
    described = specs(tensors)
    pairs = pairs_of(described)
    if not pairs:
        return tensors
    gone = {*pairs.values(), *left_over(described, pairs)}
    size = _block_size(tensors)
    factors = {name: _factors(name, described[name].shape, described[pairs[name]].shape, size) for name in pairs}
    if isinstance(tensors, Checkpoint):
        entries = {
            name: _entry(tensors, name, pairs[name], factors[name]) if name in pairs else entry
            for name, entry in tensors.entries.items()
            if name not in gone
        }
        return replace(tensors, entries=entries)
    found = Dequantized()
    for name, value in tensors.items():
        if name not in gone:
            found[name] = _product(value, tensors[pairs[name]], factors[name]) if name in pairs else value
    found.scaled = frozenset(pairs)
    return found


def left_over(described: Collection[str], pairs: Mapping[str, str]) -> list[str]:
    """Give names that belong to these codes beside the scales, and mean nothing without them."""
    modules = {name.rpartition(".")[0] for name in pairs}
    modules |= {module.rpartition(".")[0] for module in modules}
    return [
        name
        for name in described
        if name in _TOP or (_LEFT_OVER.fullmatch(name.rpartition(".")[2]) and name.rpartition(".")[0] in modules)
    ]


def _entry(source: Checkpoint, name: str, scale: str, factors: Sequence[int]) -> TensorEntry:
    codes, scales = source.entries[name], source.entries[scale]
    element = ELEMENTS["float32"]

    def decode() -> memoryview:
        return raw_bytes(_product(codes.tensor(), scales.tensor(), factors))

    size = math.prod(codes.shape) * element.itemsize
    return TensorEntry(element, codes.shape, Scaled(source.path, size, decode), 0)


def _product(codes: Tensor, scales: Tensor, factors: Sequence[int]) -> Tensor:
    """Codes times scales in float32; `factors` say how many codes a scale has, by axis."""
    scales = scales.detach().float().to(codes.device)
    scales = (
        scales.reshape(())
        if scales.numel() == 1
        else scales.reshape(*scales.shape, *[1] * (codes.dim() - scales.dim()))
    )
    for axis, factor in enumerate(factors if scales.dim() else ()):
        if factor > 1 and scales.shape[axis] > 1:
            scales = scales.repeat_interleave(factor, axis).narrow(axis, 0, codes.shape[axis])
    return codes.detach().float() * scales


def _factors(name: str, codes: tuple[int, ...], scales: tuple[int, ...], size: Sequence[int]) -> list[int]:
    """How many codes a scale has along every axis: as the configuration says, the usual 128, or what divides evenly."""
    if len(scales) != len(codes):
        return [1] * len(codes)
    found: list[int] = []
    for axis, (whole, some) in enumerate(zip(codes, scales, strict=True)):
        said = size[axis - len(codes)] if axis - len(codes) >= -len(size) else 0
        even = whole // some if whole % some == 0 else 0
        choices = [said, BLOCK, even, *(1 << power for power in range(14))]
        fits = [block for block in choices if block > 0 and -(-whole // block) == some]
        if not fits:
            raise MergeError(
                f"{name}: {whole} rows or columns and {some} scales fit no size of blocks; say it as "
                "weight_block_size in the quantization_config of config.json"
            )
        found.append(fits[0])
    return found


def _block_size(tensors: Mapping[str, Tensor]) -> tuple[int, ...]:
    """The `weight_block_size` of the configuration beside a checkpoint, empty where it says none."""
    if not isinstance(tensors, Checkpoint):
        return ()
    folder = tensors.path if tensors.path.is_dir() else tensors.path.parent
    found = _in_config(folder / "config.json").get("weight_block_size")
    numbers = cast("list[object]", found) if isinstance(found, list) else []
    return tuple(number for number in numbers if type(number) is int and number > 0)


def _in_config(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes()).get("quantization_config")
    except (OSError, ValueError, AttributeError, RecursionError):
        return {}
    return cast("dict[str, Any]", found) if isinstance(found, dict) else {}
