"""Pickles as data: read without importing or calling anything that they name.

A pickle is a program; `pickle.load` runs it. Here the standard library's `pickletools` takes the bytes apart, and a
machine executes the opcodes on stand-ins, a global being only a pair of words: nothing is imported, nothing is called,
so a hostile file can at worst be refused. What the published training files carry besides tensors
(`argparse.Namespace`, omegaconf containers, enums, numpy scalars) comes back as inert `Opaque` values that the writer
can put into a file again unchanged.
"""

# What a pickle holds has no type until it is looked at.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false, reportUnknownMemberType=false
# pyright: reportUnknownLambdaType=false

from __future__ import annotations

import pickletools
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

from merge.checkpoint.formats.pickle.values import ALLOWED, Global, Opaque, Persistent, PickleBroken, PickleRefused

Reduce = Callable[[Any, Any], Any]
_MARK = object()


class _Machine:
    """The stack machine. `reduce(factory, args)` may replace an `Opaque` by a value of its own."""

    def __init__(self, reduce: Reduce):
        self.reduce = reduce
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

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
        full = f"{module}.{name}"
        if not ALLOWED.fullmatch(full):
            raise PickleRefused(full)
        self.stack.append(Global(module, name))

    def call(self, factory: Any, args: Any, new: bool) -> None:
        if not isinstance(factory, Global) or not isinstance(args, tuple):
            raise PickleRefused(f"a call of {type(factory).__name__}")
        made: Any = NotImplemented
        for make in () if new else (self.reduce, _plain):
            made = make(factory, args) if made is NotImplemented else made
        self.stack.append(Opaque(factory, args, new) if made is NotImplemented else made)

    # These change the value on top of the stack, from which what they are given has been taken before.

    def build(self, state: Any) -> None:
        target = self.stack[-1]
        if isinstance(target, Opaque):
            target.state, target.has_state = state, True
        elif isinstance(target, OrderedDict) and isinstance(state, dict):
            vars(target).update({str(key): value for key, value in state.items()})
        elif state is not None:
            raise PickleRefused(f"a state for {type(target).__name__}")

    def append(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, list):
            target.extend(items)
        elif isinstance(target, set):
            target.update(map(_key, items))
        elif isinstance(target, Opaque):
            target.appended.extend(items)
        else:
            raise PickleBroken(f"items appended to {type(target).__name__}")

    def set_items(self, items: Sequence[Any]) -> None:
        target = self.stack[-1]
        if len(items) % 2:
            raise PickleBroken("a key without a value")
        pairs = dict(zip(map(_key, items[::2]), items[1::2], strict=True))
        if isinstance(target, dict):
            target.update(pairs)
        elif isinstance(target, Opaque):
            target.items.update(pairs)
        else:
            raise PickleBroken(f"items set on {type(target).__name__}")


def _key(value: Any, depth: int = 3) -> Any:
    """A dictionary key or set item, if hashing it is harmless: deep or shared tuples would crash or never end."""
    plain = value is None or isinstance(value, (str, bytes, int, float, complex, Global, Opaque))
    if not plain and not (type(value) is tuple and depth and len(value) <= 16):
        raise PickleBroken(f"a {type(value).__name__} as a key, deeper or longer than any real one")
    if type(value) is tuple:
        for item in value:
            _key(item, depth - 1)
    return value


def _text(m: _Machine, argument: str) -> None:
    if not argument.isascii():  # a Python 2 string: nobody knows its encoding
        raise PickleBroken("a byte string that is not ASCII")
    m.stack.append(argument)


def _instance(m: _Machine, argument: str) -> None:
    """The opcode INST of protocol 0: a global and a call in one."""
    args = tuple(m.pop_mark())
    m.push_name(*argument.split(" ", 1))
    m.call(m.stack.pop(), args, new=False)


def _newobj_ex(m: _Machine, argument: None) -> None:
    factory, args, kwargs = m.pop_many(3)
    if kwargs:
        raise PickleRefused(f"a call of {factory} with keywords")
    m.call(factory, args, new=True)


def _dict(m: _Machine, argument: None) -> None:
    items = m.pop_mark()
    m.stack.append({})
    m.set_items(items)


def _memoize(m: _Machine, argument: int | None) -> None:
    m.memo[len(m.memo) if argument is None else argument] = m.stack[-1]


def _check_protocol(m: _Machine, protocol: int) -> None:
    if protocol > 5:
        raise PickleBroken(f"protocol {protocol}")


# Opcodes whose argument is the value.
_VALUES = {
    *("INT", "LONG", "BININT", "BININT1", "BININT2", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("SHORT_BINBYTES", "BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}
_OPERATIONS: dict[str, Callable[[_Machine, Any], object]] = {
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
    "FROZENSET": lambda m, _: m.stack.append(frozenset(map(_key, m.pop_mark()))),
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
    "BINPERSID": lambda m, _: m.stack.append(Persistent(m.stack.pop())),
}


def _plain(factory: Global, args: Any) -> Any:
    """Values that need no stand-in, made from checked arguments."""
    name = str(factory)
    if name == "collections.OrderedDict":
        return OrderedDict((_key(key), value) for key, value in (args[0] if args else ()))
    if factory.module in ("builtins", "__builtin__") and factory.name in ("set", "frozenset"):
        items = map(_key, args[0] if args else ())
        return set(items) if factory.name == "set" else frozenset(items)
    if name == "_codecs.encode" and len(args) == 2 and args[1] == "latin1":
        return args[0].encode("latin1")
    return NotImplemented


def loads(data: bytes, reduce: Reduce) -> Any:
    """The value that a pickle describes.

    `reduce(factory, args)` turns a call into a value, or returns NotImplemented to leave it an `Opaque`.
    Raises PickleRefused for a name that is not allowed, PickleBroken for bytes that are no pickle.
    """
    machine = _Machine(reduce)
    try:
        for opcode, argument, _ in pickletools.genops(data):
            if opcode.name in _VALUES:
                machine.stack.append(argument)
            elif opcode.name in _OPERATIONS:
                _OPERATIONS[opcode.name](machine, argument)
            elif opcode.name != "STOP":
                raise PickleRefused(f"opcode {opcode.name}")
        return machine.stack.pop()
    except (PickleRefused, PickleBroken):
        raise
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError) as error:
        raise PickleBroken(f"{type(error).__name__}: {error}") from error
