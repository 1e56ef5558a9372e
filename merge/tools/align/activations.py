"""Matching units by what they do: correlations of activations (Git Re-Basin, arXiv 2209.04836, section 3.1)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from merge.errors import MergeError
from merge.tools.align.assignment import assign_blocks
from merge.tools.align.spec import PermutationSpec
from merge.tools.batchnorm import (
    CHANNELED,
    Batch,
    Forward,
    after_each,
    channel_axis,
    named_modules,
    run_batch,
    same_randomness,
)
from merge.tools.statistics import evaluating


def activation_matching(
    spec: PermutationSpec,
    first: nn.Module,
    second: nn.Module,
    batches: Iterable[Batch],
    forward: Forward[Batch] | None = None,
) -> dict[str, Tensor]:
    """Give the order of the second network's units in which their activations correlate most with the first's.

    Units are looked at in the outputs of the linear, convolutional and normalising modules (in evaluation mode) whose
    weight the specification names; each group is then solved by itself. Constant units correlate with none. Both
    networks must draw nothing at random. Raises MergeError without batches, where no module called shows a group, and
    without SciPy.
    """
    sites = {name: axis for name in named_modules(first) if (axis := _site(spec, name, first)) is not None}
    sums: dict[str, _Correlation] = {}
    with evaluating(first), evaluating(second), same_randomness(first), torch.no_grad():
        for batch in batches:
            mine, theirs = (_outputs(model, sites, batch, forward) for model in (first, second))
            for name in mine.keys() & theirs.keys():
                sums.setdefault(name, _Correlation()).add(mine[name], theirs[name])
    shown = {group for name in sums for group in sites[name]}
    if hidden := [group for group in spec.sizes if group not in shown]:
        raise MergeError(f"no module that ran shows the units of {hidden[:20]}: match them by weights")
    permutation: dict[str, Tensor] = {}
    for group in spec.free_groups:
        size = spec.sizes[group]
        gain, within = torch.zeros(size, size, dtype=torch.float64), dict[str, Tensor]()
        for name, seen in sums.items():
            if sites[name] == (group,):
                gain += seen.value
            elif sites[name][0] == group:
                inner = sites[name][1]
                common = seen.value.view(size, spec.sizes[inner], size, spec.sizes[inner])
                within[inner] = within[inner] + common if inner in within else common
        permutation |= assign_blocks(spec, group, gain, within)
    return permutation


def _site(spec: PermutationSpec, name: str, model: nn.Module) -> tuple[str, ...] | None:
    """The groups of a module's output channels, None where they are not known or free."""
    module = model.get_submodule(name)
    if not isinstance(module, CHANNELED):
        return None
    return next(iter(spec.axes.get(f"{name}.weight", ())), None) or None


def _outputs(
    model: nn.Module, names: Iterable[str], batch: Batch, forward: Forward[Batch] | None
) -> Mapping[str, Tensor]:
    """What modules give out for one batch: values x channels."""
    found: dict[str, list[Tensor]] = {}

    def note(name: str, layer: nn.Module, output: Tensor) -> None:
        values = output.movedim(channel_axis(layer), -1)
        found.setdefault(name, []).append(values.reshape(-1, values.shape[-1]).double().cpu())

    with after_each({name: model.get_submodule(name) for name in names}, note):
        run_batch(model, batch, forward)
    return {name: torch.cat(parts) for name, parts in found.items()}


class _Correlation:
    """Correlation of every channel of one network with every channel of another, over batches."""

    def __init__(self) -> None:
        self._count, self._sums, self._products = 0, torch.zeros(()), torch.zeros(())

    def add(self, first: Tensor, second: Tensor) -> None:
        both = torch.cat((first, second), dim=1)
        self._count += len(both)
        self._sums = self._sums + both.sum(0)
        self._products = self._products + both.T @ both

    @property
    def value(self) -> Tensor:
        """First's channels x second's."""
        mean = self._sums / self._count
        covariance = self._products / self._count - mean[:, None] * mean
        deviation = covariance.diagonal().clamp_min(0).sqrt()
        varying = deviation > 1e-6 * mean.abs()  # less is what rounding leaves of a constant
        inverse = torch.where(varying, 1 / deviation.where(varying, torch.ones_like(deviation)), 0.0)
        channels = len(mean) // 2
        return (covariance * inverse[:, None] * inverse)[:channels, channels:]
