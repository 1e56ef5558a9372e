"""An exponential moving average of the weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Average:
    """The average of a model's tensors over its updates, in float32 whatever the model's precision.

    It starts as the model itself. Batch-norm statistics are averaged like weights, integers are those of the model.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.tensors = {name: _wide(tensor).clone() for name, tensor in _unique(model).items()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move by 1 - decay towards the model."""
        for name, tensor in _unique(model).items():
            mean = self.tensors[name]
            if mean.is_floating_point():
                mean.lerp_(_wide(tensor), 1 - self.decay)
            else:
                mean.copy_(tensor)

    @contextmanager
    def worn_by(self, model: nn.Module) -> Iterator[None]:
        """Give the model the averaged weights in this block, and exactly its own ones again behind it."""
        own = {name: tensor.clone() for name, tensor in _unique(model).items()}
        _fill(model, self.tensors)
        try:
            yield
        finally:
            _fill(model, own)


def _unique(model: nn.Module) -> dict[str, Tensor]:
    """Collect parameters and buffers, tied ones once."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def _wide(tensor: Tensor) -> Tensor:
    return tensor.detach().float() if tensor.is_floating_point() else tensor.detach()


@torch.no_grad()
def _fill(model: nn.Module, values: Mapping[str, Tensor]) -> None:
    for name, tensor in _unique(model).items():
        tensor.copy_(values[name])
