"""From encoded media to token ids: greedy, beam search, sampling.

One loop (`generate`): the model scores the next token, filters take ids away, a search chooses what goes on. Sentences
end and are ranked as in UnIVAL's published evaluation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from unival_core.config import BOS, EOS, PAD, UnivalConfig
from unival_core.decoding import (
    NEVER,
    Basics,
    Beam,
    Filter,
    GenerationOptions,
    Greedy,
    IdRange,
    Limits,
    NoRepeat,
    NoSpecials,
    OnlyAnswers,
    OnlyRange,
    Rows,
    Sampling,
    Search,
    check_logits,
)
from unival_core.errors import UnivalError
from unival_core.inputs import Inputs
from unival_core.text import Trie, right_pad

__all__ = ["GenerationOptions", "Hypothesis", "IdRange", "generate"]

GREEDY = GenerationOptions()


class NextToken(Protocol):
    """What generation asks of a model: `UnivalModel`, or several that answer as one (`unival_core.ensemble`)."""

    config: UnivalConfig
    training: bool

    def encode(self, inputs: Inputs) -> Any: ...
    def start(self, encoded: Any, code_rows: Tensor | None = None) -> Any: ...
    def decode(self, tokens: Tensor, cache: Any) -> Tensor: ...


@dataclass(frozen=True)
class Hypothesis:
    """One finished sentence: `tokens` from the forced prefix to eos, without bos; the log-probability of each."""

    tokens: list[int]
    score: float
    token_scores: list[float] = field(repr=False)
    prefix_length: int = 0

    @property
    def answer(self) -> list[int]:
        """Return the tokens between the forced prefix and eos."""
        return self.tokens[self.prefix_length : -1]


@torch.no_grad()
def generate(
    model: NextToken,
    inputs: Inputs,
    options: GenerationOptions = GREEDY,
    *,
    constraint: Trie | IdRange | None = None,
    prefix: Sequence[Sequence[int]] | None = None,
    code_rows: Tensor | None = None,
    cache: Any = None,
) -> list[list[Hypothesis]]:
    """Return the best sentences of each of B samples, best first (arXiv 2307.16184, as evaluated there).

    `constraint` is a trie of the allowed answers, or a range of ids: `IdRange(config.bin_offset, config.vocabulary)`
    with `min_len=4, max_len_b=4` gives four bins exactly, that is a box; `IdRange(config.code_offset,
    config.bin_offset, "counted")` the codes of an image. `prefix` forces the first tokens (after bos) of each sample;
    their log-probabilities count. `code_rows` (B, bool) marks samples that write an image. `cache` is what
    `model.start` returned of the encoded inputs and `code_rows`, where that is known; it stays as is. A sample of a
    batch gets what it would get alone, except for the draws of `sample`.

    >>> generate(model, inputs, GenerationOptions(beam=5))[0][0].answer  # doctest: +SKIP
    [10, 313, 5793, 10, 4605]

    Raises UnivalError for a model in training mode, impossible lengths, when no allowed answer fits the length, and
    for logits that are not finite (`NotFinite`).
    """
    limits = limits_of(model, inputs, options, prefix, codes=code_rows is not None)
    search = _search(options, model.config.vocabulary, inputs.tokens.device)
    filters = _filters(options, constraint, limits, model.config.vocabulary)
    cache = model.start(model.encode(inputs), code_rows) if cache is None else cache.copy()
    rows, logits = _begin(model, cache, limits, options.temperature)
    found: list[list[Hypothesis]] = [[] for _ in limits.longest]
    running = list(range(len(found)))
    while True:
        scores = _next_scores(logits, rows, limits, filters, options.temperature)
        candidates = search(scores.unflatten(0, (len(running), -1)), rows.total.view(len(running), -1))
        first = torch.arange(len(running), device=logits.device) * (len(logits) // len(running))  # row of a sample
        parents = candidates.parent + first.unsqueeze(1)
        ends = (candidates.token == EOS) & (candidates.total > NEVER)
        for place, rank in ends[:, : search.width].nonzero().tolist():
            if len(sentences := found[running[place]]) < search.width:
                total = candidates.total[place, rank]
                sentences.append(_finish(rows, int(parents[place, rank]), total, options, limits))
        alive = (~ends & (candidates.total > NEVER)).any(dim=1).tolist()  # a trie may have no further answer
        going = [
            place
            for place, sample in enumerate(running)
            if len(found[sample]) < search.width and rows.step < limits.longest[sample] and alive[place]
        ]
        if not going:
            break
        # The best candidates that do not end go on; the rows of finished samples are dropped.
        order = ends.long().argsort(dim=1, stable=True)[going, : search.width]
        kept, tokens, totals = (
            values[going].gather(1, order).flatten() for values in (parents, candidates.token, candidates.total)
        )
        running = [running[place] for place in going]
        rows = rows.grow(kept, tokens, totals)
        cache.select(kept)
        logits = model.decode(tokens.unsqueeze(1), cache)[:, -1]
        check_logits(model, logits)
    return _best_first(found, limits)


def limits_of(
    model: NextToken,
    inputs: Inputs,
    options: GenerationOptions,
    prefix: Sequence[Sequence[int]] | None,
    *,
    codes: bool = False,
) -> Limits:
    """Return what each sample has to keep to. Raises UnivalError for prefixes and lengths that cannot be."""
    batch, device = len(inputs.tokens), inputs.tokens.device
    if model.training:
        raise UnivalError("the model is in training mode, where it drops parts at random: call model.eval()")
    prefix = [()] * batch if prefix is None else prefix
    if len(prefix) != batch:
        raise UnivalError(f"{len(prefix)} prefixes for {batch} samples")
    if any(isinstance(ids, int) for ids in prefix):
        raise UnivalError(f"prefixes are lists of ids, one list for each sample, got {list(prefix)}")
    positions = model.config.code_side**2 if codes else model.config.max_positions - 1
    source = (inputs.tokens != PAD).sum(1).tolist()
    longest = [min(int(options.max_len_a * length + options.max_len_b), positions) for length in source]
    for sample, (ids, limit) in enumerate(zip(prefix, longest, strict=True)):
        if max(len(ids), options.min_len) > limit:
            raise UnivalError(
                f"sample {sample}: {len(ids)} forced tokens and min_len {options.min_len} do not fit into {limit}: "
                f"raise max_len_b (the model writes {positions} at most)"
            )
    return Limits(
        longest,
        torch.tensor(longest, device=device),
        right_pad(prefix, device),
        torch.tensor([*map(len, prefix)], device=device),
    )


def _search(options: GenerationOptions, vocabulary: int, device: torch.device) -> Search:
    if options.sample:
        return Sampling(options, device)
    if 2 * options.beam > vocabulary:
        raise UnivalError(f"beam {options.beam} needs {2 * options.beam} ids, the vocabulary has {vocabulary}")
    return Greedy() if options.beam == 1 else Beam(options.beam)


def _filters(
    options: GenerationOptions, constraint: Trie | IdRange | None, limits: Limits, vocabulary: int
) -> tuple[list[Filter], list[Filter]]:
    """Return what comes before and after the softmax."""
    only: list[Filter] = []
    after: list[Filter] = [Basics(options, limits)]
    if isinstance(constraint, IdRange):
        only = [OnlyRange(constraint, vocabulary, limits.length.device)]
        after += [NoSpecials(limits)] if constraint.specials == "counted" else []
    elif constraint is not None:
        only = [OnlyAnswers(constraint, limits, vocabulary)]
    if options.no_repeat_ngram:
        after.append(NoRepeat(options.no_repeat_ngram))
    return (only, after) if options.renormalize else ([], only + after)


def _begin(model: NextToken, cache: Any, limits: Limits, temperature: float) -> tuple[Rows, Tensor]:
    """One row per sample, holding the tokens that all samples are forced to begin with, and the logits behind them."""
    batch, device = limits.prefix.shape[0], limits.prefix.device
    common = int(limits.prefix_length.min())
    tokens = torch.cat((limits.prefix.new_full((batch, 1), BOS), limits.prefix[:, :common]), dim=1)
    logits = model.decode(tokens, cache)
    check_logits(model, logits)
    forced = (logits[:, :-1].float() / temperature).log_softmax(-1)
    scores = forced.gather(-1, tokens[:, 1:, None]).squeeze(-1)
    return Rows(torch.arange(batch, device=device), tokens, scores, scores.sum(1)), logits[:, -1]


def _next_scores(
    logits: Tensor, rows: Rows, limits: Limits, filters: tuple[list[Filter], list[Filter]], temperature: float
) -> Tensor:
    """Compute log-probabilities of every next token, R x vocabulary, in float32; -inf for what must not follow."""
    before, after = filters
    free = logits.float() / temperature
    is_forced = rows.step < limits.prefix.shape[1]  # at least one row is within its prefix
    scores = free.clone() if is_forced else free
    for keep in before:
        scores = keep(scores, rows)
    scores = scores.log_softmax(-1)
    for keep in after:
        scores = keep(scores, rows)
    if before:  # a row without any allowed id has no probabilities
        scores = scores.masked_fill_(scores.isnan(), NEVER)
    if not is_forced:
        return scores
    # Rows within their prefix go on one way, with the probability it has among all ids.
    token = limits.prefix[rows.sample, rows.step].unsqueeze(1)
    only = torch.full_like(scores, NEVER).scatter(1, token, free.log_softmax(-1).gather(1, token))
    return torch.where(token == PAD, scores, only)


def _best_first(found: list[list[Hypothesis]], limits: Limits) -> list[list[Hypothesis]]:
    """Sort the sentences of every sample, the best first. Raises UnivalError for a sample without any."""
    for sample, sentences in enumerate(found):
        if not sentences:
            raise UnivalError(f"sample {sample}: no allowed answer ends within {limits.longest[sample] + 1} tokens")
    return [sorted(sentences, key=lambda sentence: -sentence.score) for sentences in found]


def _finish(rows: Rows, row: int, total: Tensor, options: GenerationOptions, limits: Limits) -> Hypothesis:
    """Return the sentence of a row, ended with eos."""
    length = rows.step + 1
    score = float(total) if options.unnormalized else float(total) / length**options.len_penalty
    return Hypothesis(
        [*rows.tokens[row, 1:].tolist(), EOS],
        score,
        [*rows.scores[row].tolist(), float(total - rows.total[row])],
        int(limits.prefix_length[rows.sample[row]]),
    )
