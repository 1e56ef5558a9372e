"""Values of `pickle.values` and plain containers as a pickle that other programs read."""

# What a pickle holds has no type until it is looked at.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false, reportUnknownMemberType=false

from __future__ import annotations

import struct
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from itertools import chain
from typing import Any

from merge.checkpoint.formats.pickle.values import Blob, Global, Key, Opaque, Persistent

LARGE = 300  # bytes of a value that is worth a place in the memo


class _Writer:
    """Protocol 2, the one torch writes. Shared and cyclic objects are written once and referred to after."""

    def __init__(self, reduce: Callable[[Any], Any]):
        self.out = bytearray(b"\x80\x02")
        self.memo: dict[int, tuple[int, Any]] = {}
        self.texts: dict[str, int] = {}
        self.count = 0
        self.reduce = reduce
        self.parts: list[bytes | Blob] = []  # what came before `out`, where something is written later

    def put(self) -> int:
        self.out += b"q" + bytes([self.count]) if self.count < 256 else b"r" + struct.pack("<I", self.count)
        self.count += 1
        return self.count - 1

    def get(self, index: int) -> None:
        self.out += b"h" + bytes([index]) if index < 256 else b"j" + struct.pack("<I", index)

    def remember(self, value: Any) -> None:
        self.memo[id(value)] = (self.put(), value)  # the value is kept alive: its id must stay its own

    def save(self, value: Any) -> None:
        known = self.memo.get(id(value))
        if known is not None:
            self.get(known[0])
            return
        value = self.reduce(value)
        kind = type(value)
        if kind not in _WRITERS:
            raise TypeError(f"a {kind.__name__} cannot be written into a torch file")
        start = len(self.out)
        _WRITERS[kind](self, value)
        if kind in (bytes, bytearray, int) and len(self.out) - start > LARGE:
            self.remember(value)  # a file may name it a million times in two bytes each

    def text(self, value: str) -> None:
        if value in self.texts:
            self.get(self.texts[value])
        else:
            data = value.encode("utf-8", "surrogatepass")
            self.out += b"X" + struct.pack("<I", len(data)) + data
            self.texts[value] = self.put()

    def integer(self, value: int) -> None:
        if 0 <= value < 256:
            self.out += b"K" + bytes([value])
        elif -(2**31) <= value < 2**31:
            self.out += b"J" + struct.pack("<i", value)
        else:
            data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
            self.out += b"\x8a" + bytes([len(data)]) if len(data) < 256 else b"\x8b" + struct.pack("<i", len(data))
            self.out += data

    def call(self, factory: Global, args: tuple[Any, ...]) -> None:
        self.save(factory)
        self.tuple_(args)
        self.out += b"R"

    def tuple_(self, value: tuple[Any, ...]) -> None:
        if len(value) > 3:
            self.out += b"("
        for item in value:
            self.save(item)
        self.out += {0: b")", 1: b"\x85", 2: b"\x86", 3: b"\x87"}.get(len(value), b"t")
        if value:
            self.remember(value)

    def fill(self, value: Any, appended: Iterable[Any], items: Mapping[Any, Any], state: Any = None) -> None:
        """Remember the container that was just made, then write what is appended, set and built into it."""
        self.remember(value)
        for inner, end in ((appended, b"e"), (chain.from_iterable(items.items()), b"u")):
            many = list(inner)
            if many:
                self.out += b"("
                for item in many:
                    self.save(item)
                self.out += end
        if state is not None:
            self.save(*state)
            self.out += b"b"

    def list_(self, value: list[Any]) -> None:
        self.out += b"]"
        self.fill(value, value, {})

    def dict_(self, value: dict[Any, Any]) -> None:
        self.out += b"}"
        self.fill(value, (), value)

    def ordered(self, value: OrderedDict[Any, Any]) -> None:
        self.call(Global("collections", "OrderedDict"), ())
        self.fill(value, (), value, (dict(vars(value)),) if vars(value) else None)

    def opaque(self, value: Opaque) -> None:
        self.save(value.factory)
        self.tuple_(value.args)
        self.out += b"\x81" if value.new else b"R"
        self.fill(value, value.appended, value.items, (value.state,) if value.has_state else None)

    def persistent(self, value: Persistent) -> None:
        self.save(value.id)
        self.out += b"Q"

    def blob(self, value: Blob) -> None:
        large = value.size >= 2**32
        self.out += b"\x8e" + struct.pack("<Q", value.size) if large else b"B" + struct.pack("<I", value.size)
        self.parts += [bytes(self.out), value]
        self.out = bytearray()


_WRITERS: dict[type, Callable[[_Writer, Any], None]] = {
    type(None): lambda w, value: w.out.extend(b"N"),
    bool: lambda w, value: w.out.extend(b"\x88" if value else b"\x89"),
    int: _Writer.integer,
    float: lambda w, value: w.out.extend(b"G" + struct.pack(">d", value)),
    str: _Writer.text,
    bytes: lambda w, value: w.call(Global("_codecs", "encode"), (value.decode("latin1"), "latin1")),
    bytearray: lambda w, value: w.call(Global("builtins", "bytearray"), (bytes(value),)),
    tuple: _Writer.tuple_,
    Key: _Writer.tuple_,
    list: _Writer.list_,
    dict: _Writer.dict_,
    OrderedDict: _Writer.ordered,
    set: lambda w, value: w.call(Global("builtins", "set"), (sorted(value, key=repr),)),
    frozenset: lambda w, value: w.call(Global("builtins", "frozenset"), (sorted(value, key=repr),)),
    Global: lambda w, value: w.out.extend(f"c{value.module}\n{value.name}\n".encode()),
    Opaque: _Writer.opaque,
    Persistent: _Writer.persistent,
    Blob: _Writer.blob,
}


def dumps(value: Any, reduce: Callable[[Any], Any] = lambda value: value) -> list[bytes | Blob]:
    """Write the value as a pickle of protocol 2, in pieces: every `Blob` stands where its bytes go.

    `reduce(value)` may replace a value by one that can be written. Raises TypeError for a type that has no place in
    such a file.
    """
    writer = _Writer(reduce)
    writer.save(value)
    return [*writer.parts, bytes(writer.out + b".")]
