"""Layers: numbered lists in a checkpoint's names, and results that are put together of some of their layers.

A list is found from names alone: `model.layers.0.mlp.weight` is of layer 0 of the list `model.layers`.
"""

# What users give is checked, whatever its type is said to be.
# pyright: reportUnnecessaryIsInstance=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from merge.errors import MergeError, shortened

# The layers [from, to) of every input that takes part in a stretch of the result, by the input's name, in the order in
# which the method takes them; None means all layers.
Ranges: TypeAlias = "Mapping[str, tuple[int, int] | None]"
# The stretches that lists of the result are made of, by the list's name; "" is the only list that there is.
Layers: TypeAlias = "Mapping[str, tuple[Ranges, ...]]"

# How lists of layers are called; where none is called so every numbered list is one.
_LIST = re.compile(
    r"layers?|h|blocks?|resblocks|layer_module|(encoder|decoder|(single_)?transformer|down|up)_(layers?|blocks?)"
)
# Modules behind the layers: the last norm, heads and what leads to them. All others lie before.
_END = re.compile(
    r"(final_?|post_?|out_?|last_?)?(layer_?norm|rms_?norm|norm|ln)(_?f|_final|_out|_post)?"
    r"|(\w+_)?heads?|score|classifier|cls|pooler|logits|predictions?|output(_(projection|proj|layer))?|out_proj|proj_out"
    r"|project_out|embed_out|fc(_norm|_out)?|(lm_head|final_logits)_bias"
)
_NUMBER = re.compile(r"0|[1-9][0-9]{0,8}")
_BEGIN = re.compile(r"emb|(^pre|_pre)(_|ln|layr?norm|norm|$)|^(in|input)_")
SHOWN = 8


@dataclass(frozen=True)
class Place:
    """Where a tensor of the result lies: in which list and stretch, and at which of the stretch's layers.

    Attributes:
        list: the list's name, that of the nearest list for what is of none; "" where there is none.
        stretch: the number of the stretch of the list.
        position: the layer within the stretch; None before and behind the layers.
        length: layers of the stretch.
        depth: from 0, before the first layer of the list and in it, to 1, in the last and behind it.
    """

    list: str = ""
    stretch: int = 0
    position: int | None = None
    length: int = 0
    depth: float = 0.0


# -- lists in names --------------------------------------------------------------------------------------------------


def numbered(name: str) -> tuple[str, int, str] | None:
    """Give a name's list, number and rest, by the first list with a usual name, else the first number; None without.

    >>> numbered("model.layers.3.experts.0.w"), numbered("model.norm.weight")
    (('model.layers', 3, 'experts.0.w'), None)
    """
    parts = name.split(".")
    numbers = [index for index, part in enumerate(parts) if _NUMBER.fullmatch(part)]
    usual = [index for index in numbers if index and _LIST.fullmatch(parts[index - 1])]
    if not numbers:
        return None
    at = (usual or numbers)[0]
    return ".".join(parts[:at]), int(parts[at]), ".".join(parts[at + 1 :])


def lists_in(names: Iterable[str]) -> dict[str, dict[int, list[str]]]:
    """Give the lists of layers: by name, then by number, the rests of names that a layer has."""
    found: dict[str, dict[int, list[str]]] = {}
    for name in names:
        if at := numbered(name):
            found.setdefault(at[0], {}).setdefault(at[1], []).append(at[2])
    usual = {name: layers for name, layers in found.items() if _LIST.fullmatch(name.rpartition(".")[2])}
    return usual or found


def list_named(wanted: str, lists: Mapping[str, Mapping[int, Any]], label: str) -> str:
    """Give the list that is meant: the only one for "", else of this name or with this end. Raises MergeError."""
    told = ", ".join(f"{name or 'numbers alone'} ({_span(layers)})" for name, layers in lists.items())
    if not lists:
        raise MergeError(f"{label} has no numbered layers, as model.layers.0.mlp.weight")
    found = [wanted] if wanted in lists else [name for name in lists if f".{name}".endswith(f".{wanted}")]
    found = list(lists) if not wanted else found
    if len(found) > 1:
        raise MergeError(f"{label} has several lists of layers: say which is meant: {told}")
    if not found:
        raise MergeError(f"{label} has no layers called {shortened(wanted)}; it has {told}")
    return found[0]


def _span(layers: Mapping[int, Any]) -> str:
    low, high = min(layers), max(layers)
    return f"layers {low} to {high}" if len(layers) == high - low + 1 else f"{len(layers)} layers from {low} to {high}"


def _common(name: str, other: str) -> int:
    """How many components two names begin with in common."""
    count = 0
    for one, two in zip(name.split("."), other.split("."), strict=False):
        if one != two:
            break
        count += 1
    return count


def is_end(name: str, beside: str) -> bool:
    """Tell whether a tensor beside a list of layers lies behind them: the last norm, the head."""
    parts = name.split(".")[_common(name, beside) :]
    if any(_BEGIN.search(part) for part in parts if part != "embed_out"):
        return False
    return any(_END.fullmatch(part) for part in parts)


def nearest_list(name: str, lists: Sequence[str]) -> str:
    """Give the list that a tensor of none belongs to: what it shares most of its name with.

    Of several the first for what lies before the layers, and the last for what lies behind.
    """
    most = max((_common(name, other) for other in lists), default=0)
    near = [other for other in lists if _common(name, other) == most] or [""]
    return near[-1] if is_end(name, near[-1]) else near[0]


def places(names: Sequence[str], layers: Mapping[str, Sequence[int]] | None = None) -> dict[str, Place]:
    """Give where every tensor of a result lies; `layers` are the lengths of the stretches of lists that have several.

    >>> [place.depth for place in places(["embed.w", "h.0.w", "h.1.w", "h.2.w", "norm.w"]).values()]
    [0.0, 0.0, 0.5, 1.0, 1.0]
    """
    lists = lists_in(names)
    found: dict[str, Place] = {}
    order = {name: {number: at for at, number in enumerate(sorted(its))} for name, its in lists.items()}
    for name in names:
        at = numbered(name)
        if at and at[0] in lists:
            lengths = (layers or {}).get(at[0]) or [len(order[at[0]])]
            index = position = order[at[0]][at[1]]
            stretch = 0
            while position >= lengths[stretch] and stretch + 1 < len(lengths):
                position, stretch = position - lengths[stretch], stretch + 1
            whole = len(order[at[0]])
            depth = index / (whole - 1) if whole > 1 else 0.5
            found[name] = Place(at[0], stretch, position, lengths[stretch], depth)
            continue
        beside = nearest_list(name, list(lists))
        end = bool(lists) and is_end(name, beside)
        lengths = (layers or {}).get(beside) or [0]
        found[name] = Place(beside, len(lengths) - 1 if end else 0, None, lengths[-1 if end else 0], float(end))
    return found


# -- what users write ------------------------------------------------------------------------------------------------


def layers_of(value: Any) -> Layers:
    """Read what a recipe says of layers: a list of stretches, or by a list's name such lists.

        >>> layers_of([{"a": [0, 16], "b": [0, 16]}, {"a": [8, 24]}])
        {'': ({'a': (0, 16), 'b': (0, 16)}, {'a': (8, 24)})}

    Raises MergeError.
    """
    if not value:
        return {}
    lists = value if isinstance(value, Mapping) else {"": value}
    found: dict[str, tuple[Ranges, ...]] = {}
    for name, stretches in lists.items():
        if not isinstance(stretches, Sequence) or isinstance(stretches, str) or not stretches:
            raise MergeError(f"layers: {shortened(stretches)}: must be a list of stretches, as [{{'vqa': [0, 16]}}]")
        found[str(name)] = tuple(_ranges(item) for item in stretches)
    return found


def _ranges(item: Any) -> Ranges:
    if not isinstance(item, Mapping) or not item:
        raise MergeError(f"layers: {shortened(item)}: must say the layers by input, as {{'vqa': [0, 16]}}")
    return {str(name): _range(span, f"layers of {name}") for name, span in item.items()}


def _range(span: Any, what: str) -> tuple[int, int] | None:
    if span is None or span == "all":
        return None
    ends = list(span) if isinstance(span, Sequence) and not isinstance(span, str) else []
    if len(ends) != 2 or not all(type(end) is int for end in ends) or not 0 <= ends[0] < ends[1]:
        raise MergeError(f"{what}: {shortened(span)}: must be [from, to) as [0, 16] for layers 0 to 15, or 'all'")
    return ends[0], ends[1]


def layers_in_words(layers: Layers) -> str:
    """Put layers in a few words, with numbers as people count: "a 0-15, a 8-23"."""
    lists: list[str] = []
    for name, stretches in layers.items():
        each = ["+".join(f"{label}{_said(span)}" for label, span in ranges.items()) for ranges in stretches]
        more = f" and {len(each) - SHOWN} more" if len(each) > SHOWN else ""
        lists.append((f"{name} of " if name else "") + ", ".join(each[:SHOWN]) + more)
    return "; ".join(lists)


def _said(span: tuple[int, int] | None) -> str:
    if span is None:
        return ""
    return f" {span[0]}" if span[1] == span[0] + 1 else f" {span[0]}-{span[1] - 1}"
