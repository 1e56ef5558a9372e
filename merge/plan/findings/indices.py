"""Checks of tensors that are no arithmetic although they may be floats: indices, codebooks."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from merge.plan.findings.facts import Description, Facts
from merge.plan.findings.kinds import Seen, chosen, listed
from merge.plan.policy import Origin

if TYPE_CHECKING:
    from torch import Tensor

# Tables of positions and buckets that a module keeps as a buffer; `model.half()` makes floats of some.
INDEX = re.compile(r"(.*_)?(ids|idx|index|indices|bucket|buckets)")
ENDS = ("ids", "idx", "index", "indices", "bucket", "buckets")
LARGEST = 1 << 22  # elements of a table that is looked at: 2,048 positions by 2,048
NEAR = 0.0625  # of a whole number: a third of a shared table, summed up in half precision, is not further off
# Codebooks that training moves by gradients; those with moving sums are never merged (`policy.origins`).
CODEBOOK = re.compile(
    r"(.*\.)?(quantizer?|quantizers|vq|vq_layer|codebook|_codebook|vector_quantizer)(\.\w+)*\.(embedding\.weight|embeddings?|"
    r"codebooks?|embed|codebook\.weight)"
)


def index_origins(
    inputs: Sequence[Mapping[str, Tensor]],
    described: Sequence[Description],
    decided: Mapping[str, Origin],
    *,
    everywhere: bool,
) -> dict[str, Origin]:
    """Give the tables of indices that some hold as floats and that are equal, each with the input that it comes from.

    With `everywhere` only those that all inputs have.
    """
    found: dict[str, Origin] = {}
    for name in dict.fromkeys(name for spec in described for name in spec if name.endswith(ENDS)):
        if name not in decided and INDEX.fullmatch(name.rpartition(".")[2]):
            holders = [place for place, spec in enumerate(described) if name in spec]
            if len(holders) > 1 and (not everywhere or len(holders) == len(described)):
                sources, specs = [inputs[place] for place in holders], [described[place] for place in holders]
                whose = equal_indices(name, sources) if is_index(name, sources, specs) else None
                if whose is not None:
                    found[name] = Origin(holders[whose], "indices")
    return found


def is_index(name: str, sources: Sequence[Mapping[str, Tensor]], specs: Sequence[Description]) -> bool:
    """Tell whether floats of this name are indices: it says so, and one input has nothing but whole numbers there."""
    if not INDEX.fullmatch(name.rpartition(".")[2]):
        return False
    held = [(source, spec[name]) for source, spec in zip(sources, specs, strict=True) if name in spec]
    if not any(item.element.is_floating_point for _, item in held):
        return False
    small = [source[name] for source, item in held if math.prod(item.shape) <= LARGEST]
    return len(small) == len(held) and any(_whole(tensor) for tensor in small)


def equal_indices(name: str, sources: Sequence[Mapping[str, Tensor]]) -> int | None:
    """Which of the sources, all having the name, gives a table that is the same in all once rounded; None if it is not.

    It is the first that holds whole numbers only. Tables of half precision are compared in half precision.
    """
    tensors = [source[name].detach().cpu() for source in sources]
    floats = [tensor.dtype for tensor in tensors if tensor.is_floating_point()]
    coarsest = min(floats, key=lambda dtype: dtype.itemsize)
    rounded = [tensor.double().round().to(coarsest) for tensor in tensors]
    if any(other.shape != rounded[0].shape or not bool((other == rounded[0]).all()) for other in rounded[1:]):
        return None
    return next((index for index, tensor in enumerate(tensors) if bool((tensor.double() % 1 == 0).all())), 0)


def _whole(tensor: Tensor) -> bool:
    numbers = tensor.detach().double()
    return bool(((numbers - numbers.round()).abs() <= NEAR).all()) and numbers.numel() > 0


def indices_differ(facts: Facts) -> Iterator[Seen]:
    """Indices stored as floats that differ: their average points to places that nobody meant."""
    found: list[str] = []
    for name in facts.merged if facts.inputs and facts.holds(*ENDS) else ():
        if INDEX.fullmatch(name.rpartition(".")[2]) and is_index(name, facts.inputs, facts.specs):
            holders = [source for source, spec in zip(facts.inputs, facts.specs, strict=True) if name in spec]
            if equal_indices(name, holders) is None:
                found.append(name)
    if found:
        text = f"indices stored as floats differ: {listed(found)}"
        advice = f"indices are never merged: leave those of the first with {chosen('keep', found, facts.wanted)}"
        yield Seen(text, advice, tuple(found))


def _equal(name: str, facts: Facts) -> bool:
    tensors = [source[name] for source, spec in zip(facts.inputs, facts.specs, strict=False) if name in spec]
    first = tensors[0] if tensors else None
    if first is None or first.numel() > LARGEST:
        return False
    return all(other.shape == first.shape and bool((other == first).all()) for other in tensors[1:])


def codebooks(facts: Facts) -> Iterator[Seen]:
    """Codebooks that are merged code by code."""
    if not facts.holds("quantize", "codebook", "vq"):
        return
    found = [name for name in facts.merged if CODEBOOK.fullmatch(name) and not _equal(name, facts)]
    if found:
        text = f"codebooks differ and are merged code by code: {listed(found)}"
        advice = (
            "codes of two codebooks correspond only where they come from one and hardly moved: else leave those of the "
            f"first with {chosen('keep', found, facts.wanted)}"
        )
        yield Seen(text, advice, tuple(found))
