"""The seams of generation: which ids may follow (filters), and which of them are followed (searches)."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from unival_core.config import EOS, PAD, UNK
from unival_core.errors import NotFinite, UnivalError
from unival_core.text import Trie

NEVER = -torch.inf


@dataclass(frozen=True)
class GenerationOptions:
    """How to search. The defaults are greedy; the published evaluations use `beam=5`.

    Lengths count the forced prefix and eos: a sentence has at most `int(max_len_a * source length + max_len_b) + 1`
    tokens, or what the model has positions for, and at least `min_len` before its eos. Hypotheses are ranked by the
    sum of their log-probabilities, divided by length ** `len_penalty` unless `unnormalized`.
    """

    beam: int = 1  # hypotheses per sample; with `sample`, independent draws per sample
    max_len_a: float = 0.0
    max_len_b: int = 200
    min_len: int = 1
    len_penalty: float = 1.0
    unnormalized: bool = False
    temperature: float = 1.0
    no_repeat_ngram: int = 0
    unk_penalty: float = 0.0
    renormalize: bool = True  # probabilities of a constrained step sum to 1 over the allowed ids
    sample: bool = False
    top_k: int = 0  # 0: all ids
    top_p: float = 1.0  # below 1 it replaces top_k
    seed: int = 0

    def __post_init__(self) -> None:
        if odd := [n for n in (self.beam, self.min_len, self.no_repeat_ngram, self.top_k) if type(n) is not int]:
            raise UnivalError(f"beam, min_len, no_repeat_ngram and top_k are whole numbers, got {odd[0]}")
        if self.beam < 1 or self.min_len < 1 or self.no_repeat_ngram < 0 or self.top_k < 0:
            raise UnivalError(f"beam and min_len are at least 1, no_repeat_ngram and top_k at least 0, got {self}")
        if not self.temperature > 0 or not 0 < self.top_p <= 1:
            raise UnivalError(f"temperature is above 0 and top_p in (0, 1], got {self.temperature} and {self.top_p}")


def check_logits(model: Any, logits: Tensor) -> None:
    """Raise NotFinite where a position of `logits` (... x vocabulary) is no distribution: NaN, +inf, or all of it -inf.

    Searches would take any id for the best one there. The message names a tensor of the model that is not finite.
    """
    if logits.amax(-1).isfinite().all():
        return
    tensors = itertools.chain(model.named_parameters(), model.named_buffers()) if isinstance(model, nn.Module) else ()
    if name := first_nonfinite(tensors):
        raise NotFinite(f"the model's logits are not finite: {name} holds NaN or infinity, so take other weights")
    kind = str(logits.dtype).removeprefix("torch.")
    advice = "fp16 overflows so, try bf16 or fp32; media may be so, too"
    raise NotFinite(f"the model's logits are not finite ({kind}), its weights are: {advice}")


def first_nonfinite(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """Name the first tensor with NaN or infinite values; "" if there is none."""
    return next((name for name, tensor in tensors if not tensor.isfinite().all()), "")


@dataclass(frozen=True)
class IdRange:
    """Allows the ids from `start` up to `stop`, and eos.

    The other specials may be "written" too, as by the published beam search; or they are "counted" among what may
    follow and never written, and eos only at the maximal length, as in published images.
    """

    start: int
    stop: int
    specials: Literal["none", "counted", "written"] = "none"


@dataclass(frozen=True)
class Limits:
    """What each of the B samples has to keep to."""

    longest: list[int]  # tokens before eos
    length: Tensor  # B, the same
    prefix: Tensor  # B x P, right-padded
    prefix_length: Tensor  # B


@dataclass(frozen=True)
class Rows:
    """The sentences being written: R rows, the same number for each of the samples still running, side by side."""

    sample: Tensor  # R, number of the row's sample in the batch
    tokens: Tensor  # R x (1 + step), beginning with bos
    scores: Tensor  # R x step, log-probability of each token
    total: Tensor  # R

    @property
    def step(self) -> int:
        """Count the tokens written so far."""
        return self.scores.shape[1]

    def grow(self, parents: Tensor, tokens: Tensor, totals: Tensor) -> Rows:
        """Make row i become the former row `parents[i]` with one more token."""
        gain = (totals - self.total[parents]).unsqueeze(1)
        written = torch.cat((self.tokens[parents], tokens.unsqueeze(1)), dim=1)
        return Rows(self.sample[parents], written, torch.cat((self.scores[parents], gain), dim=1), totals)


class Filter(Protocol):
    """Takes ids away: sets `scores` (R x vocabulary) to -inf where a row must not go on so."""

    def __call__(self, scores: Tensor, rows: Rows) -> Tensor: ...


class OnlyAnswers:
    """After its forced prefix a row spells one of the trie's answers."""

    def __init__(self, trie: Trie, limits: Limits, vocabulary: int) -> None:
        if trie.last >= vocabulary:
            raise UnivalError(f"an allowed answer has the id {trie.last}, the vocabulary ends at {vocabulary - 1}")
        self.trie, self.prefix_length = trie.to(limits.length.device), limits.prefix_length

    def __call__(self, scores: Tensor, rows: Rows) -> Tensor:
        prefix = self.prefix_length[rows.sample]
        nodes = torch.full_like(prefix, Trie.ROOT)
        for place in range(1, rows.step + 1):
            nodes = torch.where(place > prefix, self.trie.walk(nodes, rows.tokens[:, place]), nodes)
        return self.trie.keep_allowed(scores, nodes)


class OnlyRange:
    """A row holds ids of one range."""

    def __init__(self, allowed: IdRange, vocabulary: int, device: torch.device) -> None:
        if not UNK < allowed.start < allowed.stop <= vocabulary:
            raise UnivalError(f"{allowed} is not within the ids {UNK + 1}..{vocabulary - 1}")
        self.forbidden = torch.ones(vocabulary, dtype=torch.bool, device=device)
        self.forbidden[allowed.start : allowed.stop] = False
        self.forbidden[: UNK + 1] = allowed.specials == "none"
        self.forbidden[EOS] = False

    def __call__(self, scores: Tensor, rows: Rows) -> Tensor:
        return scores.masked_fill_(self.forbidden, NEVER)


class Basics:
    """No padding, no eos before the minimal length, nothing but eos at the maximal one; a penalty on unknown words."""

    def __init__(self, options: GenerationOptions, limits: Limits) -> None:
        self.min_len, self.unk_penalty = options.min_len, options.unk_penalty
        self.limit, self.shortest = limits.length, min(limits.longest)

    def __call__(self, scores: Tensor, rows: Rows) -> Tensor:
        scores[:, PAD] = NEVER
        scores[:, UNK] -= self.unk_penalty
        if rows.step < self.min_len:
            scores[:, EOS] = NEVER
        if rows.step >= self.shortest:
            full = rows.step >= self.limit[rows.sample]
            end = scores[:, EOS].clone()
            scores.masked_fill_(full.unsqueeze(1), NEVER)[:, EOS] = end
        return scores


class NoSpecials:
    """No bos, pad, eos or unk before the maximal length; what they had of the probability is left to no other id."""

    def __init__(self, limits: Limits) -> None:
        self.limit = limits.length

    def __call__(self, scores: Tensor, rows: Rows) -> Tensor:
        writing = (rows.step < self.limit[rows.sample]).unsqueeze(1)
        scores[:, : UNK + 1].masked_fill_(writing, NEVER)
        return scores


class NoRepeat:
    """No row writes the same n tokens twice, bos counted as a token."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, scores: Tensor, rows: Rows) -> Tensor:
        tokens, length = rows.tokens, rows.tokens.shape[1]
        if length < self.size:
            return scores
        last = tokens[:, length - self.size + 1 :].unsqueeze(1)
        seen = tokens.unfold(1, self.size - 1, 1)[:, : length - self.size + 1]
        banned = torch.where((seen == last).all(-1), NEVER, 0.0).to(scores.dtype)
        return scores.scatter_add_(1, tokens[:, self.size - 1 :], banned)


@dataclass(frozen=True)
class Candidates:
    """Continuations of n samples, n x k, best first. The first `width` may end a sentence, the first `width` that do
    not end one go on; a total of -inf is no continuation at all and only fills up."""

    total: Tensor  # sum of log-probabilities
    token: Tensor
    parent: Tensor  # number of the row among the rows of its sample


class Search(Protocol):
    """Chooses among the next tokens of all rows of a sample; a sample is done with `width` finished sentences."""

    width: int

    def __call__(self, scores: Tensor, totals: Tensor) -> Candidates:
        """From log-probabilities n x rows x vocabulary and the rows' totals n x rows (one row at the first step)."""
        ...


class Greedy:
    """The likeliest token."""

    width = 1

    def __call__(self, scores: Tensor, totals: Tensor) -> Candidates:
        best, token = scores.max(-1)
        return Candidates(totals + best, token, torch.zeros_like(token))


class Beam:
    """The `width` likeliest sentences so far, from 2 x `width` candidates, as each row may end at most once."""

    def __init__(self, width: int) -> None:
        self.width = width

    def __call__(self, scores: Tensor, totals: Tensor) -> Candidates:
        size = 2 * self.width
        best, token = scores.topk(size, dim=-1)
        total, place = (best + totals.unsqueeze(-1)).flatten(1).topk(size, dim=-1)
        return Candidates(total, token.flatten(1).gather(1, place), place // size)


class Sampling:
    """`width` independent draws among the `top_k` likeliest ids, or the fewest of all ids that hold a share `top_p`.

    As published, and to the bit where probabilities agree: on the CPU a seed draws what it draws there.
    """

    def __init__(self, options: GenerationOptions, device: torch.device) -> None:
        self.width, self.top_k, self.top_p = options.beam, options.top_k, options.top_p
        self.generator = torch.Generator(device).manual_seed(options.seed)

    def __call__(self, scores: Tensor, totals: Tensor) -> Candidates:
        samples, rows, vocabulary = scores.shape
        if self.top_p < 1:
            best, token = scores.sort(dim=-1, descending=True)
            before = best.exp().cumsum(-1).roll(1, -1)
            before[..., 0] = 0.0
            kept = before < self.top_p
            size = int(kept.sum(-1).max())
            best, token = best.masked_fill(~kept, NEVER)[..., :size], token[..., :size]
        elif self.top_k:
            best, token = scores.topk(min(self.top_k, vocabulary), dim=-1)
        else:
            best, token = scores, torch.arange(vocabulary, device=scores.device).expand_as(scores)
        probability = best.exp().flatten(0, 1)
        probability = probability.masked_fill(probability.sum(-1, keepdim=True) == 0, 1.0)  # a row with nothing to say
        place = torch.multinomial(probability, self.width // rows, replacement=True, generator=self.generator)
        place = place.view(samples, self.width, 1)
        total = totals + best.expand(-1, self.width, -1).gather(-1, place).squeeze(-1)
        drawn = token.expand(-1, self.width, -1).gather(-1, place).squeeze(-1)
        parent = torch.arange(rows, device=scores.device).expand(samples, self.width)
        # Rows whose sentence has ended are filled up with dead ones.
        filler = torch.full_like(total, NEVER), torch.full_like(drawn, PAD), parent
        return Candidates(*(torch.cat(pair, dim=1) for pair in zip((total, drawn, parent), filler, strict=True)))
