"""The safetensors format: 8 bytes of header length, a JSON header, then the tensors' bytes."""

# What a file holds has no type until it is looked at.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false, reportUnknownMemberType=false

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from itertools import accumulate
from pathlib import Path
from typing import Any

from merge.checkpoint.formats.elements import ELEMENTS, Element
from merge.checkpoint.formats.format import (
    WHOLE,
    Content,
    Layout,
    OutputFile,
    Specs,
    is_tie,
    name_problem,
    noted_ties,
    without_doubles,
)
from merge.checkpoint.formats.tensors import MappedFile, Spec, TensorEntry, check_shape
from merge.errors import MergeError

_LONGEST_HEADER = 100_000_000  # bytes: the format's own limit
_FIELDS, _INTEGER = {"dtype", "shape", "data_offsets"}, {int}
CODES = {element.safetensors: element for element in ELEMENTS.values() if element.safetensors}


def read(path: Path) -> Content:
    """Read and check a header; no tensor byte is touched.

    Raises MergeError naming the file for anything that is not a whole, well-formed safetensors file.
    """
    file = MappedFile(path)
    try:
        header, start = _header(file)
        metadata = header.pop("__metadata__", None)
        texts = isinstance(metadata, dict) and all(type(text) is str for text in metadata.values())
        if metadata is not None and not texts:
            raise ValueError("its __metadata__ is no mapping of texts")
        position, entries = start, dict[str, TensorEntry]()
        for (begin, end), name, element, shape in sorted(map(_tensor, header.items()), key=lambda item: item[0]):
            if begin != position - start:
                problem = "overlaps another tensor" if begin < position - start else "comes after a gap"
                raise ValueError(f"{name!r} at byte {begin} of the data {problem}")
            if end - begin != math.prod(shape) * element.bits / 8:
                raise ValueError(f"{name!r} is {element} {list(shape)} and has {end - begin} bytes")
            entries[name] = TensorEntry(element, shape, file, position)
            position = start + end
        if position != file.size:
            wanted = f"{position} bytes are named in its header"
            raise ValueError(f"{wanted}; it was cut short: get it again" if position > file.size else wanted)
        name_problem(entries)
    except (ValueError, RecursionError) as error:
        raise MergeError(f"{path}: not a whole safetensors file of {file.size} bytes: {error}") from error
    return Content(path, {WHOLE: entries}, metadata)


def _header(file: MappedFile) -> tuple[dict[str, Any], int]:
    """The JSON header, and where the data begin. Raises ValueError and RecursionError."""
    if file.size < 8:
        raise ValueError("it is shorter than its header's length")
    length = int.from_bytes(file.read(0, 8), "little")
    if length > min(file.size - 8, _LONGEST_HEADER):
        raise ValueError(f"its header would take {length} bytes; it was cut short, or is no such file: get it again")
    header = json.loads(file.read(8, length), object_pairs_hook=without_doubles)
    if not isinstance(header, dict):
        raise ValueError(f"its header is a {type(header).__name__}")
    return header, 8 + length


def _tensor(item: tuple[str, Any]) -> tuple[tuple[int, int], str, Element, tuple[int, ...]]:
    """Where a tensor lies, its name, type and shape. Raises ValueError for what the header must not say."""
    name, info = item
    if not isinstance(info, dict) or not info.keys() >= _FIELDS:
        raise ValueError(f"{name!r} lacks a dtype, a shape or offsets")
    code, shape, offsets = info["dtype"], info["shape"], info["data_offsets"]
    if not isinstance(code, str) or code not in CODES:
        raise ValueError(f"tensor {name!r} has dtype {str(code)[:40]}, which is not one of {', '.join(CODES)}")
    for value in (shape, offsets):
        if not isinstance(value, list) or not _INTEGER.issuperset(map(type, value)):
            raise ValueError(f"tensor {name!r} has sizes or offsets that are no integers: {str(value)[:80]}")
    if len(offsets) != 2 or not 0 <= offsets[0] <= offsets[1]:
        raise ValueError(f"tensor {name!r} has offsets {str(offsets)[:80]}")
    wrong = check_shape(tuple(shape), CODES[code])
    if wrong:
        raise ValueError(f"tensor {name!r} has {wrong}")
    return (offsets[0], offsets[1]), name, CODES[code], tuple(shape)


# -- writing ---------------------------------------------------------------------------------------------------------


def plan(path: Path, specs: Specs, like: Content | None, metadata: Mapping[str, str] | None) -> Layout:
    """Lay out one file. What was read has nothing to keep but its metadata, which is given."""
    return Layout([_file("", _without_aliases(specs, metadata or {}), metadata)])


def plan_folder(specs: Specs, metadata: Mapping[str, str] | None, shard_size: int, stem: str = "model") -> Layout:
    """Lay out shards of at most `shard_size` bytes (but for one larger tensor) under an index; one needs no index."""
    named = _without_aliases(specs, metadata or {})
    shards: list[dict[str, Spec | TensorEntry]] = [{}]
    filled = 0
    for name, spec in named.items():
        if shards[-1] and filled + spec.nbytes > shard_size:
            shards.append({})
            filled = 0
        shards[-1][name] = spec
        filled += spec.nbytes
    if len(shards) == 1:
        return Layout([_file(f"{stem}.safetensors", named, metadata)], folder=True)
    names = [f"{stem}-{number:05}-of-{len(shards):05}.safetensors" for number in range(1, len(shards) + 1)]
    weight_map = {tensor: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
    plain, dot, word = stem.partition(".")  # of the variant fp16 the index is called ...index.fp16.json
    variant = dot + word
    aliases = noted_ties(metadata, named)
    noted = {"total_size": sum(spec.nbytes for spec in named.values()), **aliases}
    index = json.dumps({"metadata": noted, "weight_map": weight_map}, indent=2).encode()
    files = [_file(name, shard, metadata) for name, shard in zip(names, shards, strict=True)]
    return Layout(
        [*files, OutputFile(f"{plain}.safetensors.index{variant}.json", len(index), [(0, index)])], folder=True
    )


def _without_aliases(specs: Specs, metadata: Mapping[str, str]) -> Specs:
    """Leave out names that the metadata maps to one that they are tied to, as in the input: see `open_checkpoint`."""
    kept = {name: specs.get(to) if is_tie(name, to := metadata.get(name, "")) else None for name in specs}
    return {
        name: spec for name, spec in specs.items() if (to := kept[name]) is None or to.tie is None or to.tie != spec.tie
    }


def _file(name: str, specs: Specs, metadata: Mapping[str, str] | None) -> OutputFile:
    """Lay out one file: its header, and where every tensor begins.

    The order given is kept where every tensor then starts at a multiple of its element size, and sorted by element
    size (largest first) otherwise, so that any reader can map the file. Raises MergeError for a dtype that the
    format does not have.
    """
    order = list(specs)
    begins = accumulate((spec.nbytes for spec in specs.values()), initial=0)
    if any(begin % spec.element.itemsize for begin, spec in zip(begins, specs.values(), strict=False)):
        order.sort(key=lambda name: -specs[name].element.itemsize)
    header: dict[str, object] = {} if metadata is None else {"__metadata__": dict(metadata)}
    starts: dict[str, int] = {}
    position = 0
    for tensor in order:
        element = specs[tensor].element
        if not element.safetensors:
            problem = f"tensor {tensor!r}: safetensors has no dtype {element}"
            raise MergeError(f"{problem}; write a .pt file or choose a dtype")
        starts[tensor] = position
        position += specs[tensor].nbytes
        shape = list(specs[tensor].shape)
        header[tensor] = {"dtype": element.safetensors, "shape": shape, "data_offsets": [starts[tensor], position]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    data = 8 + len(text)
    head = len(text).to_bytes(8, "little") + text
    return OutputFile(name, data + position, [(0, head)], {name: data + start for name, start in starts.items()})
