"""An output checkpoint, planned byte by byte, and the writer that fills it."""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import zlib
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from merge.checkpoint.formats.tensors import TensorEntry, raw_bytes

_KEPT_OPEN = 256  # files; of a folder with more each is opened for every block
_WRITING = os.O_WRONLY | os.O_CREAT


@dataclass(frozen=True)
class Slot:
    """A tensor to be written. Names with one `storage` share their bytes in formats that can."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    storage: str

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class FilePlan:
    """One file of an output: its size, its fixed bytes, where each tensor's bytes go.

    `passed` are tensors of the input's other content and where they go: they are copied, block by block.
    `closing`, where a format wants it, takes the CRC-32 of what was written under each name and gives the last bytes.
    """

    name: str
    size: int
    chunks: Sequence[tuple[int, bytes]]
    starts: Mapping[str, int]
    passed: Mapping[str, tuple[TensorEntry, int]] = field(default_factory=dict[str, tuple[TensorEntry, int]])
    closing: Callable[[Mapping[str, int]], list[tuple[int, bytes]]] | None = None


@dataclass(frozen=True)
class OutputPlan:
    """All files of an output (one, or a folder's), and notes on what was left out."""

    files: Sequence[FilePlan]
    folder: bool
    notes: tuple[str, ...] = ()
    copied: Mapping[str, Path] = field(default_factory=dict[str, Path])
    """Files taken over as they are, by their name in the output's folder."""

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files) + sum(path.stat().st_size for path in self.copied.values())


class Writer:
    """Writes tensors of one output at their planned places; safe to call from several threads for different tensors."""

    def __init__(self, plan: OutputPlan, partial: Path):
        self._plan = plan
        self._places: dict[str, list[tuple[int, int]]] = {}
        self._crcs: list[dict[str, int]] = [{} for _ in plan.files]
        self._sealed = [number for number, file in enumerate(plan.files) if file.closing is not None]
        self._paths = [partial / file.name if plan.folder else partial for file in plan.files]
        self._descriptors: dict[int, int] = {}
        for number, file in enumerate(plan.files):
            self._paths[number].parent.mkdir(parents=True, exist_ok=True)
            if len(plan.files) <= _KEPT_OPEN:
                self._descriptors[number] = os.open(self._paths[number], _WRITING, 0o666)
            with self._opened(number) as descriptor:
                os.ftruncate(descriptor, file.size)
                for offset, chunk in file.chunks:
                    write_at(descriptor, chunk, offset)
            for name, start in file.starts.items():
                self._places.setdefault(name, []).append((number, start))
            for name, (entry, start) in file.passed.items():
                self._places[name] = [(number, start)]
                for offset, block in blocks_of(entry):
                    self.write((name,), offset, block)
        for name, path in plan.copied.items():
            (partial / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, partial / name)

    @contextlib.contextmanager
    def _opened(self, number: int) -> Generator[int]:
        """The descriptor of a file: of many files none stays open, as systems limit their number."""
        if number in self._descriptors:
            yield self._descriptors[number]
            return
        descriptor = os.open(self._paths[number], _WRITING, 0o666)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def write(self, names: Sequence[str], offset: int, data: memoryview) -> None:
        """Write bytes of a tensor, `offset` into it, under all its names. Blocks of a tensor come in order."""
        places = dict.fromkeys(place for name in names for place in self._places.get(name, ()))
        for number, start in () if _is_zero(data) else places:  # new files read as zeros: a hole takes no disk
            with self._opened(number) as descriptor:
                write_at(descriptor, data, start + offset)
        for number in self._sealed:
            crcs = self._crcs[number]
            crcs[names[0]] = zlib.crc32(data, crcs.get(names[0], 0))

    def close(self) -> None:
        """Write what a format wants last."""
        for number, file in enumerate(self._plan.files):
            for offset, chunk in file.closing(self._crcs[number]) if file.closing else ():
                with self._opened(number) as descriptor:
                    write_at(descriptor, chunk, offset)

    def fill_in(self, old: bytes, new: bytes) -> None:
        """Replace text in the files' headers by other text of the same length, known only at the end."""
        for number, file in enumerate(self._plan.files):
            for offset, chunk in file.chunks:
                at = chunk.find(old) if old else -1
                if at >= 0:
                    with self._opened(number) as descriptor:
                        write_at(descriptor, new, offset + at)

    def release(self) -> None:
        """Close the files, also after an error."""
        while self._descriptors:
            os.close(self._descriptors.popitem()[1])


def blocks_of(entry: TensorEntry) -> Iterator[tuple[int, memoryview]]:
    """A stored tensor's row-major bytes in blocks, with the offset of each."""
    if entry.stride is not None:
        yield 0, raw_bytes(entry.tensor())
        return
    buffer = memoryview(bytearray(min(entry.nbytes, 1 << 20)))
    for offset in range(0, entry.nbytes, 1 << 20):
        block = buffer[: min(1 << 20, entry.nbytes - offset)]
        entry.file.read_into(block, entry.offset + offset)
        yield offset, block


def _is_zero(data: memoryview) -> bool:
    """Whether all bytes are zero; decided by the first few in nearly every block of weights."""
    if any(data[:32]):
        return False
    whole = len(data) // 8 * 8
    return not any(data[whole:]) and not np.frombuffer(data[:whole], np.uint64).any()


def write_at(descriptor: int, data: bytes | memoryview, offset: int) -> None:
    """All of `data` at `offset`: a full disk shows itself as a short write first."""
    done = 0
    while done < len(data):
        done += os.pwrite(descriptor, data[done:] if done else data, offset + done)
