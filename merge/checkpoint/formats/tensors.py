"""What a tensor is, where it lies in a file, and how to read it without loading the file."""

from __future__ import annotations

import bisect
import contextlib
import itertools
import math
import mmap
import operator
import os
import sys
import threading
import weakref
import zlib
from collections.abc import Callable, Generator, Hashable
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING

from merge.checkpoint.formats.descriptors import Descriptors
from merge.checkpoint.formats.elements import Element
from merge.errors import MergeError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

# A private map may ask for more than the memory there is: only pages written to need it. (No name before Python 3.13.)
_NO_RESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000 if sys.platform == "linux" else 0)
_COMPARED = 1 << 20  # bytes at a time, of those that are only compared
_ALWAYS_FINE, _MOST_GROWTH = 1 << 28, 100  # bytes in memory, and how many a stored one may become
LARGEST = 2**63  # torch counts elements and bytes in signed 64 bits


_DESCRIPTORS = Descriptors()
_COUNT = itertools.count()


class MappedFile:
    """A file to be read: mapped for lazy tensors, by position for streaming. It is open only while it is used.

    The map is private (copy on write), so writing into a tensor that it backs never reaches the file.
    """

    def __init__(self, path: Path):
        self.path, self._owner = path, next(_COUNT)
        self._place: str | Path = path
        with contextlib.suppress(OSError):  # without a working directory the path stays as it is
            self._place = os.path.abspath(path)
        self._file: tuple[int, int] | None = None
        self._map: Callable[[], mmap.mmap | None] = lambda: None
        with self._open() as number:
            self.size = os.fstat(number).st_size

    def __del__(self) -> None:
        if hasattr(self, "_owner"):
            _DESCRIPTORS.close(self._owner)

    @contextlib.contextmanager
    def _open(self) -> Generator[int]:
        """A descriptor of the file. Raises MergeError where it cannot be opened or another file has taken its name."""
        number = _DESCRIPTORS.take(self._owner)
        if number is None:
            try:
                number = os.open(self._place, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
            except OSError as error:
                raise MergeError(f"{self.path}: cannot be opened: {error.strerror}") from error
            state = os.fstat(number)
            self._file = self._file or (state.st_dev, state.st_ino)
            if self._file != (state.st_dev, state.st_ino):
                os.close(number)
                raise MergeError(f"{self.path}: was replaced by another file while it was read")
        try:
            yield number
        finally:
            _DESCRIPTORS.give(self._owner, number)

    def bytes(self) -> Tensor:
        """The whole file as a uint8 tensor backed by a private map. Raises MergeError where the file is shorter now."""
        import torch

        with self._open() as number:
            if os.fstat(number).st_size < self.size:  # a page beyond the end would end the process
                raise self._cut_short(self.size)
            mapped = self._map()
            if mapped is None:  # kept only as long as a tensor is: a map holds a descriptor
                flags = mmap.MAP_PRIVATE | _NO_RESERVE
                try:
                    mapped = mmap.mmap(number, self.size, flags=flags, prot=mmap.PROT_READ | mmap.PROT_WRITE)
                except (OSError, ValueError) as error:
                    raise MergeError(f"{self.path}: cannot be mapped: {error}") from error
                self._map = weakref.ref(mapped)
            return torch.frombuffer(mapped, dtype=torch.uint8)

    def part(self, offset: int, size: int) -> Tensor:
        """Bytes of the file through its map."""
        return self.bytes()[offset : offset + size]

    def read(self, offset: int, size: int) -> bytes:
        """Exactly `size` bytes at `offset`. Raises MergeError where the file is shorter."""
        if offset + size > self.size:  # before memory is taken for what a broken file asks for
            raise self._cut_short(offset + size)
        data = bytearray(size)
        self.read_into(memoryview(data), offset)
        return bytes(data)

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill `buffer` from `offset`. Raises MergeError where the file is shorter or cannot be read."""
        done = 0
        with self._open() as number:
            while done < len(buffer):
                try:
                    count = os.preadv(number, [buffer[done:]], offset + done)
                except OSError as error:
                    problem = f"cannot be read at byte {offset + done}: {error.strerror}"
                    raise MergeError(f"{self.path}: {problem}") from error
                if count == 0:
                    raise self._cut_short(offset + len(buffer))
                done += count

    def loaded(self, offset: int, size: int) -> Tensor:
        """Some of the bytes in memory of their own, read by position: nothing happens if the file shrinks later."""
        import torch

        buffer = torch.empty(size, dtype=torch.uint8)
        self.read_into(buffer.numpy().data, offset)
        return buffer

    def _cut_short(self, wanted: int) -> MergeError:
        with self._open() as number:
            size = os.fstat(number).st_size
        return MergeError(f"{self.path}: truncated: {wanted} bytes were expected, the file has {size}")


class CheckedFile(MappedFile):
    """A file some records of which have checksums (CRC-32), which are compared while they are read.

    A record that is read from its first byte to its last, by one thread, is checked on the way; one of which tensors
    are parts or views, and any that is looked at through the map, is read once for its checksum alone.
    """

    def __init__(self, path: Path):
        super().__init__(path)
        self._records: dict[int, tuple[int, int, str]] = {}  # by place: size, checksum, name
        self._running: dict[tuple[int, int], tuple[int, int]] = {}  # by thread and place: where it began, checksum
        self._parted: list[int] = []  # sorted places

    def promise(self, start: int, size: int, crc: int, name: str) -> None:
        """Note a record's checksum; 0 means that it was not computed (torch can be told so)."""
        if crc:
            self._records[start] = (size, crc, name)

    def partly_read(self, start: int) -> None:
        """Note that tensors are parts or views of the record that begins there."""
        index = bisect.bisect_left(self._parted, start)
        if self._parted[index : index + 1] != [start]:
            self._parted.insert(index, start)

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill `buffer` from `offset`. Raises MergeError also where a record ends whose checksum is another one."""
        if self._parted:
            self.verify(self._around(offset))
        super().read_into(buffer, offset)
        thread = threading.get_ident()
        start, crc = self._running.pop((thread, offset), (offset, 0))
        record = self._records.get(start)
        if record is None:
            return
        crc, end = zlib.crc32(buffer, crc), offset + len(buffer)
        if end - start < record[0]:
            self._running[thread, end] = (start, crc)
        elif end - start == record[0]:
            self._compare(start, crc)

    def verify(self, start: int) -> None:
        """Read the record that begins there for its checksum, unless that was compared before."""
        if start not in self._records:
            return
        end, block, crc = start + self._records[start][0], memoryview(bytearray(_COMPARED)), 0
        for at in range(start, end, len(block)):
            part = block[: min(len(block), end - at)]
            super().read_into(part, at)
            crc = zlib.crc32(part, crc)
        self._compare(start, crc)

    def part(self, offset: int, size: int) -> Tensor:
        """Bytes of the file through its map."""
        self.verify(offset)
        self.verify(self._around(offset))
        return super().part(offset, size)

    def _around(self, offset: int) -> int:
        """The record, read in parts, that may hold an offset."""
        index = bisect.bisect_right(self._parted, offset)
        return self._parted[index - 1] if index else -1

    def _compare(self, start: int, crc: int) -> None:
        _, wanted, name = self._records.get(start, (0, crc, ""))
        if crc != wanted:
            raise MergeError(
                f"{self.path}: {name} is damaged: its checksum is {crc:08x}, the file says {wanted:08x}; copy or "
                "download the file again"
            )
        self._records.pop(start, None)


class Decoded:
    """The bytes of one tensor that a file holds encoded (compressed, in chunks, inside a pickle).

    They are decoded whole, for every lazy access anew; a stream's reads from first to last byte decode once.

    Attributes:
        stated: the dtype that a merge keeps, where the decoded one only holds more exactly what is meant.
        origin: the stored tensor that this is another view of; digests are its.
    """

    stated: Element | None = None
    origin: TensorEntry | None = None

    def __init__(self, path: Path, size: int, decode: Callable[[], memoryview | bytearray]):
        """`decode` gives `size` new writable bytes, or raises MergeError."""
        self.path, self.size, self._decode = path, size, decode
        self._held: memoryview | None = None

    def bytes(self) -> Tensor:
        """Give the tensor's bytes, not shared with anything."""
        import torch

        return torch.frombuffer(self._decode(), dtype=torch.uint8)

    def part(self, offset: int, size: int) -> Tensor:
        """Some of the tensor's bytes."""
        return self.bytes()[offset : offset + size]

    def loaded(self, offset: int, size: int) -> Tensor:
        """Some of the bytes: what was decoded is in memory of its own."""
        return self.bytes()[offset : offset + size]

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill `buffer` from `offset`. What was decoded is let go with the last byte."""
        if self._held is None:
            self._held = memoryview(self._decode())
        buffer[:] = self._held[offset : offset + len(buffer)]
        if offset + len(buffer) == self.size:
            self._held = None


@dataclass(frozen=True)
class Spec:
    """A tensor without its values. `tie` is equal for names that are one tensor, None where a name is tied to none."""

    element: Element
    shape: tuple[int, ...]
    tie: Hashable = None

    @property
    def dtype(self) -> torch.dtype:
        """Torch's dtype; what headers tell is in `element`, which imports nothing."""
        return self.element.dtype

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.element.bits // 8


@dataclass(frozen=True)
class TensorEntry:
    """A tensor's place in a file. `stride` is None where the elements lie in row-major order without gaps."""

    element: Element
    shape: tuple[int, ...]
    file: MappedFile | Decoded
    offset: int
    stride: tuple[int, ...] | None = None
    storage: Hashable = None

    @property
    def dtype(self) -> torch.dtype:
        """Torch's dtype; what headers tell is in `element`, which imports nothing."""
        return self.element.dtype

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.element.bits // 8

    @property
    def tie(self) -> Hashable:
        """Equal for names that are one and the same tensor; None where the format cannot share storages."""
        return None if self.storage is None else (self.storage, self.offset, self.element, self.shape, self.stride)

    def meets(self, other: TensorEntry) -> bool:
        """Tell whether another tensor of the same type begins in the same file where this one ends, neither a view."""
        plain = self.stride is other.stride is self.storage is other.storage is None
        alike = plain and self.file is other.file and self.element is other.element
        return alike and self.offset + self.nbytes == other.offset

    def tensor(self) -> Tensor:
        """Give the tensor, backed by the file's map: pages are read when touched. Writes stay private."""
        return self._viewed(lambda size: self.file.part(self.offset, size))

    def loaded(self) -> Tensor:
        """The tensor in memory of its own: for reading all of it, of a file that somebody may cut short meanwhile."""
        return self._viewed(lambda size: self.file.loaded(self.offset, size))

    def raw(self) -> Tensor:
        """Give the bytes of a tensor without gaps, where its elements are only carried along."""
        return self.file.loaded(self.offset, self.nbytes)

    def _viewed(self, read: Callable[[int], Tensor]) -> Tensor:
        import torch

        dtype = self.dtype
        if self.numel == 0:
            return torch.empty(self.shape, dtype=dtype)
        extent = self.numel if self.stride is None else 1 + last_index(self.shape, self.stride)
        raw = read(extent * dtype.itemsize)
        if raw.data_ptr() % dtype.itemsize:
            raw = raw.clone()  # torch cannot view unaligned bytes as wider elements
        flat = raw.view(dtype)
        return flat.view(self.shape) if self.stride is None else torch.as_strided(flat, self.shape, self.stride)


def same_bytes(first: TensorEntry, second: TensorEntry) -> bool:
    """Whether two stored tensors are one type, one shape and the same row-major bytes; views are not looked into."""
    alike = (first.element, first.shape) == (second.element, second.shape)
    if not alike or first.stride is not None or second.stride is not None:
        return False
    for start in range(0, first.nbytes, _COMPARED):
        blocks = [bytearray(min(_COMPARED, first.nbytes - start)) for _ in range(2)]
        for entry, block in zip((first, second), blocks, strict=True):
            entry.file.read_into(memoryview(block), entry.offset + start)
        if blocks[0] != blocks[1]:
            return False
    return True


def last_index(shape: tuple[int, ...], stride: tuple[int, ...]) -> int:
    """Give where the last element of a view lies, counted from its first."""
    return sum((size - 1) * step for size, step in zip(shape, stride, strict=True))


def raw_bytes(value: Tensor) -> memoryview:
    """Give a tensor's row-major bytes; no copy where it is contiguous."""
    import torch

    if value.is_conj() or value.is_neg():
        value = value.resolve_conj().resolve_neg()
    if value.dim() != 1 or not value.is_contiguous():
        value = value.contiguous().reshape(-1)
    return value.view(torch.uint8).numpy().data


def check_shape(shape: tuple[int, ...], element: Element) -> str:
    """Give what is wrong with a shape that a file claims: sizes that torch cannot hold. Empty where nothing is."""
    product = math.prod(shape) or math.prod(filter(None, shape))
    if 0 < product * element.itemsize < LARGEST and min(shape, default=0) >= 0:
        return ""
    if min(shape) < 0:
        return f"a negative size in the shape {list(shape)[:8]}"
    return f"{len(shape)} sizes that multiply beyond {LARGEST}"


def refuse_bomb(path: Path, claimed: int, stored: int) -> None:
    """Raise MergeError where the bytes of a file (or folder) would grow out of all measure in memory."""
    if claimed > max(_ALWAYS_FINE, _MOST_GROWTH * stored):
        raise MergeError(
            f"{path}: holds {claimed:,} bytes in {stored:,}: more than {_MOST_GROWTH} times as much, so it is not "
            "unpacked; if you trust it, save it again uncompressed"
        )


def contiguous_stride(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Strides, in elements, of a row-major tensor of this shape."""
    sizes = (max(size, 1) for size in reversed(shape[1:]))
    return tuple(reversed(list(accumulate(sizes, operator.mul, initial=1)))) if shape else ()


def is_contiguous(shape: tuple[int, ...], stride: tuple[int, ...]) -> bool:
    """Tell whether the strides mean row-major order without gaps (axes of one element may say anything)."""
    wanted = contiguous_stride(shape)
    return all(size == 1 or step == want for size, step, want in zip(shape, stride, wanted, strict=True))
