"""Weights in `.npz` files: plain arrays, and nested dictionaries of arrays pickled as object arrays (Unified-IO 2).

Pickles are read as data: nothing that a file names is imported or called.
"""

# What a file holds has no type until it is looked at.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false, reportUnknownMemberType=false

from __future__ import annotations

import io
import math
import zipfile
import zlib
from collections import Counter
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from merge.checkpoint.formats.dotted import flatten, replaced
from merge.checkpoint.formats.elements import Element
from merge.checkpoint.formats.format import WHOLE, Content, Layout, OutputFile, Specs
from merge.checkpoint.formats.pickle.arrays import CODES, array_entry, numpy_element
from merge.checkpoint.formats.pickle.reader import loads
from merge.checkpoint.formats.pickle.values import Blob, Global, Opaque, PickleBroken, PickleRefused
from merge.checkpoint.formats.pickle.writer import dumps
from merge.checkpoint.formats.tensors import Decoded, TensorEntry, check_shape, refuse_bomb
from merge.checkpoint.formats.zips import joined_crc, lay_out
from merge.errors import MergeError

_END = ".npy"


@dataclass(frozen=True)
class _Array:
    """A plain array in a file of its own inside the zip file."""

    entry: TensorEntry


def read(path: Path) -> Content:
    """Read what a file holds; plain arrays are read on access, pickled ones are held in memory.

    Raises MergeError naming the file for anything broken, for pickles that name what is not inert, and for arrays that
    are no plain numbers.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            odd = [name for name in names if not name.endswith(_END)]
            odd += [name for name, count in Counter(names).items() if count > 1]
            if odd or not names:
                raise MergeError(f"{path}: not an npz file: " + (f"holds {odd[0]!r}" if odd else "is empty"))
            refuse_bomb(path, sum(info.file_size for info in archive.infolist()), path.stat().st_size)
            tree = {name.removesuffix(_END): _member(path, archive, name) for name in names}
    except MergeError:
        raise
    except Exception as error:  # zipfile raises a dozen kinds for broken bytes
        raise MergeError(f"{path}: not a whole npz file: {error}") from error
    leaves = flatten(path, tree, _is_leaf)
    if not leaves:
        raise MergeError(f"{path}: no arrays found; its entries are {', '.join(list(tree)[:20])}")
    entries = {
        name: leaf.entry if isinstance(leaf, _Array) else array_entry(path, name, leaf) for name, leaf in leaves.items()
    }
    return Content(path, {WHOLE: entries}, kept=tree)


def _is_leaf(value: Any) -> bool:
    if isinstance(value, _Array):
        return True
    return isinstance(value, Opaque) and isinstance(value.factory, Global) and value.factory.module.startswith("numpy")


def _member(path: Path, archive: zipfile.ZipFile, name: str) -> Any:
    """A file in the zip file: a plain array, or the dictionary in an array of one object."""
    import numpy as np

    with archive.open(name) as file:
        version = np.lib.format.read_magic(file)
        header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, code = header(file)
        if not code.hasobject:
            element = numpy_element(path, name, code.str)
            if check_shape(shape, element):
                raise MergeError(f"{path}: {name} has {check_shape(shape, element)}")
            nbytes = math.prod(shape) * element.itemsize
            return _Array(TensorEntry(element, shape, Decoded(path, nbytes, lambda: _read(path, name, nbytes)), 0))
        try:
            size = archive.getinfo(name).file_size
            value: Any = loads(file.read(size), lambda factory, args: NotImplemented)
        except PickleRefused as error:
            raise MergeError(f"{path}: {name} names {error}, which is not inert, so nothing was loaded") from error
        except PickleBroken as error:
            raise MergeError(f"{path}: {name} is a broken pickle: {error}") from error
    content = value.state[4] if isinstance(value, Opaque) and isinstance(value.state, tuple) else None
    if shape != () or not isinstance(content, list) or len(content) != 1 or not isinstance(content[0], dict):
        raise MergeError(f"{path}: {name} is an array of objects, read are only single dictionaries of arrays")
    return content[0]


def _read(path: Path, name: str, nbytes: int) -> memoryview:
    import numpy as np

    try:
        with zipfile.ZipFile(path) as archive, archive.open(name) as file:
            array = np.ascontiguousarray(np.lib.format.read_array(file, allow_pickle=False))
            if file.read(1):  # reading to the end also compares the checksum
                raise MergeError(f"{path}: {name} has more bytes than its header says")
    except MergeError:
        raise
    except Exception as error:  # zipfile raises a dozen kinds for broken bytes
        raise MergeError(f"{path}: {name} cannot be read: {error}") from error
    if array.nbytes != nbytes:
        raise MergeError(f"{path}: {name} has {array.nbytes} bytes, not {nbytes} as it had before")
    return array.reshape(-1).view(np.uint8).data


# -- writing ---------------------------------------------------------------------------------------------------------


def plan(path: Path, specs: Specs, like: Content | None, metadata: Mapping[str, str] | None) -> Layout:
    """Lay out an npz file, uncompressed: as `like`, with its other entries; without it every tensor is a plain array.

    Raises MergeError for dtypes that numpy lacks and for content that cannot be written.
    """
    for name, spec in specs.items():
        if spec.element.numpy not in CODES:
            problem = f"{name} is {spec.element}, which npz files cannot hold; choose another, as dtype='float32'"
            raise MergeError(f"{path}: {problem}")
    kinds: dict[Element, Opaque] = {}

    def make(name: str, old: Any) -> Any:
        element, shape, blob = specs[name].element, specs[name].shape, Blob(name, specs[name].nbytes)
        if old is None or isinstance(old, _Array):
            return _NewArray(element, shape, blob)
        kind = kinds.setdefault(element, _pickled_dtype(element.numpy[0], element.numpy[1:], 0))
        return _pickled_array(shape, kind, blob)

    tree = replaced(path, like.kept, _is_leaf, specs, make) if like else {name: make(name, None) for name in specs}
    members = {name + _END: _content(path, value) for name, value in tree.items()}
    zipped = lay_out({name: sum(map(_length, parts)) for name, parts in members.items()})
    chunks, starts = list(zipped.chunks), dict[str, int]()
    for name, parts in members.items():
        at = zipped.starts[name]
        for part in parts:
            if isinstance(part, Blob):
                starts[part.name] = at
            else:
                chunks.append((at, part))
            at += _length(part)

    def closing(crcs: Mapping[Hashable, int]) -> list[tuple[int, bytes]]:
        whole = dict.fromkeys(members, 0)
        for name, parts in members.items():
            for part in parts:
                crc = crcs.get(part.name, 0) if isinstance(part, Blob) else zlib.crc32(part)
                whole[name] = joined_crc(whole[name], crc, _length(part))
        return zipped.closing(whole)

    return Layout([OutputFile("", zipped.size, chunks, starts, closing=closing)])


@dataclass(frozen=True)
class _NewArray:
    element: Element
    shape: tuple[int, ...]
    blob: Blob


def _pickled_dtype(order: str, kind: str, flags: int) -> Opaque:
    """A dtype as numpy pickles it."""
    state = (3, order, None, None, None, -1, -1, flags)
    return Opaque(Global("numpy", "dtype"), (kind, False, True), state=state, has_state=True)


def _pickled_array(shape: tuple[int, ...], dtype: Opaque, data: Any) -> Opaque:
    """An array as numpy pickles it; the module's old name is the one that every numpy knows."""
    empty = (Global("numpy", "ndarray"), (0,), b"b")
    state = (1, shape, dtype, False, data)
    return Opaque(Global("numpy.core.multiarray", "_reconstruct"), empty, state=state, has_state=True)


def _content(path: Path, value: Any) -> list[bytes | Blob]:
    """A member's bytes in order: header, pickle, tensors."""
    import numpy as np

    head = io.BytesIO()
    if isinstance(value, _NewArray):
        fields = {"descr": value.element.numpy, "fortran_order": False, "shape": value.shape}
        np.lib.format.write_array_header_1_0(head, fields)
        return [head.getvalue(), value.blob]
    if not isinstance(value, dict):
        raise MergeError(f"{path}: a {type(value).__name__} has no place in an npz file of weights")
    np.lib.format.write_array_header_1_0(head, {"descr": "|O", "fortran_order": False, "shape": ()})
    try:
        return [head.getvalue(), *dumps(_pickled_array((), _pickled_dtype("|", "O8", 63), [value]))]
    except (TypeError, RecursionError) as error:
        raise MergeError(f"{path}: the output cannot be written as an npz file: {error}") from error


def _length(part: bytes | Blob) -> int:
    return part.size if isinstance(part, Blob) else len(part)
