"""AdaMerging: coefficients of task vectors learned on unlabelled inputs, through a live path of any model."""

# torch's gradients and tolist carry few types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import glob
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from merge.checkpoint.source import Source
from merge.engine.kernel import merged
from merge.engine.live import LivePath
from merge.engine.memory import Sources
from merge.errors import MergeError
from merge.methods import METHODS
from merge.plan.policy import Policy, policy_of
from merge.plan.units import Unit
from merge.tools.statistics import called, evaluating

Batch = TypeVar("Batch")
METHOD = "task-arithmetic"


@dataclass(frozen=True, repr=False)
class AdaMerged:
    """Learned coefficients, and what they make of the experts.

    Attributes:
        coefficients: by tensor name, and in it by expert.
        weights: the merged state dict.
        losses: the loss before every step.
    """

    coefficients: Mapping[str, Mapping[str, float]]
    weights: Mapping[str, Tensor]
    losses: Sequence[float]

    @property
    def parameters(self) -> dict[str, Any]:
        """The parameters of "task-arithmetic" that make the same weights, for `merge_with`, recipes and live paths."""
        rules = {glob.escape(name): dict(mine) for name, mine in self.coefficients.items()}
        return {"scale": 1.0, "weights": {**rules, "*": dict(next(iter(self.coefficients.values()), {}))}}

    def __repr__(self) -> str:
        ends = f", loss {self.losses[0]:.4g} to {self.losses[-1]:.4g}" if self.losses else ""
        return f"AdaMerged({len(self.coefficients)} tensors{ends})"


def entropy(model: nn.Module, batch: Any) -> Tensor:
    """Give the mean entropy of predictions for a batch, over the last axis of the outputs or of their `logits`."""
    outputs = called(model, batch)
    logs = torch.log_softmax(getattr(outputs, "logits", outputs).float(), -1)
    return -(logs.exp() * logs).sum(-1).mean()


def adamerge(
    model: nn.Module,
    inputs: Sources,
    base: Source,
    batches: Iterable[Batch] | Mapping[str, Iterable[Batch]],
    loss: Callable[[nn.Module, Batch], Tensor] = entropy,
    *,
    by: str = "tensor",
    steps: int = 500,
    rate: float = 1e-3,
    start: float = 0.3,
    bounds: tuple[float, float] = (0.0, 1.0),
    policy: Policy | None = None,
    progress: Callable[[int, float], object] | None = None,
) -> AdaMerged:
    """Learn the coefficients of experts' task vectors by descent on a loss that needs no labels.

    AdaMerging (arXiv 2310.02575): base + sum_i c_i (X_i - base), c of every tensor (`by="tensor"`) or one of every
    expert (`by="task"`), from `start` by Adam within `bounds`, on the entropy of predictions or any
    `loss(model, batch)`. Batches are taken in turn, again from the first when all are used; of several tasks, given by
    name, a step takes one batch of each and adds the losses. The model is any module with the names of the checkpoints,
    on any device; it is in evaluation mode for the time being and then as it was. Tensors that no gradient reaches
    (buffers) keep `start`. Raises MergeError for losses that are not finite and for batches that end.
    """
    if by not in ("tensor", "task"):
        raise MergeError(f"by={by!r}: must be 'tensor' or 'task'")
    path = LivePath(model, METHOD, inputs, base, policy=policy)
    units = [unit for unit in path.units if unit.kind != "copy"]
    values = torch.full((len(units) if by == "tensor" else 1, len(path.names)), float(start), dtype=torch.float64)
    optimizer = torch.optim.Adam([values], lr=rate)
    streams = batches.values() if isinstance(batches, Mapping) else [batches]
    turns = [_again(stream) for stream in streams]
    losses: list[float] = []
    with path, evaluating(model), _differentiable(model):
        owners = _owners(model)
        for step in range(steps):
            path.set_each(_points(units, values))
            total, gradients = _descent(model, turns, loss, units, path, owners)
            if not torch.isfinite(total):
                raise MergeError(f"the loss of step {step} is {total.item()}: lower the rate, or look at the batches")
            losses.append(float(total))
            values.grad = gradients if by == "tensor" else gradients.sum(0, keepdim=True)
            optimizer.step()
            values.clamp_(*bounds)
            if progress:
                progress(step, losses[-1])
    points = _points(units, values)
    weights: dict[str, Tensor] = {}
    for unit in path.units:
        point = [points.get(unit.name, {})]
        ((value, _),) = merged(unit, path.endpoints(unit), METHODS[METHOD], point, policy_of(policy))
        weights |= dict.fromkeys(unit.names, value.clone())
    named = {
        name: dict(zip(path.names, points[unit.name]["weights"], strict=True)) for unit in units for name in unit.names
    }
    return AdaMerged(named, weights, losses)


def _points(units: Sequence[Unit], values: Tensor) -> dict[str, Mapping[str, Any]]:
    """The parameters of every tensor."""
    rows: list[list[float]] = values.expand(len(units), -1).tolist()
    return {unit.name: {"scale": 1.0, "weights": tuple(row)} for unit, row in zip(units, rows, strict=True)}


def _descent(
    model: nn.Module,
    turns: Sequence[Iterator[Any]],
    loss: Callable[[nn.Module, Any], Tensor],
    units: Sequence[Unit],
    path: LivePath,
    owners: Mapping[int, nn.Parameter],
) -> tuple[Tensor, Tensor]:
    """The loss at the point that is set, and its slope along every task vector of every tensor (tensors x experts)."""
    parameters = list(dict.fromkeys(owners.values()))
    total = torch.stack([loss(model, next(turn)) for turn in turns]).sum()
    found = torch.autograd.grad(total, parameters, materialize_grads=True)
    by_parameter = dict(zip(map(id, parameters), found, strict=True))
    slopes = torch.zeros(len(units), len(path.names), dtype=torch.float64)
    for row, unit in zip(slopes, units, strict=True):
        mine = {
            id(owner): owner for target in path.targets(unit) if (owner := owners.get(target.data_ptr())) is not None
        }
        if not mine:
            continue
        slope = torch.stack([by_parameter[key].float() for key in mine]).sum(0)
        start, *ends = path.endpoints(unit)
        for index, end in enumerate(ends):
            row[index] = float((slope * (end.to(slope.device).float() - start.to(slope.device).float())).sum())
    return total.detach(), slopes


def _owners(model: nn.Module) -> dict[int, nn.Parameter]:
    """The parameters of a model by the place of their values."""
    return {item.data_ptr(): item for item in model.parameters() if item.is_floating_point() and item.numel()}


@contextmanager
def _differentiable(model: nn.Module) -> Generator[None]:
    """Let gradients reach every parameter for the time being."""
    before = [(item, item.requires_grad) for item in model.parameters()]
    try:
        for item, _ in before:
            item.requires_grad_(item.is_floating_point())
        yield
    finally:
        for item, was in before:
            item.requires_grad_(was)


def _again(batches: Iterable[Batch]) -> Iterator[Batch]:
    """The batches, and again from the first. Raises MergeError where they can be taken only once, or are none."""
    while True:
        count = 0
        for batch in batches:
            count += 1
            yield batch
        if not count:
            raise MergeError("the batches ended: give a list or a loader that begins again, or fewer steps")
