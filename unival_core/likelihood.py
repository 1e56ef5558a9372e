"""How probable a model finds what it should have said."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from unival_core.config import PAD
from unival_core.data.answers import Answers
from unival_core.data.batch import Batch, Example, taught
from unival_core.decoding import check_logits
from unival_core.generation import NextToken


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
