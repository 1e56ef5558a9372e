"""One pass over the inputs: any number of outputs, memory bounded by the largest tensor.

Every worker thread takes the next tensor, and block by block reads the inputs, hashes them, computes all results and
writes them at their planned places. A block stays in the core's cache from the read to the write, and while one thread
waits for the disk another computes: that is all the overlap there is, and no queue is needed.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from merge.checkpoint.digest import Digest
from merge.checkpoint.formats.tensors import TensorEntry, raw_bytes
from merge.checkpoint.save import Writer
from merge.engine.kernel import BLOCK, combine, nonfinite, work
from merge.plan.rows import aligned, assembled
from merge.plan.units import Unit
from merge.recipe.recipe import Recipe, method_named

WORTH_A_THREAD = 32 << 20  # bytes of output: many small tensors are quicker without a second thread at the lock
WIDEST = 16  # bytes of the widest element, complex128


class Settings(Protocol):
    """What a stream needs to know of the options: see `merge.engine.files.Options`."""

    @property
    def threads(self) -> int: ...
    @property
    def device(self) -> str: ...
    @property
    def digest(self) -> str: ...
    @property
    def progress(self) -> Callable[[int], object] | None: ...


@dataclass
class Job:
    """One output of a stream: its coefficients by tensor, where it is written, what was noticed."""

    recipe: Recipe
    parameters: Mapping[str, Mapping[str, Any]]
    writer: Writer
    digest: Digest
    nonfinite: dict[str, int] = field(default_factory=dict[str, int])


class _Buffers:
    """A thread's read buffers, used again for every tensor."""

    def __init__(self) -> None:
        self._all: list[tuple[Tensor, memoryview]] = []

    def get(self, index: int, size: int = BLOCK * WIDEST) -> tuple[Tensor, memoryview]:
        """Memory of at least `size` bytes for one input: fresh pages cost more than the read into them."""
        while index >= len(self._all):
            self._all.append((torch.empty(0, dtype=torch.uint8), memoryview(b"")))
        if self._all[index][0].numel() < size:
            buffer = torch.empty(size, dtype=torch.uint8)
            self._all[index] = (buffer, buffer.numpy().data)
        return self._all[index]


class _Reader:
    """One stored tensor, read front to back in blocks and hashed on the way."""

    def __init__(self, entry: TensorEntry, whole: bool, buffers: _Buffers, index: int, content: Any):
        self.entry, self.content, self.at = entry, content, 0
        self.names: list[str] = []
        self.flat: Tensor | None = None
        if entry.stride is not None:
            self.flat = entry.tensor().contiguous().reshape(-1)
        else:
            self.buffer, self.view = buffers.get(index, entry.nbytes) if whole else buffers.get(index)

    def block(self, stop: int) -> Tensor:
        """The elements from where the last block ended to `stop`, valid until the next call."""
        start, self.at = self.at, stop
        if self.flat is not None:
            part = self.flat[start:stop]
            self.content.update(raw_bytes(part))
            return part
        size = self.entry.dtype.itemsize
        view = self.view[: (stop - start) * size]
        self.entry.file.read_into(view, self.entry.offset + start * size)
        self.content.update(view)
        return self.buffer[: len(view)].view(self.entry.dtype)

    def finish(self) -> str:
        """Read what is left, for the digest alone; the digest in hex."""
        while self.at < self.entry.numel:
            self.block(min(self.at + BLOCK, self.entry.numel))
        return self.content.hexdigest()


class Stream:
    """One pass over the sources (each a mapping from names to entries) that feeds all jobs."""

    def __init__(
        self,
        sources: Sequence[Mapping[str, TensorEntry]],
        units: Sequence[Unit],
        jobs: Sequence[Job],
        settings: Settings,
    ):
        self._sources, self._units, self._jobs, self._settings = sources, units, jobs, settings
        self._method = method_named(jobs[0].recipe.method)
        self._policy = jobs[0].recipe.policy
        self._digests = [Digest(settings.digest) for _ in sources]
        self._lock = threading.Lock()
        self._stop = False

    def run(self) -> list[str]:
        """Stream everything; returns the digest of every source, over all its tensors, used or not."""
        cores = os.cpu_count() or 1
        # With one output most time goes into the kernel's copies: a worker on every core costs more than it saves.
        count = self._settings.threads or min(4, cores if len(self._jobs) > 1 else max(1, cores // 2))
        count = min(count, 1 + sum(unit.nbytes for unit in self._units) // WORTH_A_THREAD)
        units = iter(self._units)
        before = torch.get_num_threads()
        try:
            with ThreadPoolExecutor(count) as pool:
                futures = [pool.submit(self._drain, units) for _ in range(count)]
                try:
                    for future in futures:
                        future.result()
                except BaseException:
                    self._stop = True  # the others leave after their block
                    raise
        finally:
            torch.set_num_threads(before)
        used = {name for unit in self._units for name in unit.names}
        for index, entries in enumerate(self._sources):
            self._finish(index, self._readers(index, [name for name in entries if name not in used], False, _Buffers()))
        return [digest.text() for digest in self._digests]

    def _drain(self, units: Iterator[Unit]) -> None:
        torch.set_num_threads(1)  # of this thread: the workers are the parallelism
        buffers = _Buffers()
        try:
            while not self._stop:
                with self._lock:
                    unit = next(units, None)
                if unit is None:
                    return
                self._unit(unit, buffers)
        except BaseException:
            self._stop = True
            raise

    def _unit(self, unit: Unit, buffers: _Buffers) -> None:
        """Read one tensor of every input, compute and write it for every job."""
        whole = (unit.kind == "merge" and not self._method.elementwise) or unit.assembly is not None
        readers = [self._readers(index, unit.names, whole, buffers) for index in range(len(self._sources))]
        numel = math.prod(unit.shape)
        step = max(numel, 1) if whole else BLOCK
        hashes = [job.digest.start() for job in self._jobs]
        used = [next(reader for reader in readers[index] if unit.name in reader.names) for index in unit.sources]
        distinct = list(dict.fromkeys(used))  # what an expert lacks is the base's: one reader, one turn
        for start in range(0, numel, step):
            if self._stop:
                return
            if whole:
                read = {reader: reader.block(reader.entry.numel).view(reader.entry.shape) for reader in distinct}
            else:
                read = {reader: reader.block(min(start + step, numel)) for reader in distinct}
            results = self._results(unit, [read[reader] for reader in used])
            for job, result, content in zip(self._jobs, results, hashes, strict=True):
                self._deliver(job, unit, start, result, content)
        for index, mine in enumerate(readers):
            self._finish(index, mine)
        for job, content in zip(self._jobs, hashes, strict=True):
            for name in unit.names:
                job.digest.add(name, unit.dtype, unit.shape, content.hexdigest())

    def _results(self, unit: Unit, blocks: list[Tensor]) -> Iterator[Tensor]:
        if unit.kind == "copy":
            copied = assembled(blocks, unit.assembly, blocks[0], unit.shape)
            yield from (copied for _ in self._jobs)
        else:
            device = self._settings.device
            moved = blocks if device == "cpu" else [block.to(device) for block in blocks]
            parts = aligned(moved, unit.assembly)
            worked = work(parts, self._method, unit, self._policy)
            for job in self._jobs:
                merged = combine(parts, worked, self._method, job.parameters[unit.name], unit)
                yield assembled(moved, unit.assembly, merged, unit.shape).cpu()

    def _deliver(self, job: Job, unit: Unit, start: int, result: Tensor, content: Any) -> None:
        if unit.kind == "merge":
            count = nonfinite(result)
            if count:
                job.nonfinite[unit.name] = job.nonfinite.get(unit.name, 0) + count
        data = raw_bytes(result)
        content.update(data)
        job.writer.write(unit.names, start * unit.dtype.itemsize, data)

    def _readers(self, index: int, names: Sequence[str], whole: bool, buffers: _Buffers) -> list[_Reader]:
        """A reader for every stored tensor that input `index` has under these names; tied names share one."""
        entries, found = self._sources[index], dict[Hashable, _Reader]()
        for name in names:
            if name in entries:
                entry = entries[name]
                key = name if entry.tie is None else entry.tie
                if key not in found:
                    content = self._digests[index].start()
                    found[key] = _Reader(entry, whole, buffers, index, content)
                found[key].names.append(name)
        return list(found.values())

    def _finish(self, index: int, readers: Sequence[_Reader]) -> None:
        """File the digests of input `index`'s tensors, reading first what nobody needed."""
        for reader in readers:
            content = reader.finish()
            for name in reader.names:
                self._digests[index].add(name, reader.entry.dtype, reader.entry.shape, content)
            if self._settings.progress:
                self._settings.progress(reader.entry.nbytes)
