"""Statistics of a merged model's activations: BatchNorm measured anew, variance that merging lost given back (REPAIR).

Both see unlabelled inputs only, and write into a live model.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm  # pyright: ignore[reportPrivateUsage]

from merge.errors import MergeError
from merge.tools.statistics import evaluating

Batch = TypeVar("Batch")
Forward = Callable[[nn.Module, Batch], object]
LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
CHANNELED = (*LAYERS, BatchNorm, nn.LayerNorm)  # what `channel_axis` knows


class Moments(NamedTuple):
    """Mean and standard deviation of each channel, two float64 vectors."""

    mean: Tensor
    deviation: Tensor


End = nn.Module | Mapping[str, Moments]


def recalibrate_batchnorm(model: nn.Module, batches: Iterable[Batch], forward: Forward[Batch] | None = None) -> None:
    """Replace the running statistics of every BatchNorm layer by those of `batches`, in place (arXiv 1803.05407).

    `forward(model, batch)` runs the model, by default `model(batch)`; labels are not needed. Means, and variances, are
    those of the batches, each batch counting the same: prefer large batches of one size. All but the BatchNorm layers
    is in evaluation mode meanwhile, dropout too. Layers that no batch passes through keep their statistics (the video
    network of a model that is shown images). Parameters, gradients, modes, momenta, `num_batches_tracked` and the
    global random state are left as they were; an error leaves the statistics so, too.

    >>> model = nn.BatchNorm1d(1).eval()
    >>> recalibrate_batchnorm(model, [torch.tensor([[1.0], [3.0]]), torch.tensor([[5.0], [7.0]])])
    >>> model.running_mean, model.running_var
    (tensor([4.]), tensor([2.]))

    Raises MergeError for a model without such layers, and where no batch came or none passed through one of them.
    """
    layers = [name for name, layer in named_modules(model).items() if _has_statistics(layer)]
    if not layers:
        raise MergeError("the model has no BatchNorm layer with running statistics: there is nothing to recalibrate")
    if not _recalibrate(model, batches, forward):
        raise MergeError(f"no batch passed through {layers[0]} or another BatchNorm layer: give inputs that they see")


def _recalibrate(model: nn.Module, batches: Iterable[Batch], forward: Forward[Batch] | None) -> bool:
    """Runs the model in evaluation mode but for its BatchNorm layers; whether a batch passed through one of them."""
    layers = [layer for layer in model.modules() if _has_statistics(layer)]
    with evaluating(model), _measuring(layers) as reached, same_randomness(model), torch.no_grad():
        count = 0
        for batch in batches:
            run_batch(model, batch, forward)
            count += 1
        if not count:
            raise MergeError("the model has to see batches, and there were none")
        return reached()


def repair(
    model: nn.Module,
    ends: tuple[End, End],
    ratio: float,
    batches: Iterable[Batch],
    forward: Forward[Batch] | None = None,
) -> None:
    """Give a merged model's pre-activations the mean and deviation between those of its ends (REPAIR, 2211.08403).

    Channel by channel, mean and deviation become `(1 - ratio) * first + ratio * second` on these batches, by a factor
    and a shift that go into weight and bias of the layer, in place; BatchNorm statistics are measured anew on the way,
    as by `recalibrate_batchnorm`. `ends` are models, or what `activation_statistics` recorded of them on the same
    batches; ratio is the share of the second. Exact for one batch, close for several; channels without variance are
    only shifted. At ratio 0 and 1 the model is an end, and stays as it is.

    Raises MergeError without batches, and where the ends and the model do not have the same layers.
    """
    if ratio in (0, 1):
        return
    shown = list(batches) if any(isinstance(end, nn.Module) for end in ends) else batches
    first, second = (activation_statistics(end, shown, forward) if isinstance(end, nn.Module) else end for end in ends)
    layers = named_modules(model)
    strange = sorted((first.keys() ^ second.keys()) | (first.keys() - layers.keys()))
    if strange:
        raise MergeError(f"REPAIR needs the same layers in both ends and the model; not in all: {strange[:20]}")
    targets = {
        name: Moments(*(torch.lerp(a, b, ratio) for a, b in zip(first[name], second[name], strict=True)))
        for name in first
    }
    sums: dict[str, _Sums] = {}

    def corrected(name: str, layer: nn.Module, output: Tensor) -> Tensor:
        now = _Sums()
        now.add(layer, output)
        sums.setdefault(name, _Sums()).add(layer, output)
        scale, shift = _correction(now.moments, targets[name])
        return _broadcast(scale, layer, output) * output + _broadcast(shift, layer, output)

    with after_each({name: layers[name] for name in targets}, corrected):
        _recalibrate(model, shown, forward)
    for name, seen in sums.items():
        _fold(layers[name], *_correction(seen.moments, targets[name]))


def activation_statistics(
    model: nn.Module, batches: Iterable[Batch], forward: Forward[Batch] | None = None
) -> dict[str, Moments]:
    """Moments of what the layers that `repair` can correct give out in evaluation mode, by module name.

    They are the linear and convolutional layers that have a bias and share their weight with no other module, but for
    those that feed a BatchNorm layer directly, which undoes such corrections; there it is the BatchNorm layer with its
    own factor and shift. Layers that are not called as modules are not seen. Raises MergeError without batches.
    """
    layers = {name: layer for name, layer in named_modules(model).items() if isinstance(layer, (*LAYERS, BatchNorm))}
    sums: dict[str, _Sums] = {}
    normed: set[str] = set()
    last: list[tuple[str, Tensor, int]] = []

    def note(name: str, layer: nn.Module, output: Tensor) -> None:
        sums.setdefault(name, _Sums()).add(layer, output)
        last[:] = [(name, output, _version(output))]

    def entering(_: nn.Module, arguments: tuple[Any, ...]) -> None:
        x = arguments[0]
        normed.update(name for name, output, version in last if output is x and _version(x) == version)

    hooks = [layer.register_forward_pre_hook(entering) for layer in layers.values() if isinstance(layer, BatchNorm)]
    try:
        with evaluating(model), after_each(layers, note), same_randomness(model), torch.no_grad():
            for batch in batches:
                run_batch(model, batch, forward)
                last.clear()
    finally:
        for hook in hooks:
            hook.remove()
    if not sums:
        raise MergeError("no linear, convolutional or BatchNorm layer was called: there is nothing to measure")
    owners = Counter(id(value) for module in model.modules() for value in module.parameters(recurse=False))
    correctable = {name for name, layer in layers.items() if _own_affine(layer, owners)}
    return {name: seen.moments for name, seen in sums.items() if name in correctable and name not in normed}


class _Sums:
    """Sums over all values of each channel, in float64."""

    def __init__(self) -> None:
        self._count, self._sum, self._squares = 0, torch.zeros(()), torch.zeros(())

    def add(self, layer: nn.Module, output: Tensor) -> None:
        values = output.detach().movedim(channel_axis(layer), -1)
        values = values.reshape(-1, values.shape[-1]).double()
        self._count += len(values)
        self._sum = self._sum.to(values) + values.sum(0)
        self._squares = self._squares.to(values) + values.square().sum(0)

    @property
    def moments(self) -> Moments:
        mean = self._sum / self._count
        return Moments(mean, (self._squares / self._count - mean.square()).clamp_min(0).sqrt())


def _correction(seen: Moments, target: Moments) -> tuple[Tensor, Tensor]:
    """Factor and shift that turn one pair of moments into the other."""
    mean, deviation = (value.to(seen.mean) for value in target)
    constant = seen.deviation <= 1e-6 * seen.mean.abs()  # what is left of a constant after rounding
    scale = torch.where(constant, 1.0, deviation / seen.deviation.where(~constant, torch.ones_like(seen.deviation)))
    return scale, mean - scale * seen.mean


def _fold(layer: nn.Module, scale: Tensor, shift: Tensor) -> None:
    """Apply a factor and a shift of a layer's output to its weight and bias."""
    weight, bias = layer.get_parameter("weight"), layer.get_parameter("bias")
    with torch.no_grad():
        weight.copy_(weight * scale.view(-1, *[1] * (weight.dim() - 1)))
        bias.copy_(bias * scale + shift)


@contextmanager
def after_each(
    layers: Mapping[str, nn.Module], act: Callable[[str, nn.Module, Tensor], Tensor | None]
) -> Generator[None]:
    """Calls `act(name, layer, output)` whenever a layer has run; a tensor it returns takes the output's place."""

    def hook_for(name: str) -> Callable[[nn.Module, tuple[Any, ...], Tensor], Tensor | None]:
        return lambda layer, _, output: act(name, layer, output)

    hooks = [layer.register_forward_hook(hook_for(name)) for name, layer in layers.items()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _version(tensor: Tensor) -> int:
    """Counts changes in place: an activation may lie between a layer and a norm that get the same tensor."""
    return tensor._version  # pyright: ignore[reportPrivateUsage]


def _own_affine(layer: nn.Module, owners: Mapping[int, int]) -> bool:
    own = dict(layer.named_parameters(recurse=False))
    return {"weight", "bias"} <= own.keys() and all(owners[id(own[key])] == 1 for key in ("weight", "bias"))


def channel_axis(layer: nn.Module) -> int:
    """Give where the channels are in a layer's output."""
    if isinstance(layer, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        return -1 - len(layer.kernel_size)
    return 1 if isinstance(layer, BatchNorm) else -1


def _broadcast(value: Tensor, layer: nn.Module, output: Tensor) -> Tensor:
    """A value by channel, in shape and dtype of the output."""
    axis = channel_axis(layer) % output.dim()
    return value.to(output).view(-1, *[1] * (output.dim() - 1 - axis))


def named_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Give every module of a model by its first name; MergeError for what is no module."""
    if not isinstance(cast("Any", model), nn.Module):
        raise MergeError(f"model={type(model).__name__}: give a torch.nn.Module")
    return dict(cast("Iterable[tuple[str, nn.Module]]", model.named_modules()))


def run_batch(model: nn.Module, batch: Any, forward: Forward[Any] | None) -> None:
    """Calls the model as the user wants it called."""
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
def same_randomness(model: nn.Module) -> Generator[None]:
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
