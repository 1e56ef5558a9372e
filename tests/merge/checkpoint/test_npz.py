"""npz files: plain arrays and pickled dictionaries, read as data, written so that numpy reads them."""

from __future__ import annotations

import io
import pickle
import tempfile
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import merge
from merge.checkpoint.formats.zips import joined_crc
from tests.merge.made import assert_same

TREE: dict[str, Any] = {
    "layers_0": {"kernel": np.arange(12, dtype=np.float32).reshape(3, 4) / 7, "bias": np.array([1, -2], np.int16)},
    "columns": np.asfortranarray(np.arange(6, dtype=np.float64).reshape(2, 3)),
    "scale": np.float32(2.5),
    "empty": np.zeros((0, 3), np.float16),
    "mask": np.array([True, False]),
    "name": "kept as it is",
    "steps": 7,
}
NAMES = {
    "encoder.layers_0.kernel": TREE["layers_0"]["kernel"],
    "encoder.layers_0.bias": TREE["layers_0"]["bias"],
    "encoder.columns": TREE["columns"],
    "encoder.scale": np.array(TREE["scale"]),
    "encoder.empty": TREE["empty"],
    "encoder.mask": TREE["mask"],
    "plain": np.arange(4, dtype=np.int64),
    "flipped": np.asfortranarray(np.ones((2, 3), np.float32)),
}


def tensors() -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(np.ascontiguousarray(value)).reshape(value.shape) for name, value in NAMES.items()}


@pytest.fixture(params=["stored", "compressed"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    save = np.savez if request.param == "stored" else np.savez_compressed
    save(tmp_path / "a.npz", encoder=np.array(TREE), plain=NAMES["plain"], flipped=NAMES["flipped"])
    return tmp_path / "a.npz"


def member(path: Path, pickled: bytes, name: str = "a.npy") -> Path:
    """An npz file with one array of objects whose pickle is given."""
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(head, {"descr": "|O", "fortran_order": False, "shape": ()})
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(name, head.getvalue() + pickled)
    return path


def test_names_are_keys_joined_with_dots(path: Path) -> None:
    checkpoint = merge.open_checkpoint(path)
    assert_same(dict(checkpoint), tensors())
    assert (checkpoint.section, checkpoint.sections) == (".", (".",))


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_pickles_of_every_protocol(tmp_path: Path, protocol: int) -> None:
    pickled = pickle.dumps(np.array({"w": np.arange(3.0), "f": np.asfortranarray(np.eye(2))}), protocol)
    read = merge.load_checkpoint(member(tmp_path / "a.npz", pickled))
    assert_same(read, {"a.w": torch.arange(3.0, dtype=torch.float64), "a.f": torch.eye(2, dtype=torch.float64)})


def test_written_back_numpy_reads_the_same_layout(path: Path, tmp_path: Path) -> None:
    source = merge.open_checkpoint(path)
    doubled = {name: value * 2 if value.is_floating_point() else value for name, value in source.items()}
    merge.save_checkpoint(doubled, tmp_path / "b.npz", like=source)
    with np.load(tmp_path / "b.npz", allow_pickle=True) as read:
        assert read.files == ["encoder", "plain", "flipped"]
        assert read["plain"].tolist() == [0, 1, 2, 3]
        tree = read["encoder"].item()
    assert list(tree) == list(TREE)
    assert (tree["name"], tree["steps"]) == ("kept as it is", 7)
    np.testing.assert_array_equal(tree["layers_0"]["kernel"], TREE["layers_0"]["kernel"] * 2)
    assert tree["layers_0"]["bias"].dtype == np.int16
    np.testing.assert_array_equal(tree["columns"], TREE["columns"] * 2)
    assert zipfile.ZipFile(tmp_path / "b.npz").testzip() is None
    assert_same(dict(merge.open_checkpoint(tmp_path / "b.npz")), doubled)


def test_merging_two_files(path: Path, tmp_path: Path) -> None:
    source = merge.open_checkpoint(path)
    other = {name: value + 1 if value.is_floating_point() else value for name, value in source.items()}
    second = merge.save_checkpoint(other, tmp_path / "second.npz", like=source)
    recipe = merge.Recipe("interpolate", (merge.Input("a", path), merge.Input("b", second)), {"ratio": 0.5})
    merge.run(recipe, tmp_path / "out.npz")
    assert_same(merge.load_checkpoint(tmp_path / "out.npz"), merge.interpolate(source, other, 0.5))


def test_without_a_pattern_every_tensor_is_an_array(tmp_path: Path) -> None:
    merge.save_checkpoint(tensors(), tmp_path / "b.npz")
    with np.load(tmp_path / "b.npz") as read:
        assert read.files == list(NAMES)
        np.testing.assert_array_equal(read["encoder.columns"], TREE["columns"])
    with pytest.raises(merge.MergeError, match=r"w is bfloat16, which npz files cannot hold"):
        merge.save_checkpoint({"w": torch.ones(1, dtype=torch.bfloat16)}, tmp_path / "c.npz")


class Payload:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("/tmp/never-made-by-a-pickle"),)


def test_a_hostile_pickle_is_refused_and_nothing_runs(tmp_path: Path) -> None:
    for value in (Payload(), np.array({"w": Payload()})):
        with pytest.raises(
            merge.MergeError, match=r"a\.npz: a\.npy names \S+, which is not inert, so nothing was loaded"
        ):
            merge.open_checkpoint(member(tmp_path / "a.npz", pickle.dumps(value)))
    assert not Path("/tmp/never-made-by-a-pickle").exists()


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (np.array([1, "a"], object), "an array of objects, read are only single dictionaries"),
        (np.array({"w": np.array([{}, 1], object)}), "a.w is no plain array"),
        (np.array({"w": np.ones(2, ">f4")}), "dtype >f4"),
        (np.array({"w": np.array("text")}), "dtype <U4"),
        (np.array({"w": 1}), "no arrays found; its entries are a"),
        (np.array({1: np.ones(1)}), "is a int, not text"),
        (np.array({"b": {"c": np.ones(1)}, "b.c": np.ones(1)}), "two arrays are called 'a.b.c'"),
        ({"w": np.ones(1)}, "an array of objects"),
    ],
    ids=str,
)
def test_what_is_no_dictionary_of_numbers(tmp_path: Path, value: Any, told: str) -> None:
    with pytest.raises(merge.MergeError, match=told):
        merge.open_checkpoint(member(tmp_path / "a.npz", pickle.dumps(value)))


def test_files_that_are_no_npz(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    for content, told in ((b"", "empty"), (b"PK", "text"), (b"PK\x07", "not a whole npz file"), (b"no zip", "text")):
        path.write_bytes(content)
        with pytest.raises(merge.MergeError, match=rf"a\.npz: .*{told}"):
            merge.open_checkpoint(path)
    with pytest.raises(merge.MergeError, match=r"a zip archive without a torch pickle \(data\.pkl\) or arrays"):
        merge.open_checkpoint(member(path, b"", "a.txt"))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_flipped_byte_is_an_error_or_opens(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "a.npz"
        np.savez(path, a=np.array({"w": np.ones(2), "d": {"x": np.zeros(3, np.int8)}}), b=np.ones(2))
        content = bytearray(path.read_bytes())
        content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
        path.write_bytes(bytes(content))
        message = ""
        try:
            merge.load_checkpoint(path)
        except merge.MergeError as error:
            message = str(error)
        assert not message or str(path) in message


@given(st.binary(max_size=300), st.binary(max_size=300))
def test_the_crc_of_two_pieces(first: bytes, second: bytes) -> None:
    assert joined_crc(zlib.crc32(first), zlib.crc32(second), len(second)) == zlib.crc32(first + second)


def test_a_header_that_claims_less_than_there_is_is_refused(tmp_path: Path) -> None:
    """A shape that lost a part leaves bytes over: those read before them are another tensor's."""
    data = io.BytesIO()
    np.save(data, np.arange(12.0).reshape(3, 4))
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("w.npy", data.getvalue().replace(b"(3, 4)", b"(3, 1)"))
    with pytest.raises(merge.MergeError, match=r"a\.npz: w\.npy has more bytes than its header says"):
        merge.load_checkpoint(tmp_path / "a.npz")
