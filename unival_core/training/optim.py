"""Adam with decoupled weight decay, how its rate changes, and the moving average of the weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from unival_core.errors import UnivalError
from unival_core.inputs import MEDIA
from unival_core.model import UnivalModel
from unival_core.training.options import GROUPS, TrainOptions


def trainable(model: UnivalModel, group: str = "all") -> list[nn.Parameter]:
    """Let only `group` of the parameters be trained, and return them for the optimizer.

    Groups: "all"; "all but embeddings" (the token matrix, and with it the output projection, stays as it is);
    "projections" (the linear maps from media features to tokens). Batch-norm statistics follow train() and eval().
    """
    if group not in GROUPS:
        raise UnivalError(f"no group {group!r} of parameters: choose one of {', '.join(GROUPS)}")
    projections = {f"encoder.{name}_proj" for name in MEDIA}
    for name, parameter in model.named_parameters():
        embedding, projection = name == "encoder.embed_tokens.weight", name.rpartition(".")[0] in projections
        parameter.requires_grad_(projection or (group != "projections" and not (embedding and group != "all")))
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


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
