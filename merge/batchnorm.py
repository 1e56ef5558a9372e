"""Batch normalisation of merged models: statistics measured anew on unlabelled inputs."""

from __future__ import annotations

import random
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm  # pyright: ignore[reportPrivateUsage]

from merge.errors import MergeError

Batch = TypeVar("Batch")
Forward = Callable[[nn.Module, Batch], object]


def recalibrate_batchnorm(model: nn.Module, batches: Iterable[Batch], forward: Forward[Batch] | None = None) -> None:
    """Replace the running statistics of every BatchNorm layer by those of `batches`, in place (arXiv 1803.05407).

    `forward(model, batch)` runs the model, by default `model(batch)`; labels are not needed. Means, and variances, are
    those of the batches, each batch counting the same: prefer large batches of one size. Only BatchNorm layers are put
    into training mode, so that dropout stays off. Layers that no batch passes through keep their statistics (the video
    network of a model that is shown pictures). Parameters, gradients, modes, momenta, `num_batches_tracked` and the
    global random state are left as they were; an error leaves the statistics so, too.

    >>> model = nn.BatchNorm1d(1).eval()
    >>> recalibrate_batchnorm(model, [torch.tensor([[1.0], [3.0]]), torch.tensor([[5.0], [7.0]])])
    >>> model.running_mean, model.running_var
    (tensor([4.]), tensor([2.]))

    Raises MergeError for a model without such layers, and where no batch came or none passed through one of them.
    """
    layers = {name: layer for name, layer in named_modules(model).items() if _has_statistics(layer)}
    if not layers:
        raise MergeError("the model has no BatchNorm layer with running statistics: there is nothing to recalibrate")
    count = 0
    with _measuring(layers.values()) as reached, _same_randomness(model), torch.no_grad():
        for batch in batches:
            _run(model, batch, forward)
            count += 1
        if not count:
            raise MergeError("recalibration needs batches; there were none")
        if not reached():
            raise MergeError(
                f"none of {count} batches passed through a BatchNorm layer ({next(iter(layers))} ...): "
                "give inputs of the kind that the layers see"
            )


def named_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Every module of a model by its first name."""
    return dict(cast("Iterable[tuple[str, nn.Module]]", model.named_modules()))


def _run(model: nn.Module, batch: Any, forward: Forward[Any] | None) -> None:
    if forward is None:
        model(batch)
    else:
        forward(model, batch)


def _has_statistics(module: nn.Module) -> bool:
    return isinstance(module, BatchNorm) and module.running_mean is not None and module.running_var is not None


@contextmanager
def _measuring(layers: Iterable[nn.Module]) -> Generator[Callable[[], bool]]:
    """BatchNorm layers as they average over batches, all else about them restored at the end.

    Yields a function that tells whether a batch has passed through one of them.
    """
    norms = [layer for layer in layers if isinstance(layer, BatchNorm)]
    saved = [{name: value.clone() for name, value in norm.named_buffers(recurse=False)} for norm in norms]
    modes = [(norm.training, norm.momentum) for norm in norms]
    failed = True
    try:
        for norm in norms:
            norm.reset_running_stats()
            norm.train()
            norm.momentum = None  # a plain mean over batches
        yield lambda: any(_passed(norm) for norm in norms)
        failed = False
    finally:
        for norm, buffers, (training, momentum) in zip(norms, saved, modes, strict=True):
            norm.training, norm.momentum = training, momentum
            kept = not failed and _passed(norm)
            with torch.no_grad():
                for name, value in buffers.items():
                    if not kept or name == "num_batches_tracked":
                        norm.get_buffer(name).copy_(value)


def _passed(norm: BatchNorm) -> bool:
    return norm.num_batches_tracked is not None and bool(norm.num_batches_tracked > 0)


@contextmanager
def _same_randomness(model: nn.Module) -> Generator[None]:
    """Python's and torch's generators, on the processor and on the model's devices, go on as if nothing had been."""
    tensors: list[Tensor] = [*model.parameters(), *model.buffers()]
    devices = {tensor.device for tensor in tensors if tensor.device.type == "cuda"}
    state, processor = random.getstate(), torch.get_rng_state()
    states = {device: torch.cuda.get_rng_state(device) for device in devices}
    try:
        yield
    finally:
        random.setstate(state)
        torch.set_rng_state(processor)
        for device, saved in states.items():
            torch.cuda.set_rng_state(saved, device)
