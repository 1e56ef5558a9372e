"""Matching units by their weights (Git Re-Basin, arXiv 2209.04836, section 3.2)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterable, Mapping

import torch
from torch import Tensor

from merge.checkpoint.open import specs
from merge.checkpoint.source import Source, opened, whole
from merge.tools.align.assignment import assign, assign_blocks
from merge.tools.align.spec import Permutation, PermutationSpec, apply_permutation, identity

SWEEPS = 100
MOST = 1e-9  # relative gain from which on a sweep counts as progress: above the rounding of float64 sums


def weight_matching(
    spec: PermutationSpec,
    first: Source,
    second: Source,
    *,
    progress: Callable[[str], object] | None = None,
) -> dict[str, Tensor]:
    """Find the order of the second network's units in which its weights have the largest product with the first's.

    Coordinate descent: each group is solved exactly, given all others, until nothing improves. It starts from the fixed
    axes (inputs, words, outputs): the group with the most weights per unit towards settled axes comes first. A permuted
    copy whose units differ in those weights is put back exactly. The result is never worse than the order as it is.
    Deterministic; BatchNorm statistics count as weights do. `progress` is called with each group that was solved.

    Raises MergeError where tensors do not fit the specification, and without SciPy.
    """
    first = opened(first, name="first")
    apply_permutation(spec, identity(spec), first)
    current = _Current(spec, first, apply_permutation(spec, identity(spec), second))
    before = current.value(current.names)
    settled: set[str] = set()
    waiting = list(spec.free_groups)
    while waiting:
        group = max(waiting, key=lambda group: current.evidence(group, settled))
        waiting.remove(group)
        known = {name for name in current.names if current.others(name, group) <= settled}
        current.move(current.solved(group, known))
        settled |= {group, *spec.inner(group)}
        for inner in spec.inner(group):
            current.move(current.solved_within(inner, known))
        if progress:
            progress(group)
    for _ in range(SWEEPS):
        grew = False
        for group in spec.free_groups:
            grew |= current.improve(group)
            if progress:
                progress(group)
        if not grew:
            break
    return current.permutation if current.value(current.names) > before else identity(spec)


class _Current:
    """The second network in the order found so far, beside the first."""

    def __init__(self, spec: PermutationSpec, first: Mapping[str, Tensor], second: Mapping[str, Tensor]):
        self.spec, self.permutation = spec, identity(spec)
        described, ties = specs(second), set[Hashable]()
        self.names: list[str] = []
        for name in spec.axes:
            tie = described[name].tie
            if any(spec.axes[name]) and tie not in ties and first[name].dtype.is_floating_point:
                self.names.append(name)
            ties |= {tie} - {None}
        self.first = {name: spec.unfold(name, whole(first, name).detach().cpu()) for name in self.names}
        self.second = {name: spec.unfold(name, second[name].cpu()) for name in self.names}

    def others(self, name: str, group: str) -> set[str]:
        """Groups of a tensor besides this one and those within."""
        return {g for g in self.spec.dims(name) if g and g != group and self.spec.outer.get(g) != group}

    def touching(self, group: str) -> list[str]:
        return [name for name in self.names if group in self.spec.dims(name)]

    def value(self, names: Iterable[str]) -> float:
        """Inner product of the two networks."""
        return sum(float((self.first[n].double() * self.second[n].double()).sum()) for n in names)

    def evidence(self, group: str, settled: Collection[str]) -> float:
        """Weights per unit towards settled axes: the least over the group and those within."""
        known = [name for name in self.touching(group) if self.others(name, group) <= {*settled}]
        counts = dict.fromkeys((group, *self.spec.inner(group)), 0.0)
        for name in known:
            for member in counts.keys() & set(self.spec.dims(name)):
                units = self.spec.sizes[member] * (self.spec.sizes[group] if member != group else 1)
                counts[member] += self.first[name].numel() / units
        return min(counts.values())

    def move(self, step: Permutation) -> None:
        """Reorder the second network further; `step` covers a group and those within, or one inner group."""
        for name in {name for group in step for name in self.touching(group)}:
            self.second[name] = self.spec.reorder(name, self.second[name], step)
        for group, order in step.items():
            outer = self.spec.outer.get(group)
            if outer is None:
                self.permutation[group] = self.permutation[group][order]
            else:
                rows = step.get(outer, torch.arange(self.spec.sizes[outer]))
                self.permutation[group] = self.permutation[group][rows].gather(1, order)

    def improve(self, group: str) -> bool:
        """Solve a group, then those within it, given all others; whether the inner product grew. Else nothing moves."""
        grew = self._tried(self.solved(group, self.names), self.touching(group))
        for inner in self.spec.inner(group):
            grew |= self._tried(self.solved_within(inner, self.names), self.touching(inner))
        return grew

    def _tried(self, step: Permutation, names: Collection[str]) -> bool:
        kept = {name: self.second[name] for name in names}, dict(self.permutation)
        before = self.value(names)
        self.move(step)
        if self.value(names) > before + MOST * abs(before):
            return True
        self.second |= kept[0]
        self.permutation = kept[1]
        return False

    def solved(self, group: str, known: Collection[str]) -> dict[str, Tensor]:
        """The best step of a group and those within, by the tensors known; tensors with two of these within wait."""
        size, inner = self.spec.sizes[group], set(self.spec.inner(group))
        gain = torch.zeros(size, size, dtype=torch.float64)
        within: dict[str, Tensor] = {}
        for name in (name for name in self.touching(group) if name in known):
            members = [g for g in self.spec.dims(name) if g in inner]
            if not members:
                gain += sum(a @ b.T for a, b in self._rows(name, [group]))
            elif len(members) == 1:
                many = self.spec.sizes[members[0]]
                for a, b in self._rows(name, [group, members[0]]):
                    common = (a @ b.T).view(size, many, size, many)
                    within[members[0]] = within[members[0]] + common if members[0] in within else common
        return assign_blocks(self.spec, group, gain, within)

    def solved_within(self, inner: str, known: Collection[str]) -> dict[str, Tensor]:
        """Give the best step of an inner group, its outer units staying where they are."""
        outer = self.spec.outer[inner]
        shape = self.spec.sizes[outer], self.spec.sizes[inner], -1
        gain = torch.zeros(*shape[:2], shape[1], dtype=torch.float64)
        for name in (name for name in self.touching(inner) if name in known):
            for a, b in self._rows(name, [outer, inner]):
                gain += a.view(shape) @ b.view(shape).mT
        return {inner: torch.stack([assign(block) for block in gain])}

    def _rows(self, name: str, groups: list[str]) -> list[tuple[Tensor, Tensor]]:
        """Both networks' tensors as units x weights, once for every axis of the (last) group."""
        dims = self.spec.dims(name)
        found: list[tuple[Tensor, Tensor]] = []
        for axis in (axis for axis, group in enumerate(dims) if group == groups[-1]):
            front = [*(dims.index(group) for group in groups[:-1]), axis]
            size = [dim for dim in range(len(dims)) if dim not in front]
            sides = (side[name].double().permute(*front, *size) for side in (self.first, self.second))
            a, b = (side.reshape(side.shape[: len(front)].numel(), -1) for side in sides)
            found.append((a, b))
        return found
