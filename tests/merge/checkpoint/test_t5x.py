"""T5X folders: what is read, what is written back, what is refused."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import msgpack
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import merge
from merge.checkpoint.formats.zarr import read_zarray
from tests.merge.made import assert_same
from tests.merge.t5x_made import packed, read_index, spec, t5x_folder, weights, write_index, write_zarr


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return t5x_folder(tmp_path / "checkpoint_7", weights())


def index_of(path: str = "a", **changes: Any) -> dict[str, Any]:
    return {"version": 3, "optimizer": {"target": {"w": {**spec(path, torch.ones(2)), **changes}}}}


# -- reading ---------------------------------------------------------------------------------------------------------


def test_the_weights_are_the_section_taken_and_names_are_joined_with_dots(folder: Path) -> None:
    checkpoint = merge.open_checkpoint(folder)
    assert (checkpoint.section, checkpoint.sections) == ("optimizer.target", ("optimizer.target", "optimizer.state"))
    assert_same(dict(checkpoint), weights())
    assert merge.digest(checkpoint) == merge.digest(weights())


def test_tensors_are_read_on_access_only(folder: Path) -> None:
    (folder / "target.token_embedder.embedding" / "0.0").write_bytes(b"no gzip")
    checkpoint = merge.open_checkpoint(folder)
    assert checkpoint["encoder.steps"].tolist() == [0, 1, 2, 3]
    with pytest.raises(merge.MergeError, match=r"embedding/0\.0: broken chunk"):
        checkpoint["token_embedder.embedding"]


def test_a_tensor_read_may_be_written_into(folder: Path) -> None:
    checkpoint = merge.open_checkpoint(folder)
    for name in ("encoder.scalar", "encoder.steps"):
        checkpoint[name].zero_()
        assert torch.equal(checkpoint[name], weights()[name])


def test_arrays_of_the_optimizer_may_be_absent_unless_wanted(folder: Path) -> None:
    with pytest.raises(merge.MergeError, match=r"1 of 3 arrays of optimizer\.state are in the index .* disk: v\.gone"):
        merge.open_checkpoint(folder, "optimizer.state")
    write_zarr(folder / "state.gone", torch.full((2,), 5.0), (2,))
    state = merge.open_checkpoint(folder, "optimizer.state")
    assert {name: value.tolist() for name, value in state.items()} == {"step": 7, "v.there": [1] * 3, "v.gone": [5] * 2}


@pytest.mark.parametrize("compressor", ["gzip", "zlib", None])
@pytest.mark.parametrize("chunks", [(5, 4), (2, 4), (5, 3), (2, 3), (9, 9)], ids=str)
@pytest.mark.parametrize("more", [{}, {"order": "F"}, {"dimension_separator": "/"}], ids=str)
def test_chunks_of_every_shape(tmp_path: Path, compressor: str | None, chunks: tuple[int, int], more: Any) -> None:
    value = torch.arange(1, 21, dtype=torch.int16).view(5, 4)
    value[:2, :3] = 0  # a chunk that is left out
    write_zarr(tmp_path / "a", value, chunks, compressor, **more)
    assert torch.equal(read_zarray(tmp_path / "a").tensor(), value)


@pytest.mark.parametrize(
    "fill", [(None, 0.0), (0, 0.0), (2.5, 2.5), ("NaN", float("nan")), ("-Infinity", -float("inf"))]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_chunk_that_is_not_there_is_the_fill_value(
    tmp_path: Path, fill: tuple[Any, float], dtype: torch.dtype
) -> None:
    write_zarr(tmp_path / "a", torch.zeros(3, dtype=dtype), (2,), fill_value=fill[0])
    wanted = torch.full((3,), fill[1], dtype=dtype)
    torch.testing.assert_close(read_zarray(tmp_path / "a").tensor(), wanted, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("shape", [(), (0, 3), (1,)], ids=str)
def test_scalars_and_empty_arrays(tmp_path: Path, shape: tuple[int, ...]) -> None:
    value = torch.full(shape, 3.0)
    write_zarr(tmp_path / "a", value, tuple(max(1, size) for size in shape))
    read = read_zarray(tmp_path / "a").tensor()
    assert read.shape == value.shape
    assert torch.equal(read, value)


# -- writing ---------------------------------------------------------------------------------------------------------


def test_written_back_the_layout_is_the_same(folder: Path, tmp_path: Path) -> None:
    source = merge.open_checkpoint(folder)
    doubled = {name: value * 2 for name, value in source.items()}
    output = merge.save_checkpoint(doubled, tmp_path / "out.t5x", like=source)
    assert_same(dict(merge.open_checkpoint(output)), doubled)
    before, after = read_index(folder), read_index(output)
    assert after["optimizer"]["state"] == before["optimizer"]["state"]
    assert after["version"] == 3
    old, new = (tree["optimizer"]["target"]["decoder"]["layers_0"] for tree in (before, after))
    assert new["scale"]["dtype"] == "bfloat16"
    assert new["wi"]["kernel"]["kvstore"] == old["wi"]["kernel"]["kvstore"]
    assert isinstance(after["optimizer"]["target"]["encoder"]["scalar"], msgpack.ExtType)
    for name in ("train_ds-000-of-001", "state.there/.zarray", "state.there/0"):
        assert (output / name).read_bytes() == (folder / name).read_bytes()


def test_what_flax_would_read_of_a_packed_array(folder: Path, tmp_path: Path) -> None:
    source = merge.open_checkpoint(folder)
    output = merge.save_checkpoint(dict(source), tmp_path / "out.t5x", like=source)
    shape, name, data = msgpack.unpackb(read_index(output)["optimizer"]["target"]["encoder"]["scalar"].data, raw=True)
    assert (shape, name) == ([], b"float32")
    assert torch.frombuffer(bytearray(data), dtype=torch.float32).item() == weights()["encoder.scalar"].item()


def test_merging_folders_gives_a_folder(folder: Path, tmp_path: Path) -> None:
    other = t5x_folder(tmp_path / "other", {**weights(1), "encoder.steps": weights()["encoder.steps"]})
    recipe = merge.Recipe("interpolate", (merge.Input("a", folder), merge.Input("b", other)), {"ratio": 0.25})
    merge.run(recipe, tmp_path / "out.t5x")
    wanted = merge.interpolate(merge.open_checkpoint(folder), merge.open_checkpoint(other), 0.25)
    assert_same(dict(merge.open_checkpoint(tmp_path / "out.t5x")), wanted)
    assert (tmp_path / "out.t5x.recipe.json").exists()


def test_other_weights_become_a_folder_and_names_are_cut_at_the_dots(tmp_path: Path) -> None:
    merge.save_checkpoint(weights(), tmp_path / "out.t5x")
    assert_same(dict(merge.open_checkpoint(tmp_path / "out.t5x")), weights())
    assert set(read_index(tmp_path / "out.t5x")["optimizer"]["target"]) == {"decoder", "encoder", "token_embedder"}


def test_more_files_than_a_process_may_open(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    tensors = {f"w{i}": torch.full((1,), float(i)) for i in range(300)}
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        merge.save_checkpoint(tensors, tmp_path / "out.t5x")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert_same(dict(merge.open_checkpoint(tmp_path / "out.t5x")), tensors)


@pytest.mark.parametrize(
    ("tensors", "told"),
    [
        ({"a": torch.ones(1), "a.b": torch.ones(1)}, "a.b cannot be placed"),
        ({"a/b": torch.ones(1)}, "cannot be the name of a folder"),
    ],
)
def test_names_without_a_place(tmp_path: Path, tensors: dict[str, Tensor], told: str) -> None:
    with pytest.raises(merge.MergeError, match=told):
        merge.save_checkpoint(tensors, tmp_path / "out.t5x")
    assert not list(tmp_path.iterdir())


# -- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["../outside", "/etc", "a/../../outside", "", ".", "link"])
def test_paths_out_of_the_folder_are_refused(tmp_path: Path, path: str) -> None:
    write_zarr(tmp_path / "outside", torch.ones(2), (2,))
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "link").symlink_to(tmp_path / "outside")
    write_index(folder, index_of(path))
    with pytest.raises(merge.MergeError, match="outside its folder"):
        merge.open_checkpoint(folder)


@pytest.mark.parametrize(
    ("tree", "told"),
    [
        (index_of(driver="n5"), "only zarr arrays"),
        (index_of(kvstore={"driver": "http", "path": "a"}), "only zarr arrays"),
        (index_of(kvstore="file:///etc"), "only zarr arrays"),
        (index_of(metadata={"shape": [3]}), r"has shape \[2\], the index gives \[3\]"),
        ([1, 2], "holds a list"),
        ({"version": 3}, "no arrays found; its entries are version"),
        ({1: {}}, "int is not allowed for map key"),
        (
            {"target": {"a": packed(torch.ones(1)), "b": {"c": packed(torch.ones(1))}, "b.c": packed(torch.ones(1))}},
            "two",
        ),
        ({"target": {"a": msgpack.ExtType(1, b"\x93")}}, "a is a broken array"),
        ({"target": {"a": msgpack.ExtType(1, msgpack.packb(([9], "float32", b"1234")))}}, "a is a broken array"),
        ({"target": {"a": msgpack.ExtType(1, msgpack.packb(([-1], "float32", b"1234")))}}, "a is a broken array"),
    ],
)
def test_indexes_that_are_refused(tmp_path: Path, tree: Any, told: str) -> None:
    write_zarr(tmp_path / "a", torch.ones(2), (2,))
    write_index(tmp_path, tree)
    with pytest.raises(merge.MergeError, match=told) as raised:
        merge.open_checkpoint(tmp_path)
    assert str(tmp_path) in str(raised.value)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"compressor": {"id": "blosc", "cname": "lz4"}}, "'blosc', read are gzip, zlib and none; copy the array with"),
        ({"zarr_format": 3}, "only Zarr v2"),
        ({"filters": [{"id": "delta"}]}, "only Zarr v2 without filters"),
        ({"dtype": ">f4"}, "dtype '>f4' is not one of"),
        ({"dtype": [["a", "<f4"]]}, "is not one of"),
        ({"chunks": [0]}, "do not fit together"),
        ({"chunks": [2, 2]}, "do not fit together"),
        ({"shape": [2**62], "chunks": [2**62]}, "sizes that multiply beyond"),
        ({"fill_value": "red"}, "fill value 'red' is no"),
    ],
    ids=str,
)
def test_headers_that_are_refused(tmp_path: Path, change: dict[str, Any], told: str) -> None:
    write_zarr(tmp_path / "a", torch.ones(2), (2,))
    header = tmp_path / "a" / ".zarray"
    header.write_text(json.dumps({**json.loads(header.read_text()), **change}))
    with pytest.raises(merge.MergeError, match=told):
        read_zarray(tmp_path / "a")


@pytest.mark.parametrize("separator", [".", "/"])
def test_a_large_grid_costs_what_its_files_do(tmp_path: Path, separator: str) -> None:
    write_zarr(tmp_path / "a", torch.ones(2, 2, dtype=torch.int8), (1, 1), dimension_separator=separator)
    header = tmp_path / "a" / ".zarray"
    header.write_text(json.dumps({**json.loads(header.read_text()), "shape": [4000, 4000]}))
    beside = ("1", "x.0", "01.0", "0.1.1", "4000.0", "-1.0", "notes.txt", "\u0661.0")  # no chunks of this array
    for name in beside:
        (tmp_path / "a" / name).exists() or (tmp_path / "a" / name).write_bytes(b"?")
    start = time.process_time()
    value = read_zarray(tmp_path / "a").tensor()
    assert time.process_time() - start < 5  # a name for each of 16 million places took minutes
    assert value.shape == (4000, 4000)
    assert value[:2, :2].sum() == 4
    assert not value[2:].any()


def test_bfloat16_as_version_2_wrote_it_is_refused(tmp_path: Path) -> None:
    write_zarr(tmp_path / "a", torch.ones(2, dtype=torch.uint16), (2,))
    write_index(tmp_path, {**index_of(), "version": 2})
    with pytest.raises(merge.MergeError, match="wrote bfloat16 as uint16"):
        merge.open_checkpoint(tmp_path)


def test_a_tensorflow_checkpoint_is_told_from_t5x(tmp_path: Path) -> None:
    (tmp_path / "checkpoint").write_text('model_checkpoint_path: "model.ckpt-1"')
    with pytest.raises(merge.MergeError, match="TensorFlow"):
        merge.open_checkpoint(tmp_path)


def test_without_msgpack_the_extra_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "msgpack", None)
    with pytest.raises(merge.MergeError, match=r"pip install 'unival-merge\[t5x\]'"):
        merge.open_checkpoint(folder)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_a_broken_chunk_is_named_and_never_read_as_numbers(data: st.DataObject) -> None:
    compressor = data.draw(st.sampled_from(["gzip", "zlib", None]))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "a"
        write_zarr(folder, torch.arange(1.0, 13.0), (12,), compressor)
        chunk = folder / "0"
        whole = chunk.read_bytes()
        chunk.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
        with pytest.raises(merge.MergeError, match="0: broken chunk"):
            read_zarray(folder).tensor()


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_a_broken_index_is_an_error_of_one_line_or_opens(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = t5x_folder(Path(name) / "c", {"a.b": torch.ones(2), "c": torch.ones(1)}, ("c",))
        index = folder / "checkpoint"
        whole = bytearray(index.read_bytes())
        at = data.draw(st.integers(0, len(whole) - 1))
        if data.draw(st.booleans()):
            del whole[at:]
        else:
            whole[at] = data.draw(st.integers(0, 255))
        index.write_bytes(bytes(whole))
        message = ""
        try:
            for value in merge.open_checkpoint(folder).values():
                assert value.numel() <= 4
        except merge.MergeError as error:
            message = str(error)
        assert not message or (str(folder) in message and "\n" not in message)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_broken_header_is_an_error_or_the_array_has_its_bytes(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "a"
        write_zarr(folder, torch.arange(1.0, 7.0).view(2, 3), (2, 2))
        header = folder / ".zarray"
        content = bytearray(header.read_bytes())
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(32, 126))
        header.write_bytes(bytes(content))
        message = ""
        try:
            entry = read_zarray(folder)
            if entry.nbytes < 10**6:
                assert entry.tensor().shape == entry.shape
        except merge.MergeError as error:
            message = str(error)
        assert not message or str(folder) in message


def test_a_compressor_that_is_no_text_and_a_path_that_is_no_name_are_refused(tmp_path: Path) -> None:
    write_zarr(tmp_path / "a", torch.ones(2), (2,))
    header = json.loads((tmp_path / "a" / ".zarray").read_text())
    (tmp_path / "a" / ".zarray").write_text(json.dumps({**header, "compressor": {"id": ["gzip"]}}))
    with pytest.raises(merge.MergeError, match="chunks are compressed by"):
        read_zarray(tmp_path / "a")
    write_index(tmp_path, index_of("a" * 300))
    with pytest.raises(merge.MergeError, match="not on disk: w"):
        merge.open_checkpoint(tmp_path)
