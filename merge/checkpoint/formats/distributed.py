"""Torch's distributed checkpoints (torch/distributed/checkpoint): a folder of `.distcp` files and `.metadata`.

`.metadata` is a pickle of what each tensor is, of which chunks it is made, and of the place of every chunk in a file:
there lies what torch.save writes of one tensor. The pickle is read as data, with the names of torch's own metadata
allowed besides; what the ranks saved as pickles of their own (steps, schedulers) is not looked into.
"""

# What a pickle holds has no type until it is looked at.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false, reportUnknownMemberType=false

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from merge.checkpoint.formats.format import Content
from merge.checkpoint.formats.pickle.reader import loads
from merge.checkpoint.formats.pickle.values import ALLOWED, Opaque, PickleBroken, PickleRefused
from merge.checkpoint.formats.tensors import CheckedFile, Decoded, TensorEntry, check_shape, raw_bytes
from merge.checkpoint.formats.torch_zip.reader import Archive, Records
from merge.checkpoint.formats.torch_zip.sections import sections_of
from merge.checkpoint.formats.torch_zip.tree import Leaves, TensorLeaf, element_named, read_tree, sizes_in
from merge.errors import MergeError

INDEX = ".metadata"
_NAMES = re.compile(
    ALLOWED.pattern + r"| torch\.distributed\.checkpoint\.(metadata|filesystem|storage|planner)\.\w+", re.VERBOSE
)


@dataclass(frozen=True)
class _Chunk:
    """A block of a tensor: where it begins in it, its shape, and the file, offset and length of what was saved."""

    begin: tuple[int, ...]
    shape: tuple[int, ...]
    file: CheckedFile
    offset: int
    length: int


def read(folder: Path) -> Content:
    """Read a folder's metadata. Raises MergeError naming it for what is broken, and for chunks that are not there."""
    path = folder / INDEX
    data = path.read_bytes()
    try:
        found = loads(data, lambda factory, args: NotImplemented, allowed=_NAMES).attributes
        tree = _Reader(folder, found).tree()
    except PickleRefused as error:
        raise MergeError(f"{path}: its pickle names {error}, which is no part of torch's metadata") from error
    except PickleBroken as error:
        raise MergeError(f"{path}: not a torch distributed checkpoint's metadata: {error}") from error
    except (AttributeError, TypeError, ValueError, KeyError, IndexError) as error:
        told = f"{type(error).__name__}: {str(error)[:200]}"
        raise MergeError(
            f"{path}: not a torch distributed checkpoint's metadata of {len(data)} bytes: {told}"
        ) from error
    sections = sections_of(path, tree)
    kept = Archive(folder.name, tree, sections)
    return Content(
        folder, sections, default=sections.default, others=sections.others(), kept=kept, advice=sections.advice
    )


class _Reader:
    """Turns torch's metadata into a tree of tensors."""

    def __init__(self, folder: Path, found: dict[str, Any]):
        self.folder = folder
        self.kinds: dict[str, Any] = found["state_dict_metadata"]
        self.ways: Any = found.get("planner_data")
        self.files: dict[str, CheckedFile] = {}
        self.places = {
            (index.attributes["fqn"], _offset(index.attributes.get("offset"))): info.attributes
            for index, info in found["storage_data"].items()
        }

    def tree(self) -> dict[Any, Any]:
        """Everything that was saved under the keys it had, as the planner notes them, or under its whole name."""
        tree: dict[Any, Any] = {}
        for name, kind in self.kinds.items():
            chunked = isinstance(kind, Opaque) and "chunks" in kind.attributes
            value = TensorLeaf(self.entry(name, kind.attributes)) if chunked else kind
            way = self.ways.get(name) if isinstance(self.ways, dict) else None
            way = way if isinstance(way, tuple) and way and len(way) < 50 else (name,)
            into = tree
            for key in way[:-1]:
                into = into.setdefault(key, {})
            if not isinstance(into, dict) or way[-1] in into:
                raise PickleBroken(f"two values are called {str(name)[:80]}")
            into[way[-1]] = value
        return tree

    def entry(self, name: str, kind: dict[str, Any]) -> TensorEntry:
        """Give where a tensor's chunks lie. Raises PickleBroken where they do not make it up."""
        properties = kind["properties"]
        dtype = properties.state[0] if isinstance(properties.state, tuple) else properties.attributes["dtype"]
        element, shape = element_named(dtype), sizes_in(kind["size"])
        if check_shape(shape, element):
            raise PickleBroken(f"{name[:80]} has {check_shape(shape, element)}")
        chunks = [self.chunk(name, chunk.attributes, shape) for chunk in kind["chunks"]]
        if sum(math.prod(chunk.shape) for chunk in chunks) != math.prod(shape):
            raise PickleBroken(f"the {len(chunks)} chunks of {name[:80]} do not make up its shape {list(shape)}")
        size = math.prod(shape) * element.itemsize
        entry = TensorEntry(element, shape, Decoded(self.folder, size, lambda: _decode(name, entry, chunks)), 0)
        return entry

    def chunk(self, name: str, chunk: dict[str, Any], shape: tuple[int, ...]) -> _Chunk:
        begin, sizes = sizes_in(chunk["offsets"]), sizes_in(chunk["sizes"])
        inside = len(begin) == len(sizes) == len(shape)
        inside = inside and all(0 <= at <= at + n <= whole for at, n, whole in zip(begin, sizes, shape, strict=True))
        info = self.places.get((name, begin)) or self.places.get((name, None))
        if not inside or info is None:
            raise PickleBroken(f"a chunk of {name[:80]} that " + ("is nowhere" if inside else "lies outside of it"))
        file, offset, length = info["relative_path"], info["offset"], info["length"]
        if not isinstance(file, str) or not file or Path(file).name != file or type(offset) is not int:
            raise PickleBroken(f"{name[:80]} in the file {str(file)[:80]!r}, outside of the folder")
        if info.get("transform_descriptors"):
            raise PickleBroken(f"{name[:80]} was encoded while it was saved; save it again without extensions")
        if file not in self.files:
            if not (self.folder / file).is_file():
                raise MergeError(f"{self.folder}: {file[:80]}, which {INDEX} names, is missing: copy the whole folder")
            self.files[file] = CheckedFile(self.folder / file)
        if offset < 0 or type(length) is not int or not 0 < length <= self.files[file].size - offset:
            ends = f"{offset + length} of {self.files[file].size}"
            raise MergeError(f"{self.folder / file}: truncated: {name[:80]} ends at byte {ends}")
        return _Chunk(begin, sizes, self.files[file], offset, length)


def _decode(name: str, entry: TensorEntry, chunks: Sequence[_Chunk]) -> memoryview:
    """Put a tensor's chunks together. Raises MergeError for broken ones and where some lie over each other."""
    import torch

    whole = torch.zeros(entry.shape, dtype=entry.dtype)
    filled = torch.zeros(entry.shape if len(chunks) > 1 else (), dtype=torch.bool)
    for chunk in chunks:
        records = Records(chunk.file, chunk.offset, chunk.length)
        leaf = read_tree(chunk.file.path, records.pickled, Leaves(chunk.file, records.place))
        if not isinstance(leaf, TensorLeaf) or (leaf.entry.element, leaf.entry.shape) != (entry.element, chunk.shape):
            raise MergeError(f"{chunk.file.path}: holds something else for {name[:80]} than {INDEX} says")
        where = tuple(slice(at, at + size) for at, size in zip(chunk.begin, chunk.shape, strict=True))
        if len(chunks) > 1 and bool(filled[where].any()):
            raise MergeError(f"{chunk.file.path}: chunks of {name[:80]} lie over each other")
        whole[where] = leaf.entry.tensor()
        if len(chunks) > 1:
            filled[where] = True
    return raw_bytes(whole)


def _offset(value: Any) -> tuple[int, ...] | None:
    return None if value is None else sizes_in(value)
