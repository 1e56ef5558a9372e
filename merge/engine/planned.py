"""A merge to files that was checked and not begun: `Plan`, how it runs, and each of its outputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from merge.checkpoint.digest import DEFAULT
from merge.checkpoint.formats.format import Layout
from merge.checkpoint.open import Checkpoint
from merge.plan.findings import Finding
from merge.plan.units import Unit
from merge.recipe.recipe import Recipe
from merge.recipe.shares import describe


@dataclass(frozen=True)
class Options:
    """How a merge runs; none of it changes a bit of the result.

    Attributes:
        overwrite: replace an existing output.
        threads: workers; 0 means one for two cores, with several outputs or checksums one a core, at most 4; one a core
            for methods that need whole tensors, as far as memory reaches.
        device: where whole-tensor arithmetic is done.
        sync: wait until the disk has the output before it takes its name.
        shard_size: largest shard in bytes; the output is then a folder.
        digest: "xxh3_128" (identity) or "sha256"; a recipe that holds digests is checked with its own.
        command: the command line to note in the recipe.
        carry_nonfinite: accept infinite and NaN values that the inputs have, and refuse those that the merge makes.
        progress: called with the number of input bytes read since the last call.
        stage: called when a pass over the inputs begins, with what it is for and the bytes it reads at most.
    """

    overwrite: bool = False
    threads: int = 0
    device: str = "cpu"
    sync: bool = True
    shard_size: int | None = None
    digest: str = DEFAULT
    command: str = ""
    carry_nonfinite: bool = False
    progress: Callable[[int], object] | None = None
    stage: Callable[[str, int], object] | None = None


@dataclass(frozen=True)
class Target:
    """One output of a merge: its recipe, every unit's parameters, where it will lie, how it is laid out.

    `found` is what a survey of the inputs says of it, when that was made.
    """

    recipe: Recipe
    parameters: Mapping[str, Mapping[str, Any]]
    path: Path
    layout: Layout
    found: Sequence[str] = ()


class Nested(Protocol):
    """An input that is the result of a planned merge: see `merge.engine.inner`."""

    plan: Plan
    label: str

    @property
    def digests(self) -> Sequence[str]:
        """The digests of its inputs, known when all was read."""
        ...

    def finish(self) -> Sequence[str]:
        """Read what is left of the inputs, and give their digests."""
        ...

    def noted(self, *, blank: bool) -> Recipe:
        """Give the recipe with the digests of its inputs, or with blanks for them."""
        ...


@dataclass(frozen=True, repr=False)
class Plan:
    """A merge that has been checked and not begun: what `--dry-run` shows.

    `inner` has the merges whose results are inputs, by the inputs' places.
    """

    recipe: Recipe
    checkpoints: Sequence[Checkpoint]
    units: Sequence[Unit]
    targets: Sequence[Target]
    options: Options
    findings: Sequence[Finding] = ()
    inner: Mapping[int, Nested] = field(default_factory=dict[int, Nested])

    def __repr__(self) -> str:
        count = "1 file" if len(self.targets) == 1 else f"{len(self.targets)} files"
        return f"Plan({describe(self.recipe)}; {len(self.units)} tensors to {count}, {self.bytes_written:,} bytes)"

    @property
    def bytes_read(self) -> int:
        """Bytes of the tensors of all inputs that lie in files."""
        plain = [one.nbytes for index, one in enumerate(self.checkpoints) if index not in self.inner]
        return sum(plain) + sum(inner.plan.bytes_read for inner in self.inner.values())

    @property
    def bytes_written(self) -> int:
        """Bytes of all outputs."""
        return sum(target.layout.size for target in self.targets)

    @property
    def reasons(self) -> dict[str, list[str]]:
        """Tensors that the policy decided, by what it decided: "picked from vqa", "missing: union", "by row"."""
        found: dict[str, list[str]] = {}
        for unit in self.units:
            if unit.why:
                found.setdefault(unit.why, []).extend(unit.names)
        return found
