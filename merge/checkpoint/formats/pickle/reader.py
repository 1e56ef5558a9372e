"""Pickles as data: read without importing or calling anything that they name.

A pickle is a program; `pickle.load` runs it. This reader is a machine for the same opcodes in which a global is only a
pair of words: nothing is imported, nothing is called, so a hostile file can at worst be refused. What the published
training files carry besides tensors (`argparse.Namespace`, omegaconf containers, enums, numpy scalars) comes back as
inert `Opaque` values that the writer can put into a file again unchanged.
"""

# What a pickle holds has no type until it is looked at.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false, reportUnknownMemberType=false
# pyright: reportUnknownLambdaType=false

from __future__ import annotations

import struct
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from merge.checkpoint.formats.pickle.values import ALLOWED, Global, Opaque, Persistent, PickleBroken, PickleRefused

Reduce = Callable[[Any, Any], Any]
_MARK = object()


class _Machine:
    """The stack machine. `reduce(factory, args)` may replace an `Opaque` by a value of its own."""

    def __init__(self, data: bytes, reduce: Reduce):
        self.data, self.at, self.reduce = data, 0, reduce
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    # -- reading ----------------------------------------------------------------------------------------------------
    def take(self, count: int) -> bytes:
        if count < 0 or self.at + count > len(self.data):
            raise PickleBroken(f"{count} bytes wanted at byte {self.at} of {len(self.data)}")
        self.at += count
        return self.data[self.at - count : self.at]

    def number(self, code: str) -> int:
        return struct.unpack("<" + code, self.take(struct.calcsize(code)))[0]

    def line(self) -> str:
        end = self.data.find(b"\n", self.at)
        if end < 0:
            raise PickleBroken(f"a line without an end at byte {self.at}")
        text = self.data[self.at : end].decode("utf-8")
        self.at = end + 1
        return text

    # -- stack ------------------------------------------------------------------------------------------------------
    def pop_mark(self) -> list[Any]:
        for index in range(len(self.stack) - 1, -1, -1):
            if self.stack[index] is _MARK:
                items = self.stack[index + 1 :]
                del self.stack[index:]
                return items
        raise PickleBroken("a mark is missing")

    def name(self, module: Any, name: Any) -> Global:
        full = f"{module}.{name}"
        if not ALLOWED.fullmatch(full):
            raise PickleRefused(full)
        return Global(module, name)

    def call(self, factory: Any, args: Any, new: bool) -> None:
        if not isinstance(factory, Global) or not isinstance(args, tuple):
            raise PickleRefused(f"a call of {type(factory).__name__}")
        made = NotImplemented if new else self.reduce(factory, args)
        self.stack.append(Opaque(factory, args, new) if made is NotImplemented else made)

    def build(self, target: Any, state: Any) -> None:
        if isinstance(target, Opaque):
            target.state, target.has_state = state, True
        elif isinstance(target, OrderedDict) and isinstance(state, dict):
            vars(target).update({str(key): value for key, value in state.items()})
        elif state is not None:
            raise PickleRefused(f"a state for {type(target).__name__}")

    def append(self, target: Any, items: list[Any]) -> None:
        if isinstance(target, list):
            target.extend(items)
        elif isinstance(target, set):
            target.update(map(_key, items))
        elif isinstance(target, Opaque):
            target.appended.extend(items)
        else:
            raise PickleBroken(f"items appended to {type(target).__name__}")

    def set_items(self, target: Any, items: list[Any]) -> None:
        if len(items) % 2:
            raise PickleBroken("a key without a value")
        pairs = dict(zip(map(_key, items[::2]), items[1::2], strict=True))
        if isinstance(target, dict):
            target.update(pairs)
        elif isinstance(target, Opaque):
            target.items.update(pairs)
        else:
            raise PickleBroken(f"items set on {type(target).__name__}")

    # -- the machine ------------------------------------------------------------------------------------------------
    def run(self) -> Any:
        while True:
            code = self.take(1)
            if code == b".":
                return self.stack.pop()
            operation = _OPERATIONS.get(code)
            if operation is None:
                raise PickleRefused(f"opcode {code!r}")
            operation(self)


def _key(value: Any, depth: int = 3) -> Any:
    """A dictionary key or set item, if hashing it is harmless: deep or shared tuples would crash or never end."""
    plain = value is None or isinstance(value, (str, bytes, int, float, complex, Global, Opaque))
    if not plain and not (type(value) is tuple and depth and len(value) <= 16):
        raise PickleBroken(f"a {type(value).__name__} as a key, deeper or longer than any real one")
    if type(value) is tuple:
        for item in value:
            _key(item, depth - 1)
    return value


def _push(value: Callable[[_Machine], Any]) -> Callable[[_Machine], None]:
    return lambda m: m.stack.append(value(m))


def _tuple(count: int) -> Callable[[_Machine], None]:
    def make(m: _Machine) -> None:
        if len(m.stack) < count:
            raise PickleBroken("a tuple of too few values")
        items = tuple(m.stack[len(m.stack) - count :])
        del m.stack[len(m.stack) - count :]
        m.stack.append(items)

    return make


def _memoize(index: Callable[[_Machine], int]) -> Callable[[_Machine], None]:
    def put(m: _Machine) -> None:
        m.memo[index(m)] = m.stack[-1]

    return put


def _pair(operation: Callable[[_Machine, Any, Any], None]) -> Callable[[_Machine], None]:
    def apply(m: _Machine) -> None:
        second, first = m.stack.pop(), m.stack.pop()
        operation(m, first, second)

    return apply


def _on_mark(operation: Callable[[_Machine, Any, list[Any]], None]) -> Callable[[_Machine], None]:
    def apply(m: _Machine) -> None:
        items = m.pop_mark()
        operation(m, m.stack[-1], items)

    return apply


def _instance(m: _Machine) -> None:
    """The opcode INST of protocol 0: a global and a call in one."""
    factory = m.name(m.line(), m.line())
    m.call(factory, tuple(m.pop_mark()), new=False)


def _stack_global(m: _Machine, module: Any, name: Any) -> None:
    m.stack.append(m.name(module, name))


def _newobj_ex(m: _Machine) -> None:
    kwargs, args, factory = m.stack.pop(), m.stack.pop(), m.stack.pop()
    if kwargs:
        raise PickleRefused(f"a call of {factory} with keywords")
    m.call(factory, args, new=True)


def _marked_dict(m: _Machine) -> None:
    items = m.pop_mark()
    m.stack.append({})
    m.set_items(m.stack[-1], items)


def _append_one(m: _Machine) -> None:
    item = m.stack.pop()
    m.append(m.stack[-1], [item])


def _set_one(m: _Machine) -> None:
    value, key = m.stack.pop(), m.stack.pop()
    m.set_items(m.stack[-1], [key, value])


def _build(m: _Machine) -> None:
    state = m.stack.pop()
    m.build(m.stack[-1], state)


def _text_int(m: _Machine) -> int:
    line = m.line()
    return {"00": False, "01": True}[line] if line in ("00", "01") else int(line)


def _long(m: _Machine, code: str) -> int:
    return int.from_bytes(m.take(m.number(code)), "little", signed=True)


def _float_text(m: _Machine) -> float:
    return float(m.line())


_OPERATIONS: dict[bytes, Callable[[_Machine], object]] = {
    b"\x80": lambda m: _check_protocol(m.number("B")),
    b"\x95": lambda m: m.take(8),
    b"(": lambda m: m.stack.append(_MARK),
    b"0": lambda m: m.stack.pop(),
    b"1": lambda m: m.pop_mark(),
    b"2": lambda m: m.stack.append(m.stack[-1]),
    b"N": _push(lambda m: None),
    b"\x88": _push(lambda m: True),
    b"\x89": _push(lambda m: False),
    b"I": _push(_text_int),
    b"L": _push(lambda m: int(m.line().rstrip("L"))),
    b"J": _push(lambda m: m.number("i")),
    b"K": _push(lambda m: m.number("B")),
    b"M": _push(lambda m: m.number("H")),
    b"\x8a": _push(lambda m: _long(m, "B")),
    b"\x8b": _push(lambda m: _long(m, "i")),
    b"F": _push(_float_text),
    b"G": _push(lambda m: struct.unpack(">d", m.take(8))[0]),
    b"V": _push(lambda m: m.line().encode("latin-1").decode("raw-unicode-escape")),
    b"X": _push(lambda m: m.take(m.number("I")).decode("utf-8", "surrogatepass")),
    b"\x8c": _push(lambda m: m.take(m.number("B")).decode("utf-8", "surrogatepass")),
    b"\x8d": _push(lambda m: m.take(m.number("Q")).decode("utf-8", "surrogatepass")),
    b"U": _push(lambda m: m.take(m.number("B")).decode("ascii")),
    b"T": _push(lambda m: m.take(m.number("i")).decode("ascii")),
    b"C": _push(lambda m: m.take(m.number("B"))),
    b"B": _push(lambda m: m.take(m.number("I"))),
    b"\x8e": _push(lambda m: m.take(m.number("Q"))),
    b"\x96": _push(lambda m: bytearray(m.take(m.number("Q")))),
    b")": _push(lambda m: ()),
    b"\x85": _tuple(1),
    b"\x86": _tuple(2),
    b"\x87": _tuple(3),
    b"t": _push(lambda m: tuple(m.pop_mark())),
    b"]": _push(lambda m: []),
    b"l": _push(lambda m: m.pop_mark()),
    b"}": _push(lambda m: {}),
    b"d": _marked_dict,
    b"\x8f": _push(lambda m: set()),
    b"\x91": _push(lambda m: frozenset(map(_key, m.pop_mark()))),
    b"a": _append_one,
    b"e": _on_mark(lambda m, target, items: m.append(target, items)),
    b"\x90": _on_mark(lambda m, target, items: m.append(target, items)),
    b"s": _set_one,
    b"u": _on_mark(lambda m, target, items: m.set_items(target, items)),
    b"q": _memoize(lambda m: m.number("B")),
    b"r": _memoize(lambda m: m.number("I")),
    b"p": _memoize(lambda m: int(m.line())),
    b"\x94": _memoize(lambda m: len(m.memo)),
    b"h": _push(lambda m: m.memo[m.number("B")]),
    b"j": _push(lambda m: m.memo[m.number("I")]),
    b"g": _push(lambda m: m.memo[int(m.line())]),
    b"c": _push(lambda m: m.name(m.line(), m.line())),
    b"\x93": _pair(_stack_global),
    b"i": _instance,
    b"R": _pair(lambda m, factory, args: m.call(factory, args, new=False)),
    b"\x81": _pair(lambda m, factory, args: m.call(factory, args, new=True)),
    b"\x92": _newobj_ex,
    b"b": _build,
    b"Q": _push(lambda m: Persistent(m.stack.pop())),
}


def _check_protocol(protocol: int) -> None:
    if protocol > 5:
        raise PickleBroken(f"protocol {protocol}")


def _plain(factory: Global, args: Any) -> Any:
    """Values that need no stand-in, made from checked arguments."""
    name = str(factory)
    if name == "collections.OrderedDict":
        return OrderedDict((_key(key), value) for key, value in (args[0] if args else ()))
    if name in ("builtins.set", "__builtin__.set"):
        return set(map(_key, args[0] if args else ()))
    if name in ("builtins.frozenset", "__builtin__.frozenset"):
        return frozenset(map(_key, args[0] if args else ()))
    if name == "_codecs.encode" and len(args) == 2 and args[1] == "latin1":
        return args[0].encode("latin1")
    if name == "torch.Size":
        return Opaque(factory, args)
    return NotImplemented


def loads(data: bytes, reduce: Reduce) -> Any:
    """The value that a pickle describes.

    `reduce(factory, args)` turns a call into a value, or returns NotImplemented to leave it an `Opaque`.
    Raises PickleRefused for a name that is not allowed, PickleBroken for bytes that are no pickle.
    """

    def both(factory: Global, args: Any) -> Any:
        made = reduce(factory, args)
        return _plain(factory, args) if made is NotImplemented else made

    try:
        return _Machine(data, both).run()
    except (PickleRefused, PickleBroken):
        raise
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, struct.error, OverflowError) as error:
        raise PickleBroken(f"{type(error).__name__}: {error}") from error
