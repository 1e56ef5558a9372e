"""Training losses: label-smoothed cross-entropy, and the encouraging loss on top of it (arXiv 2107.12592).

>>> logits, targets = torch.zeros(1, 2, 4), torch.tensor([[3, 1]])  # the second target is padding
>>> round(float(token_loss(logits, targets).mean), 4)  # ln 4
1.3863
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from unival_core.config import PAD
from unival_core.data.batch import Batch
from unival_core.errors import UnivalError
from unival_core.model import UnivalModel

SPECIALS = 4  # ids that a range of allowed ids always includes


@dataclass(frozen=True)
class LossOptions:
    """How targets count.

    `smoothing` is the share of probability spread over all other allowed ids. `allowed_range` (first, end) leaves only
    the four specials and these ids. `ignore_prefix` skips that many first target positions. `encourage_until` turns the
    encouraging loss on: ln(1 - p) is added up to that probability, its tangent beyond (1: no tangent; published 0.75).
    `drop_worst` is the share of tokens with the largest loss left out after update `drop_after` (noisy targets), and
    `drop_best` that of the smallest: published recipes set it too, but their code never applied it.
    """

    smoothing: float = 0.0
    allowed_range: tuple[int, int] | None = None
    ignore_prefix: int = 0
    encourage_until: float | None = None
    drop_worst: float = 0.0
    drop_best: float = 0.0
    drop_after: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.drop_worst + self.drop_best < 1:
            raise UnivalError(f"drop_worst {self.drop_worst} and drop_best {self.drop_best} leave no token: lower them")


@dataclass(frozen=True)
class LossValue:
    """Sums over the tokens that counted: `loss` (with gradient), `likelihood` (negative log, unsmoothed), `tokens`."""

    loss: Tensor
    likelihood: Tensor
    tokens: int

    @property
    def mean(self) -> Tensor:
        """Compute the loss per token."""
        return self.loss / max(1, self.tokens)


def token_loss(
    logits: Tensor,
    targets: Tensor,
    options: LossOptions | None = None,
    *,
    update: int = 0,
    confidence: Tensor | None = None,
    allowed: Tensor | None = None,
) -> LossValue:
    """Compute the loss of B x U x V `logits` for B x U `targets`, of which those equal to 1 (padding) do not count.

    `confidence` (B) multiplies each sample's log-probabilities; `allowed` (B x U x V, bool) tells the ids that a
    position may choose from, all others get probability 0; `update` numbers the training step, for the drop options.
    """
    options = options or LossOptions()
    if options.allowed_range is not None and allowed is not None:
        raise UnivalError("allowed_range and a mask of allowed ids exclude each other: give one")
    kept = targets != PAD
    kept[:, : options.ignore_prefix] = False
    scores, targets = logits[kept].float(), targets[kept]  # n x V, n
    choices = None if allowed is None else allowed[kept]
    if options.allowed_range is not None:
        first, end = options.allowed_range
        ids = torch.arange(scores.shape[1], device=scores.device)
        choices = ((ids < SPECIALS) | ((ids >= first) & (ids < end))).expand_as(scores)
    if choices is not None:
        scores = scores.masked_fill(~choices, -math.inf)
    scores = scores.log_softmax(-1)
    if confidence is not None:
        scores = scores * confidence[:, None].expand_as(kept)[kept].unsqueeze(1)
    losses, likelihood = smoothed(scores, targets, options.smoothing, choices)
    if update > options.drop_after and (options.drop_worst or options.drop_best):
        middle = losses.argsort()[int(len(losses) * options.drop_best) : int(len(losses) * (1 - options.drop_worst))]
        losses, likelihood, scores, targets = losses[middle], likelihood[middle], scores[middle], targets[middle]
    loss = losses.sum()
    if options.encourage_until is not None:
        loss = loss + encouragement(scores, targets, options.smoothing, options.encourage_until)
    return LossValue(loss, likelihood.sum(), len(targets))


def smoothed(scores: Tensor, targets: Tensor, smoothing: float, allowed: Tensor | None) -> tuple[Tensor, Tensor]:
    """Compute the label-smoothed loss and negative log-likelihood of each of n tokens, from n x V log-probabilities."""
    likelihood = -scores.gather(1, targets[:, None]).squeeze(1)
    if not smoothing:
        return likelihood, likelihood
    if allowed is None:
        total, share = scores.sum(1), smoothing / (scores.shape[1] - 1)
    else:
        total = scores.masked_fill(~allowed, 0.0).sum(1)
        share = smoothing / (allowed.sum(1) - 1 + 1e-6)
    return (1 - smoothing - share) * likelihood - share * total, likelihood


def encouragement(scores: Tensor, targets: Tensor, smoothing: float, until: float) -> Tensor:
    """Give the sum over tokens of ln(1 - p), linear beyond p = `until`: it keeps well-known tokens worth learning."""
    p = scores.exp()
    bonus = (1 - p).clamp_min(1e-5).log()
    if until != 1:
        bonus = torch.where(p > until, (p - until) / (until - 1) + math.log(1 - until), bonus)
    chosen = bonus.gather(1, targets[:, None]).sum()
    return (1 - smoothing) * chosen + smoothing / scores.shape[1] * bonus.sum()


class TokenLoss(nn.Module):
    """Cross-entropy of the targets, one mean a task (else long captions drown answers of one word).

    A module around the model, so that data parallelism sees all batches of an update as one forward pass.
    """

    def __init__(self, model: UnivalModel, options: LossOptions) -> None:
        super().__init__()
        self.model, self.options = model, options

    def count(self, batches: Sequence[Batch], update: int) -> Counter[str]:
        """Count the tokens of each task that its mean is over."""
        counts: Counter[str] = Counter()
        for batch in batches:
            for task, rows in rows_by_task(batch).items():
                kept = int((batch.targets[rows, self.options.ignore_prefix :] != PAD).sum())
                if update > self.options.drop_after:
                    kept = int(kept * (1 - self.options.drop_worst)) - int(kept * self.options.drop_best)
                counts[task] += kept
        return counts

    def forward(self, batches: Sequence[Batch], scale: Mapping[str, float], update: int) -> dict[str, Tensor]:
        """Return the summed loss of each task times its `scale`. Each batch goes through the model at once."""
        losses: dict[str, Tensor] = {}
        for batch in batches:
            logits = self.model(batch.inputs, batch.target_inputs, batch.code_rows)
            for task, rows in rows_by_task(batch).items():
                limited = batch.allowed is not None and batch.examples[int(rows[0])].answers is not None
                value = token_loss(
                    logits[rows],
                    batch.targets[rows],
                    self.options,
                    update=update,
                    confidence=batch.confidence[rows],
                    allowed=batch.allowed[rows] if limited and batch.allowed is not None else None,
                )
                losses[task] = losses.get(task, 0.0) + value.loss * scale[task]
        return losses


def rows_by_task(batch: Batch) -> dict[str, Tensor]:
    """Return numbers of each task's samples, in order of appearance."""
    rows: dict[str, list[int]] = {}
    for row, example in enumerate(batch.examples):
        rows.setdefault(example.task, []).append(row)
    return {task: torch.tensor(numbers, device=batch.targets.device) for task, numbers in rows.items()}
