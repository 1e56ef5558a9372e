"""Arrays in the Zarr v2 layout (as TensorStore writes them for T5X): a folder with `.zarray` and one file a chunk.

Specification: https://zarr-specs.readthedocs.io/en/latest/v2/v2.0.html. Read are the compressors of the standard
library (gzip, zlib) and none; written is one uncompressed chunk, which is the tensor's row-major bytes.
"""

# What a file holds has no type until it is looked at.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false, reportUnknownMemberType=false

from __future__ import annotations

import json
import math
import operator
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from merge.checkpoint.formats.elements import ELEMENTS, Element
from merge.checkpoint.formats.format import without_doubles
from merge.checkpoint.formats.tensors import Decoded, TensorEntry, check_shape, raw_bytes, refuse_bomb
from merge.errors import MergeError

HEADER = ".zarray"
CODES = {element.numpy: element for element in ELEMENTS.values() if element.numpy}
_WINDOW = {"gzip": 31, "zlib": 15}  # what zlib calls these two wrappings


@dataclass(frozen=True)
class _Array:
    """A checked header. `fill` are the bytes of one element of a chunk that is not there."""

    folder: Path
    element: Element
    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    compressor: str | None
    order: Any
    separator: str
    fill: bytes


def read_zarray(folder: Path) -> TensorEntry:
    """Read and check an array's header; chunks are read on access. Raises MergeError naming the file."""
    path = folder / HEADER
    try:
        header = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=without_doubles)
        shape, chunks, order = header["shape"], header["chunks"], header["order"]
        code, compressor, fill = header["dtype"], header["compressor"], header["fill_value"]
        version, filters, separator = header["zarr_format"], header["filters"], header.get("dimension_separator", ".")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise MergeError(f"{path}: not the header of a Zarr array: {type(error).__name__}: {error}") from error
    if version != 2 or filters or order not in ("C", "F") or separator not in (".", "/"):
        told = f"version {version!r}, filters {filters!r}, order {order!r}, separator {separator!r}"
        raise MergeError(f"{path}: {told}; only Zarr v2 without filters is read")
    if not isinstance(code, str) or code not in CODES:
        raise MergeError(f"{path}: dtype {str(code)[:40]!r} is not one of {', '.join(CODES)}")
    if not _are_sizes(shape, 0) or not _are_sizes(chunks, 1) or len(shape) != len(chunks):
        raise MergeError(f"{path}: shape {str(shape)[:80]} and chunks {str(chunks)[:80]} do not fit together")
    element, shape, chunks = CODES[code], tuple(shape), tuple(chunks)
    wrong = check_shape(shape, element) or check_shape(chunks, element)
    if wrong:
        raise MergeError(f"{path}: has {wrong}")
    kind = compressor.get("id") if isinstance(compressor, dict) else None
    if compressor is not None and not (isinstance(kind, str) and kind in _WINDOW):
        raise MergeError(
            f"{path}: chunks are compressed by {str(kind or compressor)[:40]!r}, read are gzip, zlib and none; "
            "copy the array with tensorstore or numcodecs into one of these"
        )
    array = _Array(folder, element, shape, chunks, kind, order, separator, _fill(path, fill, element))
    return TensorEntry(element, shape, Decoded(folder, math.prod(shape) * element.itemsize, lambda: _decode(array)), 0)


def _are_sizes(value: Any, least: int) -> bool:
    return isinstance(value, list) and len(value) <= 32 and all(type(n) is int and n >= least for n in value)


def _fill(path: Path, value: Any, element: Element) -> bytes:
    if value is None or value == 0:
        return bytes(element.itemsize)
    import torch

    try:
        number = float(value)  # "NaN" and "Infinity" are texts here
        if isinstance(value, int) and not element.is_floating_point:
            return bytes(raw_bytes(torch.tensor(value, dtype=element.dtype)))
        return bytes(raw_bytes(torch.tensor(number, dtype=torch.float64).to(element.dtype)))
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise MergeError(f"{path}: fill value {str(value)[:40]!r} is no {element}") from error


def _chunks(array: _Array) -> Iterator[tuple[tuple[int, ...], Path]]:
    """The chunks that are there, with their places in the grid: a large grid of few files costs what the files do."""
    grid = [-(-size // chunk) for size, chunk in zip(array.shape, array.chunks, strict=True)]
    for path in sorted(array.folder.rglob("*")):
        words = path.relative_to(array.folder).as_posix().split(array.separator)
        numbers = all(word.isascii() and word.isdigit() and len(word) < 20 for word in words)
        place = tuple(map(int, words)) if numbers else ()
        if not grid and words == ["0"]:
            yield (), path
        elif len(place) == len(grid) and list(map(str, place)) == words and all(map(operator.lt, place, grid)):
            yield place, path


def _decode(array: _Array) -> memoryview:
    """The whole array's row-major bytes. Chunks that are not there are the fill value.

    Raises MergeError naming the chunk for one that is broken, cut short or of another size.
    """
    import numpy as np

    kind = np.dtype(f"V{array.element.itemsize}")
    try:
        result = np.zeros(array.shape, kind)
    except (MemoryError, ValueError) as error:
        raise MergeError(f"{array.folder}: no memory for an array of shape {list(array.shape)}") from error
    if any(array.fill):
        result[...] = np.frombuffer(array.fill, kind)[0]
    for place, path in _chunks(array):
        starts = [index * step for index, step in zip(place, array.chunks, strict=True)]
        ends = [start + step for start, step in zip(starts, array.chunks, strict=True)]
        part = result[(*map(slice, starts, ends), ...)]
        whole = np.frombuffer(_read_chunk(array, path), kind).reshape(array.chunks, order=array.order)
        part[...] = whole[tuple(map(slice, part.shape))]  # the last chunks may reach beyond the array
    return result.reshape(-1).view(np.uint8).data


def _read_chunk(array: _Array, path: Path) -> bytes:
    wanted = math.prod(array.chunks) * array.element.itemsize
    try:
        data = path.read_bytes()
        refuse_bomb(path, wanted, len(data))
        if array.compressor:
            unpacker = zlib.decompressobj(_WINDOW[array.compressor])
            data = unpacker.decompress(data, wanted + 1)
            if not unpacker.eof and len(data) <= wanted:
                raise MergeError(f"{path}: broken chunk: its {array.compressor} stream is cut short")
    except (OSError, zlib.error, MemoryError) as error:
        raise MergeError(f"{path}: broken chunk: {error}") from error
    if len(data) != wanted:
        told = "more" if len(data) > wanted else f"{len(data)}"
        raise MergeError(f"{path}: broken chunk: {wanted} bytes were expected, it holds {told}")
    return data


def one_chunk(element: Element, shape: tuple[int, ...]) -> tuple[dict[str, Any], str]:
    """Give the header of an array in one uncompressed chunk, and that chunk's file name.

    Raises MergeError for a dtype without a code.
    """
    if not element.numpy:
        raise MergeError(f"Zarr has no dtype {element}; choose another, as dtype='float32'")
    header = {
        "zarr_format": 2,
        "shape": list(shape),
        "chunks": [max(size, 1) for size in shape],
        "dtype": element.numpy,
        "compressor": None,
        "fill_value": None,
        "filters": None,
        "order": "C",
        "dimension_separator": ".",
    }
    return header, ".".join("0" for _ in shape) or "0"
