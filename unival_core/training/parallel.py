"""Several processes that train one model, started by torchrun."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import distributed

from unival_core.errors import UnivalError


@dataclass(frozen=True)
class Team:
    """This process among all of them."""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def leads(self) -> bool:
        """Tell whether this is the process that writes files and talks."""
        return self.rank == 0

    def sum(self, counts: Mapping[str, float]) -> dict[str, float]:
        """Return the counts added up over all processes; every process names the same ones."""
        if self.size == 1:
            return dict(counts)
        total = torch.tensor(list(counts.values()), dtype=torch.float64, device=self.device)
        distributed.all_reduce(total)
        return dict(zip(counts, total.tolist(), strict=True))

    def wait(self) -> None:
        """Wait until all processes are here."""
        if self.size > 1:
            distributed.barrier()


@contextmanager
def team(device: str = "cpu") -> Iterator[Team]:
    """Return the processes that torchrun started, joined (gloo on CPU, nccl on GPU); one alone without torchrun.

    A device of `cuda` becomes the process's own one.
    """
    size, rank, local = (int(os.environ.get(name, default)) for name, default in _FROM_TORCHRUN)
    place = torch.device(device if device != "cuda" or size == 1 else f"cuda:{local}")
    try:
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError) as error:
        raise UnivalError(f"--device {device}: {str(error).splitlines()[0]}") from None
    if size == 1:
        yield Team(0, 1, place)
        return
    if place.type == "cuda":
        torch.cuda.set_device(place)
    distributed.init_process_group("nccl" if place.type == "cuda" else "gloo")
    try:
        yield Team(rank, size, place)
    finally:
        distributed.destroy_process_group()


_FROM_TORCHRUN = (("WORLD_SIZE", 1), ("RANK", 0), ("LOCAL_RANK", 0))
