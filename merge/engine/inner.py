"""Inputs that are results of recipes: computed tensor by tensor as they are read, with no file in between.

What would be written is laid out as for a file, and its headers and everything beside the weights are put into a
temporary folder; the weights themselves are holes. So such an input is opened like any other, with the names, ties,
dtypes, sections and configuration that the file would have, and its values are rounded to its dtype once.
"""

from __future__ import annotations

import os
import shutil
import sys
import threading
import weakref
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from merge.checkpoint.digest import Digest
from merge.checkpoint.formats.format import Layout
from merge.checkpoint.formats.tensors import Decoded, TensorEntry, raw_bytes
from merge.checkpoint.open import Checkpoint, open_checkpoint
from merge.checkpoint.save import Writer
from merge.engine.planned import Nested, Plan
from merge.engine.reading import BLOCK, Buffers, Reader, Reading, reader_of
from merge.errors import MergeError
from merge.plan.units import Unit
from merge.recipe.parameters import method_named
from merge.recipe.recipe import Recipe

if TYPE_CHECKING:
    from torch import Tensor


class Inner(Reading):
    """A planned merge whose result is an input of another, which `open` gives as a checkpoint.

    Attributes:
        label: what the other merge calls it.
        digests: those of its own inputs when all was read; blanks of their length before.
    """

    def __init__(self, plan: Plan, label: str):
        super().__init__(plan)
        self.label, self.digests = label, [" " * len(Digest(plan.options.digest).text())] * len(self.sources)
        self.method, self._lock = method_named(plan.recipe.method), threading.Lock()
        self._parameters: Mapping[str, Mapping[str, Any]] | None = None
        self._done: set[str] = set()
        weakref.finalize(self, shutil.rmtree, plan.targets[0].path.parent, ignore_errors=True)

    def open(self, section: str) -> Checkpoint:
        """Open the result: nothing of it is computed before a tensor is asked for. Raises MergeError."""
        (target,) = self.plan.targets
        _write_headers(target.layout, target.path)
        opened = open_checkpoint(target.path, section)
        units = {name: unit for unit in self.plan.units for name in unit.names}
        made: dict[Hashable, Made] = {}
        entries: dict[str, TensorEntry] = {}
        for name, entry in opened.entries.items():
            file = made.setdefault(name if entry.tie is None else entry.tie, Made(self, units[name]))
            entries[name] = TensorEntry(entry.element, entry.shape, file, 0, storage=entry.tie)
        return replace(opened, entries=entries)

    @property
    def parameters(self) -> Mapping[str, Mapping[str, Any]]:
        """The method's parameters of every tensor, with what its survey finds: that is made when the first is read."""
        with self._lock:
            if self._parameters is None:
                from merge.engine.survey import surveyed

                plan = self.plan if self.method.survey is None else surveyed(self.plan)
                self._parameters = plan.targets[0].parameters
            return self._parameters

    def note(self, unit: Unit, readers: Sequence[Sequence[Any]]) -> None:
        """Note the digests of the tensors that a unit was made of."""
        for index, mine in enumerate(readers):
            self.note_digests(index, mine)
        self._done.add(unit.name)

    def finish(self) -> list[str]:
        """Read what nobody has asked for, for the digests alone, and give these."""
        for unit in self.plan.units:
            if unit.name not in self._done:
                buffers = Buffers(0)
                self.note(unit, [self.readers(i, [unit.names], BLOCK, buffers) for i in range(len(self.sources))])
        self.digests = super().finish()
        for inner in self.plan.inner.values():
            inner.finish()
        return self.digests

    def noted(self, *, blank: bool) -> Recipe:
        """Give the recipe with the digests of its inputs, blanks of their length where they are not known yet."""
        return noted(self.plan.recipe, self.plan.inner, self.digests, blank=blank)


class Made(Decoded):
    """The bytes of one tensor of the result, computed when they are read: block by block where the method allows it."""

    def __init__(self, inner: Inner, unit: Unit):
        super().__init__(inner.plan.targets[0].path, unit.nbytes, self._computed)
        self._inner, self._unit = inner, unit
        self._turn: _Turn | None = None

    def _computed(self) -> memoryview:
        return _Turn(self._inner, self._unit, None).bytes(self.size)

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill `buffer` from `offset`. Raises MergeError."""
        unit, stop = self._unit, offset + len(buffer)
        in_blocks = (unit.kind != "merge" or self._inner.method.elementwise) and unit.assembly is None
        if in_blocks and offset == 0:
            self._turn, self._held = _Turn(self._inner, unit, len(buffer)), None
        turn = self._turn
        if turn is None or turn.at != offset or len(buffer) > turn.most or stop % unit.element.itemsize:
            self._turn = None
            super().read_into(buffer, offset)
        else:
            buffer[:] = turn.bytes(stop)
            self._turn = None if stop == self.size else turn


class _Turn:
    """One tensor while it is computed from front to back, at most so many bytes at a time; None: as a whole."""

    def __init__(self, inner: Inner, unit: Unit, most: int | None):
        self.inner, self.unit, self.whole, self.at = inner, unit, most is None, 0
        self.most, buffers = most or unit.nbytes, Buffers(0)
        step = sys.maxsize if self.whole else self.most // unit.element.itemsize
        self.readers = [inner.readers(index, [unit.names], step, buffers) for index in range(len(inner.sources))]
        self.used = [reader_of(unit.name, self.readers[index]) for index in unit.sources]

    def bytes(self, stop: int) -> memoryview:
        """Give the bytes from where the last ones ended to `stop`, valid until the next call."""
        from merge.engine.kernel import merged, refuse_nonfinite

        inner, unit, plan = self.inner, self.unit, self.inner.plan
        end = stop // unit.element.itemsize
        read: dict[Reader, Tensor] = {}
        for reader in dict.fromkeys(self.used):
            block = reader.block(reader.numel if self.whole else end)
            read[reader] = block.view(reader.entry.shape) if self.whole and unit.kind == "merge" else block
        tensors = [read[reader] for reader in self.used]
        away = plan.options.device != "cpu" and unit.kind != "copy"
        tensors = [tensor.to(plan.options.device) for tensor in tensors] if away else tensors
        point = inner.parameters.get(unit.name, {})
        ((result, count),) = merged(unit, tensors, inner.method, [point], plan.recipe.policy)
        try:
            refuse_nonfinite(unit, count, plan.recipe.policy)
        except MergeError as error:
            raise MergeError(f"{inner.label}: {error}") from error
        self.at = stop
        if stop == unit.nbytes:
            inner.note(unit, self.readers)
        return raw_bytes(result.cpu() if away else result)


def _write_headers(layout: Layout, path: Path) -> None:
    """Write an output with holes for its tensors; what is copied beside them is linked."""
    if layout.folder:
        path.mkdir()
    writer = Writer(replace(layout, copied={}), path)
    try:
        writer.close()
    finally:
        writer.release()
    for name, file in layout.copied.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        os.symlink(file.resolve(), path / name)


def noted(recipe: Recipe, inner: Mapping[int, Nested], digests: Sequence[str], *, blank: bool = False) -> Recipe:
    """Give a recipe with the digests of its inputs, and those of the recipes in it; `blank`: as not yet known."""
    sources = [
        replace(
            item,
            digest=" " * len(digest) if blank else digest,
            recipe=inner[index].noted(blank=blank) if index in inner else None,
        )
        for index, (item, digest) in enumerate(zip(recipe.sources, digests, strict=True))
    ]
    first = recipe.base is not None
    return replace(recipe, inputs=tuple(sources[first:]), base=sources[0] if first else None)
