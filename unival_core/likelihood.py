"""How probable a model finds what it should have said, and what it might say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from unival_core.config import BOS, EOS, PAD
from unival_core.data.answers import Answers
from unival_core.data.batch import Batch, Example, taught
from unival_core.decoding import check_logits
from unival_core.generation import GREEDY, NextToken, limits_of
from unival_core.inputs import Inputs
from unival_core.text import Trie, right_pad


@torch.no_grad()
def negative_log_likelihood(
    model: NextToken, batch: Batch, answers: Answers | None = None, cache: Any = None
) -> list[float]:
    """Compute of every example the negative log-likelihood of its references, in nats per token.

    That of a reference, as the decoder is taught it, is summed over its tokens and eos, each behind those before it,
    and divided by their number; a forced prefix does not count. Of several references (captions) it is the mean, of
    weighted answers that of the most confident one, which training takes. With a list of `answers`, probabilities are
    among the ids that go on with one of them, as in training, but among all ids for a reference that is not in it.
    Several models that answer as one have the mean of their probabilities. `cache` is what `model.start` returned of
    the batch, where that is known; it stays as it is. Raises NotFinite for logits that are not finite.
    """
    device = batch.targets.device
    examples = [limited(e, target, answers) for e in batch.examples for target in (e.target, *e.further)]
    owner = [row for row, e in enumerate(batch.examples) for _ in (e.target, *e.further)]
    inputs, targets, allowed = taught(examples)
    kept = (targets != PAD).to(device)
    cache = model.start(model.encode(batch.inputs), batch.code_rows) if cache is None else cache.copy()
    cache.select(torch.tensor(owner, device=device))
    logits = model.decode(inputs.to(device), cache)[kept].float()
    check_logits(model, logits)
    if allowed is not None:
        logits = logits.masked_fill(~allowed.to(device)[kept], -torch.inf)
    chosen = -logits.log_softmax(-1).gather(1, targets.to(device)[kept].unsqueeze(1)).squeeze(1)
    losses = chosen.new_zeros(kept.shape).masked_scatter(kept, chosen).sum(1) / kept.sum(1)
    found: list[list[float]] = [[] for _ in batch.examples]
    for row, loss in zip(owner, losses.tolist(), strict=True):
        found[row].append(loss)
    return [sum(own) / len(own) for own in found]


def limited(example: Example, target: list[int], answers: Answers | None) -> Example:
    """Return an example with a target, and with the answers allowed if it is one of them."""
    return replace(example, target=target, answers=answers if answers is not None and answers.text(target) else None)


@torch.no_grad()
def score_candidates(
    model: NextToken,
    inputs: Inputs,
    candidates: Sequence[Sequence[int]],
    *,
    prefix: Sequence[Sequence[int]] | None = None,
    rows: int = 64,
    cache: Any = None,
) -> Tensor:
    """Return the log-probability of each of A candidate answers (ids without eos) for each of B samples, B x A in
    float32.

    At every position the probabilities of the ids that continue some candidate sum to 1; the forced `prefix` of a
    sample (after bos) does not count. Media, texts and prefixes go through the model once, media and texts before if
    there is a `cache` (as of `generate`); about `rows` answers are decoded at a time.
    Raises UnivalError as `generate` does.
    """
    trie = Trie(candidates).to(inputs.tokens.device)
    limits = limits_of(model, inputs, GREEDY, prefix)
    cache = model.start(model.encode(inputs)) if cache is None else cache
    scores = torch.empty(len(inputs.tokens), len(candidates), device=inputs.tokens.device)
    for length in limits.prefix_length.unique().tolist():
        members = (limits.prefix_length == length).nonzero().flatten()
        begun = cache.copy()
        begun.select(members)
        head = model.decode(F.pad(limits.prefix[members, :length], (1, 0), value=BOS), begun)[:, -1:]
        size = max(1, rows // len(members))
        for first in range(0, len(candidates), size):
            answers = right_pad(candidates[first : first + size], head.device)
            scores[members, first : first + size] = _score_answers(model, begun.copy(), head, answers, trie)
    return scores


def _score_answers(model: NextToken, cache: Any, head: Tensor, answers: Tensor, trie: Trie) -> Tensor:
    """Scores of right-padded answers (A x L) of B samples, B x A, behind the rows of `cache`, whose last logits are
    `head` (B x 1 x vocabulary)."""
    samples, count = len(head), len(answers)
    cache.select(torch.arange(samples, device=head.device).repeat_interleave(count))
    logits = torch.cat((head.repeat_interleave(count, dim=0), model.decode(answers.repeat(samples, 1), cache)), dim=1)
    ends = (answers != PAD).sum(1, keepdim=True)
    targets = F.pad(answers, (0, 1), value=PAD).scatter(1, ends, EOS)
    wanted = (targets != PAD).repeat(samples, 1)
    check_logits(model, logits[wanted])
    allowed = trie.keep_allowed(logits[wanted].float(), trie.nodes(targets).repeat(samples, 1)[wanted])
    chosen = allowed.log_softmax(-1).gather(1, targets.repeat(samples, 1)[wanted].unsqueeze(1)).squeeze(1)
    return chosen.new_zeros(wanted.shape).masked_scatter(wanted, chosen).sum(1).view(samples, count)
