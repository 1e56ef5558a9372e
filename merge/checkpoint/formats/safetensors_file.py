"""The safetensors format: 8 bytes of header length, a JSON header, then the tensors' bytes."""

# What a file holds has no type until it is looked at.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false, reportUnknownMemberType=false

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from merge.checkpoint.formats.tensors import MappedFile, TensorEntry, check_shape
from merge.errors import MergeError

DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "C64": torch.complex64,
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Header:
    """A file's tensors, in the order of their bytes, and its own metadata (None where it has none)."""

    entries: dict[str, TensorEntry]
    metadata: dict[str, str] | None


def read_header(path: Path) -> Header:
    """Read and check a header; no tensor byte is touched.

    Raises MergeError naming the file for anything that is not a whole, well-formed safetensors file.
    """
    file = MappedFile(path)
    try:
        with safe_open(path, framework="numpy") as checked:  # the format's own library judges sizes, overlaps and gaps
            metadata = checked.metadata()
    except Exception as error:
        raise MergeError(f"{path}: not a whole safetensors file of {file.size} bytes: {error}") from error
    length = int.from_bytes(file.read(0, 8), "little")
    header: dict[str, dict[str, Any]] = json.loads(file.read(8, length))
    header.pop("__metadata__", None)
    entries: dict[str, TensorEntry] = {}
    for name, info in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        code = str(info["dtype"])
        if code not in DTYPES:
            raise MergeError(f"{path}: tensor {name!r} has dtype {code}, which is not one of {', '.join(DTYPES)}")
        wrong = check_shape(tuple(info["shape"]), DTYPES[code])
        if wrong:
            raise MergeError(f"{path}: tensor {name!r} has {wrong}")
        entries[name] = TensorEntry(DTYPES[code], tuple(info["shape"]), file, 8 + length + info["data_offsets"][0])
    return Header(entries, metadata)


def encode_header(
    tensors: Mapping[str, tuple[torch.dtype, tuple[int, ...]]], metadata: Mapping[str, str] | None
) -> tuple[bytes, dict[str, int], int]:
    """Header bytes, every tensor's byte offset in the file, and the file's size, for tensors written in this order.

    The order given is kept where every tensor then starts at a multiple of its element size, and sorted by element
    size (largest first) otherwise, so that any reader can map the file. Raises MergeError for a dtype that the
    format does not have.
    """
    order = list(tensors)
    if not _aligned(tensors, order):
        order.sort(key=lambda name: -tensors[name][0].itemsize)
    header: dict[str, object] = {} if metadata is None else {"__metadata__": dict(metadata)}
    starts: dict[str, int] = {}
    position = 0
    for name in order:
        dtype, shape = tensors[name]
        if dtype not in NAMES:
            raise MergeError(f"tensor {name!r}: safetensors has no dtype {dtype}; write a .pt file or choose a dtype")
        starts[name] = position
        position += math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": NAMES[dtype], "shape": list(shape), "data_offsets": [starts[name], position]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    data = 8 + len(text)
    head = len(text).to_bytes(8, "little") + text
    return head, {name: data + start for name, start in starts.items()}, data + position


def _aligned(tensors: Mapping[str, tuple[torch.dtype, tuple[int, ...]]], order: list[str]) -> bool:
    position = 0
    for name in order:
        dtype, shape = tensors[name]
        if position % dtype.itemsize:
            return False
        position += math.prod(shape) * dtype.itemsize
    return True
