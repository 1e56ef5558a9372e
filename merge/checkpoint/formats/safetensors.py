"""The safetensors format: 8 bytes of header length, a JSON header, then the tensors' bytes."""

# What a file holds has no type until it is looked at.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false, reportUnknownMemberType=false

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import accumulate
from pathlib import Path
from typing import Any

from safetensors import safe_open

from merge.checkpoint.formats.elements import ELEMENTS
from merge.checkpoint.formats.format import WHOLE, Content, Layout, OutputFile, Specs
from merge.checkpoint.formats.tensors import MappedFile, Spec, TensorEntry, check_shape
from merge.errors import MergeError

CODES = {element.safetensors: element for element in ELEMENTS.values() if element.safetensors}


def read(path: Path) -> Content:
    """Read and check a header; no tensor byte is touched.

    Raises MergeError naming the file for anything that is not a whole, well-formed safetensors file.
    """
    file = MappedFile(path)
    try:
        with safe_open(path, framework="numpy"):  # the format's own library judges sizes, overlaps and gaps
            pass
    except Exception as error:
        raise MergeError(f"{path}: not a whole safetensors file of {file.size} bytes: {error}") from error
    length = int.from_bytes(file.read(0, 8), "little")
    header: dict[str, dict[str, Any]] = json.loads(file.read(8, length))
    metadata = header.pop("__metadata__", None)  # in the file's order; the library's own is random
    entries: dict[str, TensorEntry] = {}
    for name, info in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        code = str(info["dtype"])
        if code not in CODES:
            raise MergeError(f"{path}: tensor {name!r} has dtype {code}, which is not one of {', '.join(CODES)}")
        wrong = check_shape(tuple(info["shape"]), CODES[code])
        if wrong:
            raise MergeError(f"{path}: tensor {name!r} has {wrong}")
        entries[name] = TensorEntry(CODES[code], tuple(info["shape"]), file, 8 + length + info["data_offsets"][0])
    return Content(path, {WHOLE: entries}, metadata)


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
    aliases = {name: to for name, to in (metadata or {}).items() if to in named and name not in named}
    noted = {"total_size": sum(spec.nbytes for spec in named.values()), **aliases}
    index = json.dumps({"metadata": noted, "weight_map": weight_map}, indent=2).encode()
    files = [_file(name, shard, metadata) for name, shard in zip(names, shards, strict=True)]
    return Layout(
        [*files, OutputFile(f"{plain}.safetensors.index{variant}.json", len(index), [(0, index)])], folder=True
    )


def _without_aliases(specs: Specs, metadata: Mapping[str, str]) -> Specs:
    """Leave out names that the metadata maps to one that they are tied to, as in the input: see `open_checkpoint`."""
    kept = {name: specs.get(metadata.get(name, "")) for name in specs}
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
