"""Several models that answer as one: the mean of their next-token probabilities."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from unival_core.decoder_cache import DecoderCache, Encoded
from unival_core.errors import UnivalError
from unival_core.inputs import Inputs
from unival_core.model import UnivalModel

Part = TypeVar("Part")


class Ensemble(nn.Module):
    """Takes the place of a model in `generate`, `score_candidates` and `evaluate`.

    The logits of `decode` are logarithms of `sum(shares[i] * softmax(logits[i]))`; of one member with share 1, its own
    logits. Members without a share are not run. The members must have one vocabulary and one layout of positions;
    `shares` may be set again, are not below 0 and sum to 1. UnivalError otherwise.

    >>> from unival_core.config import CONFIGS
    >>> model = UnivalModel(CONFIGS["pocket"]).eval()
    >>> inputs = Inputs(tokens=torch.tensor([[0, 5, 2]]), images=torch.zeros(1, 3, 48, 48))
    >>> both = Ensemble([model, model], [0.5, 0.5]).eval()
    >>> logits = both.decode(torch.tensor([[0]]), both.start(both.encode(inputs)))
    >>> float(logits.exp().sum().detach().round(decimals=4))
    1.0
    """

    def __init__(self, members: Sequence[UnivalModel], shares: Sequence[float]) -> None:
        super().__init__()
        layouts = {(m.config.vocabulary, m.config.max_positions, m.config.code_side) for m in members}
        if len(layouts) != 1:
            raise UnivalError(f"members of an ensemble have one vocabulary and one layout, got {sorted(layouts)}")
        self.members = nn.ModuleList(members)
        self.config = members[0].config
        self.shares = shares

    @property
    def shares(self) -> list[float]:
        """Return the members' shares of every probability."""
        return self._shares

    @shares.setter
    def shares(self, shares: Sequence[float]) -> None:
        if len(shares) != len(self.members) or min(shares) < 0 or abs(sum(shares) - 1) > 1e-6:
            raise UnivalError(f"shares {list(shares)} of {len(self.members)} models: give one each, with sum 1")
        self._shares = [float(share) for share in shares]
        models = [member for member in self.members if isinstance(member, UnivalModel)]
        self._asked = [(model, share) for model, share in zip(models, self._shares, strict=True) if share]

    def encode(self, inputs: Inputs) -> OfAll[Encoded]:
        """Return what every member's decoder reads."""
        return OfAll([model.encode(inputs) for model, _ in self._asked])

    def start(self, encoded: OfAll[Encoded], code_rows: Tensor | None = None) -> OfAll[DecoderCache]:
        """Return every member's cache."""
        pairs = zip(self._asked, encoded.parts, strict=True)
        return OfAll([model.start(part, code_rows) for (model, _), part in pairs])

    def decode(self, tokens: Tensor, cache: OfAll[DecoderCache]) -> Tensor:
        """Compute logits as of `UnivalModel.decode`."""
        pairs = zip(self._asked, cache.parts, strict=True)
        logits = [(model.decode(tokens, part), share) for (model, share), part in pairs]
        if len(logits) == 1:
            return logits[0][0]
        weighted = [part.float().log_softmax(-1) + math.log(share) for part, share in logits]
        return torch.stack(weighted).logsumexp(0)


class OfAll(Generic[Part]):
    """The `Encoded` or the `DecoderCache` of every member."""

    def __init__(self, parts: list[Part]) -> None:
        self.parts = parts

    def copy(self: OfAll[DecoderCache]) -> OfAll[DecoderCache]:
        """Return one that grows by itself."""
        return OfAll([part.copy() for part in self.parts])

    def select(self: OfAll[DecoderCache], rows: Tensor) -> None:
        """Make row i continue the former row `rows[i]`."""
        for part in self.parts:
            part.select(rows)
