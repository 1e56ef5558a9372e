"""Task vectors as values: add, subtract, scale and negate them, then apply them to a base."""

# What users give is checked, whatever its type is said to be.
# pyright: reportUnnecessaryIsInstance=false

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from merge.checkpoint.scaled import dequantized
from merge.checkpoint.source import Source, opened, whole
from merge.engine.kernel import nonfinite, to_compute
from merge.errors import MergeError
from merge.plan.checks import leave
from merge.plan.policy import Policy
from merge.plan.units import plan
from merge.plan.vocabulary import matched
from merge.recipe.parameters import method_named


@dataclass(frozen=True, repr=False)
class TaskVector:
    """What finetuning changed: `expert - base`, tensor by tensor (task arithmetic, arXiv 2212.04089).

        >>> base, expert = {"w": torch.tensor([1.0, 2.0])}, {"w": torch.tensor([1.5, 2.0])}
        >>> vector = TaskVector.between(base, expert)
        >>> (-vector).apply(base)["w"]
        tensor([0.5000, 2.0000])

    Held in float64, which takes twice the memory of a float32 checkpoint and is exact: `vector.apply(base)` is the
    expert to the bit (unless an entry is some 10^8 times smaller than the base's). It is no checkpoint, and no function
    takes it for an expert. Vectors with different names or shapes do not add up: MergeError.
    """

    tensors: Mapping[str, Tensor]

    @classmethod
    def between(cls, base: Source, expert: Source, *, policy: Policy | None = None) -> TaskVector:
        """Give the way from a base to an expert, over the tensors that a merge would touch.

        Integer tensors and tensors kept by the policy have no task vector and are left out. Raises MergeError.
        """
        policy = Policy(compute_dtype=torch.float64) if policy is None else policy
        ends = opened(base, name="base"), opened(expert, name="expert")
        if policy.dequantize:
            ends = dequantized(ends[0]), dequantized(ends[1])
        method = method_named("task-arithmetic")
        vectors: dict[str, Tensor] = {}
        ends = matched(ends, ["base", "expert"], policy, has_base=True).inputs
        for unit in plan(ends, ["base", "expert"], policy, has_base=True):
            if unit.kind != "merge":
                continue
            if unit.assembly is not None:
                raise MergeError(f"{unit.name}: its parts are of different origins; {leave(unit.name)}")
            tensors = [whole(ends[index], unit.name).detach() for index in unit.sources]
            start, end = to_compute(unit, tensors, method, policy)
            difference = torch.view_as_complex(end - start) if unit.dtype.is_complex else end - start
            vectors.update(dict.fromkeys(unit.names, difference))
        return cls(vectors)

    def __repr__(self) -> str:
        return f"TaskVector({len(self.tensors)} tensors)"

    def __add__(self, other: TaskVector) -> TaskVector:
        return self._with(other, torch.add)

    def __sub__(self, other: TaskVector) -> TaskVector:
        return self._with(other, torch.sub)

    def __mul__(self, factor: float) -> TaskVector:
        return TaskVector({name: value * factor for name, value in self.tensors.items()})

    __rmul__ = __mul__

    def __neg__(self) -> TaskVector:
        return TaskVector({name: -value for name, value in self.tensors.items()})

    def apply(self, base: Source, scale: float = 1.0) -> dict[str, Tensor]:
        """`base + scale * self`, each tensor rounded once to its dtype in the base; what has no vector is copied.

        Tensors tied in the base stay tied. Raises MergeError where the base lacks a name or has another shape, and for
        infinite or NaN results.
        """
        base = opened(base, name="base")
        lacking = [name for name in self.tensors if name not in base]
        if lacking:
            raise MergeError(f"the base lacks {len(lacking)} tensors of the task vector: {', '.join(lacking[:20])}")
        result: dict[str, Tensor] = {}
        done: dict[tuple[int, int], Tensor] = {}
        for name, start in base.items():
            key = (start.data_ptr(), start.numel()) if start.numel() else (-1, len(result))
            if key not in done:
                done[key] = self._moved(name, start.detach(), scale)
            result[name] = done[key]
        return result

    def _moved(self, name: str, start: Tensor, scale: float) -> Tensor:
        if name not in self.tensors:
            return start.clone()
        vector = self.tensors[name].to(start.device)
        _check_shapes(name, start, vector, "the base")
        moved = torch.add(start.to(vector.dtype), vector, alpha=scale).to(start.dtype)
        if nonfinite(moved):
            raise MergeError(f"{name}: {nonfinite(moved)} infinite or NaN values in base + {scale:g} * task vector")
        return moved

    def _with(self, other: TaskVector, operation: Callable[[Tensor, Tensor], Tensor]) -> TaskVector:
        if not isinstance(other, TaskVector):
            raise MergeError(
                f"a {type(other).__name__} is no task vector: make one with TaskVector.between(base, expert)"
            )
        mine, theirs = self.tensors, other.tensors
        here, there = [name for name in mine if name not in theirs], [name for name in theirs if name not in mine]
        if here or there:
            raise MergeError(f"task vectors differ: only the first has {here[:20]}, only the second {there[:20]}")
        for name, value in mine.items():
            _check_shapes(name, value, theirs[name], "the other task vector")
        return TaskVector({name: operation(value, theirs[name]) for name, value in mine.items()})


def _check_shapes(name: str, first: Tensor, second: Tensor, where: str) -> None:
    if first.shape != second.shape:
        raise MergeError(f"{name} has shape {list(second.shape)} and {list(first.shape)} in {where}")
