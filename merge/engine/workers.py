"""How many tensors are worked on at a time."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain, repeat
from typing import TypeVar

from merge.engine.planned import Plan
from merge.methods import Method
from merge.plan.units import Unit
from merge.recipe.parameters import method_named

Item = TypeVar("Item")
Result = TypeVar("Result")

WORTH_A_THREAD = 32 << 20  # bytes of output: many small tensors are quicker without a second thread at the lock
WHOLE = 2 << 20  # the same where a method needs whole tensors, and takes longer


def workers_for(plan: Plan) -> int:
    """Say how many workers are of use, at most as many as the options allow."""
    cores, sizes = os.cpu_count() or 1, [unit.nbytes for unit in plan.units]
    if _elementwise(plan):
        # With one output most time goes into the kernel's copies: a worker on every core costs more than it saves. The
        # checksums of zip files take as long as all else together.
        many = len(plan.targets) > 1 or _has_checksums(plan)
        count, worth = min(4, cores if many else max(1, cores // 2)), WORTH_A_THREAD
    else:  # arithmetic takes the time; a worker holds a tensor of every input, and results on the way
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        held = _held(plan)
        count, worth = min(cores, memory // 2 // max(held, 1)), WHOLE
    return max(1, min(plan.options.threads or count, 1 + sum(sizes) // worth))


def threads_for(method: Method, units: Sequence[Unit]) -> int:
    """Say how many tensors in memory are merged at a time: one on each of torch's threads, by methods of whole ones."""
    import torch

    size = sum(unit.nbytes for unit in units)
    return 1 if method.elementwise else min(torch.get_num_threads(), 1 + size // WHOLE)


def keep_memory() -> None:
    """Let the C library keep what workers free, for their next tensors: fresh pages cost a third of TIES' time.

    glibc gives back at once what is larger than the largest block freed so far, up to 32 MB, and all beyond twice that.
    """
    import torch

    torch.empty(31 << 20, dtype=torch.uint8)  # freed untouched: takes no memory


def on_threads(call: Callable[[Item], Result], items: Iterable[Item], threads: int) -> Iterator[Result]:
    """Yield `call(item)` of all items in their order, each computed on one thread, so many at a time.

    Only a few items are ahead of the one that is waited for, so that memory is bounded by theirs.
    """
    import torch

    keep_memory()
    before = torch.get_num_threads()
    waiting: deque[Future[Result]] = deque()
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            for item in chain(((one,) for one in items), repeat(())):
                waiting.extend(pool.submit(call, one) for one in item)
                if not waiting:
                    break
                if len(waiting) > threads or not item:
                    yield waiting.popleft().result()
    finally:
        torch.set_num_threads(before)


def _elementwise(plan: Plan) -> bool:
    """Whether no tensor is needed as a whole, also by the merges whose results are inputs."""
    return method_named(plan.recipe.method).elementwise and all(_elementwise(one.plan) for one in plan.inner.values())


def _held(plan: Plan) -> int:
    """Bytes that a worker holds at most: a tensor of every input, and results on the way."""
    own = max((unit.nbytes for unit in plan.units), default=0) * len(plan.checkpoints) * 4
    return own + sum(_held(one.plan) for one in plan.inner.values())


def _has_checksums(plan: Plan) -> bool:
    closed = any(file.closing for target in plan.targets for file in target.layout.files)
    return closed or any(checkpoint.format.checksums for checkpoint in plan.checkpoints)
