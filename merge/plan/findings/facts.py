"""What the checks look at: headers, the user's choices, and what lies beside the weights."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from merge.checkpoint.formats.elements import Element
from merge.checkpoint.formats.tensors import Spec, TensorEntry
from merge.plan.findings.sidecars import Sidecars, sidecars_of
from merge.plan.policy import Origin, Policy

if TYPE_CHECKING:
    from torch import Tensor

Description = Mapping[str, Spec | TensorEntry]


@dataclass(frozen=True)
class Facts:
    """The checkpoints of a merge, as far as headers and sidecars tell.

    Attributes:
        labels: one for each; the base, where there is one, is the first.
        specs: their dtypes, shapes and ties by name.
        policy: the user's choices.
        has_base: whether the first is the others' ancestor.
        inputs: the checkpoints themselves: only tiny tensors of them are read.
        decided: the names that one input alone decides.
        stacked: whether the result is put together of layers; of `specs` then only what is merged is here, under the
            result's names.
    """

    labels: Sequence[str]
    specs: Sequence[Description]
    policy: Policy
    has_base: bool = False
    inputs: Sequence[Mapping[str, Tensor]] = ()
    decided: Mapping[str, Origin] = field(default_factory=dict[str, Origin])
    stacked: bool = False

    @functools.cached_property
    def same_names(self) -> bool:
        """Whether all have the same names."""
        return all(spec.keys() == self.specs[0].keys() for spec in self.specs[1:])

    @functools.cached_property
    def text(self) -> str:
        """All names, one a line: what is not in it is in no name, and no name has to be looked at."""
        return "\n".join(name for spec in self.specs[: 1 if self.same_names else None] for name in spec)

    @functools.cached_property
    def elements(self) -> set[Element]:
        """The dtypes that there are."""
        return {item.element for spec in self.specs for item in spec.values()}

    def holds(self, *parts: str) -> bool:
        """Tell whether some name has one of these parts."""
        return any(part in self.text for part in parts)

    @functools.cached_property
    def wanted(self) -> list[str]:
        """Names that no rule gives to one input alone."""
        names = self.specs[0] if self.same_names else dict.fromkeys(name for spec in self.specs for name in spec)
        return [name for name in names if name not in self.decided]

    @functools.cached_property
    def common(self) -> list[str]:
        """Wanted names that all have."""
        if self.same_names:
            return self.wanted
        return [name for name in self.wanted if all(name in spec for spec in self.specs)]

    @functools.cached_property
    def merged(self) -> list[str]:
        """Wanted names that a merge computes: those that at least two have."""
        if self.same_names and len(self.specs) > 1:
            return self.wanted
        return [name for name in self.wanted if sum(name in spec for spec in self.specs) > 1]

    @property
    def experts(self) -> range:
        """Indices of the checkpoints without the base."""
        return range(int(self.has_base), len(self.labels))

    @functools.cached_property
    def sidecars(self) -> list[Sidecars]:
        """What lies beside the weights of each, and in their files."""
        return [sidecars_of(item) for item in self.inputs]

    def first_of(self, name: str) -> Spec | TensorEntry:
        """Give the tensor in the first that has it."""
        return next(spec[name] for spec in self.specs if name in spec)
