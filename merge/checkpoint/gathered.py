"""Tables with a row for every token, in the rows of another vocabulary: read block by block, never as a whole."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from merge.checkpoint.formats.elements import ELEMENTS, Element
from merge.checkpoint.formats.tensors import Decoded, TensorEntry, raw_bytes

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

MADE, MEAN = -1, -2  # in the place of a row's number: made of rows of several tables, the mean of all others
_BLOCK = 1 << 20  # bytes at a time, of those that are only summed


class Table:
    """A stored tensor as rows, one a token: a matrix, a vector, or a vector of shape [1, tokens]."""

    def __init__(self, entry: TensorEntry):
        self.entry = entry
        self.axis = 1 if len(entry.shape) == 2 and entry.shape[0] == 1 else 0
        self.rows = entry.shape[self.axis]
        self.width = entry.numel // max(self.rows, 1)
        self._held: Tensor | None = None

    def shape(self, rows: int) -> tuple[int, ...]:
        """Give the shape of a tensor like this one with so many rows."""
        return (*self.entry.shape[: self.axis], rows, *self.entry.shape[self.axis + 1 :])

    def read(self, start: int, stop: int) -> Tensor:
        """Read rows in the stored dtype, as a matrix."""
        import torch

        entry = self.entry
        if entry.stride is not None or isinstance(entry.file, Decoded):  # not to be had in parts
            if self._held is None:
                self._held = entry.tensor().reshape(self.rows, self.width)
            return self._held[start:stop]
        size = self.width * entry.element.itemsize
        buffer = torch.empty((stop - start) * size, dtype=torch.uint8)
        entry.file.read_into(buffer.numpy().data, entry.offset + start * size)
        return buffer.view(entry.dtype).view(stop - start, self.width)

    def release(self) -> None:
        """Let go what had to be held as a whole."""
        self._held = None


class Gathered(Decoded):
    """The bytes of a table whose rows are others of one stored table, and of those that stand in where it lacks some.

    Attributes:
        origin: the stored tensor.
        stated: its dtype, which a merge keeps; rows are given in float32 where it could not hold means.
    """

    def __init__(
        self, own: Table, take: np.ndarray, made: Mapping[int, Sequence[tuple[Table, int]]], element: Element | None
    ):
        """`take` has the row of `own` for every row, MADE for means of the rows that `made` gives, or MEAN.

        Made of nothing is zero. `element` is the dtype in which rows are given; None: the stored one.
        """
        self.origin, self.stated = own.entry, own.entry.element
        self.element = element or self.stated
        self.shape = own.shape(len(take))
        self._own, self._take, self._made = own, take, made
        self._size = own.width * self.element.itemsize
        super().__init__(own.entry.file.path, len(take) * self._size, self._whole)

    def _whole(self) -> memoryview:
        buffer = memoryview(bytearray(self.size))
        for offset in range(0, self.size, _BLOCK):
            self.read_into(buffer[offset : offset + _BLOCK], offset)
        return buffer

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill `buffer` from `offset`, with as many rows read as lie in it."""
        stop = offset + len(buffer)
        first, last = offset // self._size, -(-stop // self._size)
        rows = self._rows(first, last)
        if (self._take[first:last] == MEAN).any():
            import torch

            rows[torch.tensor(self._take[first:last] == MEAN)] = self._mean.to(rows.dtype)
        buffer[:] = raw_bytes(rows)[offset - first * self._size : stop - first * self._size]
        if stop == self.size:
            for table in (self._own, *(table for parts in self._made.values() for table, _ in parts)):
                table.release()

    def _rows(self, first: int, last: int) -> Tensor:
        """Rows of the result, those of the mean as zeros."""
        import torch

        found = torch.zeros((last - first, self._own.width), dtype=self.element.dtype)
        for start, stop, row in _runs(self._take[first:last]):
            if row >= 0:
                found[start:stop] = self._own.read(row, row + stop - start)
            else:
                for at in range(start, stop) if row == MADE else ():
                    parts = [table.read(row, row + 1)[0] for table, row in self._made.get(first + at, ())]
                    if len(parts) == 1:
                        found[at] = parts[0]
                    elif parts:
                        found[at] = torch.stack([part.to(torch.float64) for part in parts]).mean(0)
        return found

    @functools.cached_property
    def _mean(self) -> Tensor:
        import torch

        total, step = torch.zeros(self._own.width, dtype=torch.float64), max(1, _BLOCK // max(self._size, 1))
        for start in range(0, len(self._take), step):
            total += self._rows(start, min(start + step, len(self._take))).to(torch.float64).sum(0)
        return total / max(int((self._take != MEAN).sum()), 1)


def _runs(take: np.ndarray) -> Iterator[tuple[int, int, int]]:
    """Stretches of rows that lie side by side: where they begin and end, and the stored number of the first."""
    import numpy as np

    following = (take[1:] == take[:-1] + 1) & (take[:-1] >= 0)
    made = (take[1:] < 0) & (take[1:] == take[:-1])
    ends = [*(np.flatnonzero(~(following | made)) + 1).tolist(), len(take)]
    start = 0
    for end in ends if len(take) else ():
        yield start, end, int(take[start])
        start = end


def gathered(
    entry: TensorEntry, own: Table, take: np.ndarray, made: Mapping[int, Sequence[tuple[Table, int]]]
) -> TensorEntry:
    """Give a stored table in the rows that `take` and `made` say, as an entry of its checkpoint; ties stay ties."""
    others = any(table.entry.element is not entry.element for parts in made.values() for table, _ in parts)
    means = others or any(len(parts) > 1 for parts in made.values()) or bool((take == MEAN).any())
    file = Gathered(own, take, made, ELEMENTS["float32"] if means and entry.element.itemsize < 4 else None)
    storage = None if entry.storage is None else (entry.storage, entry.offset, entry.stride)
    return TensorEntry(file.element, file.shape, file, 0, storage=storage)
