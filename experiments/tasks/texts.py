"""Perplexity: the negative log-likelihood that a causal language model gives to texts, in nats per token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from experiments.errors import StudyError
from experiments.study.study import Task
from experiments.tasks.data import Data, Scored, digest_of, logits_of

METRIC, UNIT = "nll", "nats per token"


def perplexity(
    texts: Data, tokenizer: Any, *, max_length: int | None = None, batch_size: int = 8, expert: str = ""
) -> Task:
    """Return the task of foretelling texts: per text the mean negative log-likelihood of its tokens after the first
    (its perplexity is e to that power).

    `texts` are lists of texts by name of a split, or a function of that name. `tokenizer` is one of transformers or
    tokenizers, or a function text -> token numbers; what it adds (as a mark of the beginning) counts as a token. The
    model is causal: of `model(tokens)`, tokens (n, length), it returns logits (n, length, vocabulary), or what has
    them under `logits`, as models of transformers do. Texts of more than `max_length` tokens (default: the model's
    `config.max_position_embeddings`, else no limit) are read in windows that overlap by half; each token is foretold
    once, from half a window or more.

    Raises StudyError for a text of fewer than two tokens.
    """
    if max_length is not None and max_length < 2:
        raise StudyError(f"perplexity: max_length={max_length!r}: give 2 or more, one token foretells the other")
    score = Foretold("perplexity", texts, tokenizer, max_length, batch_size)
    return Task(score, expert=expert, metric=METRIC, unit=UNIT, higher_is_better=False)


@dataclass(frozen=True)
class Foretold(Scored):
    """Scores of texts by what a model expects."""

    tokenizer: Any
    max_length: int | None
    batch_size: int

    def __call__(self, model: nn.Module, split: str) -> list[float]:
        """Return nats per token of every text."""
        texts, limit = self.numbers(split), self.max_length or longest_of(model)
        parts = [(place, *window) for place, text in enumerate(texts) for window in windows(text, limit)]
        parts.sort(key=lambda part: len(part[1]))  # texts of one length together leave little to fill
        sums = torch.zeros(len(texts), dtype=torch.float64)
        for begin in range(0, len(parts), self.batch_size):
            chosen = parts[begin : begin + self.batch_size]
            for (place, *_), own in zip(chosen, nats(model, [part[1:] for part in chosen]), strict=True):
                sums[place] += own
        return [float(total) / (len(text) - 1) for total, text in zip(sums, texts, strict=True)]

    def digest(self, split: str) -> str:
        """Return what tells these texts, as the tokenizer reads them, from others."""
        return digest_of([self.numbers(split), self.max_length])

    def numbers(self, split: str) -> list[list[int]]:
        """Return the numbers of the tokens of every text."""
        return [self.tokens(text, f"text {place} of {split}") for place, text in enumerate(self.of(split))]

    def tokens(self, text: str, name: str) -> list[int]:
        """Return the numbers of a text's tokens."""
        encode = getattr(self.tokenizer, "encode", self.tokenizer)
        found = encode(text)
        numbers = [int(number) for number in getattr(found, "ids", found)]
        if len(numbers) < 2:
            raise StudyError(f"{name} ({text!r:.40}) has {len(numbers)} tokens: there is none to foretell")
        return numbers


def longest_of(model: nn.Module) -> int | None:
    """Return how many tokens a model reads, as its configuration, or that of the first one inside, says."""
    configs = [getattr(one, "config", None) for one in model.modules()]
    found = [getattr(one, "max_position_embeddings", None) for one in configs]
    return next((limit for limit in found if limit is not None), None)


def windows(tokens: Sequence[int], limit: int | None) -> list[tuple[Sequence[int], int]]:
    """Return parts of a text that a model can read, each with how many of its last tokens are foretold there.

    >>> windows(range(6), 4)
    [(range(0, 4), 3), (range(2, 6), 2)]
    """
    if limit is None or len(tokens) <= limit:
        return [(tokens, len(tokens) - 1)]
    step = max(1, limit // 2)
    ends = [*range(limit, len(tokens), step), len(tokens)]
    known = [1, *ends]
    return [(tokens[end - limit : end], end - before) for before, end in zip(known, ends, strict=False)]


def nats(model: nn.Module, parts: Sequence[tuple[Sequence[int], int]]) -> list[float]:
    """Return the negative log-likelihood of the last tokens of each part, added up.

    Shorter parts are filled at their end, with their last token again, which no token before it sees.
    """
    longest = max(len(tokens) for tokens, _ in parts)
    rows = [[*tokens, *[tokens[-1]] * (longest - len(tokens))] for tokens, _ in parts]
    device = next((tensor.device for tensor in model.parameters()), torch.device("cpu"))
    inputs = torch.tensor(rows, device=device)
    options = {"use_cache": False} if hasattr(getattr(model, "config", None), "use_cache") else {}
    logits = logits_of(model(inputs, **options))
    if logits.shape[:2] != inputs.shape or logits.dim() != 3:
        raise StudyError(f"logits of shape {list(logits.shape)} for tokens {list(inputs.shape)}: one row a token")
    found: list[float] = []
    for (tokens, count), row, own in zip(parts, inputs, logits, strict=True):
        end = len(tokens)
        loss = functional.cross_entropy(own[end - count - 1 : end - 1].float(), row[end - count : end], reduction="sum")
        found.append(float(loss))
    return found
