"""The zip files that torch.save writes: a pickle that names storages, and one stored record for each storage."""

# What a file holds has no type until it is looked at.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false, reportUnknownMemberType=false

from __future__ import annotations

import math
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from merge.checkpoint.formats.elements import ELEMENTS, Element
from merge.checkpoint.formats.format import DICTIONARY, WHOLE, Content
from merge.checkpoint.formats.pickle.reader import loads
from merge.checkpoint.formats.pickle.values import Global, Opaque, PickleBroken, PickleRefused
from merge.checkpoint.formats.tensors import MappedFile, TensorEntry, check_shape, is_contiguous, last_index
from merge.errors import MergeError

# Where training files keep weights, and which of these are averaged copies of others.
SECTIONS = ("model", "state_dict", "module", "model_ema", "state_dict_ema", "extra_state.ema")
AVERAGED = ("model_ema", "state_dict_ema", "extra_state.ema", "extra_state.ema_fp32_params")
SHOWN = 20
TEXT = 60  # characters of another entry's value that are shown
STORAGES = {element.storage: element for element in ELEMENTS.values() if element.storage}
STORAGES["UntypedStorage"] = ELEMENTS["uint8"]
_EXPANDED_LIMIT = 2**32  # bytes: an expanded view (stride 0) may claim any size


@dataclass(eq=False)
class TensorLeaf:
    """A tensor met in a torch file's tree: where its elements lie, and how it was wrapped.

    `state` holds what a program hung on a parameter (marks for its own use).
    """

    entry: TensorEntry
    requires_grad: bool = False
    parameter: bool = False
    state: Any = None


@dataclass(frozen=True)
class Archive:
    """The name of the folder inside the zip file, and the whole content: plain containers, stand-ins, tensor leaves."""

    name: str
    tree: Any


def read(path: Path) -> Content:
    """Read the pickle of a torch zip file; no storage is touched and nothing in the file is run.

    Raises MergeError naming the file for broken files, old formats and refused globals.
    """
    file = MappedFile(path)
    start = file.read(0, min(file.size, 16))
    if start.startswith(b"\x80"):
        raise MergeError(
            f"{path}: saved by torch before 1.6 (a bare pickle); load it there and save it again with torch.save"
        )
    if not start.startswith(b"PK"):
        raise MergeError(f"{path}: not a torch zip file ({file.size} bytes, beginning with {start[:4]!r})")
    try:
        with zipfile.ZipFile(path) as archive:
            members = {info.filename: info for info in archive.infolist()}
            pickles = [name for name in members if name.endswith("data.pkl") and name.count("/") == 1]
            if len(pickles) != 1:
                raise MergeError(f"{path}: a zip file without a torch checkpoint in it (no data.pkl)")
            prefix = pickles[0][: -len("data.pkl")]
            if prefix + "byteorder" in members and archive.read(prefix + "byteorder") != b"little":
                raise MergeError(f"{path}: written on a big-endian machine; save it again on a little-endian one")
            data = archive.read(pickles[0])
    except MergeError:
        raise
    except Exception as error:  # zipfile raises a dozen kinds for broken bytes
        raise MergeError(f"{path}: not a whole torch zip file of {file.size} bytes: {error}") from error
    try:
        tree = loads(data, _Records(file, prefix, members).reduce)
    except PickleRefused as error:
        raise MergeError(
            f"{path}: its pickle names {error}, which is not on the list of inert things, so nothing was loaded; "
            "if you trust the file, load it with the program that wrote it and save only its tensors"
        ) from error
    except (PickleBroken, MemoryError) as error:
        raise MergeError(f"{path}: its pickle is broken: {error}") from error
    sections = _sections(path, tree)
    flat = WHOLE in sections
    others = {
        str(name): _in_words(value)
        for name, value in tree.items()
        if name not in sections and not (flat and isinstance(value, TensorLeaf))
    }
    kept = Archive(prefix.rstrip("/"), tree)
    return Content(path, sections, dictionary=tree.get(DICTIONARY), others=others, kept=kept)


def _sections(path: Path, tree: Any) -> dict[str, dict[str, TensorEntry]]:
    """Every part of the tree that holds weights, by name; a flat file is the section "."."""
    if not isinstance(tree, dict):
        raise MergeError(f"{path}: holds a {type(tree).__name__}, not a dictionary of tensors")
    found: dict[str, dict[str, TensorEntry]] = {}
    for name in (*SECTIONS, WHOLE):
        part = lookup(tree, name)
        if isinstance(part, dict) and not (found and name == WHOLE):
            leaves = {key: value.entry for key, value in part.items() if isinstance(value, TensorLeaf)}
            odd = [type(key).__name__ for key in leaves if type(key) is not str]
            if odd:
                raise MergeError(
                    f"{path}: {len(odd)} tensors of section {name!r} have no text for a name, but {odd[0]}"
                )
            if leaves:
                found[name] = leaves
    if not found:
        entries = [name[:80] for name in tree if isinstance(name, str)][:SHOWN]
        raise MergeError(f"{path}: no weights found; its entries are {', '.join(entries)}")
    return found


def lookup(tree: Any, section: str) -> Any:
    """The part of a tree under a dotted section name, None where there is none."""
    for key in section.split(".") if section != WHOLE else ():
        tree = tree.get(key) if isinstance(tree, dict) else None
    return tree


def _in_words(value: Any) -> str:
    if isinstance(value, TensorLeaf):
        return f"{value.entry.element} {list(value.entry.shape)}"
    if isinstance(value, Opaque):
        return str(value.factory)
    if hasattr(value, "__len__") and not isinstance(value, str):
        return f"{type(value).__name__} of {len(value)}"
    if isinstance(value, int) and value.bit_length() > 1000:  # Python refuses to print the longest
        return f"an integer of {value.bit_length()} bits"
    text = repr(value)
    return text if len(text) <= TEXT else f"{text[:TEXT]}... ({len(text):,} characters)"


class _Records:
    """Turns the calls in a torch pickle into tensor leaves, checking every size against the archive."""

    def __init__(self, file: MappedFile, prefix: str, members: Mapping[str, zipfile.ZipInfo]):
        self.file, self.prefix, self.members = file, prefix, members
        self.starts: dict[str, int] = {}

    def reduce(self, factory: Global, args: Any) -> Any:
        """Give the tensor that a call of torch makes. Raises PickleBroken and PickleRefused."""
        name = str(factory)
        if name in ("torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor_v3"):
            storage, offset, size, stride, requires_grad = args[:5]
            more = args[6:]
            element = None
            if name.endswith("v3"):
                element, more = _element(args[6]), args[7:]
            if more and more[0]:
                raise PickleBroken(
                    "a tensor saved as a conjugate or negative view; save it after resolve_conj().resolve_neg()"
                )
            return TensorLeaf(self.entry(storage, element, offset, _ints(size), _ints(stride)), bool(requires_grad))
        if name in ("torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state"):
            leaf = args[0]
            if not isinstance(leaf, TensorLeaf):
                raise PickleBroken("a parameter without a tensor")
            return TensorLeaf(leaf.entry, bool(args[1]), parameter=True, state=args[3] if len(args) > 3 else None)
        if factory.module == "torch._utils":
            raise PickleRefused(name)
        return NotImplemented

    def entry(
        self, reference: Any, element: Element | None, offset: Any, shape: tuple[int, ...], stride: tuple[int, ...]
    ) -> TensorEntry:
        """Where a tensor lies that views a storage. `element` is the storage's own where it is None."""
        kind, storage_type, key, _, numel = reference.id
        if kind != "storage" or not isinstance(key, str) or not isinstance(numel, int) or numel < 0:
            raise PickleBroken("a storage reference of unknown shape")
        stored = STORAGES.get(storage_type.name)
        if stored is None:
            raise PickleRefused(f"{storage_type} as a storage")
        element = element or stored
        wrong = check_shape(shape, element)
        if wrong or len(shape) != len(stride) or type(offset) is not int or min((offset, *stride)) < 0:
            raise PickleBroken(f"a tensor with {wrong or 'a shape, strides and an offset that do not fit together'}")
        empty = 0 in shape
        last = offset + (0 if empty else 1 + last_index(shape, stride))
        start, size = self.record(key)
        if last * element.itemsize > size or numel * stored.itemsize > size:
            raise PickleBroken(f"storage {key} has {size} bytes, a tensor in it ends at {last * element.itemsize}")
        nbytes = math.prod(shape) * element.itemsize
        if nbytes > max(_EXPANDED_LIMIT, 1000 * size):
            raise PickleBroken(f"a tensor of {nbytes} bytes expanded from a storage of {size}")
        kept = None if empty or is_contiguous(shape, stride) else stride
        tie = (str(self.file.path), key)
        return TensorEntry(element, shape, self.file, start + offset * element.itemsize, kept, tie)

    def record(self, key: str) -> tuple[int, int]:
        """Where a storage's bytes begin in the file, and how many they are."""
        info = self.members.get(f"{self.prefix}data/{key}")
        if info is None:
            raise PickleBroken(f"storage {key} is missing from the archive")
        if key not in self.starts:
            if info.compress_type != zipfile.ZIP_STORED:
                raise PickleBroken(f"storage {key} is compressed; save the file again with torch.save")
            start = info.header_offset + self.local_header(info, key)
            if start + info.file_size > self.file.size:
                raise PickleBroken(f"storage {key} ends beyond the file's {self.file.size} bytes")
            if self.file.read(start + info.file_size, 2) != b"PK":  # what comes next in a zip file, whatever it is
                raise PickleBroken(f"storage {key} does not end where the archive's directory says")
            self.starts[key] = start
        return self.starts[key], info.file_size

    def local_header(self, info: zipfile.ZipInfo, key: str) -> int:
        """Length of a record's local header, which must agree with the directory and hold together."""
        try:
            fixed = self.file.read(info.header_offset, 30)
            name, extra = struct.unpack("<HH", fixed[26:30])
            rest = self.file.read(info.header_offset + 30, name + extra)
        except MergeError as error:
            raise PickleBroken(f"storage {key} has its header beyond the end of the file") from error
        fields, at = rest[name:], 0
        while at + 4 <= len(fields):
            at += 4 + int.from_bytes(fields[at + 2 : at + 4], "little")
        if fixed[:4] != b"PK\x03\x04" or rest[:name] != info.orig_filename.encode() or at != len(fields):
            raise PickleBroken(f"storage {key} has a local header that does not fit the archive's directory")
        return 30 + name + extra


def _ints(value: Any) -> tuple[int, ...]:
    if isinstance(value, Opaque):  # torch.Size
        value = value.args[0]
    if not isinstance(value, (tuple, list)) or not all(type(item) is int for item in value):
        raise PickleBroken("a shape or stride that is not made of integers")
    return tuple(value)


def _element(value: Any) -> Element:
    element = ELEMENTS.get(value.name) if isinstance(value, Global) and value.module == "torch" else None
    if element is None:
        raise PickleRefused(f"{value} as a dtype")
    return element
