"""Pickles are data: nothing they name is ever run, what published files carry survives, the rest is refused by name."""

import argparse
import io
import pickle
import sys
import types
import zipfile
from collections import OrderedDict, defaultdict
from collections.abc import Iterator
from enum import Enum
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from merge import Input, MergeError, Options, Recipe, run
from tests.merge.handmade import assert_equal


def through_a_merge(folder: Path, tree: dict[str, Any], protocol: int = 2) -> Any:
    """What torch.load reads after the file was interpolated with itself."""
    torch.save(tree, folder / "a.pt", pickle_protocol=protocol)
    inputs = tuple(Input(label, folder / "a.pt", "model") for label in ("a", "b"))
    run(Recipe("interpolate", inputs, {"ratio": 0.5}), folder / "out.pt", Options(overwrite=True, sync=False))
    return torch.load(folder / "out.pt", weights_only=False)


@pytest.fixture
def foreign() -> Iterator[dict[str, types.ModuleType]]:
    """Modules with the names of omegaconf's and fairseq's, and classes pickled as theirs are. Gone afterwards."""
    modules: dict[str, types.ModuleType] = {}

    def make(module: str, *classes: str, **enums: list[str]) -> None:
        modules[module] = types.ModuleType(module)
        for label in classes:
            made = type(label, (), {"__module__": module, "__eq__": lambda a, b: repr(vars(a)) == repr(vars(b))})
            setattr(modules[module], label, made)
        for label, members in enums.items():
            setattr(modules[module], label, Enum(label, members, module=module))

    make("omegaconf.dictconfig", "DictConfig")
    make("omegaconf.listconfig", "ListConfig")
    make("omegaconf.nodes", "AnyNode", "IntegerNode", "StringNode", "EnumNode")
    make("omegaconf.base", "ContainerMetadata", "Metadata")
    make("fairseq.dataclass.constants", DDP_BACKEND_CHOICES=["c10d", "legacy_ddp"])
    make("fairseq.dataclass.configs", "CommonConfig")
    for package in ("omegaconf", "fairseq", "fairseq.dataclass"):
        make(package)
    sys.modules.update(modules)
    yield modules
    for module in modules:
        sys.modules.pop(module, None)


def made(module: types.ModuleType, label: str, **attributes: Any) -> Any:
    value = getattr(module, label)()
    vars(value).update(attributes)
    return value


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_omegaconf_and_fairseq_objects(tmp_path: Path, foreign: dict[str, types.ModuleType], protocol: int) -> None:
    """They survive a round trip on a machine that has neither package, and neither is imported."""
    choice = foreign["fairseq.dataclass.constants"].DDP_BACKEND_CHOICES.legacy_ddp
    container = made(foreign["omegaconf.dictconfig"], "DictConfig", _parent=None, _flags_cache=None)
    metadata = made(foreign["omegaconf.base"], "ContainerMetadata", ref_type=Any, object_type=dict, optional=True)
    config = made(foreign["fairseq.dataclass.configs"], "CommonConfig", seed=1)
    node = made(foreign["omegaconf.nodes"], "EnumNode", _val=choice, _parent=container)
    inner = made(foreign["omegaconf.listconfig"], "ListConfig", _content=[node, 1, "x"], _parent=container)
    vars(container).update(_metadata=metadata, _content={"ddp": node, "betas": inner, "common": config})
    tree = {"cfg": container, "choice": choice, "model": {"w": torch.arange(3.0)}}
    torch.save(tree, tmp_path / "a.pt", pickle_protocol=protocol)
    for module in foreign:
        del sys.modules[module]
    recipe = Recipe("interpolate", (Input("a", tmp_path / "a.pt"), Input("b", tmp_path / "a.pt")), {"ratio": 0.5})
    run(recipe, tmp_path / "out.pt", Options(sync=False))
    assert not {module for module in sys.modules if module.split(".")[0] in ("omegaconf", "fairseq")}
    sys.modules.update(foreign)
    back = torch.load(tmp_path / "out.pt", weights_only=False)
    assert list(back) == ["cfg", "choice", "model"]
    assert back["choice"] is choice
    cfg = back["cfg"]
    assert type(cfg) is type(container)
    assert list(vars(cfg)) == list(vars(container))
    assert vars(cfg._metadata) == {"ref_type": Any, "object_type": dict, "optional": True}
    assert vars(cfg._content["common"]) == {"seed": 1}
    assert cfg._content["ddp"]._val is choice
    assert cfg._content["ddp"]._parent is cfg, "a cycle came out cut"
    assert cfg._content["betas"]._content[0] is cfg._content["ddp"]
    assert cfg._content["betas"]._content[1:] == [1, "x"]


VALUES: dict[str, Any] = {
    "namespace": argparse.Namespace(a=1, b=[argparse.Namespace(c=None)], _d={"e": (1, 2)}),
    "numpy scalars": [
        np.float64(0.5),
        np.float32(-2),
        np.float16(3),
        np.int64(2**60),
        np.int32(-1),
        np.uint8(7),
        np.bool_(True),
    ],
    "numpy arrays": [
        np.arange(6).reshape(2, 3),
        np.float32([1.5]),
        np.zeros((0, 2)),
        np.array(3.0),
        np.array([True, False]),
    ],
    "numpy fortran array": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "numpy text array": np.array(["a", "bcd"]),
    "numpy records": np.array([(1, 2.5)], dtype=[("n", "<i4"), ("x", "<f8")]),
    "numpy dtypes": [np.dtype("float32"), np.dtype(">i2"), np.dtype([("n", "<i4")])],
    "paths": [PurePosixPath("a/b"), Path("/data/vqa.tsv"), Path()],
    "ordered": OrderedDict([("z", 1), ("a", OrderedDict())]),
    "defaultdict": defaultdict(list, {"a": [1]}),
    "sets": [set(), {1, 2, 3}, frozenset({"a"}), {(1, "b")}],
    "numbers": [0, -1, 255, 256, 2**31, -(2**31) - 1, 2**63, -(2**2000), 1.5, float("inf"), -0.0, 2 + 3j, True, None],
    "texts": ["", "ä€😀", "line\nline", "\0", "\ud800", "x" * 70_000],
    "bytes": [b"", b"\x00\xff", bytes(range(256)) * 3, bytearray(b"abc")],
    "tuples": [(), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4), ((),)],
    "keys": {1: "int", "1": "text", (1, "a"): "tuple", None: "none", 1.5: "float", b"b": "bytes", True and 7: "seven"},
    "ranges": [range(3), slice(1, None, 2)],
    "torch": [torch.Size([2, 3]), torch.device("cpu"), torch.float16, torch.bfloat16, torch.complex64],
    "tensors": [torch.arange(3), torch.zeros(0), torch.tensor(1.5, dtype=torch.bfloat16), torch.ones(2, 3).t()],
    "large": {f"key{i}": [i, str(i)] for i in range(2000)},
}


@pytest.mark.parametrize("kind", VALUES)
@pytest.mark.parametrize("protocol", [2, 4])
def test_other_entries_survive(tmp_path: Path, kind: str, protocol: int) -> None:
    tree = {"extra": VALUES[kind], "model": {"w": torch.arange(3.0)}, "after": 1}
    assert_equal(through_a_merge(tmp_path, tree, protocol), tree)


def test_nan_survives(tmp_path: Path) -> None:
    back = through_a_merge(tmp_path, {"model": {"w": torch.ones(1)}, "x": [float("nan"), np.float32("nan")]})
    assert repr(back["x"]) == repr([float("nan"), np.float32("nan")])


def test_metadata_of_a_module_survives(tmp_path: Path) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    back = through_a_merge(tmp_path, {"model": module.state_dict(), "epoch": 1})
    assert_equal(back["model"]._metadata, module.state_dict()._metadata)
    assert back["model"]._metadata["1"] == {"version": 2}
    module.load_state_dict(back["model"])


def test_shared_objects_stay_shared(tmp_path: Path) -> None:
    shared = [1, 2]
    loop: dict[str, Any] = {"name": "loop"}
    loop["self"] = loop
    space = argparse.Namespace(shared=shared)
    back = through_a_merge(
        tmp_path, {"model": {"w": torch.ones(1)}, "a": shared, "b": (shared, space), "loop": loop, "space": space}
    )
    assert back["a"] is back["b"][0] is back["space"].shared
    assert back["b"][1] is back["space"]
    assert back["loop"]["self"] is back["loop"]


def test_a_raw_storage_is_never_another_tensors_bytes(tmp_path: Path) -> None:
    storage = torch.arange(4, dtype=torch.uint8).untyped_storage()
    try:
        back = through_a_merge(tmp_path, {"model": {"w": torch.ones(4)}, "raw": storage})
    except MergeError as error:
        assert "storage" in str(error)  # noqa: PT017
        assert not (tmp_path / "out.pt").exists()
    else:
        assert back["raw"].tolist() == [0, 1, 2, 3]


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(max_size=300),
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.tuples(inner)
        | st.tuples(inner, inner, inner, inner)
        | st.dictionaries(st.text(max_size=5) | st.integers(), inner, max_size=5)
        | st.sets(st.integers() | st.text(max_size=3), max_size=5)
        | st.frozensets(st.binary(max_size=3), max_size=5)
    ),
    max_leaves=20,
)


@given(value=plain, protocol=st.integers(2, 5))
@settings(deadline=None, max_examples=80, database=None)
def test_any_plain_value_survives(tmp_path_factory: pytest.TempPathFactory, value: Any, protocol: int) -> None:
    folder = tmp_path_factory.getbasetemp()
    tree = {"model": {"w": torch.ones(2)}, "value": value}
    assert_equal(through_a_merge(folder, tree, protocol), tree)


def test_a_written_file_names_nothing_new(tmp_path: Path) -> None:
    """Reading a merged file takes no more trust than reading its inputs: the globals are theirs, and torch's own."""
    tree = {"model": {"w": torch.nn.Parameter(torch.ones(2))}, "cfg": argparse.Namespace(p=Path("a"), n=np.float32(1))}
    through_a_merge(tmp_path, tree)

    def names(path: Path) -> set[str]:
        found: set[str] = set()

        class Watch(pickle.Unpickler):
            def find_class(self, module: str, attribute: str) -> Any:
                found.add(f"{module}.{attribute}")
                return super().find_class(module, attribute)

            def persistent_load(self, reference: Any) -> Any:
                return torch.storage.TypedStorage(
                    wrap_storage=torch.UntypedStorage(8), dtype=torch.float32, _internal=True
                )

        with zipfile.ZipFile(path) as archive:
            record = next(item for item in archive.namelist() if item.endswith("data.pkl"))
            Watch(io.BytesIO(archive.read(record))).load()
        return found

    assert names(tmp_path / "out.pt") == names(tmp_path / "a.pt")
