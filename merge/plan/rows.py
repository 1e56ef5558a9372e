"""Tensors whose parts have different origins: rows of vocabularies that differ, slices that one input provides."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from merge.errors import MergeError
from merge.plan.policy import Slice

if TYPE_CHECKING:
    from torch import Tensor

# Modules whose rows are tokens: embeddings and the projections onto a vocabulary.
VOCABULARY = re.compile(
    r"(.*[./])?(embed_tokens|word_embeddings?|tok_embeddings|token_embedding|wte|lm_head|embed_out|output_projection)"
    r"\.(weight|bias)"
)
_SHOWN = 5


@dataclass(frozen=True, eq=False)
class Patch:
    """Indices `take` along an axis of one source (its place in the unit's sources), put at `put` in the result."""

    source: int
    axis: int
    take: Tensor
    put: Tensor


@dataclass(frozen=True, eq=False)
class Assembly:
    """How a tensor is put together.

    Attributes:
        rows: for every source the indices along `axis` that are merged, -1 for those taken from the first source
            instead; empty where whole tensors are merged.
        put: the indices of the result that `rows` make.
        patches: what is put in unmerged, in this order.
        axis: 0 for rows, 1 for the input channels of a layer.
    """

    rows: tuple[Tensor, ...] = ()
    put: Tensor | None = None
    patches: tuple[Patch, ...] = ()
    axis: int = 0


def aligned(tensors: Sequence[Tensor], assembly: Assembly | None) -> list[Tensor]:
    """Give the parts of the sources that are merged with each other, in one shape."""
    if assembly is None or not assembly.rows:
        return list(tensors)
    import torch

    rows = [item.to(tensor.device) for item, tensor in zip(assembly.rows, tensors, strict=True)]
    axis = assembly.axis
    parts: list[Tensor] = []
    for tensor, mine in zip(tensors, rows, strict=True):
        part = tensor.index_select(axis, mine.clamp(min=0))
        absent = mine < 0
        if absent.any():  # the base's, in a dtype that holds both exactly
            part = part.to(torch.promote_types(part.dtype, tensors[0].dtype))
            bases = tensors[0].index_select(axis, rows[0][absent]).to(part.dtype)
            part = part.index_copy(axis, torch.nonzero(absent).flatten(), bases)
        parts.append(part)
    return parts


def assembled(tensors: Sequence[Tensor], assembly: Assembly | None, merged: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Give the whole result: what was merged of the aligned parts at its place, and the patches."""
    if assembly is None:
        return merged
    if assembly.put is None:
        result = merged.clone()
    else:
        result = merged.new_empty(shape).index_copy(assembly.axis, assembly.put.to(merged.device), merged)
    for patch in assembly.patches:
        part = tensors[patch.source].index_select(patch.axis, patch.take.to(merged.device))
        result = result.index_copy(patch.axis, patch.put.to(merged.device), part.to(result.dtype))
    return result


def patches_for(
    name: str, slices: Sequence[Slice], sources: tuple[int, ...], shape: tuple[int, ...]
) -> tuple[tuple[Patch, ...], str]:
    """Give the patches that slices of one tensor mean, or why they cannot be."""
    import torch

    patches: list[Patch] = []
    for item in slices:
        if item.axis >= len(shape) or item.index >= shape[item.axis]:
            return (), f"slices={item.rule!r}: {name} has shape {list(shape)}"
        if item.source not in sources:
            return (), f"slices={item.rule!r}: that input lacks {name}"
        at = torch.tensor([item.index])
        patches.append(Patch(sources.index(item.source), item.axis, at, at))
    return tuple(patches), ""


# -- vocabularies ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """Which row of every input belongs to each row of the result.

    Attributes:
        sizes: rows of every input.
        rows: inputs x rows of the result; -1 where an input lacks the row.
        tokens: the result's dictionary; None where rows are told apart by their position alone.
        axis: the axis that is meant: 0, or 1 where the rows are the input channels of a layer.
    """

    sizes: tuple[int, ...]
    rows: Tensor
    tokens: Mapping[str, int] | None = None
    axis: int = 0

    def among(self, sources: Sequence[int]) -> Vocabulary:
        """Give the same of some inputs."""
        return Vocabulary(tuple(self.sizes[index] for index in sources), self.rows[list(sources)], self.tokens)

    def fits(self, shapes: Sequence[tuple[int, ...]]) -> bool:
        """Tell whether tensors of these shapes, one of each input, have these rows."""
        return all(shape[:1] == (size,) for shape, size in zip(shapes, self.sizes, strict=True))

    def lacking(self, labels: Sequence[str]) -> str:
        """Say how many rows every input lacks, and which tokens they are."""
        import torch

        parts: list[str] = []
        names = list(self.tokens or ())
        for label, row in zip(labels, self.rows, strict=True):
            absent = [int(index) for index in torch.nonzero(row < 0)]
            if absent:
                more = ", ..." if len(absent) > _SHOWN else ""
                shown = f" ({', '.join(repr(names[i]) for i in absent[:_SHOWN])}{more})" if names else ""
                parts.append(f"{label} lacks {len(absent)} of {len(row)} rows{shown}")
        return "; ".join(parts)

    def assembly(self, policy: str) -> Assembly:
        """Give how a tensor with these rows is put together; `policy` is "keep-first" or "zero-delta"."""
        import torch

        present = self.rows >= 0
        merged = present.all(0) if policy == "keep-first" else present[0]
        put = torch.nonzero(merged).flatten()
        patches: list[Patch] = []
        first = present.to(torch.uint8).argmax(0)  # the first input that has the row
        for source in range(len(self.rows)):
            alone = torch.nonzero(~merged & (first == source)).flatten()
            if len(alone):
                patches.append(Patch(source, self.axis, self.rows[source, alone], alone))
        return Assembly(tuple(row[put] for row in self.rows), put, tuple(patches), self.axis)

    def shape(self, like: tuple[int, ...]) -> tuple[int, ...]:
        """Give the shape of the result of a tensor that has the shape `like` in one input."""
        return (*like[: self.axis], self.rows.shape[1], *like[self.axis + 1 :])


def by_token(dictionaries: Sequence[Mapping[str, int] | None], labels: Sequence[str]) -> Vocabulary | None:
    """Give the vocabulary of inputs with dictionaries that differ: the first's rows, then what only later ones have.

    None where there are no dictionaries or all are equal. Raises MergeError where one input of several has none, and
    for a dictionary whose rows are not 0, 1, 2, ...
    """
    given = [item for item in dictionaries if item is not None]
    if not given or all(item == given[0] for item in given):
        return None
    for label, item in zip(labels, dictionaries, strict=True):
        if item is None:
            raise MergeError(
                f"the dictionaries differ and {label} has none (global_dict_indices): its rows are unknown"
            )
        if sorted(item.values()) != list(range(len(item))):
            raise MergeError(f"{label}: the rows of its dictionary are not 0 to {len(item) - 1}, each once")
    tokens: dict[str, int] = {}
    for item in given:
        for token in sorted(item, key=item.__getitem__):
            tokens.setdefault(token, len(tokens))
    import torch

    rows = torch.tensor([[item.get(token, -1) for token in tokens] for item in given])
    return Vocabulary(tuple(map(len, given)), rows, tokens)


def by_position(sizes: Sequence[int], axis: int = 0) -> Vocabulary:
    """Give the vocabulary of inputs that only differ in how many rows follow: row i is token i everywhere."""
    import torch

    positions = torch.arange(max(sizes))
    rows = torch.stack([torch.where(positions < size, positions, -1) for size in sizes])
    return Vocabulary(tuple(sizes), rows, axis=axis)


def growing_axis(name: str, shapes: Sequence[tuple[int, ...]]) -> int | None:
    """Give the axis along which some inputs of a tensor have more than others, None where there is no such axis.

    Rows of a vocabulary follow each other along axis 0, input channels of a layer along axis 1: an image model that
    takes a mask or a depth map beside the image has more of them (9 against 4 in Stable Diffusion's inpainting).
    """
    if len({len(shape) for shape in shapes}) > 1:
        return None
    differing = [axis for axis, sizes in enumerate(zip(*shapes, strict=True)) if len(set(sizes)) > 1]
    if differing == [0]:
        return 0 if VOCABULARY.fullmatch(name) else None
    return 1 if differing == [1] else None
