"""Pickles as data: read without importing or calling anything that they name.

A pickle is a program; `pickle.load` runs it. Here the standard library's `pickletools` takes the bytes apart, and a
machine executes the opcodes on stand-ins, a global being only a pair of words: nothing is imported, nothing is called,
so a hostile file can at worst be refused. What the published training files carry besides tensors
(`argparse.Namespace`, omegaconf containers, enums, numpy scalars) comes back as inert `Opaque` values that the writer
can put into a file again unchanged.

Work is bounded by the file's size: every opcode is paid for with about a unit for a byte of memory that it takes or
compares, since a few bytes may ask for much (another copy of a value in the memo, thousands of empty sets). Real
files spend 25 units a byte at most.
"""

# What a pickle holds has no type until it is looked at.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false, reportUnknownMemberType=false
# pyright: reportUnknownLambdaType=false

from __future__ import annotations

import io
import pickletools
import re
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, BinaryIO

from merge.checkpoint.formats.pickle.values import ALLOWED, Global, Key, Opaque, Persistent, PickleBroken, PickleRefused

Reduce = Callable[[Any, Any], Any]
RATE, FREE = 50, 64 << 20  # units for every byte of a file, and for any file
LONGEST = 200  # characters of a global
_MARK = object()
_COSTS = {
    **dict.fromkeys(("EMPTY_DICT", "DICT", "EMPTY_LIST", "LIST"), 80),
    **dict.fromkeys(("EMPTY_SET", "FROZENSET"), 250),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"), 100),
    **dict.fromkeys(("TUPLE1", "TUPLE2", "TUPLE3", "TUPLE"), 60),
    **dict.fromkeys(("REDUCE", "NEWOBJ", "NEWOBJ_EX", "INST", "BINPERSID"), 150),
}
_ITEM, _PAIR = 10, 100  # units for an item of a list, of a set or dictionary


class Machine:
    """Runs a pickle's opcodes on a stack; `loads` describes the arguments."""

    def __init__(self, reduce: Reduce, refer: Callable[[Any], Any], allowed: re.Pattern[str], units: int):
        self.reduce, self.refer, self.allowed, self.units = reduce, refer, allowed, units
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def spend(self, units: int) -> None:
        """Pay for work. Raises PickleBroken where a file asks for more than it is worth."""
        self.units -= units
        if self.units < 0:
            raise PickleBroken("a few bytes that ask for more work and memory than any real file of this size")

    def pop_many(self, count: int) -> tuple[Any, ...]:
        if count > len(self.stack):
            raise PickleBroken(f"{count} values are wanted, {len(self.stack)} are there")
        items = tuple(self.stack[len(self.stack) - count :])
        del self.stack[len(self.stack) - count :]
        return items

    def pop_mark(self) -> list[Any]:
        for index in range(len(self.stack) - 1, -1, -1):
            if self.stack[index] is _MARK:
                items = self.stack[index + 1 :]
                del self.stack[index:]
                return items
        raise PickleBroken("a mark is missing")

    def push_name(self, module: Any, name: Any) -> None:
        if not isinstance(module, str) or not isinstance(name, str) or len(module) + len(name) > LONGEST:
            raise PickleBroken("a name that is none, or longer than any real one")
        full = f"{module}.{name}"
        if not self.allowed.fullmatch(full):
            raise PickleRefused(full)
        self.stack.append(Global(module, name))

    def call(self, factory: Any, args: Any, new: bool) -> None:
        if not isinstance(factory, Global) or not isinstance(args, tuple):
            raise PickleRefused(f"a call of {type(factory).__name__}")
        made = NotImplemented if new else self.reduce(factory, args)
        if made is NotImplemented and not new:
            made = self.plain(factory, args)
        self.stack.append(Opaque(factory, args, new) if made is NotImplemented else made)

    def plain(self, factory: Global, args: Any) -> Any:
        """Values that need no stand-in, made from checked arguments."""
        name = str(factory)
        if name == "collections.OrderedDict":
            given = args[0] if args else ()
            self.spend(2 * _PAIR * len(given))
            return OrderedDict((self.key(key), value) for key, value in given)
        if name in ("builtins.set", "__builtin__.set", "builtins.frozenset", "__builtin__.frozenset"):
            items = self.keys(args[0] if args else ())
            return set(items) if factory.name == "set" else frozenset(items)
        if name == "_codecs.encode" and len(args) == 2 and args[1] == "latin1":
            self.spend(len(args[0]))
            return args[0].encode("latin1")
        return NotImplemented

    # These change the value on top of the stack, from which what they are given has been taken before.

    def build(self, state: Any) -> None:
        target = self.stack[-1]
        if isinstance(target, Opaque):
            target.state, target.has_state = state, True
        elif isinstance(target, OrderedDict) and isinstance(state, dict):
            self.spend(_PAIR * len(state))
            if not all(type(key) is str for key in state):
                raise PickleBroken("an attribute whose name is no text")
            vars(target).update(state)
        elif state is not None:
            raise PickleRefused(f"a state for {type(target).__name__}")

    def append(self, items: list[Any]) -> None:
        target = self.stack[-1]
        self.spend(_ITEM * len(items))
        if isinstance(target, list):
            target.extend(items)
        elif isinstance(target, set):
            target.update(self.keys(items))
        elif isinstance(target, Opaque):
            target.appended = target.appended or []
            target.appended.extend(items)
        else:
            raise PickleBroken(f"items appended to {type(target).__name__}")

    def set_items(self, items: Sequence[Any]) -> None:
        target = self.stack[-1]
        if len(items) % 2:
            raise PickleBroken("a key without a value")
        pairs = zip(self.keys(items[::2]), items[1::2], strict=True)
        if isinstance(target, dict):
            target.update(pairs)
        elif isinstance(target, Opaque):
            target.items.update(pairs)
        else:
            raise PickleBroken(f"items set on {type(target).__name__}")

    def keys(self, values: Any) -> list[Any]:
        self.spend(_PAIR * len(values))
        return [self.key(value) for value in values]

    def key(self, value: Any, depth: int = 3) -> Any:
        """Give a dictionary key or set item, if hashing and comparing it is harmless.

        Deep or shared tuples would crash or never end; the hashes of tuples and of long integers can be chosen alike.
        """
        if isinstance(value, (str, bytes)):
            self.spend(len(value))
        elif type(value) is int:
            self.spend(100_000 if value.bit_length() > 64 else 0)
        elif type(value) is tuple and depth and len(value) <= 16:
            self.spend(500)
            return Key(self.key(item, depth - 1) for item in value)
        elif value is not None and not isinstance(value, (bool, float, Global, Opaque)):
            raise PickleBroken(f"a {type(value).__name__} as a key, deeper or longer than any real one")
        return value


def _text(m: Machine, argument: str) -> None:
    """A byte string of Python 2: a text where it is ASCII, else bytes."""
    m.stack.append(argument if argument.isascii() else argument.encode("latin1"))


def _instance(m: Machine, argument: str) -> None:
    """The opcode INST of protocol 0: a global and a call in one."""
    args = tuple(m.pop_mark())
    m.push_name(*argument.split(" ", 1))
    m.call(m.stack.pop(), args, new=False)


def _newobj_ex(m: Machine, argument: None) -> None:
    factory, args, kwargs = m.pop_many(3)
    if kwargs:
        raise PickleRefused(f"a call of {factory} with keywords")
    m.call(factory, args, new=True)


def _dict(m: Machine, argument: None) -> None:
    items = m.pop_mark()
    m.stack.append({})
    m.set_items(items)


def _memoize(m: Machine, argument: int | None) -> None:
    m.memo[len(m.memo) if argument is None else argument] = m.stack[-1]


def _check_protocol(m: Machine, protocol: int) -> None:
    if protocol > 5:
        raise PickleBroken(f"protocol {protocol}")


# Opcodes whose argument is the value.
_VALUES = {
    *("INT", "LONG", "BININT", "BININT1", "BININT2", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("SHORT_BINBYTES", "BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}
_OPERATIONS: dict[str, Callable[[Machine, Any], object]] = {
    **dict.fromkeys(_VALUES, lambda m, value: m.stack.append(value)),
    "PROTO": _check_protocol,
    "FRAME": lambda m, size: None,
    "MARK": lambda m, _: m.stack.append(_MARK),
    "POP": lambda m, _: m.stack.pop(),
    "POP_MARK": lambda m, _: m.pop_mark(),
    "DUP": lambda m, _: m.stack.append(m.stack[-1]),
    "NONE": lambda m, _: m.stack.append(None),
    "NEWTRUE": lambda m, _: m.stack.append(True),
    "NEWFALSE": lambda m, _: m.stack.append(False),
    **dict.fromkeys(("BINSTRING", "SHORT_BINSTRING"), _text),
    "EMPTY_TUPLE": lambda m, _: m.stack.append(()),
    "TUPLE1": lambda m, _: m.stack.append(m.pop_many(1)),
    "TUPLE2": lambda m, _: m.stack.append(m.pop_many(2)),
    "TUPLE3": lambda m, _: m.stack.append(m.pop_many(3)),
    "TUPLE": lambda m, _: m.stack.append(tuple(m.pop_mark())),
    "EMPTY_LIST": lambda m, _: m.stack.append([]),
    "LIST": lambda m, _: m.stack.append(m.pop_mark()),
    "EMPTY_DICT": lambda m, _: m.stack.append({}),
    "DICT": _dict,
    "EMPTY_SET": lambda m, _: m.stack.append(set()),
    "FROZENSET": lambda m, _: m.stack.append(frozenset(m.keys(m.pop_mark()))),
    "APPEND": lambda m, _: m.append([m.stack.pop()]),
    **dict.fromkeys(("APPENDS", "ADDITEMS"), lambda m, _: m.append(m.pop_mark())),
    "SETITEM": lambda m, _: m.set_items(m.pop_many(2)),
    "SETITEMS": lambda m, _: m.set_items(m.pop_mark()),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"), _memoize),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), lambda m, index: m.stack.append(m.memo[index])),
    "GLOBAL": lambda m, names: m.push_name(*names.split(" ", 1)),
    "STACK_GLOBAL": lambda m, _: m.push_name(*m.pop_many(2)),
    "INST": _instance,
    "REDUCE": lambda m, _: m.call(*m.pop_many(2), new=False),
    "NEWOBJ": lambda m, _: m.call(*m.pop_many(2), new=True),
    "NEWOBJ_EX": _newobj_ex,
    "BUILD": lambda m, _: m.build(m.stack.pop()),
    "BINPERSID": lambda m, _: m.stack.append(m.refer(m.stack.pop())),
}


def _refuse(name: str) -> Callable[[Machine, Any], object]:
    def refuse(m: Machine, _: Any) -> None:
        raise PickleRefused(f"opcode {name}")

    return refuse


def _pair(stream: BinaryIO) -> str:
    """Two lines of a global; pickletools would take backslashes in them for escapes, and warn."""
    lines = [stream.readline() for _ in range(2)]
    if not all(line.endswith(b"\n") for line in lines):
        raise PickleBroken("a name without an end")
    return " ".join(line[:-1].decode("ascii") for line in lines)


_READERS: dict[str, Callable[[Any], Any]] = {"GLOBAL": _pair, "INST": _pair}

# By the byte that stands for an opcode: what it does, how its argument is read, what it costs.
_OPCODES: dict[bytes, tuple[Callable[[Machine, Any], object], Callable[[Any], Any] | None, int]] = {
    opcode.code.encode("latin1"): (
        _OPERATIONS.get(opcode.name) or _refuse(opcode.name),
        _READERS.get(opcode.name) or (opcode.arg.reader if opcode.arg and opcode.name in _OPERATIONS else None),
        _COSTS.get(opcode.name, 1),
    )
    for opcode in pickletools.opcodes
}


def loads(
    data: bytes | BinaryIO,
    reduce: Reduce,
    refer: Callable[[Any], Any] = Persistent,
    allowed: re.Pattern[str] = ALLOWED,
    size: int = 0,
) -> Any:
    """The value that a pickle describes; of a stream, which holds `size` bytes, the one that begins where it stands.

    `reduce(factory, args)` turns a call into a value, or returns NotImplemented to leave it an `Opaque`; `refer(id)`
    what is kept beside the pickle. Raises PickleRefused for a name that is not allowed, PickleBroken for bytes that are
    no pickle or ask for too much.
    """
    stream = io.BytesIO(data) if isinstance(data, bytes) else data
    machine = Machine(reduce, refer, allowed, FREE + RATE * (len(data) if isinstance(data, bytes) else size))
    try:
        while (code := stream.read(1)) != b".":
            if code not in _OPCODES:
                raise PickleBroken(f"no opcode begins with {code!r}" if code else "it ends before it is whole")
            operation, read, cost = _OPCODES[code]
            machine.units -= cost
            if machine.units < 0:
                machine.spend(0)
            operation(machine, read(stream) if read else None)
        return machine.stack.pop()
    except (PickleRefused, PickleBroken):
        raise
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError) as error:
        raise PickleBroken(f"{type(error).__name__}: {str(error)[:LONGEST]}") from error
    except MemoryError as error:
        raise PickleBroken("a value that does not fit into memory") from error
