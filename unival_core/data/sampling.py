"""Which rows of which task make up a batch: endless, the same for a seed, resumable, shared out among processes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple
from zlib import crc32

import numpy as np

from unival_core.errors import UnivalError


class Draw(NamedTuple):
    """Row `row` of a task's dataset; `number` counts the samples of all tasks and seeds whatever is random in it."""

    task: str
    row: int
    number: int


class BalancedSampler:
    """Batches in which every task has its share, whatever the sizes of their data sets (arXiv 2307.16184, section 4).

    `sizes` are the numbers of rows by task; `weights` their shares in any unit, equal by default; `weights=sizes`
    samples in proportion to the data. A share of 10.5 rows gives 10 or 11 rows, at random. Each task goes through its
    rows in a new order every epoch. A batch has `batch_size` draws; of the `world * batch_size` draws of a step process
    `rank` gets every `world`-th, so that all processes together see what one would with so large a batch.

    >>> batches = iter(BalancedSampler({"vqa": 100, "caption": 5}, batch_size=4))
    >>> [draw.task for draw in next(batches)]
    ['vqa', 'vqa', 'caption', 'caption']
    """

    def __init__(
        self,
        sizes: Mapping[str, int],
        batch_size: int,
        *,
        weights: Mapping[str, float] | None = None,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        shares = dict.fromkeys(sizes, 1.0) if weights is None else {task: float(weights.get(task, 0)) for task in sizes}
        if not sizes or min(sizes.values()) < 1 or batch_size < 1 or not 0 <= rank < world:
            raise UnivalError(
                f"nothing to sample: rows {dict(sizes)}, batches of {batch_size}, process {rank} of {world}"
            )
        if (weights or {}).keys() - sizes.keys() or min(shares.values()) < 0 or not sum(shares.values()):
            raise UnivalError(f"weights {weights} of tasks {', '.join(sizes)}: give shares >= 0, not all 0")
        self.sizes, self.batch_size, self.seed, self.rank, self.world = dict(sizes), batch_size, seed, rank, world
        self.shares = {task: share / math.fsum(shares.values()) for task, share in shares.items()}
        self.step = 0
        self.seen = dict.fromkeys(sizes, 0)
        self._orders: dict[str, tuple[int, np.ndarray]] = {}

    def __iter__(self) -> Iterator[list[Draw]]:
        while True:
            yield self.draw()

    def draw(self) -> list[Draw]:
        """Return the next batch of this process."""
        total = self.batch_size * self.world
        draws: list[Draw] = []
        for task, count in self._counts(total).items():
            rows = (self._row(task, self.seen[task] + k) for k in range(count))
            draws += [Draw(task, row, self.step * total + len(draws) + k) for k, row in enumerate(rows)]
            self.seen[task] += count
        self.step += 1
        return draws[self.rank :: self.world]

    def state_dict(self) -> dict[str, Any]:
        """Tell where the stream stands, as plain values for JSON; the same in every process."""
        return {"step": self.step, "seen": dict(self.seen), "made_of": self._made_of()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where another sampler of the same data, weights, seed and total batch size stood."""
        if state["made_of"] != self._made_of():
            raise UnivalError(f"a sampler of {state['made_of']} cannot go on as one of {self._made_of()}")
        self.step, self.seen = int(state["step"]), {task: int(count) for task, count in state["seen"].items()}

    def _made_of(self) -> dict[str, Any]:
        return {
            "sizes": self.sizes,
            "shares": self.shares,
            "seed": self.seed,
            "draws_per_step": self.batch_size * self.world,
        }

    def _counts(self, total: int) -> dict[str, int]:
        """Count draws by task: `total` evenly spaced marks on the line of shares, moved by a random offset."""
        offset = np.random.default_rng([self.seed, crc32(b"shares"), self.step]).random()
        ends = np.minimum(np.cumsum(list(self.shares.values())), 1.0)
        ends[-1] = 1.0
        marks = np.ceil(ends * total - offset).astype(int)
        return dict(zip(self.shares, np.diff(marks, prepend=0).tolist(), strict=True))

    def _row(self, task: str, place: int) -> int:
        """Return the row at a place of the task's endless stream of shuffled epochs."""
        epoch, within = divmod(place, self.sizes[task])
        known = self._orders.get(task)
        if known is None or known[0] != epoch:
            rng = np.random.default_rng([self.seed, crc32(task.encode()), epoch])
            known = self._orders[task] = (epoch, rng.permutation(self.sizes[task]))
        return int(known[1][within])
