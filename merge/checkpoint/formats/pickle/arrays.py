"""Arrays in pickles, read without calling anything of numpy's that they name."""

# What a pickle holds has no type until it is looked at.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false, reportUnknownMemberType=false

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from merge.checkpoint.formats.elements import ELEMENTS, Element
from merge.checkpoint.formats.tensors import Decoded, TensorEntry, check_shape
from merge.errors import MergeError

_BYTE_ORDER = "<"
CODES = {element.numpy: element for element in ELEMENTS.values() if element.numpy[:1] in ("<", "|")}


def numpy_element(path: Path, name: str, code: str) -> Element:
    """Give the type of elements that numpy writes so. Raises MergeError for others."""
    if code not in CODES:
        raise MergeError(f"{path}: {name} has dtype {code}, which is not one of {', '.join(CODES)}")
    return CODES[code]


def array_entry(path: Path, name: str, leaf: Any) -> TensorEntry:
    """Where an array's elements are, as numpy pickles it: `_reconstruct` with a state, or (protocol 5) `_frombuffer`.

    Raises MergeError for what is no plain array, calling it `name`.
    """
    try:
        if leaf.factory.name == "_frombuffer":
            data, dtype_like, shape, order = leaf.args
            fortran = order == "F"
        elif leaf.factory.name == "_reconstruct":
            _, shape, dtype_like, fortran, data = leaf.state
        else:  # a scalar
            dtype_like, data = leaf.args
            shape, fortran = (), False
        kind = dtype_like.args[0].lstrip("<|")
        order = "|" if kind in ("b1", "i1", "u1") else _BYTE_ORDER
        swapped = isinstance(dtype_like.state, tuple) and dtype_like.state[1] == ">"
        element = numpy_element(path, name, (">" if swapped else order) + kind)
        if not isinstance(data, (bytes, bytearray)) or not all(type(size) is int for size in shape):
            raise ValueError("its bytes are not there")
        wrong = check_shape(tuple(shape), element)
        if wrong or len(data) != math.prod(shape) * element.itemsize:
            raise ValueError(wrong or f"shape {list(shape)}, {element}, {len(data)} bytes")
    except (AttributeError, TypeError, ValueError, IndexError) as error:
        raise MergeError(f"{path}: {name} is no plain array: {error}") from error

    def decode() -> memoryview:
        import numpy as np

        array = np.frombuffer(data, f"V{element.itemsize}").reshape(shape, order="F" if fortran else "C")
        return np.array(array, order="C").reshape(-1).view(np.uint8).data

    return TensorEntry(element, tuple(shape), Decoded(path, len(data), decode), 0)
