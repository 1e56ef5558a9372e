"""Norms, distances and angles of tensors of one name, in one pass over blocks, summed in float64 in a fixed order."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from merge.checkpoint.open import Checkpoint, specs

Progress = Callable[[int], object]
# A tensor with as many elements has cosines to chance partners of 1 / sqrt(1024) = 0.03.
LARGE = 1024
BLOCK = 1 << 17  # elements measured at a time
MIN_ROWS = 8  # fewer row norms say nothing about a permutation


@dataclass(frozen=True)
class Contrast:
    """Two tensors of one name, or the sums over several pairs of them (`pooled`).

    Attributes:
        tensors, equal: how many pairs, and how many of them are equal bit by bit.
        first, second: squared norms.
        dot, distance: inner product, and squared norm of the difference.
        task_dot, task_first, task_second: the same of the differences from a base, where there is one.
        conflicts, moved: elements whose differences from the base have opposite signs; that both inputs moved.
        row_mismatch: see `row_mismatch`; None for vectors and for sums.
    """

    tensors: int
    equal: int
    first: float = 0.0
    second: float = 0.0
    dot: float = 0.0
    distance: float = 0.0
    task_dot: float = 0.0
    task_first: float = 0.0
    task_second: float = 0.0
    conflicts: int = 0
    moved: int = 0
    row_mismatch: float | None = None

    @property
    def cosine(self) -> float | None:
        """Cosine of the angle between the two; None where one is zero."""
        return _cosine(self.dot, self.first, self.second)

    @property
    def relative_distance(self) -> float | None:
        """`||first - second|| / ||first||`; None where the first is zero and the second is not."""
        if self.distance == 0:
            return 0.0
        return _finite(math.sqrt(self.distance / self.first)) if self.first > 0 else None

    @property
    def norm_ratio(self) -> float | None:
        """`||second|| / ||first||`; None where the first is zero."""
        return _finite(math.sqrt(self.second / self.first)) if self.first > 0 else None

    @property
    def task_cosine(self) -> float | None:
        """Cosine of the angle between the differences from the base."""
        return _cosine(self.task_dot, self.task_first, self.task_second)

    @property
    def sign_conflict(self) -> float | None:
        """Share of the elements moved by both inputs that were moved in opposite directions."""
        return self.conflicts / self.moved if self.moved else None


def _cosine(dot: float, first: float, second: float) -> float | None:
    norms = math.sqrt(first) * math.sqrt(second)
    return _finite(max(-1.0, min(1.0, dot / norms))) if norms > 0 and math.isfinite(norms) else None


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def pooled(contrasts: Iterable[Contrast]) -> Contrast:
    """Give the sums over several tensors, as if they were one vector."""
    keys = [key for key in Contrast.__dataclass_fields__ if key != "row_mismatch"]
    listed = list(contrasts)
    return Contrast(**{key: sum(getattr(contrast, key) for contrast in listed) for key in keys})


@dataclass(frozen=True)
class Measured:
    """The tensors of one name in all sources.

    Attributes:
        shape: their common shape.
        floating: whether they are numbers with a norm; of integers only `equal` is known.
        nonfinite: infinite and NaN elements, by source.
        constant: whether all elements are one value, by source.
        contrasts: by pair of sources, the first index less than the second.
    """

    shape: tuple[int, ...]
    floating: bool
    nonfinite: tuple[int, ...]
    constant: tuple[bool, ...]
    contrasts: Mapping[tuple[int, int], Contrast]

    @property
    def finite(self) -> bool:
        return not any(self.nonfinite)


def measure_all(
    sources: Sequence[Mapping[str, Tensor]],
    names: Iterable[str],
    *,
    base: bool = False,
    progress: Progress | None = None,
) -> dict[str, Measured]:
    """Give every named tensor measured, read once; names that are tied in all sources are read once together.

    Sources must have all the names, with equal shapes. With `base` the first source is the others' ancestor.
    """
    described = [specs(source) for source in sources]
    seen: dict[Hashable, Measured] = {}
    result: dict[str, Measured] = {}
    for name in names:
        ties = tuple(each[name].tie for each in described)
        key = name if None in ties else ties
        if key not in seen:
            tensors = [_values(source, name) for source in sources]
            seen[key] = measure(tensors, base=base)
            if progress:
                progress(sum(tensor.numel() * tensor.itemsize for tensor in tensors))
        result[name] = seen[key]
    return result


def _values(source: Mapping[str, Tensor], name: str) -> Tensor:
    """A tensor in memory; of a file it is read by position, and what is no arithmetic comes as bytes."""
    if not isinstance(source, Checkpoint):
        return source[name].detach().cpu()
    return source.read(name) if source.entries[name].element.arithmetic else source.entries[name].raw()


def measure(tensors: Sequence[Tensor], *, base: bool = False) -> Measured:
    """Tensors of one shape against each other. Needs a few blocks of memory besides the tensors.

    Floating tensors of different dtypes are compared by value; an integer tensor only with one of its own dtype.
    """
    shape = tuple(tensors[0].shape)
    pairs = list(itertools.combinations(range(len(tensors)), 2))
    if not all(tensor.is_floating_point() or tensor.is_complex() for tensor in tensors):
        alike = {(i, j): tensors[i].dtype == tensors[j].dtype and torch.equal(tensors[i], tensors[j]) for i, j in pairs}
        contrasts = {pair: Contrast(1, int(equal)) for pair, equal in alike.items()}
        return Measured(shape, False, (0,) * len(tensors), (False,) * len(tensors), contrasts)
    matrices = [_matrix(tensor) for tensor in tensors]
    singles = [_Single(matrix.shape[0]) for matrix in matrices]
    doubles = {(i, j): _Double(matrices[i].dtype == matrices[j].dtype) for i, j in pairs}
    for rows, columns in _blocks(*matrices[0].shape):
        stored = [matrix[rows, columns] for matrix in matrices]
        values = [block.double() for block in stored]
        for single, block in zip(singles, values, strict=True):
            single.add(rows, block)
        moves = [block - values[0] for block in values] if base else []
        for (i, j), double in doubles.items():
            double.add(stored[i], stored[j], values[i], values[j])
            if base and i > 0:
                double.add_moves(moves[i], moves[j])
    return Measured(
        shape,
        True,
        tuple(single.nonfinite for single in singles),
        tuple(single.constant for single in singles),
        {(i, j): double.contrast(singles[i], singles[j], len(shape) > 1) for (i, j), double in doubles.items()},
    )


def is_large_matrix(shape: Sequence[int]) -> bool:
    """Tell whether cosines of tensors of this shape tell related weights from unrelated ones."""
    return len(shape) > 1 and math.prod(shape) >= LARGE


def _matrix(tensor: Tensor) -> Tensor:
    """Rows of what belongs to one unit: `[shape[0], the rest]`; a vector is one row. Complex numbers are two reals."""
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor.resolve_conj())
    return tensor.reshape(
        tensor.shape[0] if tensor.ndim > 1 else 1, math.prod(tensor.shape[1:]) if tensor.ndim > 1 else -1
    )


def _blocks(rows: int, columns: int) -> Iterator[tuple[slice, slice]]:
    """Whole rows, or parts of one, of at most `BLOCK` elements: small enough that torch sums them in one order."""
    if columns == 0:
        return
    step = max(1, BLOCK // columns)
    for row in range(0, rows, step):
        for column in range(0, columns, BLOCK):
            yield slice(row, row + step), slice(column, column + BLOCK)


class _Single:
    """What is summed of one tensor: squares by row, infinite and NaN elements, whether it is constant."""

    def __init__(self, rows: int):
        self.rows = torch.zeros(rows, dtype=torch.float64)
        self.square, self.nonfinite, self.constant = 0.0, 0, True
        self._first: Tensor | None = None

    def add(self, rows: slice, block: Tensor) -> None:
        squares = (block * block).sum(1)
        self.rows[rows] += squares
        square = squares.sum().item()
        self.square += square
        if not math.isfinite(square):
            self.nonfinite += int((~torch.isfinite(block)).sum())
        if self._first is None:
            self._first = block[0, 0]
        self.constant = self.constant and bool((block == self._first).all())


class _Double:
    """What is summed of two tensors."""

    def __init__(self, alike: bool):
        self.equal = alike
        self.dot = self.distance = self.task_dot = self.task_first = self.task_second = 0.0
        self.conflicts = self.moved = 0

    def add(self, stored: Tensor, other_stored: Tensor, block: Tensor, other: Tensor) -> None:
        self.equal = self.equal and torch.equal(_raw(stored), _raw(other_stored))
        difference = block - other
        self.dot += (block * other).sum().item()
        self.distance += (difference * difference).sum().item()

    def add_moves(self, move: Tensor, other: Tensor) -> None:
        product = move * other
        self.task_dot += product.sum().item()
        self.task_first += (move * move).sum().item()
        self.task_second += (other * other).sum().item()
        self.conflicts += int((product < 0).sum())
        self.moved += int((product != 0).sum())

    def contrast(self, first: _Single, second: _Single, matrix: bool) -> Contrast:
        return Contrast(
            1,
            int(self.equal),
            first.square,
            second.square,
            self.dot,
            self.distance,
            self.task_dot,
            self.task_first,
            self.task_second,
            self.conflicts,
            self.moved,
            row_mismatch(first.rows, second.rows) if matrix else None,
        )


def _raw(block: Tensor) -> Tensor:
    return block.contiguous().view(torch.uint8)


def row_mismatch(first: Tensor, second: Tensor) -> float | None:
    """Give how differently the norms of two matrices' rows are distributed, given their squares, in whatever order.

    `||sorted(first) - sorted(second)|| / spread`, the spread being the norms' standard deviation. 0 for the same rows
    in another order (of columns in another order, too); about 2 for rows drawn anew from one distribution, whatever
    their number. None where all rows have one norm, or there are fewer than `MIN_ROWS`.
    """
    norms: NDArray[np.float64] = np.sort(first.sqrt().numpy())
    others: NDArray[np.float64] = np.sort(second.sqrt().numpy())
    if len(norms) < MIN_ROWS or not math.isfinite(norms[-1] + others[-1]):  # numpy sorts NaN to the end
        return None
    spread = math.sqrt((norms.var() + others.var()) / 2)
    if spread <= 1e-3 * norms.mean():
        return None
    return math.sqrt(((norms - others) ** 2).sum()) / spread
