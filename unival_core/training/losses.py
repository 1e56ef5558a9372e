"""What a training run lowers: token losses averaged task by task."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from unival_core.config import PAD
from unival_core.data.batch import Batch
from unival_core.model import UnivalModel
from unival_core.training.loss import LossOptions, token_loss


class TokenLoss(nn.Module):
    """Cross-entropy of the targets, one mean a task (else long captions drown answers of one word).

    A module around the model, so that data parallelism sees all batches of an update as one forward pass.
    """

    def __init__(self, model: UnivalModel, options: LossOptions) -> None:
        super().__init__()
        self.model, self.options = model, options

    def count(self, batches: Sequence[Batch], update: int) -> Counter[str]:
        """Tokens of each task that its mean is over."""
        counts: Counter[str] = Counter()
        for batch in batches:
            for task, rows in rows_by_task(batch).items():
                kept = int((batch.targets[rows, self.options.ignore_prefix :] != PAD).sum())
                if update > self.options.drop_after:
                    kept = int(kept * (1 - self.options.drop_worst)) - int(kept * self.options.drop_best)
                counts[task] += kept
        return counts

    def forward(self, batches: Sequence[Batch], scale: Mapping[str, float], update: int) -> dict[str, Tensor]:
        """The summed loss of each task times its `scale`. Each batch goes through the model at once."""
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
    """Numbers of each task's samples, in order of appearance."""
    rows: dict[str, list[int]] = {}
    for row, example in enumerate(batch.examples):
        rows.setdefault(example.task, []).append(row)
    return {task: torch.tensor(numbers, device=batch.targets.device) for task, numbers in rows.items()}
