"""Looking at the whole model before any tensor is merged: what a survey sees and gives, and exact order statistics."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from merge.errors import MergeError
from merge.methods.blocks import BLOCK
from merge.methods.method import Tensors

Seen = TypeVar("Seen")
Counts = NDArray[np.int64]
Prefixes = list[list[int]] | None

PIECE = 32 * BLOCK  # elements at a time: their keys take eight bytes each
BINS = 1 << 16  # values of 16 bits, by which numbers are told apart in one pass


class Model(Protocol):
    """All tensors of a merge that its method will compute."""

    @property
    def parameters(self) -> Mapping[str, Mapping[str, Any]]:
        """The method's parameters by tensor name, in the order of the tensors."""
        ...

    def each(self, look: Callable[[str, Tensors], Seen], names: Iterable[str] | None = None) -> Iterator[Seen]:
        """Call `look(name, tensors)` with the tensors that the method gets, and yield what it gives, in their order.

        Every call is one pass over the inputs; `look` may run on several threads, and keeps nothing.
        """
        ...


@dataclass(frozen=True)
class Surveyed:
    """What a survey found: parameters that the method gets beside its own, by tensor name, and notes worth telling."""

    parameters: Mapping[str, Mapping[str, Any]] = field(default_factory=dict[str, Mapping[str, Any]])
    notes: Sequence[str] = ()


def common(parameters: Mapping[str, Mapping[str, Any]], keys: Sequence[str]) -> Mapping[str, Any]:
    """Give the parameters that all tensors share. Raises MergeError where one of the `keys` differs between tensors."""
    (first, given), *others = parameters.items()
    for name, other in others:
        for key in keys:
            if other[key] != given[key]:
                raise MergeError(
                    f"{first} has {key} {given[key]} and {name} {other[key]}: what looks at the whole model has one"
                )
    return given


def pieces(tensors: Tensors) -> Iterator[list[Tensor]]:
    """Yield blocks of several flattened tensors of one shape; whole ones on an accelerator."""
    flat = [tensor.reshape(-1) for tensor in tensors]
    step = PIECE if flat[0].device.type == "cpu" else max(flat[0].numel(), 1)
    for start in range(0, flat[0].numel(), step):
        yield [tensor[start : start + step] for tensor in flat]


def order_statistics(
    model: Model,
    values: Callable[[Tensors], Sequence[Tensor]],
    places: Callable[[int], Sequence[Sequence[int]]],
    names: Iterable[str] | None = None,
) -> list[list[float]]:
    """Give the values at some places of the sorted values of a whole model, exactly, for each of several vectors.

    `values` computes a block of every vector from a block of the tensors; `places(count)` gives for every vector the
    wanted places, from 0 for the smallest of `count`. Values are told apart by 16 bits a pass, the highest first: two
    passes in float32, four where a tensor has float64. Memory is that of the counts, whatever the model's size.
    """
    chosen = None if names is None else list(names)
    try:
        return _by_digits(model, values, places, chosen, 4)
    except _Wider:
        return _by_digits(model, values, places, chosen, 8)


class _Wider(Exception):
    """A tensor has float64, whose order 32 bits do not hold."""


def _by_digits(
    model: Model,
    values: Callable[[Tensors], Sequence[Tensor]],
    places: Callable[[int], Sequence[Sequence[int]]],
    names: Sequence[str] | None,
    size: int,
) -> list[list[float]]:
    """The order statistics by keys of `size` bytes."""
    wanted: list[Sequence[int]] | None = None
    found: list[dict[int, tuple[int, int]]] = []  # of every vector: by place what is known of the key, what is left
    for shift in range(8 * size - 16, -1, -16):
        prefixes = None if wanted is None else [sorted({known for known, _ in mine.values()}) for mine in found]
        if prefixes is not None and not any(prefixes):
            break

        def look(name: str, tensors: Tensors, shift: int = shift, prefixes: Prefixes = prefixes) -> list[Counts]:
            total: list[Counts] = []
            for block in pieces(tensors):
                for index, vector in enumerate(values(block)):
                    if size == 4 and vector.dtype == torch.float64:
                        raise _Wider
                    mine = None if prefixes is None else prefixes[index]
                    if len(total) <= index:
                        total.append(np.zeros((1 if mine is None else len(mine), BINS), np.int64))
                    _count(total[index], _keys(vector, size), shift, mine)
            return total

        counts: list[Counts] = []
        for seen in model.each(look, names):  # of an empty tensor nothing is seen
            counts = counts or seen
            if counts is not seen:
                for mine, more in zip(counts, seen, strict=False):
                    mine += more
        if wanted is None:
            wanted = list(places(int(counts[0].sum()) if counts else 0))
            found = [{place: (0, place) for place in mine} for mine in wanted]
        for mine, known, total in zip(found, prefixes or [[0] for _ in found], counts, strict=False):
            for place, (prefix, left) in mine.items():
                before = np.cumsum(total[known.index(prefix)])
                digit = int(np.searchsorted(before, left, side="right"))
                mine[place] = (prefix << 16 | digit, left - int(before[digit - 1] if digit else 0))
    return [[_number(mine[place][0], size) for place in asked] for mine, asked in zip(found, wanted or [], strict=True)]


def _keys(vector: Tensor, size: int) -> Tensor:
    """Whole numbers in the order of the floats, negative ones included, as signed integers of `size` bytes."""
    if size == 8:
        bits = vector.double().contiguous().view(torch.int64)
        return torch.where(bits < 0, bits ^ 0x7FFFFFFFFFFFFFFF, bits)
    bits = vector.float().contiguous().view(torch.int32)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


def _count(total: Counts, keys: Tensor, shift: int, prefixes: Sequence[int] | None) -> None:
    """Count 16 bits of the keys from `shift` on, for every prefix of higher bits in a row of its own."""
    top = 8 * keys.element_size() - 16
    digits = (keys >> shift) + (BINS >> 1) if shift == top else (keys >> shift) & (BINS - 1)
    if prefixes is None:
        total[0] += torch.bincount(digits, minlength=BINS).cpu().numpy()
        return
    higher = (keys >> (shift + 16)) + (1 << (top - shift - 1))
    for row, prefix in enumerate(prefixes):
        total[row] += torch.bincount(digits[higher == prefix], minlength=BINS).cpu().numpy()


def _number(key: int, size: int) -> float:
    """The float of a key that was made by counting."""
    half = 1 << (8 * size - 1)
    signed = key - half
    bits = signed if signed >= 0 else signed ^ (half - 1)
    return struct.unpack("<f" if size == 4 else "<d", struct.pack("<i" if size == 4 else "<q", bits))[0]
