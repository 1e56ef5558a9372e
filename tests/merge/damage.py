"""Damaged and altered files from seeds, and reading them within a budget, for the tests that fuzz.

`FUZZ=N` in the environment makes N times as many inputs; `FUZZ_SEED=random` draws other ones and prints where they
start, `FUZZ_SEED=NUMBER` repeats them.
"""

from __future__ import annotations

import contextlib
import copy
import faulthandler
import os
import pickletools
import random
import resource
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from merge import MergeError, open_checkpoint

SECONDS = 5
MEMORY = 1 << 30  # bytes of address space more than before
TIMES = int(os.environ.get("FUZZ", "1"))
START = int(os.environ.get("FUZZ_SEED", "0"))  # tests/conftest.py has drawn one for "random"
OPCODES = [opcode.code.encode("latin-1") for opcode in pickletools.opcodes]
Result = TypeVar("Result")
_NUMBERS = (-1, 0, 1, 2, 7, 2**31, 2**53, 2**63, 10**30, 10**400, 0.5, 1e308, float("nan"), float("inf"))
_OTHERS = (None, True, False, "", "a", "../a", "\ud800", "\0", "." * 300, [], {}, [[]], {"": {}}, *_NUMBERS)


def seeds(number: int) -> Iterator[tuple[int, random.Random]]:
    """So many seeds, each with what is drawn from it."""
    for seed in range(START, START + number * TIMES):
        yield seed, random.Random(seed)


def damaged(good: bytes, chance: random.Random, pieces: Sequence[bytes] = OPCODES) -> bytes:
    """A good file with a few bits turned, bytes cut out, put in, doubled or replaced, or its end cut off."""
    bad = bytearray(good)
    for _ in range(chance.randint(1, 3)):
        place, length = chance.randrange(len(bad)), chance.choice((1, 2, 4, 8, 64))
        kind = chance.randrange(7)
        if kind < 3:
            bad[place] ^= 1 << chance.randrange(8)
        elif kind == 3:
            bad[place : place + length] = chance.choice((chance.randbytes(length), b"\xff" * length, bytes(length)))
        elif kind == 4:
            bad[place : place + chance.choice((0, length))] = chance.choice(pieces)
        elif kind == 5:
            bad[place:place] = bad[place : place + length]
        else:
            del bad[place : chance.choice((place + length, len(bad)))]
        bad = bad or bytearray(b"\0")
    return bytes(bad)


def altered(good: Any, chance: random.Random) -> Any:
    """A copy of plain data in which a few values, keys or items are others, gone, or moved from elsewhere."""
    tree = copy.deepcopy(good)
    for _ in range(chance.randint(1, 2)):
        places = list(_places(tree))
        if not places:
            return tree
        inside, key = chance.choice(places)
        value = chance.choice((*_OTHERS, *(holder[at] for holder, at in chance.sample(places, min(8, len(places))))))
        kind = chance.randrange(5)
        if kind == 0:
            del inside[key]
        elif kind == 1 and isinstance(inside, dict):
            inside[chance.choice(("", "a", "\ud800", "w", f"{key} "))] = copy.deepcopy(value)
        elif kind == 2 and isinstance(inside, list):
            inside.insert(key, copy.deepcopy(value))
        else:
            inside[key] = copy.deepcopy(value)
    return tree


def _places(tree: Any) -> Iterator[tuple[Any, Any]]:
    """Everywhere in plain data: what holds a value, and the key or index of it."""
    for key in list(tree) if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ():
        yield tree, key
        yield from _places(tree[key])


@contextlib.contextmanager
def budget() -> Iterator[None]:
    """Fail where reading takes longer or more memory; where not even Python runs, end the process with a traceback."""

    def late(number: int, frame: object) -> None:
        raise AssertionError(f"still reading after {SECONDS} seconds")

    before = signal.signal(signal.SIGALRM, late)
    limits = resource.getrlimit(resource.RLIMIT_AS)
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    signal.alarm(SECONDS)
    faulthandler.dump_traceback_later(4 * SECONDS, exit=True)
    resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
        faulthandler.cancel_dump_traceback_later()
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def or_refused(path: Path | str, act: Callable[[], Result]) -> Result | None:
    """What comes of a file within the budget; None where it was refused. All other exceptions are the test's."""
    with budget():
        try:
            return act()
        except MergeError as error:
            told = str(error)
            assert str(path) in told, "the message does not name the file"
            assert len(told) < 5000, f"a message of {len(told)} characters"
            assert "\n" not in told, "the message has several lines"
            return None


def read(path: Path, section: str = "auto") -> dict[str, Tensor] | None:
    """All tensors of a file in memory; None where it was refused."""

    def tensors() -> dict[str, Tensor]:
        return {name: value.contiguous().clone() for name, value in open_checkpoint(path, section).items()}

    return or_refused(path, tensors)
