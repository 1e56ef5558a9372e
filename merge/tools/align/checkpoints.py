"""A checkpoint with its units in the order of another's."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from merge.checkpoint.formats.format import path_of
from merge.checkpoint.open import Checkpoint, open_checkpoint, specs
from merge.checkpoint.save import lay_out
from merge.engine.made import Made, write_made
from merge.errors import MergeError
from merge.tools.align.groups import derive_groups, read_groups
from merge.tools.align.spec import PermutationSpec, apply_permutation
from merge.tools.align.weights import weight_matching


@dataclass(frozen=True)
class Alignment:
    """What `align_checkpoint` did.

    Attributes:
        units, moved: how many units there are (those within heads counted by head), and how many changed their place.
        before, after: cosine of the angle between the two models' weights that have groups.
    """

    units: int
    moved: int
    before: float
    after: float


def align_checkpoint(
    first: str | Path | Checkpoint,
    second: str | Path | Checkpoint,
    output: str | Path,
    *,
    groups: str | Path | PermutationSpec | None = None,
    section: str = "auto",
    overwrite: bool = False,
    progress: Callable[[str], object] | None = None,
) -> Alignment:
    """Write the second checkpoint with its units in the first one's order, as near to its weights as an order can come.

    For networks trained apart (Git Re-Basin, arXiv 2209.04836); those finetuned from one ancestor are aligned already.
    What the file computes and its layout stay the same. `groups` says which units move together: a JSON file (see
    `read_groups`), a specification, or nothing for a plain chain of layers, whose groups are derived. `section` is used
    of both files; `progress` is called with each group that was solved.

    Raises MergeError where the two differ in names or shapes, where groups do not fit or cannot be derived, for what
    cannot be read or written, and without SciPy.
    """
    a, b = (x if isinstance(x, Checkpoint) else open_checkpoint(x, section) for x in (first, second))
    shapes = [{name: tuple(spec.shape) for name, spec in specs(side).items()} for side in (a, b)]
    # A specification names all that takes part: a model's own code may let the rest differ (buffers it computes anew).
    names = groups.axes if isinstance(groups, PermutationSpec) else shapes[0].keys() | shapes[1].keys()
    wrong = sorted(name for name in names if shapes[0].get(name) != shapes[1].get(name))
    if wrong:
        raise MergeError(
            f"{a.path} and {b.path} differ in {len(wrong)} tensors ({', '.join(wrong[:3])}): only models with the same "
            "parts and sizes can be aligned"
        )
    if groups is None:
        groups = derive_groups(b)
    spec = groups if isinstance(groups, PermutationSpec) else read_groups(groups, b)
    order = weight_matching(spec, a, b, progress=progress)
    aligned = apply_permutation(spec, order, b)
    described = specs(aligned)
    tied: dict[Hashable, list[str]] = {}
    for name, item in described.items():
        tied.setdefault(item.tie or name, []).append(name)
    layout = lay_out(path_of(output, "the output"), described, like=b, metadata=dict(b.metadata) or None)
    made = Made("align", f"the units of {b.path.name} in the order of {a.path.name}", {"first": a, "second": b})
    tensors = ((names, aligned[names[0]]) for names in tied.values())
    write_made(Path(output), layout, tensors, made, overwrite=overwrite)
    moved = sum(int((each != torch.arange(each.shape[-1])).sum()) for each in order.values())
    units = sum(each.numel() for each in order.values())
    return Alignment(units, moved, _cosine(spec, a, b), _cosine(spec, a, aligned))


def _cosine(spec: PermutationSpec, first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> float:
    """Compute the cosine of the angle between the weights that have groups; tied tensors count once."""
    described, seen = specs(second), set[Hashable]()
    dot = squares = others = 0.0
    for name in spec.axes:
        tie = described[name].tie or name
        if tie in seen:
            continue
        seen.add(tie)
        x, y = first[name].double().flatten(), second[name].double().flatten()
        dot, squares, others = dot + float(x @ y), squares + float(x @ x), others + float(y @ y)
    return dot / math.sqrt(squares * others) if squares and others else 0.0
