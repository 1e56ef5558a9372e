"""T5X checkpoints (t5x/checkpoints.py, version 3): a folder with an index, `checkpoint`, and a Zarr array a tensor.

The index is msgpack as flax writes it (flax/serialization.py): `{"version": 3, "optimizer": {"target": ..., "state":
...}}`. A leaf is a TensorStore spec, `{"driver": "zarr", "kvstore": {"driver": "file", "path": relative}, "metadata":
...}`, or, for what is not partitioned, the array itself as extension 1: a packed (shape, dtype's name, bytes).
"""

# What a file holds has no type until it is looked at; msgpack has no types.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false, reportUnknownMemberType=false
# pyright: reportMissingTypeStubs=false, reportMissingImports=false

from __future__ import annotations

import itertools
import json
import math
import os
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from merge.checkpoint.formats.dotted import flatten, replaced
from merge.checkpoint.formats.elements import ELEMENTS
from merge.checkpoint.formats.format import WHOLE, Content, Layout, OutputFile, Specs
from merge.checkpoint.formats.tensors import Decoded, Spec, TensorEntry, check_shape, refuse_bomb
from merge.checkpoint.formats.zarr import HEADER, one_chunk, read_zarray
from merge.errors import MergeError

INDEX = "checkpoint"
WEIGHTS = ("optimizer.target", "target", "params")  # where weights are, the first that is there
OTHERS = ("optimizer.state", "state")
VERSION = 3
# Beyond these an index is hostile: a few bytes that ask for gigabytes.
_MOST_CONTAINERS, _LONGEST_LIST, _LONGEST_MAP = 1_000_000, 100_000, 1_000_000
_NDARRAY = 1  # flax's code among msgpack's extensions


def read(folder: Path) -> Content:
    """Read a folder's index; arrays packed in it stay packed. Raises MergeError for anything that is no such index."""
    import msgpack

    path = folder / INDEX
    data = path.read_bytes()
    if data.startswith(b"model_checkpoint_path"):
        raise MergeError(f"{path}: belongs to a TensorFlow checkpoint, not to T5X; convert it with T5X first")
    try:
        tree = _unpacked(data)
    except (ValueError, TypeError, RecursionError, MemoryError, msgpack.UnpackException) as error:
        raise MergeError(f"{path}: not a T5X index of {len(data)} bytes: {type(error).__name__}: {error}") from error
    if not isinstance(tree, dict):
        raise MergeError(f"{path}: not a T5X index: holds a {type(tree).__name__}")
    index = T5XIndex(folder, tree)
    return Content(folder, index, default=next(iter(index)), kept=index)


def _unpacked(data: bytes) -> Any:
    """What msgpack holds. Raises ValueError for more containers, or longer ones, than indexes of their size have."""
    import msgpack

    seen = itertools.count()

    def count(value: Any) -> Any:
        if next(seen) > _MOST_CONTAINERS:
            raise ValueError(f"more than {_MOST_CONTAINERS:,} lists and mappings")
        return value

    limits = {"max_array_len": _LONGEST_LIST, "max_map_len": _LONGEST_MAP}
    hooks = {"object_hook": count, "list_hook": count}
    return msgpack.unpackb(data, raw=False, strict_map_key=True, **limits, **hooks)


@dataclass(frozen=True)
class T5XIndex(Mapping[str, Mapping[str, TensorEntry]]):
    """What a T5X folder's index says, kept to be written again: a mapping of the sections that hold arrays.

    Arrays are looked at with the section that holds them: an optimizer's may be absent unless they are wanted.
    """

    folder: Path
    tree: dict[str, Any]

    def __iter__(self) -> Iterator[str]:
        """The sections, weights first; "." where none has a name known to hold them."""
        return iter([name for name in (*WEIGHTS, *OTHERS) if self.leaves(name)] or [WHOLE])

    def __len__(self) -> int:
        return len(list(iter(self)))

    def leaves(self, section: str) -> dict[str, Any]:
        """Give every array of a section by its dotted name, as the index describes it."""
        return flatten(self.folder / INDEX, self.part(section), is_array)

    def part(self, section: str) -> dict[str, Any]:
        """Give the tree below a section's name; empty where there is none."""
        part: Any = self.tree
        for key in section.split(".") if section != WHOLE else ():
            part = part.get(key, {}) if isinstance(part, dict) else {}
        return part if isinstance(part, dict) and not is_array(part) else {}

    def __getitem__(self, section: str) -> Mapping[str, TensorEntry]:
        """Where every tensor of a section lies. Raises MergeError for arrays that are broken or not there."""
        leaves = self.leaves(section)
        if not leaves:
            raise MergeError(
                f"{self.folder / INDEX}: no arrays found; its entries are {', '.join(list(self.tree)[:20])}"
            )
        folders = {name: self.folder_of(leaf) for name, leaf in leaves.items() if isinstance(leaf, dict)}
        absent = [
            name for name, folder in folders.items() if not os.path.isfile(folder / HEADER)
        ]  # false also where it is no name
        if absent:
            raise MergeError(
                f"{self.folder}: {len(absent)} of {len(leaves)} arrays of {section} are in the index and not on disk: "
                f"{', '.join(absent[:5])}"
            )
        entries = {name: self._entry(name, leaf, folders.get(name)) for name, leaf in leaves.items()}
        chunks = [path for path in set(folders.values()) for path in path.rglob("*")]
        outside = next((path for path in chunks if path.is_symlink() and not is_inside(self.folder, path)), None)
        if outside is not None:
            raise MergeError(f"{outside}: links to a file outside the checkpoint's folder")
        stored = sum(path.stat().st_size for path in chunks if path.is_file())
        refuse_bomb(self.folder, sum(entry.nbytes for name, entry in entries.items() if name in folders), stored)
        return entries

    def _entry(self, name: str, leaf: Any, folder: Path | None) -> TensorEntry:
        if folder is None:
            return _inline(self.folder / INDEX, name, leaf.data)
        entry = read_zarray(folder)
        claimed = leaf["metadata"].get("shape") if isinstance(leaf["metadata"], dict) else None
        if claimed is not None and claimed != list(entry.shape):
            raise MergeError(f"{folder}: has shape {list(entry.shape)}, the index gives {str(claimed)[:80]}")
        if entry.element.name == "uint16" and self.tree.get("version") == 2:
            raise MergeError(f"{folder}: version 2 of T5X wrote bfloat16 as uint16; load it with T5X and save it again")
        return entry

    def others(self, section: str, written: Container[str]) -> dict[str, Path]:
        """Files to take over, by relative name: all but what is `written`, the section's arrays, and notes on them."""
        mine = {self.folder_of(leaf) for leaf in self.leaves(section).values() if isinstance(leaf, dict)}
        return {
            str(file.relative_to(self.folder)): file
            for file in sorted(self.folder.rglob("*"))
            if file.is_file()
            and is_inside(self.folder, file)
            and not mine & set(file.parents)
            and str(file.relative_to(self.folder)) not in written
            and not file.name.endswith((".index.json", ".recipe.json"))
        }

    def folder_of(self, spec: dict[str, Any]) -> Path:
        """The folder of an array. Raises MergeError for other drivers and for paths out of the checkpoint's folder."""
        store = spec["kvstore"]
        path = store.get("path", spec.get("path")) if isinstance(store, dict) else store
        kind = store.get("driver") if isinstance(store, dict) else None
        if spec["driver"] not in ("zarr", "zarr2") or kind not in ("file", "gfile", "gcs") or not isinstance(path, str):
            told = str({"driver": spec["driver"], "kvstore": store})[:120]
            raise MergeError(f"{self.folder / INDEX}: {told}: only zarr arrays in files of the same folder are read")
        if "\0" in path or ".." in Path(path).parts or not is_inside(self.folder, self.folder / path):
            raise MergeError(f"{self.folder / INDEX}: names the array {path[:80]!r}, outside its folder")
        return self.folder / path


def is_inside(folder: Path, path: Path) -> bool:
    """Whether a path lies below a folder, links followed; a cache of the hub keeps what its links mean in `blobs`."""
    try:
        place, root = path.resolve(), folder.resolve()
    except (OSError, RuntimeError):  # links in a circle
        return False
    snapshots = next((parent for parent in folder.absolute().parents if parent.name == "snapshots"), None)
    return root in place.parents or (snapshots is not None and (snapshots.parent / "blobs").resolve() in place.parents)


def _relative(folder: Path, path: str) -> str:
    """The path of an array as an output's index tells it: below its folder, wherever the input lay."""
    return (folder / path).absolute().relative_to(folder.absolute()).as_posix()


def is_array(value: Any) -> bool:
    """Tell whether a value of the index is an array: a TensorStore spec or an array packed inside."""
    if isinstance(value, dict):
        return {"driver", "kvstore", "metadata"} <= set(value)
    return getattr(value, "code", None) == _NDARRAY


def _inline(path: Path, name: str, packed: bytes) -> TensorEntry:
    """An array inside the index, as flax packs it."""
    import msgpack

    try:
        shape, dtype_name, data = msgpack.unpackb(packed, raw=True)
        shape, element = tuple(shape), ELEMENTS[dtype_name.decode()]
        good = all(type(size) is int for size in shape) and not check_shape(shape, element)
        if not good or not isinstance(data, bytes) or len(data) != math.prod(shape) * element.itemsize:
            raise ValueError(f"shape {str(shape)[:80]}, {element}, {len(data)} bytes")
    except (ValueError, TypeError, KeyError, AttributeError, msgpack.UnpackException) as error:
        raise MergeError(f"{path}: {name} is a broken array: {type(error).__name__}: {error}") from error
    return TensorEntry(element, shape, Decoded(path, len(data), lambda: bytearray(data)), 0)


# -- writing ---------------------------------------------------------------------------------------------------------


def plan(path: Path, specs: Specs, like: Content | None, metadata: Mapping[str, str] | None) -> Layout:
    """Lay out a T5X folder; after one that was read, everything but the section's arrays is taken over.

    Arrays in files then stay in files under their names, packed ones stay packed. Raises MergeError for names and
    dtypes that the layout cannot hold.
    """
    files: dict[str, OutputFile] = {}

    def make(name: str, old: Any) -> Any:
        spec = specs[name]
        if old is not None and not isinstance(old, dict) and spec.element.numpy:
            return _Packed(name, spec)
        array = _spec(path, like.path if like else path, name, old, spec)
        folder = array["kvstore"]["path"].strip("/")
        header, chunk = one_chunk(spec.element, spec.shape)
        text = json.dumps(header).encode()
        if f"{folder}/{HEADER}" in files:
            raise MergeError(f"{path}: two tensors would lie in the array {folder!r}")
        files[f"{folder}/{HEADER}"] = OutputFile(f"{folder}/{HEADER}", len(text), [(0, text)])
        if spec.nbytes:
            files[f"{folder}/{chunk}"] = OutputFile(f"{folder}/{chunk}", spec.nbytes, [], {name: 0})
        return array

    if like is None:
        tree: dict[str, Any] = {"version": VERSION, "optimizer": {"target": replaced(path, {}, is_array, specs, make)}}
    else:
        index: T5XIndex = like.kept
        tree = _with_part(index.tree, like.section, replaced(path, index.part(like.section), is_array, specs, make))
    files[INDEX] = _packed(tree)
    return Layout(list(files.values()), folder=True, copied=like.kept.others(like.section, files) if like else {})


def _spec(path: Path, folder: Path, name: str, old: Any, spec: Spec | TensorEntry) -> dict[str, Any]:
    """The TensorStore spec of a new array; in the place of an old one it keeps that one's path and store."""
    header, _ = one_chunk(spec.element, spec.shape)
    metadata = {key: header[key] for key in ("chunks", "compressor", "shape")}
    if isinstance(old, dict):
        store = old["kvstore"] if isinstance(old["kvstore"], dict) else {"driver": "file", "path": old["kvstore"]}
        where = {**store, "path": _relative(folder, str(store.get("path", old.get("path"))))}
        kept = {key: value for key, value in old.items() if key not in ("path", "transform")}
        return {**kept, "dtype": spec.element.name, "kvstore": where, "metadata": metadata}
    below = f"target.{name}"
    if "/" in below or "\0" in below or len(below.encode()) > 255:
        raise MergeError(f"{path}: {name!r} cannot be the name of a folder, which T5X wants")
    kvstore = {"driver": "file", "path": below}
    return {"driver": "zarr", "dtype": spec.element.name, "kvstore": kvstore, "metadata": metadata}


def _with_part(tree: dict[str, Any], section: str, part: dict[str, Any]) -> dict[str, Any]:
    """The tree with another part below a section's name."""
    if section == WHOLE:
        return part
    key, _, rest = section.partition(".")
    return {**tree, key: _with_part(tree[key], rest, part) if rest else part}


@dataclass(frozen=True)
class _Packed:
    """An array to be packed into the index."""

    name: str
    spec: Spec | TensorEntry


def _packed(tree: dict[str, Any]) -> OutputFile:
    """The index as msgpack, with blanks where packed arrays' bytes will be."""
    import msgpack

    out, starts = bytearray(), dict[str, int]()
    packer: Any = msgpack.Packer()

    def put(value: Any) -> None:
        if isinstance(value, _Packed):
            spec = value.spec
            inner = (list(spec.shape), spec.element.name, bytes(spec.nbytes))
            out.extend(packer.pack(msgpack.ExtType(_NDARRAY, msgpack.packb(inner))))
            starts[value.name] = len(out) - spec.nbytes  # the bytes come last
        elif isinstance(value, dict):
            out.extend(packer.pack_map_header(len(value)))
            for key, item in value.items():
                out.extend(packer.pack(key))
                put(item)
        else:
            out.extend(packer.pack(value))

    put(tree)
    return OutputFile(INDEX, len(out), [(0, bytes(out))], starts)
