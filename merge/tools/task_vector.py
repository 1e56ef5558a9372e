"""Task vectors as values: add, subtract, scale and negate them, then apply them to a base."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from merge.engine import memory
from merge.engine.kernel import nonfinite
from merge.errors import MergeError
from merge.plan.policy import Policy


@dataclass(frozen=True)
class TaskVector(Mapping[str, Tensor]):
    """What finetuning changed: `expert - base`, tensor by tensor (task arithmetic, arXiv 2212.04089).

        >>> base, expert = {"w": torch.tensor([1.0, 2.0])}, {"w": torch.tensor([1.5, 2.0])}
        >>> vector = TaskVector.between(base, expert)
        >>> (-vector).apply(base)["w"]
        tensor([0.5000, 2.0000])

    Held in float64, which takes twice the memory of a float32 checkpoint and is exact: `vector.apply(base)` is the
    expert to the bit (unless an entry is some 10^8 times smaller than the base's). Vectors with different names or
    shapes do not add up: MergeError.
    """

    tensors: Mapping[str, Tensor]

    @classmethod
    def between(
        cls, base: Mapping[str, Tensor], expert: Mapping[str, Tensor], policy: Policy | None = None
    ) -> TaskVector:
        """The way from a base to an expert, over the tensors that a merge would touch. Raises MergeError."""
        return cls(memory.task_vector(base, expert, policy or Policy(compute_dtype=torch.float64)))

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    def __add__(self, other: TaskVector) -> TaskVector:
        return self._with(other, torch.add)

    def __sub__(self, other: TaskVector) -> TaskVector:
        return self._with(other, torch.sub)

    def __mul__(self, factor: float) -> TaskVector:
        return TaskVector({name: value * factor for name, value in self.items()})

    __rmul__ = __mul__

    def __neg__(self) -> TaskVector:
        return TaskVector({name: -value for name, value in self.items()})

    def apply(self, base: Mapping[str, Tensor], scale: float = 1.0) -> dict[str, Tensor]:
        """`base + scale * self`, each tensor rounded once to its dtype in the base; what has no vector is copied.

        Tensors tied in the base stay tied. Raises MergeError where the base lacks a name or has another shape, and for
        infinite or NaN results.
        """
        lacking = [name for name in self if name not in base]
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
        here, there = [name for name in self if name not in other], [name for name in other if name not in self]
        if here or there:
            raise MergeError(f"task vectors differ: only the first has {here[:20]}, only the second {there[:20]}")
        for name, value in self.items():
            _check_shapes(name, value, other[name], "the other task vector")
        return TaskVector({name: operation(value, other[name]) for name, value in self.items()})


def _check_shapes(name: str, first: Tensor, second: Tensor, where: str) -> None:
    if first.shape != second.shape:
        raise MergeError(f"{name} has shape {list(second.shape)} and {list(first.shape)} in {where}")
