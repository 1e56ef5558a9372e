"""What a torch file's pickle describes: plain containers, stand-ins, and tensor leaves that know where they lie."""

# What a file holds has no type until it is looked at.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false, reportUnknownMemberType=false

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

from merge.checkpoint.formats.elements import ELEMENTS, Element
from merge.checkpoint.formats.pickle.arrays import array_entry
from merge.checkpoint.formats.pickle.reader import loads
from merge.checkpoint.formats.pickle.values import Global, Opaque, Persistent, PickleBroken, PickleRefused
from merge.checkpoint.formats.tensors import CheckedFile, TensorEntry, check_shape, is_contiguous, last_index
from merge.checkpoint.formats.torch_zip.refused import advice_for
from merge.errors import MergeError

STORAGES = {element.storage: element for element in ELEMENTS.values() if element.storage}
STORAGES["UntypedStorage"] = ELEMENTS["uint8"]
_AXES = 64
# Bytes that all tensors together may have: views that repeat their elements (stride 0) or overlap may claim any size.
_TIMES, _FREE = 16, 128 << 20


@dataclass(eq=False, slots=True)
class TensorLeaf:
    """A tensor met in a torch file's tree: where its elements lie, and how it was wrapped.

    `state` holds what a program hung on a parameter (marks for its own use); `kind` is the class of a buffer or
    another tensor of an inert class, with its state.
    """

    entry: TensorEntry
    requires_grad: bool = False
    parameter: bool = False
    state: Any = None
    kind: tuple[Global, Any] | None = None


def read_tree(path: Path, data: bytes | BinaryIO, leaves: Leaves) -> Any:
    """Give what a pickle describes. Raises MergeError naming the file for broken ones and refused names."""
    try:
        return loads(data, leaves.reduce, leaves.refer, size=leaves.file.size)
    except PickleRefused as error:
        told = f"{path}: its pickle names {error}, which is not on the list of inert things, so nothing was loaded"
        raise MergeError(f"{told}; {advice_for(str(error))}") from error
    except PickleBroken as error:
        raise MergeError(f"{path}: its pickle is broken: {error}") from error


class Leaves:
    """Turns the calls in a torch pickle into tensor leaves, checking every size against the file.

    `record(key)` says where a storage's bytes begin and how many they are; None: only the pickle's end says so, and
    places are counted from the storage's beginning. It raises PickleBroken for a storage that is not there.
    """

    def __init__(self, file: CheckedFile, record: Callable[[str], tuple[int, int]] | None = None):
        self.file = file
        self.record = record or self.from_the_beginning
        self.made: list[TensorLeaf] = []
        self.storages: dict[str, tuple[int, int]] = {}  # by key: elements, and bytes of each
        self._seen: set[Hashable] = set()
        self._claimed = 0

    def from_the_beginning(self, key: str) -> tuple[int, int]:
        """Give place 0 and a storage's size, as far as the pickle was read."""
        return 0, math.prod(self.storages[key])

    def reduce(self, factory: Global, args: Any) -> Any:
        """Give the tensor that a call of torch makes. Raises PickleBroken and PickleRefused."""
        if factory.module not in ("torch._utils", "torch._tensor"):
            return NotImplemented
        make = _REBUILDERS.get(factory.name)
        if make is None:
            raise PickleRefused(str(factory))
        leaf = make(self, args)
        self.made.append(leaf)
        return leaf

    def refer(self, reference: Any) -> Any:
        """Note a storage that is named. Raises PickleBroken and PickleRefused for what is none."""
        kind, storage_type, key, _, numel = reference[:5]
        if kind == "module":
            raise PickleRefused(f"the class {str(storage_type)[:80]}")
        if kind != "storage" or type(key) is not str or type(numel) is not int or not 0 <= numel < 2**63:
            raise PickleBroken("a storage reference of unknown shape")
        if not isinstance(storage_type, Global) or storage_type.name not in STORAGES:
            raise PickleRefused(f"{storage_type if isinstance(storage_type, Global) else 'no class'} as a storage")
        self.storages[key] = (numel, STORAGES[storage_type.name].itemsize)
        return Persistent(reference)

    def tensor(self, args: Any, element: Element | None = None, more: Any = ()) -> TensorLeaf:
        storage, offset, shape, stride = args[:4]
        if more and more[0]:
            raise PickleBroken(
                "a tensor saved as a conjugate or negative view; save it after resolve_conj().resolve_neg()"
            )
        grad = bool(args[4]) if len(args) > 4 else False
        return TensorLeaf(self.entry(storage, element, offset, sizes_in(shape), sizes_in(stride)), grad)

    def entry(
        self, reference: Any, element: Element | None, offset: Any, shape: tuple[int, ...], stride: tuple[int, ...]
    ) -> TensorEntry:
        """Give where a tensor lies that views a storage, whose own type of elements it has where `element` is None."""
        _, storage_type, key, _, numel, *view = reference.id
        stored = STORAGES[storage_type.name]
        element = element or stored
        wrong = check_shape(shape, element)
        if wrong or len(shape) != len(stride) or type(offset) is not int or min((offset, *stride)) < 0:
            raise PickleBroken(f"a tensor with {wrong or 'a shape, strides and an offset that do not fit together'}")
        empty = 0 in shape
        first = offset * element.itemsize
        nbytes = math.prod(shape) * element.itemsize
        last = first + (0 if empty else (1 + last_index(shape, stride)) * element.itemsize)
        start, size = self.record(key)
        held = numel * stored.itemsize
        if view and view[0] is not None:  # a part of a storage, as torch 0.3 and before wrote it
            _, part, _ = view[0]
            first, last = first + part * stored.itemsize, last + part * stored.itemsize
        if first < 0 or last > size or held > size:
            raise PickleBroken(f"storage {key[:40]} has {size} bytes, a tensor in it ends at {last}")
        kept = None if empty or is_contiguous(shape, stride) else stride
        tie = (str(self.file.path), key)
        found = TensorEntry(element, shape, self.file, start + first, kept, tie)
        self._claim(found.tie, nbytes, key)
        if not empty and (kept is not None or nbytes != size):
            self.file.partly_read(start)
        return found

    def _claim(self, tie: Hashable, nbytes: int, key: str) -> None:
        self._claimed += 0 if tie in self._seen else nbytes
        self._seen.add(tie)
        if self._claimed > _FREE + _TIMES * self.file.size:
            claimed = f"tensors of {self._claimed} bytes expanded from a file of {self.file.size}"
            raise PickleBroken(f"{claimed}, the last from storage {key[:40]}")


def _typed(leaves: Leaves, args: Any) -> TensorLeaf:
    return leaves.tensor(args, element_named(args[6]), args[7:])


def _parameter(leaves: Leaves, args: Any) -> TensorLeaf:
    leaf = _inner(args[0])
    return TensorLeaf(leaf.entry, bool(args[1]), parameter=True, state=args[3] if len(args) > 3 else None)


def _of_class(leaves: Leaves, args: Any) -> TensorLeaf:
    """A buffer, or a tensor with marks: what makes it is called first, then it gets its class and state."""
    function, kind, inner, state = args
    if not isinstance(kind, Global) or str(kind) not in _CLASSES:
        raise PickleRefused(f"{kind} as a class of tensors")
    return replace(_inner(leaves.reduce(function, inner)), kind=(kind, state))


def _from_array(leaves: Leaves, args: Any) -> TensorLeaf:
    """A tensor of a device that torch stores through numpy."""
    array, dtype, _, grad = args
    entry = array_entry(leaves.file.path, "a tensor of another device", array)
    if element_named(dtype) is not entry.element:
        raise PickleBroken(f"a tensor of {dtype} stored as {entry.element}; save it again from the CPU")
    return TensorLeaf(entry, bool(grad))


def _from_cpu(leaves: Leaves, args: Any) -> TensorLeaf:
    leaf = _inner(args[0])
    if element_named(args[1]) is not leaf.entry.element:
        raise PickleBroken(f"a tensor of {args[1]} stored as {leaf.entry.element}; save it again from the CPU")
    return TensorLeaf(leaf.entry, bool(args[3]))


_CLASSES = ("torch.Tensor", "torch.nn.parameter.Parameter", "torch.nn.parameter.Buffer")
_REBUILDERS: dict[str, Callable[[Leaves, Any], TensorLeaf]] = {
    "_rebuild_tensor": Leaves.tensor,
    "_rebuild_tensor_v2": lambda leaves, args: leaves.tensor(args, None, args[6:]),
    "_rebuild_tensor_v3": _typed,
    "_rebuild_parameter": _parameter,
    "_rebuild_parameter_with_state": _parameter,
    "_rebuild_from_type_v2": _of_class,
    "_rebuild_device_tensor_from_numpy": _from_array,
    "_rebuild_device_tensor_from_cpu_tensor": _from_cpu,
}


def _inner(value: Any) -> TensorLeaf:
    if not isinstance(value, TensorLeaf):
        raise PickleBroken("a parameter without a tensor")
    return value


def sizes_in(value: Any) -> tuple[int, ...]:
    """Give the integers of a shape or stride. Raises PickleBroken for anything else."""
    if isinstance(value, Opaque):  # torch.Size
        value = value.args[0]
    if not isinstance(value, (tuple, list)) or not all(type(item) is int and item.bit_length() < 64 for item in value):
        raise PickleBroken("a shape or stride that is not made of integers")
    if len(value) > _AXES:
        raise PickleBroken(f"a tensor of {len(value)} axes")
    return tuple(value)


def element_named(value: Any) -> Element:
    """Give the type of elements that a name of torch means. Raises PickleRefused for others."""
    element = ELEMENTS.get(value.name) if isinstance(value, Global) and value.module == "torch" else None
    if element is None:
        raise PickleRefused(f"{value} as a dtype")
    return element
