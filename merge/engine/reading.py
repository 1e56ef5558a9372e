"""Stored tensors read front to back in blocks, and hashed on the way: of each input of a merge."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from merge.checkpoint.digest import Digest
from merge.checkpoint.formats.tensors import Decoded, TensorEntry, raw_bytes
from merge.engine.planned import Plan
from merge.engine.stretches import Contents

if TYPE_CHECKING:
    from torch import Tensor

# Bytes of a result computed and written at a time: small enough for the caches, large enough that the interpreter takes
# little of the time, and threads seldom meet at its lock (blocks of 128 KiB made two threads slower than one).
BLOCK = 1 << 20


class Reading:
    """The inputs of a plan while they are read, by any number of threads, and their digests."""

    def __init__(self, plan: Plan):
        self.plan = plan
        self.sources = [checkpoint.entries for checkpoint in plan.checkpoints]
        self._stored = [checkpoint.stored for checkpoint in plan.checkpoints]
        self._digests = [Digest(plan.options.digest) for _ in self.sources]

    def readers(self, index: int, names: Sequence[Sequence[str]], most: int, buffers: Buffers) -> list[Reader]:
        """Give a reader for every stored tensor that input `index` has under the names of a unit; tied names share one.

        Of several units that are worked on as one, all are of one reader. It reads at most `most` elements at a time.
        """
        entries, new = self.sources[index], self._digests[index].start
        if len(names) > 1:
            return [Reader([(entries[mine[0]], mine) for mine in names], most, buffers, index, new)]
        found: dict[Hashable, list[str]] = {}
        for name in names[0]:
            if name in entries:
                tie = entries[name].tie
                found.setdefault(name if tie is None else tie, []).append(name)
        return [Reader([(entries[tied[0]], tied)], most, buffers, index, new) for tied in found.values()]

    def note_digests(self, index: int, readers: Sequence[Reader], stored: Mapping[str, str] | None = None) -> None:
        """Note the digests of tensors of input `index`, reading first what nobody needed."""
        stored = self._stored[index] if stored is None else stored
        digest, progress = self._digests[index], self.plan.options.progress
        for reader in readers:
            for (entry, names), content in zip(reader.parts, reader.finish(), strict=True):
                of = _origin(entry) or entry
                for name in names:  # a digest is the file's, whatever it is merged as
                    digest.add(stored.get(name, name), of.element, of.shape, content)
            if progress:
                progress(sum(entry.nbytes for entry, _ in reader.parts))

    def finish(self) -> list[str]:
        """Read the tensors that no unit has; give the digest of every input, over all its tensors."""
        used = {name for unit in self.plan.units for name in unit.names}
        for index, entries in enumerate(self.sources):
            left = [name for name in entries if name not in used]
            buffers, new = Buffers(BLOCK), self._digests[index].start
            self.note_digests(index, self.readers(index, [left], BLOCK, buffers))
            for name, entry in self.plan.checkpoints[index].hidden.items():
                self.note_digests(index, [Reader([(entry, [name])], BLOCK, buffers, index, new)], {})
        return [digest.text() for digest in self._digests]


class Buffers:
    """A thread's read buffers, used again for every tensor; `least` is the size of one in bytes."""

    def __init__(self, least: int) -> None:
        self._least = least
        self._all: list[tuple[Tensor, memoryview]] = []

    def get(self, index: int, size: int) -> tuple[Tensor, memoryview]:
        """Give memory of at least `size` bytes for one input: fresh pages cost more than the read into them."""
        size = max(size, self._least)
        if index < len(self._all) and len(self._all[index][1]) >= size:
            return self._all[index]
        import torch

        while index >= len(self._all):
            self._all.append((torch.empty(0, dtype=torch.uint8), memoryview(b"")))
        buffer = torch.empty(size, dtype=torch.uint8)
        self._all[index] = (buffer, buffer.numpy().data)
        return self._all[index]


class Reader:
    """A stored tensor with its names, or several side by side, read front to back in blocks and hashed on the way."""

    def __init__(
        self,
        parts: Sequence[tuple[TensorEntry, Sequence[str]]],
        most: int,
        buffers: Buffers,
        index: int,
        new: Callable[[], Any],
    ):
        self.parts, self.at = parts, 0
        self.entry, self.names = parts[0]
        self.buffers = (buffers, index, new)
        sizes = [entry.nbytes for entry, _ in parts]
        self.content = Contents(new, sizes)
        self.numel = sum(sizes) // self.entry.element.itemsize  # bytes, where several elements share one
        self.most = min(most, self.numel)
        self.flat: Tensor | None = None
        if self.entry.stride is not None:
            self.flat = self.entry.loaded().contiguous().reshape(-1)
        else:
            self.buffer, self.view = buffers.get(index, self.most * self.entry.element.itemsize)

    def block(self, stop: int) -> Tensor:
        """Read the elements from where the last block ended to `stop`; they are valid until the next call."""
        start, self.at = self.at, stop
        if self.flat is not None:
            part = self.flat[start:stop]
            self.content.update(raw_bytes(part))
            return part
        size = self.entry.element.itemsize
        view = self.view[: (stop - start) * size]
        self.entry.file.read_into(view, self.entry.offset + start * size)
        if _origin(self.entry) is None:
            self.content.update(view)
        return (
            self.buffer[: len(view)] if self.entry.element.bits < 8 else self.buffer[: len(view)].view(self.entry.dtype)
        )

    def finish(self) -> list[str]:
        """Read what is left, for the digest alone; give the digest of every tensor in hex."""
        if origin := _origin(self.entry):
            return Reader([(origin, self.names)], BLOCK, *self.buffers).finish()
        while self.at < self.numel:
            self.block(min(self.at + self.most, self.numel))
        return self.content.hexdigests()


def _origin(entry: TensorEntry) -> TensorEntry | None:
    """The stored tensor that an entry is another view of; its bytes are what is hashed."""
    return entry.file.origin if isinstance(entry.file, Decoded) else None


def reader_of(name: str, readers: Sequence[Reader]) -> Reader:
    """Give the one of an input's readers that reads a name."""
    return readers[0] if len(readers) == 1 else next(reader for reader in readers if name in reader.names)
