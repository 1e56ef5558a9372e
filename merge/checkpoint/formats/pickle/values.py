"""What a pickle holds when it is read as data: inert values, and the list of names that it may mention."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, cast

# What may be named. Everything else is refused, although nothing would run here: a file written again must not carry a
# payload on to the next reader.
ALLOWED = re.compile(
    r"""
      collections\.(OrderedDict|defaultdict|Counter|deque) | argparse\.Namespace | types\.SimpleNamespace
    | (__builtin__|builtins)\.(set|frozenset|dict|list|tuple|slice|x?range|object)
    | (__builtin__|builtins)\.(bytearray|complex|int|float|str|bool|bytes|long|unicode)
    | _codecs\.encode | copy_?reg\._reconstructor | typing\.(Any|Dict|List|Optional|Tuple|Union)
    | datetime\.(date|datetime|time|timedelta|timezone) | decimal\.Decimal | fractions\.Fraction | uuid\.UUID
    | pathlib(\._local)?\.(Pure)?(Posix|Windows)?Path
    | numpy\.(dtype|ndarray|(bool|str|bytes|object|void)_?|float\d+|u?int\d+|complex\d+) | numpy\.dtypes\.\w+DType
    | numpy\.(core|_core)\.multiarray\.(scalar|_reconstruct) | numpy\.(core|_core)\.numeric\._frombuffer
    | fairseq\.dataclass\.(constants|configs)\.\w+
    | omegaconf\.(dictconfig\.DictConfig | listconfig\.ListConfig | nodes\.\w+Node | base\.\w*Metadata)
    | yacs\.config\.CfgNode | (fvcore\.common|detectron2\.config)\.config\.CfgNode | easydict\.EasyDict
    | (mmcv\.utils|mmengine\.config)\.config\.ConfigDict | mmengine\.logging\.history_buffer\.HistoryBuffer
    | (pytorch_lightning|lightning|lightning_fabric)\.(\w+\.)*AttributeDict
    | (pytorch_lightning|lightning\.pytorch)\.callbacks\.\w+\.[A-Z]\w+
    | torch\.(Size|device|Tensor) | torch\.\w+Storage | torch\.storage\.(UntypedStorage|TypedStorage|_LegacyStorage)
    | torch\.(float\d+\w*|bfloat16|half|double|float|u?int\d+|long|short|int|bool|complex\d+|cfloat|cdouble)
    | torch\.(strided|contiguous_format|channels_last|channels_last_3d|preserve_format)
    | torch\._utils\.(_rebuild_tensor(_v2|_v3)? | _rebuild_parameter(_with_state)?)
    | torch\._utils\._rebuild_device_tensor_from_(numpy|cpu_tensor)
    | torch\._tensor\._rebuild_from_type_v2 | torch\.nn\.parameter\.(Parameter|Buffer)
    | torch\.serialization\._get_layout | torch\.torch_version\.TorchVersion
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


class Key(tuple[Any, ...]):
    """A tuple as a key, whose hash nobody can choose: floods of tuples with one hash would be compared for hours."""

    __slots__ = ()

    def __hash__(self) -> int:
        return hash(repr(self))  # texts' hashes differ from run to run


@dataclass(eq=False, repr=False, slots=True)
class Opaque:
    """An object that the pickle would have built: what is called, with which arguments, state and items."""

    factory: Any
    args: Any
    new: bool = False
    state: Any = None
    has_state: bool = False
    appended: Any = ()  # a list once there is something in it
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
