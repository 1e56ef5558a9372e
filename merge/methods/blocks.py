"""Walking over large tensors in pieces: bounded memory, and sums of one order whatever the number of threads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

# Below torch's grain size (32,768 elements) an operation runs on the calling thread alone, so that sums over blocks of
# this size have one order whatever the number of threads; and a block stays in the core's cache between operations.
BLOCK = 32_704
# For arithmetic by element and for counts, whose bits depend on no order: fewer steps in Python, at whose lock threads
# meet (TIES took 1.1 times as long on one thread as on two with the smaller blocks), and still in the cache.
WIDE = 4 * BLOCK


def blocks(flat: Tensor, size: int = BLOCK) -> Iterator[slice]:
    """Slices that cover a flat tensor in order; one slice on an accelerator, where small pieces cost time."""
    step = size if flat.device.type == "cpu" else max(flat.numel(), 1)
    for start in range(0, flat.numel(), step):
        yield slice(start, min(start + step, flat.numel()))


def tiles(matrix: Tensor) -> Iterator[tuple[slice, slice]]:
    """Pairs of slices that cover a matrix row by row in pieces of at most `BLOCK` elements; one on an accelerator."""
    rows, columns = matrix.shape
    limit = BLOCK if matrix.device.type == "cpu" else max(matrix.numel(), 1)
    width = min(max(columns, 1), limit)
    height = limit // width
    for top in range(0, rows, height):
        for left in range(0, columns, width):
            yield slice(top, min(top + height, rows)), slice(left, min(left + width, columns))


def grams(vectors: Sequence[Tensor], base: Tensor | None = None) -> Tensor:
    """Inner products of every pair of n vectors, or of their differences from `base`, row by row.

    The vectors lie in the rows of n matrices (rows, columns); the result is (rows, n, n), summed in float64.
    """
    first, count = vectors[0], len(vectors)
    total = torch.zeros(first.shape[0], count, count, dtype=torch.float64, device=first.device)
    for tile in tiles(first):
        parts = [(item[tile] if base is None else item[tile] - base[tile]).double() for item in vectors]
        for i in range(count):
            for j in range(i + 1):
                total[tile[0], i, j] += (parts[i] * parts[j]).sum(1)
    return total + total.tril(-1).transpose(1, 2)


def dot(first: Tensor, second: Tensor) -> float:
    """Inner product of two tensors of one shape, summed in float64 in a fixed order."""
    a, b = first.reshape(-1), second.reshape(-1)
    return sum(float((a[part].double() * b[part].double()).sum()) for part in blocks(a))


def identical(tensors: Sequence[Tensor]) -> bool:
    """Tell whether all tensors are equal: frozen ones, which no method may move by a rounding."""
    return all(torch.equal(tensors[0], other) for other in tensors[1:])
