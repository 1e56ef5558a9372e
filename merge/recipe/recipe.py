"""A recipe: everything needed to make a merged checkpoint again, as plain data."""

# What users give is checked, whatever its type is said to be.
# pyright: reportUnnecessaryIsInstance=false

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from merge.errors import MergeError
from merge.plan.layers import Layers, layers_in_words, layers_of
from merge.plan.policy import Policy, policy_of


@dataclass(frozen=True)
class Input:
    """One checkpoint of a recipe.

    Attributes:
        section: the part of a training file that is meant.
        digest: what its tensors' bytes had when the recipe was run, under the file's own names; empty if never.
        rename: rules that give its tensors other names ("module.=" strips a prefix), see `merge.checkpoint.names`.
        recipe: what the checkpoint is made by, where it lies in no file: it is computed as it is read, and `path` only
            says where the recipe comes from. A path that is a recipe's file means the same.
    """

    name: str
    path: Path
    section: str = "auto"
    digest: str = ""
    rename: tuple[str, ...] = ()
    recipe: Recipe | None = None

    def __post_init__(self) -> None:
        """Take text for a path, and one rule for a list of one. Raises MergeError for what is neither."""
        rules = (self.rename,) if isinstance(self.rename, str) else self.rename
        if not isinstance(rules, Sequence) or not all(isinstance(rule, str) for rule in rules):
            raise MergeError(f"rename={self.rename!r}: must be a rule or a list of rules, as ['module.=']")
        object.__setattr__(self, "rename", tuple(rules))
        if isinstance(self.path, str):
            object.__setattr__(self, "path", Path(self.path))
        if not isinstance(self.recipe, (Recipe, type(None))):
            raise MergeError(f"recipe={self.recipe!r}: must be a merge.Recipe; a recipe's file is given as the path")
        if not isinstance(self.path, Path):
            raise MergeError(
                f"the input {self.name!r} of a recipe must be a path, not a {type(self.path).__name__}: merge_with "
                "takes open checkpoints, state dicts and modules"
            )


@dataclass(frozen=True, repr=False)
class Recipe:
    """Method, inputs, coefficients and policies.

    Attributes:
        method: a key of `METHODS`.
        inputs: checkpoints to merge; names are unique and are the words used for shares.
        parameters: the method's parameters. A number, or for a parameter per input a list or a mapping by name; each
            may also be a mapping from globs to such values ("*" required, the first match wins).
        base: the common ancestor, for methods that take one.
        policy: names, dtypes, BatchNorm statistics, non-finite values.
        layers: what the result's layers are made of: a list of stretches, each with the layers [from, to) of the inputs
            that take part, as `[{"vqa": (0, 16), "caption": (0, 16)}, {"vqa": (8, 24)}]`; by the name of the list where
            there are several (`{"decoder.layers": [...]}`). Empty: every input as it is.
    """

    method: str
    inputs: tuple[Input, ...]
    parameters: Mapping[str, Any] = field(default_factory=dict[str, Any])
    base: Input | None = None
    policy: Policy = field(default_factory=Policy)
    layers: Layers = field(default_factory=dict[str, Any])

    def __post_init__(self) -> None:
        """Raise MergeError for values of wrong types."""
        if not isinstance(self.inputs, Sequence) or isinstance(self.inputs, str):
            raise MergeError(f"inputs must be a list of merge.Input, not a {type(self.inputs).__name__}")
        for item in (*self.inputs, *([] if self.base is None else [self.base])):
            if not isinstance(item, Input):
                raise MergeError(f"inputs={item!r}: must be a merge.Input, as Input('vqa', 'vqa.pt')")
        if not isinstance(self.parameters, Mapping):
            raise MergeError(f"parameters={self.parameters!r}: must be a mapping, as {{'ratio': 0.5}}")
        object.__setattr__(self, "inputs", tuple(self.inputs))
        object.__setattr__(self, "policy", policy_of(self.policy))
        object.__setattr__(self, "layers", layers_of(self.layers))

    def __repr__(self) -> str:
        names = ", ".join(item.name for item in self.inputs)
        base = "" if self.base is None else f", base={self.base.name}"
        given = "".join(f", {key}={value!r}" for key, value in self.parameters.items())
        policy = "" if self.policy == Policy() else f", {self.policy!r}"
        layers = f", layers={layers_in_words(self.layers)}" if self.layers else ""
        return f"Recipe({self.method}: {names}{base}{given}{policy}{layers})"

    @property
    def sources(self) -> tuple[Input, ...]:
        """All checkpoints read, the base first."""
        return self.inputs if self.base is None else (self.base, *self.inputs)

    def with_parameters(self, **parameters: Any) -> Recipe:
        """Give the same recipe at other coefficients."""
        return replace(self, parameters={**self.parameters, **parameters})
