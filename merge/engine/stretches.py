"""Tensors that lie side by side in every input and every output: read, computed and written as one.

Many small tensors so cost little more than their bytes.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from merge.checkpoint.save import Writer
from merge.engine.planned import Plan
from merge.plan.units import Unit
from merge.recipe.parameters import method_named

LONGEST = 8 << 20  # bytes of a result that several tensors share: no worker is to have much more left than the others


def stretches(plan: Plan, writers: Sequence[Writer]) -> Iterator[list[Unit]]:
    """Yield the units of a plan in their order, those together that may be worked on as one flat tensor."""
    found, size = list[Unit](), 0
    elementwise = method_named(plan.recipe.method).elementwise
    for unit in plan.units:
        size += unit.nbytes
        if found and not (elementwise and size <= LONGEST and _joins(found[-1], unit, plan, writers)):
            yield found
            found, size = [], unit.nbytes
        found.append(unit)
    if found:
        yield found


def _joins(before: Unit, unit: Unit, plan: Plan, writers: Sequence[Writer]) -> bool:
    """Whether a unit is merged as the one before it, and lies behind it everywhere."""
    if unit.kind != "merge" or before.kind != "merge" or unit.element is not before.element:
        return False
    if unit.assembly or before.assembly or len(unit.names) + len(before.names) > 2 or unit.sources != before.sources:
        return False
    first, second = before.name, unit.name
    for checkpoint in plan.checkpoints:
        here, there = checkpoint.entries.get(first), checkpoint.entries.get(second)
        if here is None or there is None or not here.meets(there):
            return False
    return all(
        target.parameters.get(first) == target.parameters.get(second) and writer.meet(first, second, before.nbytes)
        for target, writer in zip(plan.targets, writers, strict=True)
    )


def parts(units: Sequence[Unit], start: int, stop: int) -> Iterator[tuple[Unit, slice]]:
    """Yield the units of a stretch that have elements from `start` to `stop`, each with its place in such a block."""
    if len(units) == 1:
        yield units[0], slice(None)
        return
    begin = 0
    for unit in units:
        end = begin + math.prod(unit.shape)
        if begin < stop and end > start:
            yield unit, slice(max(begin - start, 0), end - start)
        begin = end


class Contents:
    """The hashes of tensors that lie one after another, taken from their bytes in order."""

    def __init__(self, new: Callable[[], Any], sizes: Iterable[int]):
        """`new` gives a hash that nothing was told, `sizes` are the tensors' bytes."""
        self._new, self._sizes, self._found = new, iter(sizes), list[str]()
        self._hash, self._left = new(), next(self._sizes)

    def update(self, data: memoryview) -> None:
        """Take the next bytes."""
        while len(data) >= self._left:
            self._hash.update(data[: self._left])
            data = data[self._left :]
            self._found.append(self._hash.hexdigest())
            self._hash, self._left = self._new(), next(self._sizes, sys.maxsize)
        self._hash.update(data)
        self._left -= len(data)

    def hexdigests(self) -> list[str]:
        """Give the hash of every tensor, in hex, when all bytes were told."""
        self.update(memoryview(b""))  # ends what is empty
        return self._found
