"""Linear algebra of task vectors that are matrices: in float64, and with the same bits on any number of threads."""

# torch.linalg carries no types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Sequence
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
def one_thread() -> Iterator[None]:
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


def decomposed(matrix: Tensor, most: int, tolerance: float, largest: float | None = None) -> Triples:
    """Give at most `most` singular triples, those above `tolerance` times the largest value (or `largest`).

    Vectors of vanishing singular values are the library's choice: they are left out.
    """
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    limit = tolerance * (float(values[:1].sum()) if largest is None else largest)
    count = min(most, int((values > limit).sum()))
    return Triples(left[:, :count], values[:count], right[:count].T)


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
