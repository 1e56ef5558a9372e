"""Zip files whose members are stored as they are, laid out before some of their bytes are known."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

ALIGNMENT = 64  # bytes: as torch aligns every record, so that it can be mapped
_ZIP64 = 0xFFFFFFFF
_POLYNOMIAL = 0xEDB88320  # of the CRC-32, bits reversed


@dataclass(frozen=True)
class StoredZip:
    """A zip file before its late members are written: fixed bytes by offset, and where each late member begins.

    `closing` takes the CRC-32 of every late member and gives the headers to patch and the central directory.
    """

    size: int
    chunks: list[tuple[int, bytes]]
    starts: dict[str, int]
    closing: Callable[[Mapping[str, int]], list[tuple[int, bytes]]]


def lay_out(members: Mapping[str, bytes | int]) -> StoredZip:
    """Lay out members in this order, by name: their bytes, or of those that are written later how many."""
    chunks: list[tuple[int, bytes]] = []
    starts: dict[str, int] = {}
    placed: list[tuple[str, int, int, int]] = []
    position = 0
    for name, content in members.items():
        size, crc = (content, 0) if isinstance(content, int) else (len(content), zlib.crc32(content))
        header = _local_header(name, position, size, crc)
        placed.append((name, position, size, crc))
        chunks.append((position, header))
        start = position + len(header)
        if isinstance(content, int):
            starts[name] = start
        else:
            chunks.append((start, content))
        position = start + size

    def closing(crcs: Mapping[str, int]) -> list[tuple[int, bytes]]:
        known = [(name, at, size, crcs.get(name, crc)) for name, at, size, crc in placed]
        patches = [(at + 14, struct.pack("<I", crc)) for name, at, _, crc in known if name in starts]
        return [*patches, (position, _central_directory(known, position))]

    return StoredZip(position + len(_central_directory(placed, position)), chunks, starts, closing)


def _local_header(name: str, position: int, size: int, crc: int) -> bytes:
    """A stored record's header, padded by an extra field so that its data begins at a multiple of ALIGNMENT."""
    encoded = name.encode()
    large = size >= _ZIP64
    extra = struct.pack("<HHQQ", 1, 16, size, size) if large else b""
    length = 30 + len(encoded) + len(extra) + 4
    padding = -(position + length) % ALIGNMENT
    extra += b"FB" + struct.pack("<H", padding) + b"Z" * padding
    shown = _ZIP64 if large else size
    version = 45 if large else 20
    fixed = struct.pack("<4sHHHHHIII", b"PK\x03\x04", version, 0x800, 0, 0, 0x21, crc, shown, shown)
    return fixed + struct.pack("<HH", len(encoded), len(extra)) + encoded + extra


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


def joined_crc(first: int, second: int, length: int) -> int:
    """Give the CRC-32 of two pieces one after the other; `length` is the second's (zlib's crc32_combine).

    >>> joined_crc(zlib.crc32(b"in "), zlib.crc32(b"two"), 3) == zlib.crc32(b"in two")
    True
    """
    shift, power = 1 << 31, 1 << 23  # the polynomials 1 and x^8, bits reversed
    while length:
        if length & 1:
            shift = _product(power, shift)
        power = _product(power, power)
        length >>= 1
    return _product(shift, first) ^ second


def _product(a: int, b: int) -> int:
    """The product of two polynomials over GF(2), modulo the CRC's."""
    result = 0
    for bit in range(31, -1, -1):
        if a >> bit & 1:
            result ^= b
        b = b >> 1 ^ _POLYNOMIAL if b & 1 else b >> 1
    return result
