"""The zip files that torch.save writes: a pickle that names storages, and one stored record for each storage."""

# What a file holds has no type until it is looked at.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false, reportUnknownMemberType=false

from __future__ import annotations

import struct
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from merge.checkpoint.formats.pickle_data import Global, Opaque, Persistent, PickleBroken, PickleRefused
from merge.checkpoint.formats.pickle_reader import loads
from merge.checkpoint.formats.pickle_writer import dumps
from merge.checkpoint.formats.tensors import MappedFile, TensorEntry, check_shape, contiguous_stride, is_contiguous
from merge.errors import MergeError

STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
    "UntypedStorage": torch.uint8,
}
STORAGE_NAMES = {dtype: name for name, dtype in STORAGES.items() if name != "UntypedStorage"}
_EXPANDED_LIMIT = 2**32  # bytes: an expanded view (stride 0) may claim any size
ALIGNMENT = 64  # torch aligns every record so that it can be mapped


@dataclass(frozen=True)
class _Storage:
    key: str
    dtype: torch.dtype
    numel: int


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
class TorchFile:
    """A torch file's whole content: plain containers, inert stand-ins and tensor leaves."""

    tree: Any
    archive: str
    file: MappedFile = field(repr=False)


def read_tree(path: Path) -> TorchFile:
    """Read the pickle of a torch zip file; no storage is touched and nothing in the file is run.

    Raises MergeError naming the file for broken files, old formats and refused globals.
    """
    file = MappedFile(path)
    _refuse_other_formats(file)
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
    records = _Records(file, prefix, members)
    try:
        tree = loads(data, records.reduce)
    except PickleRefused as error:
        raise MergeError(
            f"{path}: its pickle names {error}, which is not on the list of inert things, so nothing was loaded; "
            "if you trust the file, load it with the program that wrote it and save only its tensors"
        ) from error
    except (PickleBroken, MemoryError) as error:
        raise MergeError(f"{path}: its pickle is broken: {error}") from error
    return TorchFile(tree, prefix.rstrip("/"), file)


def _refuse_other_formats(file: MappedFile) -> None:
    start = file.read(0, min(file.size, 16))
    if start.startswith(b"PK"):
        return
    if len(start) > 8 and start[8:9] == b"{":
        raise MergeError(f"{file.path}: holds safetensors data; give it the suffix .safetensors")
    if start.startswith(b"\x80"):
        raise MergeError(
            f"{file.path}: saved by torch before 1.6 (a bare pickle); load it there and save it again with torch.save"
        )
    raise MergeError(f"{file.path}: not a torch zip file ({file.size} bytes, beginning with {start[:4]!r})")


class _Records:
    """Turns the calls in a torch pickle into tensor leaves, checking every size against the archive."""

    def __init__(self, file: MappedFile, prefix: str, members: Mapping[str, zipfile.ZipInfo]):
        self.file, self.prefix, self.members = file, prefix, members
        self.starts: dict[str, int] = {}

    def reduce(self, factory: Global, args: Any) -> Any:
        name = str(factory)
        if name == "torch._utils._rebuild_tensor_v2":
            storage, offset, size, stride, requires_grad = args[:5]
            _refuse_lazy(args[6:])
            return self.leaf(self.storage(storage), None, (offset, size, stride), requires_grad)
        if name == "torch._utils._rebuild_tensor_v3":
            storage, offset, size, stride, requires_grad, _, dtype = args[:7]
            _refuse_lazy(args[7:])
            return self.leaf(self.storage(storage), _dtype(dtype), (offset, size, stride), requires_grad)
        if name in ("torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state"):
            leaf = args[0]
            if not isinstance(leaf, TensorLeaf):
                raise PickleBroken("a parameter without a tensor")
            return TensorLeaf(leaf.entry, bool(args[1]), parameter=True, state=args[3] if len(args) > 3 else None)
        if factory.module == "torch._utils":
            raise PickleRefused(name)
        return NotImplemented

    def storage(self, reference: Any) -> _Storage:
        kind, storage_type, key, _, numel = reference.id
        if kind != "storage" or not isinstance(key, str) or not isinstance(numel, int) or numel < 0:
            raise PickleBroken("a storage reference of unknown shape")
        dtype = STORAGES.get(storage_type.name)
        if dtype is None:
            raise PickleRefused(f"{storage_type} as a storage")
        return _Storage(key, dtype, numel)

    def leaf(self, storage: _Storage, dtype: torch.dtype | None, view: Any, requires_grad: Any) -> TensorLeaf:
        dtype = dtype or storage.dtype
        offset, shape, stride = view[0], _ints(view[1]), _ints(view[2])
        wrong = check_shape(shape, dtype)
        if wrong or len(shape) != len(stride) or type(offset) is not int or min((offset, *stride)) < 0:
            raise PickleBroken(f"a tensor with {wrong or 'a shape, strides and an offset that do not fit together'}")
        empty = 0 in shape
        last = offset + (0 if empty else 1 + sum((n - 1) * s for n, s in zip(shape, stride, strict=True)))
        start, size = self.record(storage.key)
        if last * dtype.itemsize > size or storage.numel * storage.dtype.itemsize > size:
            raise PickleBroken(
                f"storage {storage.key} has {size} bytes, a tensor in it ends at {last * dtype.itemsize}"
            )
        nbytes = torch.Size(shape).numel() * dtype.itemsize
        if nbytes > max(_EXPANDED_LIMIT, 1000 * size):
            raise PickleBroken(f"a tensor of {nbytes} bytes expanded from a storage of {size}")
        kept = None if empty or is_contiguous(shape, stride) else stride
        tie = (str(self.file.path), storage.key)
        return TensorLeaf(
            TensorEntry(dtype, shape, self.file, start + offset * dtype.itemsize, kept, tie), bool(requires_grad)
        )

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


def _refuse_lazy(metadata: Any) -> None:
    if metadata and metadata[0]:
        raise PickleBroken("a tensor saved as a conjugate or negative view; save it after resolve_conj().resolve_neg()")


def _ints(value: Any) -> tuple[int, ...]:
    if isinstance(value, Opaque):  # torch.Size
        value = value.args[0]
    if not isinstance(value, (tuple, list)) or not all(type(item) is int for item in value):
        raise PickleBroken("a shape or stride that is not made of integers")
    return tuple(value)


def _dtype(value: Any) -> torch.dtype:
    dtype = getattr(torch, value.name, None) if isinstance(value, Global) and value.module == "torch" else None
    if not isinstance(dtype, torch.dtype):
        raise PickleRefused(f"{value} as a dtype")
    return dtype


# -- writing ---------------------------------------------------------------------------------------------------------


@dataclass
class NewLeaf:
    """A tensor to be written: `storage` names tensors that share their bytes."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    storage: str
    like: TensorLeaf | None = None

    @property
    def nbytes(self) -> int:
        return torch.Size(self.shape).numel() * self.dtype.itemsize


@dataclass
class ZipPlan:
    """A torch file before its storages are written: fixed bytes, and where each storage goes."""

    chunks: list[tuple[int, bytes]]
    starts: dict[str, int]
    sizes: dict[str, int]
    size: int
    closing: Callable[[Mapping[str, int]], list[tuple[int, bytes]]]
    """Given every storage's CRC-32: the local headers to patch and the central directory."""


def plan_zip(tree: Any, archive: str) -> ZipPlan:
    """Lay out a torch file for a tree of plain containers, stand-ins and `NewLeaf`s.

    Storages are numbered in the order in which the tree meets them, as torch.save does. Raises MergeError for a
    value that has no place in such a file.
    """
    order: dict[str, tuple[str, int]] = {}

    def reduce(value: Any) -> Any:
        return _leaf_call(value, order) if isinstance(value, NewLeaf) else value

    try:
        pickled = dumps(tree, reduce)
    except (TypeError, RecursionError) as error:
        raise MergeError(f"the output cannot be written as a torch file: {error}") from error
    records: list[tuple[str, bytes | int, str]] = [("data.pkl", pickled, ""), (".format_version", b"1", "")]
    records += [(".storage_alignment", str(ALIGNMENT).encode(), ""), ("byteorder", b"little", "")]
    records += [(f"data/{key}", size, storage) for storage, (key, size) in order.items()]
    records += [("version", b"3\n", "")]
    return lay_out([(f"{archive}/{name}", content, storage) for name, content, storage in records])


def _leaf_call(leaf: NewLeaf, order: dict[str, tuple[str, int]]) -> Opaque:
    key, _ = order.setdefault(leaf.storage, (str(len(order)), leaf.nbytes))
    shape, stride = leaf.shape, contiguous_stride(leaf.shape)
    typed = leaf.dtype in STORAGE_NAMES
    kind = Global("torch", STORAGE_NAMES[leaf.dtype]) if typed else Global("torch.storage", "UntypedStorage")
    numel = leaf.nbytes // leaf.dtype.itemsize if typed else leaf.nbytes
    storage = Persistent(("storage", kind, key, "cpu", numel))
    grad = leaf.like is not None and leaf.like.requires_grad
    hooks: OrderedDict[Any, Any] = OrderedDict()
    is_parameter = leaf.like is not None and leaf.like.parameter
    args = (storage, 0, shape, stride, grad and not is_parameter, hooks)
    if typed:
        tensor = Opaque(Global("torch._utils", "_rebuild_tensor_v2"), args)
    else:
        dtype = Global("torch", str(leaf.dtype).removeprefix("torch."))
        tensor = Opaque(Global("torch._utils", "_rebuild_tensor_v3"), (*args, dtype))
    if leaf.like is not None and is_parameter:
        if leaf.like.state is not None:
            factory = Global("torch._utils", "_rebuild_parameter_with_state")
            return Opaque(factory, (tensor, grad, OrderedDict(), leaf.like.state))
        return Opaque(Global("torch._utils", "_rebuild_parameter"), (tensor, grad, OrderedDict()))
    return tensor


def lay_out(records: Sequence[tuple[str, bytes | int, str]]) -> ZipPlan:
    """A zip file of stored records: a name, and the bytes or how many come later, under a storage's name."""
    chunks: list[tuple[int, bytes]] = []
    starts: dict[str, int] = {}
    sizes: dict[str, int] = {}
    placed: list[tuple[str, int, int, int, str]] = []
    position = 0
    for name, content, storage in records:
        size = content if isinstance(content, int) else len(content)
        header = _local_header(name, position, size, 0 if isinstance(content, int) else zlib.crc32(content))
        start = position + len(header)
        placed.append((name, position, size, 0 if isinstance(content, int) else zlib.crc32(content), storage))
        chunks.append((position, header))
        if isinstance(content, int):
            starts[storage], sizes[storage] = start, size
        else:
            chunks.append((start, content))
        position = start + size

    def closing(crcs: Mapping[str, int]) -> list[tuple[int, bytes]]:
        patches = [(at + 14, struct.pack("<I", crcs.get(storage, 0))) for _, at, _, _, storage in placed if storage]
        entries = [
            (name, at, size, crcs.get(storage, 0) if storage else crc) for name, at, size, crc, storage in placed
        ]
        return [*patches, (position, _central_directory(entries, position))]

    blank = _central_directory([(name, at, size, crc) for name, at, size, crc, _ in placed], position)
    return ZipPlan(chunks, starts, sizes, position + len(blank), closing)


_ZIP64 = 0xFFFFFFFF


def _local_header(name: str, position: int, size: int, crc: int) -> bytes:
    """A stored record's header, padded by an extra field so that its data begins at a multiple of ALIGNMENT."""
    encoded = name.encode()
    large = size >= _ZIP64
    extra = struct.pack("<HHQQ", 1, 16, size, size) if large else b""
    length = 30 + len(encoded) + len(extra) + 4
    padding = -(position + length) % ALIGNMENT
    extra += b"FB" + struct.pack("<H", padding) + b"Z" * padding
    shown = _ZIP64 if large else size
    fixed = struct.pack(
        "<4sHHHHHIIIHH",
        b"PK\x03\x04",
        45 if large else 20,
        0x800,
        0,
        0,
        0x21,
        crc,
        shown,
        shown,
        len(encoded),
        len(extra),
    )
    return fixed + encoded + extra


def _central_directory(entries: list[tuple[str, int, int, int]], start: int) -> bytes:
    out = bytearray()
    for name, at, size, crc in entries:
        encoded = name.encode()
        large, far = size >= _ZIP64, at >= _ZIP64
        extra = b""
        if large or far:
            values = ([size, size] if large else []) + ([at] if far else [])
            extra = struct.pack("<HH", 1, 8 * len(values)) + struct.pack(f"<{len(values)}Q", *values)
        shown, where = _ZIP64 if large else size, _ZIP64 if far else at
        version = 45 if extra else 20
        out += struct.pack("<4sHHHHHHIII", b"PK\x01\x02", version, version, 0x800, 0, 0, 0x21, crc, shown, shown)
        out += struct.pack("<HHHHHII", len(encoded), len(extra), 0, 0, 0, 0, where) + encoded + extra
    count, size = len(entries), len(out)
    if start >= _ZIP64 or count >= 0xFFFF:
        out += struct.pack("<4sQHHIIQQQQ", b"PK\x06\x06", 44, 45, 45, 0, 0, count, count, size, start)
        out += struct.pack("<4sIQI", b"PK\x06\x07", 0, start + size, 1)
    shown = min(count, 0xFFFF)
    return bytes(out + struct.pack("<4sHHHHIIH", b"PK\x05\x06", 0, 0, shown, shown, size, min(start, _ZIP64), 0))
