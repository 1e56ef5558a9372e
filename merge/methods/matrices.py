"""Linear algebra of task vectors that are matrices: in float64, and with the same bits on any number of threads."""

# torch.linalg carries no types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import fnmatch
import math
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from merge.methods.method import Tensors


class Triples(NamedTuple):
    """Singular triples of a matrix, the largest first: `left @ diag(values) @ right.T`, vectors in columns."""

    left: Tensor
    values: Tensor
    right: Tensor


@contextmanager
def one_thread() -> Generator[None]:
    """Compute on one thread: LAPACK orders its sums by their number, and the bits would depend on the machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def task_vectors(tensors: Tensors) -> Iterator[Tensor]:
    """Yield the differences of all tensors from the first in float64, one at a time."""
    base = tensors[0].double()
    for expert in tensors[1:]:
        yield expert.double() - base


def summed(tensors: Tensors) -> Tensor:
    """Give the sum of the task vectors."""
    total = torch.zeros_like(tensors[0], dtype=torch.float64)
    for vector in task_vectors(tensors):
        total += vector
    return total


def noise(expert: Tensor) -> float:
    """Give the largest singular value that a change of every element of a matrix by its last bit, up or down, makes.

    The elements of such a change are independent: its norm is near their size times (sqrt(rows) + sqrt(columns)).
    """
    rows, columns = expert.shape
    size = float(torch.linalg.vector_norm(expert, dtype=torch.float64)) / math.sqrt(max(rows * columns, 1))
    return torch.finfo(expert.dtype).eps * size * (math.sqrt(rows) + math.sqrt(columns))


def decomposed(matrix: Tensor, most: int, tolerance: float, floor: float = 0.0, of: float | None = None) -> Triples:
    """Give at most `most` singular triples: those above `floor` and above `tolerance` times the largest (or `of`).

    Vectors of vanishing singular values are the library's choice: they are left out.
    """
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    largest = float(values[:1].sum()) if of is None else of
    count = min(most, int((values > max(tolerance * largest, floor)).sum()))
    return Triples(left[:, :count], values[:count], right[:count].T)


def largest_value(matrix: Tensor) -> float:
    """Give the largest singular value."""
    return float(torch.linalg.matrix_norm(matrix, 2))


def polar(block: Tensor, tolerance: float) -> Tensor:
    """Give the nearest matrix with orthonormal columns; of a block without full rank on the directions that it has."""
    left, _, right = decomposed(block, min(block.shape), tolerance)
    return left @ right.T


def side_by_side(parts: Sequence[Triples]) -> Triples:
    """Put triples of several matrices into one block each."""
    return Triples(
        torch.cat([part.left for part in parts], 1),
        torch.cat([part.values for part in parts]),
        torch.cat([part.right for part in parts], 1),
    )


def fits(name: str, patterns: Sequence[str]) -> bool:
    """Tell whether a name fits one of these globs, or has one of them as a part."""
    return any(pattern in name or fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
