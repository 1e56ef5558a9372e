"""Self-critical sequence training of boxes (arXiv 1612.00563, with the mean of the other samples as baseline)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from unival_core.config import BOS
from unival_core.data.batch import Batch, Example
from unival_core.errors import UnivalError
from unival_core.generation import GenerationOptions, IdRange, generate
from unival_core.metrics import box_iou
from unival_core.model import UnivalModel
from unival_core.training.options import RewardOptions
from unival_core.vocabulary import Tokenizer

BOX = 4  # tokens


class RewardLoss(nn.Module):
    """Raises the probability of boxes drawn from the model that are better than its other draws for the example.

    The loss of a drawn box is minus its log-probability (among bins) times its advantage: its reward, 0 or 1, minus the
    mean reward of the example's other draws. Takes the place of `TokenLoss`.
    """

    def __init__(self, model: UnivalModel, tokenizer: Tokenizer, options: RewardOptions) -> None:
        super().__init__()
        self.model, self.tokenizer, self.options = model, tokenizer, options

    def count(self, batches: Sequence[Batch], update: int) -> Counter[str]:
        """Count the drawn tokens that count, by task."""
        counts: Counter[str] = Counter()
        for example in (example for batch in batches for example in batch.examples):
            counts[example.task] += self.options.samples * BOX * self.counts(example)
        return counts

    def counts(self, example: Example) -> bool:
        """Tell whether the right box has the size that is rewarded."""
        if example.reference is None or len(example.reference) != BOX or example.size is None:
            raise UnivalError(f"{example.place}: task {example.task} has no box to reward: train it on its targets")
        return self.options.counts(example.reference)

    def forward(self, batches: Sequence[Batch], scale: Mapping[str, float], update: int) -> dict[str, Tensor]:
        """Return the summed loss of each task times its `scale`."""
        losses: dict[str, Tensor] = {}
        for batch in batches:
            drawn = self.draw(batch)
            advantage = self.advantages(batch, drawn)
            gain = (self.log_probabilities(batch, drawn) * advantage).sum((1, 2))
            for example, value in zip(batch.examples, gain, strict=True):
                losses[example.task] = losses.get(example.task, 0.0) - value * scale.get(example.task, 0.0)
        return losses

    @torch.no_grad()
    def draw(self, batch: Batch) -> Tensor:
        """Return boxes from the model without dropout, B x samples x 4 ids."""
        modes = {module: module.training for module in self.model.modules()}
        options = GenerationOptions(
            beam=self.options.samples, sample=True, min_len=BOX, max_len_b=BOX, seed=int(torch.randint(2**31, ()))
        )
        bins = IdRange(self.tokenizer.bin_offset, self.tokenizer.size)
        try:
            found = generate(self.model.eval(), batch.inputs, options, constraint=bins)
        finally:
            for module, training in modes.items():
                module.training = training
        return torch.tensor([[box.answer for box in boxes] for boxes in found], device=batch.targets.device)

    def advantages(self, batch: Batch, drawn: Tensor) -> Tensor:
        """Compute reward minus the mean of the others', B x samples x 1; 0 where the example does not count."""
        rewards = np.zeros(drawn.shape[:2])
        for row, (example, boxes) in enumerate(zip(batch.examples, drawn.tolist(), strict=True)):
            if self.counts(example):
                size = example.size or (0, 0)
                given = [self.tokenizer.ids_to_box(box, size) for box in boxes]
                rewards[row] = box_iou(given, [example.reference] * len(given)) >= self.options.overlap
        others = (rewards.sum(1, keepdims=True) - rewards) / (self.options.samples - 1)
        return torch.from_numpy(rewards - others).float().to(drawn.device).unsqueeze(-1)

    def log_probabilities(self, batch: Batch, drawn: Tensor) -> Tensor:
        """Compute the log-probability of each drawn bin among all bins, B x samples x 4, with gradient."""
        samples, bins = self.options.samples, slice(self.tokenizer.bin_offset, self.tokenizer.size)
        rows = torch.arange(len(batch), device=drawn.device).repeat_interleave(samples)
        cache = self.model.start(self.model.encode(batch.inputs))
        cache.select(rows)
        tokens = drawn.flatten(0, 1)
        begin = torch.cat((tokens.new_full((len(tokens), 1), BOS), tokens[:, :-1]), dim=1)
        scores = self.model.decode(begin, cache)[..., bins].float().log_softmax(-1)
        chosen = scores.gather(-1, (tokens - self.tokenizer.bin_offset).unsqueeze(-1)).squeeze(-1)
        return chosen.unflatten(0, (-1, samples))
