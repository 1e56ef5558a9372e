"""What evaluates the groups of a grid, by name. The seam is told in `experiments.run`; a new engine is a function here.

`local` is the processes of this machine.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from experiments.errors import StudyError

if TYPE_CHECKING:
    from experiments.run import Engine


def local(processes: int) -> Engine:
    """Processes of this machine; 1: this one."""
    from experiments.engines.local import evaluate

    return partial(evaluate, processes=processes)


ENGINES: dict[str, Callable[[int], Engine]] = {"local": local}


def engine_named(name: str, processes: int) -> Engine:
    """An engine with so many processes; StudyError if there is none."""
    if name not in ENGINES:
        raise StudyError(f"no engine {name!r}: choose one of {', '.join(ENGINES)}")
    return ENGINES[name](processes)
