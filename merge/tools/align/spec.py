"""Which axes of which tensors share one order of units, and what a reordering does to them."""

from __future__ import annotations

import math
import re
from collections.abc import Hashable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from merge.checkpoint.open import specs
from merge.checkpoint.source import Source, opened
from merge.errors import MergeError

FREE = "_"
Axes = tuple[tuple[str, ...], ...]
# The new order by group: unit i of the result is unit `permutation[i]` of the input. For a group within units of
# another, one row for each outer unit of the result: (outer i, inner j) is (outer p[i], inner q[i, j]) of the input.
Permutation = Mapping[str, Tensor]


@dataclass(frozen=True)
class PermutationSpec:
    """Groups of axes that may be permuted together without changing what the network computes.

    Attributes:
        axes: by tensor name, the groups of each axis: none, one, or an outer and an inner one.
        sizes: units by group.
        outer: by inner group, the group in whose units it lies.
    """

    axes: Mapping[str, Axes]
    sizes: Mapping[str, int]
    outer: Mapping[str, str]

    @property
    def free_groups(self) -> list[str]:
        """Groups that lie in no other."""
        return [group for group in self.sizes if group not in self.outer]

    def inner(self, group: str) -> list[str]:
        """Groups that lie in the units of this one."""
        return [name for name, outer in self.outer.items() if outer == group]

    def dims(self, name: str) -> list[str]:
        """Give the group of every axis of the unfolded tensor, "" where it is free."""
        return [group for axis in self.axes[name] for group in axis or ("",)]

    def unfold(self, name: str, tensor: Tensor) -> Tensor:
        """Give the tensor with one axis for every group."""
        shape: list[int] = []
        for size, axis in zip(tensor.shape, self.axes[name], strict=True):
            shape += [self.sizes[group] for group in axis] or [size]
        return tensor.reshape(shape)

    def reorder(self, name: str, unfolded: Tensor, permutation: Permutation) -> Tensor:
        """Give an unfolded tensor with its units in another order; groups that `permutation` lacks stay."""
        dims, result = self.dims(name), unfolded
        for axis, group in enumerate(dims):
            if group in permutation and group not in self.outer:
                result = result.index_select(axis, permutation[group].to(result.device))
        for axis, group in enumerate(dims):
            if group in permutation and group in self.outer:
                shape = [1] * len(dims)
                shape[dims.index(self.outer[group])], shape[axis] = permutation[group].shape
                result = torch.take_along_dim(result, permutation[group].to(result.device).view(shape), axis)
        return result


def permutation_spec(patterns: Mapping[str, str], tensors: Source) -> PermutationSpec:
    """Make a specification of one pattern for each tensor, in the manner of einops; sizes are read off `tensors`.

    A pattern names the group of every axis in turn: `_` for an axis that stays, `(heads values)` for blocks of units
    (of heads, each with an order of values of its own).

    >>> spec = permutation_spec({"0.weight": "hidden _", "2.weight": "_ hidden"}, {
    ...     "0.weight": torch.zeros(3, 2), "2.weight": torch.zeros(1, 3)})
    >>> spec.sizes
    {'hidden': 3}

    Raises MergeError for names and axes that the tensors do not have, sizes that contradict each other or cannot be
    known, and an inner group that stands in two outer ones or without its own.
    """
    shapes = {name: tuple(item.shape) for name, item in specs(opened(tensors)).items()}
    lacking = [name for name in patterns if name not in shapes]
    if lacking:
        raise MergeError(f"the pattern's tensors {lacking[:20]} are not among those given ({len(shapes)} names)")
    axes = {name: _parsed(name, pattern, shapes[name]) for name, pattern in patterns.items()}
    outer = _outer(axes)
    return PermutationSpec(axes, _sizes(axes, shapes), outer)


def _parsed(name: str, pattern: str, shape: tuple[int, ...]) -> Axes:
    words = re.findall(r"\(\s*(\S+)\s+(\S+)\s*\)|([^\s()]+)", pattern)
    axes = tuple((a, b) if a else () if single == FREE else (single,) for a, b, single in words)
    if re.sub(r"\(\s*\S+\s+\S+\s*\)|[^\s()]+", "", pattern).strip() or len(axes) != len(shape):
        raise MergeError(f"{name} has shape {list(shape)}, pattern {pattern!r}: give one word or (outer inner) an axis")
    return axes


def _outer(axes: Mapping[str, Axes]) -> dict[str, str]:
    outer: dict[str, str] = {}
    for name, each in axes.items():
        for axis in each:
            if len(axis) == 2 and outer.setdefault(axis[1], axis[0]) != axis[0]:
                raise MergeError(f"{name}: group {axis[1]!r} lies in {axis[0]!r}, elsewhere in {outer[axis[1]]!r}")
    for name, each in axes.items():
        groups = [group for axis in each for group in axis]
        alone = next((g for g in groups if g in outer and outer[g] not in groups), None)
        if alone is not None:
            raise MergeError(f"{name} has an axis of {alone!r} but none of {outer[alone]!r}, in which it lies")
    deep = next((group for group in outer if outer[group] in outer), None)
    if deep is not None:
        raise MergeError(f"group {deep!r} lies in {outer[deep]!r}, which lies in {outer[outer[deep]]!r}: one is enough")
    return outer


def _sizes(axes: Mapping[str, Axes], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    sizes: dict[str, int] = {group: 0 for each in axes.values() for axis in each for group in axis}
    told = [(name, axis, size) for name in axes for axis, size in zip(axes[name], shapes[name], strict=True) if axis]
    for _ in sizes:  # composite axes need one of their two sizes from elsewhere
        for _, axis, size in told:
            unknown = [group for group in axis if not sizes[group]]
            if len(unknown) == 1:
                sizes[unknown[0]] = size // math.prod(sizes[group] or 1 for group in axis)
    if not all(sizes.values()):
        raise MergeError(f"no axis tells the size of {[group for group in sizes if not sizes[group]]}")
    for name, axis, size in told:
        if math.prod(sizes[group] for group in axis) != size:
            each = " x ".join(f"{group} ({sizes[group]})" for group in axis)
            raise MergeError(f"{name} has an axis of {size}, but it should be {each}")
    return sizes


def apply_permutation(spec: PermutationSpec, permutation: Permutation, tensors: Source) -> dict[str, Tensor]:
    """Put tensors' units in another order; values keep their bits, ties stay ties, the rest is passed on.

    Raises MergeError for a permutation that is not one of every group, and tensors that do not fit the specification.
    """
    _check(spec, permutation)
    tensors = opened(tensors)
    described = specs(tensors)
    wrong = [name for name in spec.axes if name not in described or not _fits(spec, name, described[name].shape)]
    if wrong:
        raise MergeError(f"{wrong[:20]} are missing or have other shapes than the specification")
    done: dict[Hashable, Tensor] = {}
    result: dict[str, Tensor] = {}
    for name in described:
        if name not in spec.axes:
            result[name] = tensors[name]
            continue
        key = described[name].tie or name
        if key not in done:
            tensor = tensors[name].detach()
            done[key] = spec.reorder(name, spec.unfold(name, tensor), permutation).reshape(tensor.shape)
        result[name] = done[key]
    return result


def random_permutation(spec: PermutationSpec, seed: int) -> dict[str, Tensor]:
    """Give a random order of every group. A network permuted by it computes the same, or its specification is wrong."""
    generator = torch.Generator().manual_seed(seed)

    def draw(size: int) -> Tensor:
        return torch.randperm(size, generator=generator)

    return {
        group: torch.stack([draw(size) for _ in range(spec.sizes[spec.outer[group]])])
        if group in spec.outer
        else draw(size)
        for group, size in spec.sizes.items()
    }


def identity(spec: PermutationSpec) -> dict[str, Tensor]:
    """Give the order as it is."""
    return {
        group: torch.arange(size).expand(*([spec.sizes[spec.outer[group]]] if group in spec.outer else []), size)
        for group, size in spec.sizes.items()
    }


def _fits(spec: PermutationSpec, name: str, shape: tuple[int, ...]) -> bool:
    axes = spec.axes[name]
    return len(axes) == len(shape) and all(
        not axis or math.prod(spec.sizes[group] for group in axis) == size
        for axis, size in zip(axes, shape, strict=True)
    )


def _check(spec: PermutationSpec, permutation: Permutation) -> None:
    for group, ordered in identity(spec).items():
        if group not in permutation:
            raise MergeError(f"the permutation has no order of {group!r}; it has {sorted(permutation)[:20]}")
        order = permutation[group].cpu()
        if order.shape != ordered.shape or not torch.equal(order.sort(-1).values, ordered):
            raise MergeError(f"the order of {group!r} is not one of {list(ordered.shape)} units")
