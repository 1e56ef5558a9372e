"""Torch zip files that are written: sound for zip tools, mapped by torch, with the order and ties of the input."""

import itertools
import json
import os
import struct
import subprocess
import sys
import warnings
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from merge import Input, MergeError, Options, Recipe, load_checkpoint, open_checkpoint, run, save_checkpoint
from merge.checkpoint.formats.elements import ELEMENTS
from merge.checkpoint.formats.tensors import Spec
from merge.checkpoint.formats.torch_zip.planner import plan as plan_zip
from merge.checkpoint.formats.zips import lay_out
from tests.merge.handmade import assert_tensor, assert_tensors, fairseq, mixed, random_tensor

QUICK = Options(sync=False)


def middle(folder: Path, first: Path, second: Path, out: str = "out.pt", section: str = "auto") -> Path:
    inputs = Input("a", first, section), Input("b", second, section)
    return run(Recipe("interpolate", inputs, {"ratio": 0.5}), folder / out, QUICK)


def saved(path: Path, tree: Any) -> Path:
    torch.save(tree, path)
    return path


def records(path: Path) -> dict[str, tuple[int, int]]:
    """Where each record's bytes begin, and how many they are."""
    found: dict[str, tuple[int, int]] = {}
    with zipfile.ZipFile(path) as archive, path.open("rb") as file:
        for info in archive.infolist():
            file.seek(info.header_offset + 26)
            name, extra = (int.from_bytes(file.read(2), "little") for _ in range(2))
            found[info.filename] = info.header_offset + 30 + name + extra, info.file_size
    return found


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """A merged file in the published layout, tensors of many sizes and dtypes."""
    trees = [fairseq(seed) for seed in range(2)]
    for tree in trees:
        del tree["extra_state"]
        tree["model"] |= {f"more.{name}": tensor for name, tensor in mixed(5).items()}
    paths = [saved(tmp_path / f"{index}.pt", tree) for index, tree in enumerate(trees)]
    return middle(tmp_path, *paths)


def test_zip_tools_find_nothing_wrong(written: Path) -> None:
    """Every record's checksum and local header fit the directory."""
    result = subprocess.run(
        [sys.executable, "-m", "zipfile", "-t", written], capture_output=True, text=True, check=True
    )
    assert result.stdout == "Done testing\n"
    assert result.stderr == ""
    data = written.read_bytes()
    with zipfile.ZipFile(written) as archive:
        for info in archive.infolist():
            flags, _, _, _, crc, packed, size = struct.unpack_from("<HHHHIII", data, info.header_offset + 6)
            assert not flags & 8, "a data descriptor is announced"
            assert (crc, packed, size) == (info.CRC, info.file_size, info.file_size), info.filename


def test_every_record_is_aligned(written: Path) -> None:
    found = records(written)
    tensors = {name: place for name, place in found.items() if "/data/" in name}
    assert len(tensors) > 20
    assert {start % 64 for start, _ in tensors.values()} == {0}
    places = sorted(found.values())
    assert all(start + size <= following for (start, size), (following, _) in itertools.pairwise(places))


def test_records_are_those_of_torch(tmp_path: Path, written: Path) -> None:
    """The same names as torch.save gives them (but for its random id), numbered in the order of the tree."""
    torch.save(torch.load(written, weights_only=False), tmp_path / "again.pt")
    ours, theirs = ([name.partition("/")[2] for name in records(path)] for path in (written, tmp_path / "again.pt"))
    assert [name for name in ours if name.startswith("data/")] == [f"data/{i}" for i in range(len(ours) - 5)]
    assert set(theirs) - set(ours) == {".data/serialization_id"}
    assert set(ours) <= set(theirs)
    with zipfile.ZipFile(written) as one, zipfile.ZipFile(tmp_path / "again.pt") as two:
        for record in ("byteorder", "version", ".format_version", ".storage_alignment"):
            contents = {
                archive.read(next(name for name in archive.namelist() if name.endswith(f"/{record}")))
                for archive in (one, two)
            }
            assert len(contents) == 1, f"{record}: {contents}"


@pytest.mark.parametrize("mmap", [False, True])
def test_torch_reads_it(written: Path, mmap: bool) -> None:
    theirs = torch.load(written, weights_only=False, mmap=mmap)
    assert_tensors(open_checkpoint(written), theirs["model"], ordered=True)
    for tensor in theirs["model"].values():
        assert tensor.is_contiguous()
        assert tensor.data_ptr() % max(tensor.dtype.itemsize, 1) == 0


def test_a_flat_file_needs_no_trust(tmp_path: Path) -> None:
    """torch.load in its safe default reads what a plain state dict becomes."""
    paths = [saved(tmp_path / f"{seed}.pt", mixed(seed)) for seed in range(2)]
    for item in (
        "w.int64",
        "w.int32",
        "w.int16",
        "w.int8",
        "w.uint64",
        "w.uint32",
        "w.uint16",
        "w.uint8",
        "w.bool",
        "no_rows",
    ):
        for path in paths:
            tree = torch.load(path)
            del tree[item]
            torch.save(tree, path)
    out = middle(tmp_path, *paths)
    assert_tensors(torch.load(out, weights_only=True), load_checkpoint(out), ordered=True)


def test_key_order_dtypes_and_flags_are_kept(tmp_path: Path) -> None:
    paths = [saved(tmp_path / f"{seed}.pt", fairseq(seed)) for seed in range(2)]
    before, after = (
        torch.load(path, weights_only=False) for path in (paths[0], middle(tmp_path, *paths, section="model"))
    )
    assert list(after["model"]) == list(before["model"])
    assert type(after["model"]) is OrderedDict
    for name, tensor in before["model"].items():
        other = after["model"][name]
        assert (other.dtype, other.shape, type(other)) == (tensor.dtype, tensor.shape, type(tensor)), name
        assert other.requires_grad == tensor.requires_grad, name
    assert isinstance(after["model"]["decoder.scale"], torch.nn.Parameter)
    assert not after["model"]["decoder.frozen"].requires_grad


def test_ties_share_one_record(tmp_path: Path) -> None:
    paths = [saved(tmp_path / f"{seed}.pt", fairseq(seed)) for seed in range(2)]
    out = middle(tmp_path, *paths, section="model")
    model = torch.load(out, weights_only=False)["model"]
    tied = ["encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "decoder.output_projection.weight"]
    assert len({model[name].data_ptr() for name in tied}) == 1
    assert len({tensor.data_ptr() for tensor in model.values()}) == len(model) - 2
    assert out.stat().st_size < paths[0].stat().st_size


def test_other_tensors_keep_their_strides_out(tmp_path: Path) -> None:
    """Tensors elsewhere in the file come out with the same values, whatever views they were."""
    base = torch.arange(24.0).reshape(4, 6)
    other = {
        "view": base.t(),
        "part": base[1:3, ::2],
        "base": base,
        "none": base[4:],
        "expanded": base[0, :1].expand(5),
    }
    path = saved(
        tmp_path / "a.pt", {"model": {"w": torch.ones(9999)}, "tables": {"state": [other], "big": torch.ones(10**6)}}
    )
    after = torch.load(middle(tmp_path, path, path), weights_only=False)["tables"]
    assert_tensors(after["state"][0], other, ordered=True)
    assert_tensor(after["big"], torch.ones(10**6), "big")


def test_from_safetensors_to_torch_and_back(tmp_path: Path) -> None:
    tensors = {name: tensor for name, tensor in mixed().items() if tensor.dtype.is_floating_point}
    save_file(tensors, tmp_path / "a.safetensors")
    zipped = middle(tmp_path, tmp_path / "a.safetensors", tmp_path / "a.safetensors")
    assert_tensors(torch.load(zipped), tensors)
    assert_tensors(load_file(middle(tmp_path, zipped, zipped, "b.safetensors")), tensors)


def test_parameters_and_gradients_of_every_dtype(tmp_path: Path) -> None:
    tree = {
        f"{dtype}.{grad}": torch.nn.Parameter(random_tensor((2, 3), dtype), requires_grad=grad)
        for dtype in (torch.float32, torch.bfloat16, torch.float8_e5m2, torch.complex64)
        for grad in (True, False)
    }
    leaf = torch.ones(2, requires_grad=True)
    path = saved(tmp_path / "a.pt", {**tree, "leaf": leaf})
    after = torch.load(middle(tmp_path, path, path), weights_only=False)
    for name, tensor in {**tree, "leaf": leaf}.items():
        assert_tensor(after[name], tensor, name)
        assert (after[name].requires_grad, type(after[name])) == (tensor.requires_grad, type(tensor)), name


def test_saving_a_module(tmp_path: Path) -> None:
    """The whole way: a module's state, saved, loaded by torch, back in a module."""
    module = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.BatchNorm1d(3))
    module[1].weight = module[0].bias
    save_checkpoint(module.state_dict(), tmp_path / "m.pt")
    loaded: dict[str, Tensor] = torch.load(tmp_path / "m.pt")
    assert_tensors(loaded, module.state_dict(), ordered=True)
    assert loaded["1.weight"].data_ptr() == loaded["0.bias"].data_ptr()
    module.load_state_dict(loaded)


def test_archives_beyond_four_gigabytes(tmp_path: Path) -> None:
    """Sizes and places that need zip64 fields, on a sparse file."""
    small = torch.tensor([1.5, -2.0, 3.25])
    specs = {
        "big": Spec(ELEMENTS["float32"], (2**30 + 3,)),
        "after": Spec(ELEMENTS["float32"], (3,)),
        "tail": Spec(ELEMENTS["int64"], ()),
    }
    path = tmp_path / "huge.pt"
    (plan,) = plan_zip(path, specs, None, None).files
    assert plan.closing is not None
    with path.open("wb") as file:
        os.truncate(path, plan.size)
        for offset, chunk in [
            *plan.chunks,
            (plan.starts["after"], small.numpy().tobytes()),
            (plan.starts["tail"], (77).to_bytes(8, "little")),
            *plan.closing({}),
        ]:
            file.seek(offset)
            file.write(chunk)
    assert path.stat().st_size == plan.size > 2**32
    for name, (start, size) in records(path).items():
        if "/data/" in name:
            assert start % 64 == 0, name
            assert size in (4 * (2**30 + 3), 12, 8), name
    theirs = torch.load(path, mmap=True)
    for loaded in (theirs, open_checkpoint(path)):
        assert loaded["after"].tolist() == small.tolist()
        assert loaded["tail"].item() == 77
        assert loaded["big"].shape == (2**30 + 3,)
        assert loaded["big"][-1].item() == 0.0


def test_more_records_than_a_zip_directory_counts(tmp_path: Path) -> None:
    """65,536 records and more need the zip64 directory; torch's own reader finds them all."""
    first = {"many/data.pkl": b"\x80\x02}.", "many/byteorder": b"little", "many/version": b"3\n"}
    plan = lay_out({**first, **{f"many/data/{i}": 1 for i in range(65_540)}})
    data = bytearray(plan.size)
    for offset, chunk in [*plan.chunks, *plan.closing({})]:
        data[offset : offset + len(chunk)] = chunk
    path = tmp_path / "many.pt"
    path.write_bytes(data)
    found = torch._C.PyTorchFileReader(str(path)).get_all_records()
    assert [name for name in found if name.startswith("data/")] == [f"data/{i}" for i in range(65_540)]
    with zipfile.ZipFile(path) as archive:
        assert len(archive.namelist()) == 65_543


def test_torchscript_is_refused(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(torch.nn.Linear(2, 2)).save(tmp_path / "script.pt")
    with pytest.raises(MergeError, match=r"script\.pt: is a TorchScript program; torch\.save"):
        open_checkpoint(tmp_path / "script.pt")


def test_a_whole_module_is_refused(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pt")
    with pytest.raises(MergeError, match=r"module\.pt: its pickle names torch\.nn\.modules\.linear\.Linear"):
        open_checkpoint(tmp_path / "module.pt")


def test_a_lightning_checkpoint(tmp_path: Path) -> None:
    tree = {
        "epoch": 3,
        "pytorch-lightning_version": "2.4.0",
        "state_dict": OrderedDict([("model.w", torch.arange(4.0))]),
        "loops": {"fit_loop": {"state_dict": {}}},
        "optimizer_states": [{"state": {}, "param_groups": []}],
        "hyper_parameters": {"lr": 1e-4},
    }
    path = saved(tmp_path / "last.ckpt", tree)
    after = torch.load(middle(tmp_path, path, path, "out.ckpt"), weights_only=False)
    assert list(after) == list(tree)
    assert json.dumps(after["optimizer_states"]) == json.dumps(tree["optimizer_states"])
    assert_tensors(after["state_dict"], tree["state_dict"], ordered=True)
