"""What the decoder reads and keeps between steps: encoded samples, keys and values, who reads which sample, biases."""

import copy
from typing import NamedTuple

import torch
from torch import Tensor

from unival_core.errors import UnivalError
from unival_core.inputs import IDS, check_rows, told


class Encoded(NamedTuple):
    """What the decoder reads of B samples: S = vision tokens + text tokens.

    `states` B x S x width; `padding` B x S, True at positions not to be looked at; `positions` L x S x width, the
    normalised position embeddings of the L layouts in the batch, and `layout` (B) telling each sample's.
    """

    states: Tensor
    padding: Tensor
    positions: Tensor
    layout: Tensor


class LayerMemory:
    """Keys and values of one decoder layer: of R target rows, which grow, and of B encoded samples, which do not."""

    def __init__(self, cross_keys: Tensor, cross_values: Tensor) -> None:
        self.cross_keys, self.cross_values = cross_keys, cross_values
        self.keys = self.values = cross_keys.new_empty(0)

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys and values of all target positions so far, the new ones included."""
        if self.keys.numel():
            keys, values = torch.cat((self.keys, keys), dim=2), torch.cat((self.values, values), dim=2)
        self.keys, self.values = keys, values
        return keys, values

    def select(self, rows: Tensor, samples: Tensor | None) -> None:
        """Keep these rows, and these samples (None: all of them)."""
        if self.keys.numel():
            self.keys, self.values = self.keys[rows], self.values[rows]
        if samples is not None:
            self.cross_keys, self.cross_values = self.cross_keys[samples], self.cross_values[samples]


class Readers:
    """Which of B samples each of R rows reads.

    Rows of one sample queue up as further queries on its keys and values, so that these are never copied per row.
    `source` (R) holds sample numbers; every sample has a row, and with `one_to_one` row i is that of sample i.
    """

    def __init__(self, source: Tensor, samples: int, *, one_to_one: bool = False) -> None:
        self.source, self.samples, self.most, self.one_to_one = source, samples, 1, one_to_one
        if one_to_one:
            return
        count = torch.bincount(source, minlength=samples)
        self.most = int(count.max())
        order = source.argsort(stable=True)
        place = torch.empty_like(source)
        place[order] = torch.arange(len(source), device=source.device) - (count.cumsum(0) - count)[source[order]]
        self.place = source * self.most + place  # of each row in the samples x most grid
        self.row = torch.zeros(samples * self.most, dtype=torch.long, device=source.device)  # in each place of the grid
        self.row[self.place] = torch.arange(len(source), device=source.device)
        self.one_to_one = len(source) == samples and bool((self.place == self.row).all())

    def gather(self, x: Tensor) -> Tensor:
        """Gather R x n x width into B x (most * n) x width."""
        return x if self.one_to_one else x[self.row].unflatten(0, (self.samples, self.most)).flatten(1, 2)

    def scatter(self, x: Tensor) -> Tensor:
        """Undo `gather`."""
        return x if self.one_to_one else x.unflatten(1, (self.most, -1)).flatten(0, 1)[self.place]

    def widen(self, bias: Tensor) -> Tensor:
        """Turn biases B (or 1) x heads x n x S into those of gathered queries, B (or 1) x heads x (most * n or 1) x
        S."""
        if self.most == 1 or bias.shape[2] == 1:
            return bias
        return bias.unsqueeze(2).expand(-1, -1, self.most, -1, -1).flatten(2, 3)


class DecoderCache:
    """A decoder's memory of R rows over B encoded samples: made by `UnivalModel.start`, grown by `UnivalModel.decode`.

    Rows and samples are one to one at first; `select` makes, reorders and drops rows. The samples' keys and values are
    held once however many rows (beams) read them, and leave with their last row.
    """

    def __init__(
        self, encoded: Encoded, position_keys: Tensor, layers: list[LayerMemory], code_rows: Tensor | None
    ) -> None:
        self.length = 0  # target positions decoded so far
        self.layers, self.position_keys = layers, position_keys  # L x heads x S x head width
        self.layout, self.padding = encoded.layout, encoded.padding
        self.kinds, self.kind = (False,), torch.zeros_like(encoded.layout)  # of targets: text, image codes or both
        if code_rows is not None:
            check_rows(code_rows, len(encoded.states), "code_rows", (torch.bool,))
            self.kinds = tuple(bool(kind) for kind in code_rows.unique())
            self.kind = code_rows.long() if len(self.kinds) > 1 else self.kind  # index into kinds
        samples = torch.arange(len(encoded.states), device=encoded.states.device)
        self.readers = Readers(samples, len(samples), one_to_one=True)
        self.hidden = encoded.padding.new_zeros(len(samples), 0)  # R x length, True where the target is padding
        self.capacity = 0  # target positions that the biases below cover
        self.self_bias: list[Tensor] = []  # one per layer, kinds x heads x capacity x capacity
        self.cross_bias = position_keys.new_empty(0)  # B (1 if all agree) x heads x capacity x S

    @property
    def rows(self) -> int:
        """Count the rows, R."""
        return len(self.readers.source)

    def copy(self) -> "DecoderCache":
        """Return one that grows by itself; what both hold so far is in memory once."""
        twin = copy.copy(self)
        twin.layers = [copy.copy(memory) for memory in self.layers]
        return twin

    def select(self, rows: Tensor) -> None:
        """Make row i continue the former row `rows[i]` (int64 indices, any order, repeated or left out).

        >>> cache.select(torch.arange(batch).repeat_interleave(beam))  # doctest: +SKIP
        """
        if not isinstance(rows, Tensor) or rows.dim() != 1 or rows.dtype not in IDS or not len(rows):
            raise UnivalError(f"rows to go on are int64 indices, at least one, got {told(rows)}")
        if torch.equal(rows, torch.arange(self.rows, device=rows.device)):  # as in most steps of a greedy search
            return
        try:
            source, samples = self.readers.source[rows], None
        except IndexError:
            raise UnivalError(f"rows to go on lie in 0..{self.rows - 1}, got {rows.tolist()}") from None
        if not torch.equal(source, self.readers.source):
            alive, source = source.unique(return_inverse=True)
            if len(alive) < len(self.layout):
                samples = alive
                self.layout, self.padding, self.kind = self.layout[alive], self.padding[alive], self.kind[alive]
                if len(self.cross_bias) > 1:
                    self.cross_bias = self.cross_bias[alive]
            self.readers = Readers(source, len(self.layout))
        self.hidden = self.hidden[rows]
        for memory in self.layers:
            memory.select(rows, samples)
