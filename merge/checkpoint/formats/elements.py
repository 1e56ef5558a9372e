"""The types of tensors' elements, known without torch: their names, sizes, and how every format writes them."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from merge.errors import MergeError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, eq=False)
class Element:
    """The type of a tensor's elements: an entry of `ELEMENTS`, one object a type.

    Attributes:
        name: torch's, which is its key.
        bits: of one element.
        is_floating_point, is_complex: as torch has them.
        safetensors: its code in a safetensors header.
        numpy: its code in npz files and Zarr arrays (an ml_dtypes name without "<" or "|": Zarr alone knows it).
        storage: the class of torch's typed storages.
        arithmetic: whether numbers are computed with here; else their bytes are only carried along.
    """

    name: str
    bits: int
    is_floating_point: bool = False
    is_complex: bool = False
    safetensors: str = ""
    numpy: str = ""
    storage: str = ""
    arithmetic: bool = True

    def __str__(self) -> str:
        return self.name

    @property
    def itemsize(self) -> int:
        """Bytes of one element; of those that share bytes it is 1."""
        return max(self.bits // 8, 1)

    @functools.cached_property
    def dtype(self) -> torch.dtype:
        """Give torch's dtype, importing torch. Raises MergeError where this torch has none."""
        import torch

        found: Any = getattr(torch, self.name, None)
        if self.bits < 8:
            raise MergeError(f"{self.name} is only carried along: torch has no tensors of {self.bits} bits an element")
        if not isinstance(found, torch.dtype):
            raise MergeError(f"torch {torch.__version__} has no dtype {self.name}; a newer one may")
        return found


_FLOAT, _COMPLEX = (True, False), (False, True)
ELEMENTS: dict[str, Element] = {
    "float64": Element("float64", 64, *_FLOAT, "F64", "<f8", "DoubleStorage"),
    "float32": Element("float32", 32, *_FLOAT, "F32", "<f4", "FloatStorage"),
    "float16": Element("float16", 16, *_FLOAT, "F16", "<f2", "HalfStorage"),
    "bfloat16": Element("bfloat16", 16, *_FLOAT, "BF16", "bfloat16", "BFloat16Storage"),
    "float8_e4m3fn": Element("float8_e4m3fn", 8, *_FLOAT, "F8_E4M3", "float8_e4m3fn"),
    "float8_e5m2": Element("float8_e5m2", 8, *_FLOAT, "F8_E5M2", "float8_e5m2"),
    "float8_e4m3fnuz": Element("float8_e4m3fnuz", 8, *_FLOAT, "F8_E4M3FNUZ"),
    "float8_e5m2fnuz": Element("float8_e5m2fnuz", 8, *_FLOAT, "F8_E5M2FNUZ"),
    "float8_e8m0fnu": Element("float8_e8m0fnu", 8, *_FLOAT, "F8_E8M0", arithmetic=False),
    "float6_e2m3fn": Element("float6_e2m3fn", 6, *_FLOAT, "F6_E2M3", arithmetic=False),
    "float6_e3m2fn": Element("float6_e3m2fn", 6, *_FLOAT, "F6_E3M2", arithmetic=False),
    "float4_e2m1fn": Element("float4_e2m1fn", 4, *_FLOAT, "F4", arithmetic=False),
    "int64": Element("int64", 64, safetensors="I64", numpy="<i8", storage="LongStorage"),
    "int32": Element("int32", 32, safetensors="I32", numpy="<i4", storage="IntStorage"),
    "int16": Element("int16", 16, safetensors="I16", numpy="<i2", storage="ShortStorage"),
    "int8": Element("int8", 8, safetensors="I8", numpy="|i1", storage="CharStorage"),
    "uint64": Element("uint64", 64, safetensors="U64", numpy="<u8"),
    "uint32": Element("uint32", 32, safetensors="U32", numpy="<u4"),
    "uint16": Element("uint16", 16, safetensors="U16", numpy="<u2"),
    "uint8": Element("uint8", 8, safetensors="U8", numpy="|u1", storage="ByteStorage"),
    "bool": Element("bool", 8, safetensors="BOOL", numpy="|b1", storage="BoolStorage"),
    "complex128": Element("complex128", 128, *_COMPLEX, "", "<c16", "ComplexDoubleStorage"),
    "complex64": Element("complex64", 64, *_COMPLEX, "C64", "<c8", "ComplexFloatStorage"),
    "complex32": Element("complex32", 32, *_COMPLEX),
}


@functools.cache
def element_of(dtype: torch.dtype) -> Element:
    """Give the type of a tensor's elements, also of dtypes that no file has."""
    name = str(dtype).removeprefix("torch.")
    return ELEMENTS.get(name) or Element(name, 8 * dtype.itemsize, dtype.is_floating_point, dtype.is_complex)
