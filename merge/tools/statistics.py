"""What an expert's weights mean to it: Fisher information and inner products of activations, to merge by.

Statistics are state dicts with the expert's names; they can be saved and opened like checkpoints. Collect them on the
task that the expert was finetuned for, with as few as some hundred examples.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from merge.checkpoint.save import save_checkpoint
from merge.errors import MergeError

Batch = TypeVar("Batch")


def statistics(
    method: str,
    model: nn.Module,
    batches: Iterable[Batch],
    call: Callable[[nn.Module, Batch], Any] | None = None,
    output: str | Path | None = None,
    *,
    overwrite: bool = False,
) -> dict[str, Tensor]:
    """Collect what "fisher" or "regmean" weigh an expert by, and write it to a file if `output` names one.

        >>> layer = nn.Linear(2, 1)
        >>> statistics("regmean", layer, [torch.eye(2)])["weight"].tolist()
        [[0.5, 0.0], [0.0, 0.5]]

    For "fisher" `call(model, batch)` gives the negative log-likelihood of every example (`fisher_information`); for
    "regmean" it calls the model (`inner_products`), by default with a batch as its arguments: a mapping by name, a
    tuple or list in turn. Raises MergeError for another method and where nothing was collected.
    """
    if method == "regmean":
        found = inner_products(model, batches, call or called)
    elif method != "fisher":
        raise MergeError(f"{method} takes no statistics; fisher and regmean do")
    elif call is None:
        raise MergeError("fisher needs call(model, batch): the negative log-likelihood of every example of a batch")
    else:
        found = fisher_information(model, batches, call)
    if output is not None:
        save_checkpoint(found, output, overwrite=overwrite)
    return found


def called(model: nn.Module, batch: Any) -> Any:
    """Call a model with a batch: a mapping by name, a tuple or list in turn, anything else alone."""
    if isinstance(batch, Mapping):
        return model(**batch)
    return model(*batch) if isinstance(batch, (tuple, list)) else model(batch)


def fisher_information(
    model: nn.Module, batches: Iterable[Batch], losses: Callable[[nn.Module, Batch], Tensor]
) -> dict[str, Tensor]:
    """Give the diagonal of the empirical Fisher information: each parameter's mean squared gradient over examples.

    `losses(model, batch)` returns the negative log-likelihood of every example of a batch, as a vector (Matena and
    Raffel 2022, section 3.1; with labels drawn from the model it is the true Fisher information). The model is put into
    evaluation mode for the time being; its gradients are not touched. Parameters that do not take part have 0, floating
    buffers 1, so that they are averaged; integers are copied. Raises MergeError without any example.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    sums = [torch.zeros_like(parameter, dtype=torch.float32) for parameter in parameters]
    count = 0
    with evaluating(model):
        for batch in batches:
            values = losses(model, batch).reshape(-1)
            for index, value in enumerate(values):
                more = index + 1 < len(values)
                gradients = torch.autograd.grad(value, parameters, retain_graph=more, materialize_grads=True)
                for total, gradient in zip(sums, gradients, strict=True):
                    total += gradient.detach().float().square_()
            count += len(values)
    if not count:
        raise MergeError("Fisher information needs examples; there were none")
    found = {id(parameter): total / count for parameter, total in zip(parameters, sums, strict=True)}
    return {
        name: found[id(value)] if id(value) in found else _unweighted(value.detach())
        for name, value in model.state_dict(keep_vars=True).items()
    }


def inner_products(
    model: nn.Module, batches: Iterable[Batch], run: Callable[[nn.Module, Batch], object]
) -> dict[str, Tensor]:
    """RegMean's statistics: for the weight (out, in) of every `nn.Linear`, the mean `x x^T` (in, in) of its inputs x.

    `run(model, batch)` calls the model. Weights of linear layers that were not called as modules, and all other
    tensors, get statistics that mean a plain average. The model is put into evaluation mode for the time being. Raises
    MergeError where no linear layer was called.
    """
    sums: dict[int, Tensor] = {}
    counts: dict[int, int] = {}

    def note(module: nn.Module, arguments: tuple[Any, ...]) -> None:
        weight = module.get_parameter("weight")
        rows = arguments[0].detach().reshape(-1, weight.shape[1]).double()
        sums[id(weight)] = sums.get(id(weight), 0) + rows.T @ rows
        counts[id(weight)] = counts.get(id(weight), 0) + len(rows)

    hooks = [module.register_forward_pre_hook(note) for module in model.modules() if isinstance(module, nn.Linear)]
    try:
        with evaluating(model), torch.no_grad():
            for batch in batches:
                run(model, batch)
    finally:
        for hook in hooks:
            hook.remove()
    if not any(counts.values()):
        raise MergeError("no linear layer was called; RegMean needs batches that pass through the model")
    return {
        name: (sums[id(value)] / counts[id(value)]).float() if counts.get(id(value)) else _unweighted(value.detach())
        for name, value in model.state_dict(keep_vars=True).items()
    }


def _unweighted(value: Tensor) -> Tensor:
    """Statistics that mean a plain average, in the shape that every method reads so; integers as they are."""
    if not value.dtype.is_floating_point:
        return value.clone()
    if value.dim() == 2 and value.shape[0] == value.shape[1]:
        return torch.eye(len(value))  # for RegMean a square statistic is a table of inner products
    return torch.ones(value.shape)


@contextmanager
def evaluating(model: nn.Module) -> Generator[None]:
    """Evaluation mode for the time being, module by module."""
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, was in training.items():
            module.training = was
