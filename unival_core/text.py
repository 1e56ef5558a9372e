"""Text cleaning as published, and the trie of allowed answers."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from unival_core.config import EOS, PAD
from unival_core.errors import UnivalError

_LEADING_MARKS = ",.!?*#:;~"


def clean_question(text: str, max_words: int | None = None) -> str:
    """Lower case, no leading punctuation, '-' and '/' as spaces, single spaces; the first `max_words` words.

    >>> clean_question("...Is-this  a/b TEST", max_words=3)
    'is this a'
    """
    text = text.lower().lstrip(_LEADING_MARKS).replace("-", " ").replace("/", " ")
    text = re.sub(r"\s{2,}", " ", text).rstrip("\n").strip(" ")
    return " ".join(text.split(" ")[:max_words])


def clean_caption(text: str, max_words: int | None = None) -> str:
    """Clean as `clean_question`, and the data sets' placeholder `<person>` becomes the word.

    >>> clean_caption("<person> and a dog")
    'person and a dog'
    """
    return clean_question(text.lower().replace("<person>", "person"), max_words)


def right_pad(rows: Sequence[Sequence[int]], device: torch.device | None = None) -> Tensor:
    """Return rows of ids as one matrix, rows x longest, padded with 1."""
    width = max(map(len, rows), default=0)
    padded = [[*row, *[PAD] * (width - len(row))] for row in rows]
    return torch.tensor(padded, dtype=torch.int64, device=device)


class Trie:
    """Allowed answers as a tree of token ids; every answer ends with eos.

    Nodes are integers: `ROOT` before the first token, `dead` once a token left the tree. The edges lie sorted by
    (node, token) in tensors, so that rows of a batch walk the tree together and no step costs Python work per id.

    >>> trie = Trie([[7, 8], [7, 9]])
    >>> node = trie.walk(torch.tensor([trie.ROOT]), torch.tensor([7]))
    >>> trie.keep_allowed(torch.zeros(1, 11), node).exp().nonzero()[:, 1].tolist()
    [8, 9]
    """

    ROOT = 0

    def __init__(self, answers: Iterable[Sequence[int]]) -> None:
        children: list[dict[int, int]] = [{}]
        for index, answer in enumerate(answers):
            if not answer:
                raise UnivalError(f"allowed answer {index} has no tokens")
            node = self.ROOT
            for token in (*answer, EOS):
                if token not in children[node]:
                    children[node][token] = len(children)
                    children.append({})
                node = children[node][token]
        if len(children) == 1:
            raise UnivalError("a trie needs at least one allowed answer")
        edges = [
            (node, token, child) for node, tokens in enumerate(children) for token, child in sorted(tokens.items())
        ]
        table = torch.tensor(edges, dtype=torch.int64)
        self.dead = len(children)
        self.last = int(table[:, 1].max())  # the largest id
        self._keys = table[:, 0] << 32 | table[:, 1]
        self._tokens, self._children = table[:, 1].contiguous(), table[:, 2].contiguous()
        self._first = torch.searchsorted(self._keys, torch.arange(len(children) + 2) << 32)

    def to(self, device: torch.device) -> Trie:
        """Return the same trie with its tables on `device`."""
        moved = copy.copy(self)
        moved._keys, moved._tokens = self._keys.to(device), self._tokens.to(device)
        moved._children, moved._first = self._children.to(device), self._first.to(device)
        return moved

    def walk(self, nodes: Tensor, tokens: Tensor) -> Tensor:
        """Return the node behind each of `tokens` (R) from each of `nodes` (R)."""
        keys = nodes << 32 | tokens
        edges = torch.searchsorted(self._keys, keys).clamp_max(len(self._keys) - 1)
        return torch.where(self._keys[edges] == keys, self._children[edges], self.dead)

    def nodes(self, targets: Tensor) -> Tensor:
        """Return the node before each token of right-padded answers, R x U."""
        nodes = [torch.full_like(targets[:, 0], self.ROOT)]
        for column in targets[:, :-1].T:
            nodes.append(self.walk(nodes[-1], column))
        return torch.stack(nodes, dim=1)

    def keep_allowed(self, scores: Tensor, nodes: Tensor) -> Tensor:
        """Give `scores` (R x vocabulary) with -inf for every id that does not follow its row's node."""
        first, count = self._first[nodes], self._first[nodes + 1] - self._first[nodes]
        rows = torch.repeat_interleave(count)
        edges = torch.arange(len(rows), device=rows.device) + (first - count.cumsum(0) + count)[rows]
        allowed = rows, self._tokens[edges]
        return torch.full_like(scores, -torch.inf).index_put_(allowed, scores[allowed])
