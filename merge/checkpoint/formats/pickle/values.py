"""What a pickle holds when it is read as data: inert values, and the list of names that it may mention."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, cast

# What may be named. Everything else is refused, although nothing would run here: a file written again must not carry a
# payload on to the next reader.
ALLOWED = re.compile(
    r"""
      collections\.(OrderedDict|defaultdict) | argparse\.Namespace | _codecs\.encode
    | (__builtin__|builtins)\.(set|frozenset|dict|list|tuple|slice|x?range|object)
    | (__builtin__|builtins)\.(bytearray|complex|int|float|str|bool|bytes|long|unicode)
    | copyreg\._reconstructor | copy_reg\._reconstructor
    | typing\.(Any|Dict|List|Optional|Tuple|Union)
    | numpy\.(dtype|ndarray|bool_|float16|float32|float64|int8|int16|int32|int64|uint8) | numpy\.dtypes\.\w+DType
    | numpy\.(core|_core)\.multiarray\.(scalar|_reconstruct) | numpy\.(core|_core)\.numeric\._frombuffer
    | pathlib(\._local)?\.(Pure)?(Posix|Windows)?Path
    | fairseq\.dataclass\.(constants|configs)\.\w+
    | omegaconf\.(dictconfig\.DictConfig | listconfig\.ListConfig | nodes\.\w+Node | base\.\w*Metadata)
    | torch\.(Size|device|Tensor) | torch\.\w+Storage | torch\.storage\.(UntypedStorage|TypedStorage|_LegacyStorage)
    | torch\.(float\d+\w*|bfloat16|half|double|float|u?int\d+|long|short|int|bool|complex\d+|cfloat|cdouble)
    | torch\._utils\.(_rebuild_tensor_v2|_rebuild_tensor_v3|_rebuild_parameter|_rebuild_parameter_with_state)
    | torch\.nn\.parameter\.(Parameter|Buffer) | torch\.serialization\._get_layout
    """,
    re.VERBOSE,
)


class PickleRefused(ValueError):
    """The pickle names something that is not on the list of inert things."""


class PickleBroken(ValueError):
    """The bytes are not a whole pickle."""


@dataclass(frozen=True)
class Global:
    """A name in a pickle: two words, never looked up."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(eq=False)
class Opaque:
    """An object that the pickle would have built: what is called, with which arguments, state and items."""

    factory: Any
    args: Any
    new: bool = False
    state: Any = None
    has_state: bool = False
    appended: list[Any] = field(default_factory=list[Any])
    items: dict[Any, Any] = field(default_factory=dict[Any, Any])

    @property
    def attributes(self) -> dict[str, Any]:
        """The object's attributes where its state is a plain dictionary (argparse.Namespace), else nothing."""
        state = self.state
        return cast("dict[str, Any]", state) if type(state) is dict else {}


@dataclass(frozen=True)
class Persistent:
    """A reference to something kept beside the pickle: in torch files, a storage."""

    id: Any


@dataclass(frozen=True)
class Blob:
    """Bytes of a known length that are written later, under a name."""

    name: str
    size: int
