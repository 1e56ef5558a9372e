"""Adam with decoupled weight decay, and how its rate changes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from unival_core.training.options import TrainOptions


def make_optimizer(parameters: Sequence[nn.Parameter], options: TrainOptions) -> torch.optim.AdamW:
    """Return the optimiser of the published recipes: weight decay on every parameter, norms and biases included."""
    return torch.optim.AdamW(
        parameters, lr=options.lr, betas=options.betas, eps=options.eps, weight_decay=options.weight_decay
    )


def learning_rate(update: int, total: int, options: TrainOptions) -> float:
    """Return the rate of an update (counted from 1): a linear rise, then a linear fall that would reach 0 one later.

    >>> [learning_rate(update, 5, TrainOptions(lr=1.0, updates=5, warmup=0.4)) for update in (1, 2, 3, 5)]
    [0.5, 1.0, 1.0, 0.3333333333333333]
    """
    warmup = round(options.warmup * total)
    if update <= warmup:
        return options.lr * update / warmup
    return options.lr * (total + 1 - update) / (total - warmup)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every group of parameters this rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate
