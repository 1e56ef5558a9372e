"""Engines by name: each evaluates the groups of a grid (see `experiments.grid.grid`); a new one is a function here.

`local` is the processes of this machine, `ray` the slots of a machine or a cluster.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from experiments.errors import StudyError

if TYPE_CHECKING:
    from experiments.grid.grid import Engine


def local(processes: int | None, address: str | None) -> Engine:
    """Evaluate in processes of this machine; 1: in this one."""
    from experiments.grid.engines.local import evaluate

    return partial(evaluate, processes=processes or 1)


def ray(processes: int | None, address: str | None) -> Engine:
    """Evaluate in actors of Ray, None: one for every slot; `address` is that of a running cluster."""
    from experiments.grid.engines.ray import evaluate

    return partial(evaluate, processes=processes, address=address)


ENGINES: dict[str, Callable[[int | None, str | None], Engine]] = {"local": local, "ray": ray}


def engine_named(name: str, processes: int | None, address: str | None = None) -> Engine:
    """Return an engine with so many processes (None: its own number); StudyError if there is none."""
    if name not in ENGINES:
        raise StudyError(f"no engine {name!r}: choose one of {', '.join(ENGINES)}")
    if address is not None and name != "ray":
        raise StudyError(f"--ray-address {address} with the engine {name}: add --engine ray")
    return ENGINES[name](processes, address)
