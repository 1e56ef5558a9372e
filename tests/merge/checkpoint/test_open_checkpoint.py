"""Reading: every layout and dtype comes back exactly, lazily, and everything else is one line that names the file."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from merge import MergeError, load_checkpoint, open_checkpoint, save_checkpoint
from tests.merge.handmade import (
    assert_tensors,
    bits,
    fairseq,
    mixed,
    one_tensor_pickle,
    random_tensor,
    weights,
    write_safetensors,
    write_zip,
)
from tests.merge.running import Server

Tensors = dict[str, Tensor]


# -- layouts -----------------------------------------------------------------------------------------------------------


def single_safetensors(folder: Path, tensors: Tensors) -> Path:
    save_file(tensors, folder / "weights.safetensors")
    return folder / "weights.safetensors"


def single_in_folder(folder: Path, tensors: Tensors) -> Path:
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text("{}")
    return folder


def write_shards(folder: Path, tensors: Tensors, suffix: str, save: Callable[[Tensors, Path], object]) -> Path:
    names = list(tensors)
    weight_map: dict[str, str] = {}
    for index, part in enumerate((names[::2], names[1::2]), start=1):
        file = f"model-{index:05}-of-00002.{suffix}"
        save({name: tensors[name] for name in part}, folder / file)
        weight_map.update(dict.fromkeys(part, file))
    index = folder / f"model.{suffix}.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 0}, "weight_map": weight_map}))
    return index


def sharded_safetensors(folder: Path, tensors: Tensors) -> Path:
    return write_shards(folder, tensors, "safetensors", save_file)


def sharded_folder(folder: Path, tensors: Tensors) -> Path:
    return sharded_safetensors(folder, tensors).parent


def sharded_bin(folder: Path, tensors: Tensors) -> Path:
    return write_shards(folder, tensors, "bin", torch.save)


def bin_in_folder(folder: Path, tensors: Tensors) -> Path:
    torch.save(tensors, folder / "pytorch_model.bin")
    return folder


def flat_pth(folder: Path, tensors: Tensors) -> Path:
    torch.save(tensors, folder / "weights.pth")
    return folder / "weights.pth"


def nested_pt(folder: Path, tensors: Tensors) -> Path:
    torch.save({"args": None, "model": tensors}, folder / "weights.pt")
    return folder / "weights.pt"


def nested_ckpt(folder: Path, tensors: Tensors) -> Path:
    torch.save({"epoch": 3, "state_dict": tensors, "optimizer_states": []}, folder / "last.ckpt")
    return folder / "last.ckpt"


def protocol_4(folder: Path, tensors: Tensors) -> Path:
    torch.save({"module": tensors}, folder / "weights.pt", pickle_protocol=4)
    return folder / "weights.pt"


SAFETENSORS = (single_safetensors, single_in_folder, sharded_safetensors, sharded_folder)
TORCH = (sharded_bin, bin_in_folder, flat_pth, nested_pt, nested_ckpt, protocol_4)


@pytest.mark.parametrize("layout", [*SAFETENSORS, *TORCH])
def test_every_layout_and_dtype(tmp_path: Path, layout: Callable[[Path, Tensors], Path]) -> None:
    tensors = mixed()
    if layout in TORCH:
        tensors["w.complex128"] = random_tensor((3, 5), torch.complex128)
        tensors["w.e4m3fnuz"] = random_tensor((3, 5), torch.float8_e4m3fnuz)
    path = layout(tmp_path, tensors)
    checkpoint = open_checkpoint(path)
    assert_tensors(checkpoint, tensors)
    assert_tensors(load_checkpoint(path), tensors)
    assert checkpoint.nbytes == sum(tensor.nbytes for tensor in tensors.values())
    assert {name: (entry.dtype, entry.shape) for name, entry in checkpoint.entries.items()} == {
        name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()
    }


def test_reads_what_torch_and_safetensors_read(tmp_path: Path) -> None:
    safe, zipped = single_safetensors(tmp_path, mixed(1)), flat_pth(tmp_path, mixed(2))
    assert_tensors(open_checkpoint(safe), load_file(safe))
    assert_tensors(open_checkpoint(zipped), torch.load(zipped), ordered=True)


def test_a_checkpoint_is_a_mapping(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    save_file({"b": torch.ones(2), "a": torch.zeros(3)}, path, {"who": "me"})
    checkpoint = open_checkpoint(str(path))
    assert (len(checkpoint), set(checkpoint), "a" in checkpoint, "c" in checkpoint) == (2, {"a", "b"}, True, False)
    assert (checkpoint.path, checkpoint.section, checkpoint.files) == (path, ".", (path,))
    assert checkpoint.metadata == {"who": "me"}
    with pytest.raises(KeyError):
        checkpoint["c"]


def test_reading_is_lazy(tmp_path: Path) -> None:
    """Far more bytes than memory, all holes but for a last tensor."""
    huge = 1 << 40
    header = {
        "big": {"dtype": "F32", "shape": [huge // 4], "data_offsets": [0, huge]},
        "small": {"dtype": "F32", "shape": [2], "data_offsets": [huge, huge + 8]},
    }
    padded = json.dumps(header).encode()
    path = write_safetensors(tmp_path / "c.safetensors", padded + b" " * (-len(padded) % 8))
    start = path.stat().st_size
    os.truncate(path, start + huge + 8)
    with path.open("r+b") as file:
        file.seek(start + huge)
        file.write(np.array([1.5, -2], dtype="<f4").tobytes())
    checkpoint = open_checkpoint(path)
    assert checkpoint["small"].tolist() == [1.5, -2.0]
    assert checkpoint["big"][huge // 8].item() == 0.0


@pytest.mark.parametrize("layout", [single_safetensors, flat_pth])
def test_writing_into_a_tensor_never_reaches_the_file(tmp_path: Path, layout: Callable[[Path, Tensors], Path]) -> None:
    path = layout(tmp_path, {"w": torch.arange(6.0)})
    before = path.read_bytes()
    open_checkpoint(path)["w"].zero_()
    assert path.read_bytes() == before
    assert open_checkpoint(path)["w"].tolist() == [0, 1, 2, 3, 4, 5]


def test_loaded_tensors_outlive_the_file(tmp_path: Path) -> None:
    path = flat_pth(tmp_path, {"w": torch.arange(6.0)})
    loaded = load_checkpoint(path)
    path.write_bytes(b"")
    assert loaded["w"].tolist() == [0, 1, 2, 3, 4, 5]


# -- strides and ties --------------------------------------------------------------------------------------------------


def views() -> Tensors:
    base = torch.arange(60.0).reshape(3, 4, 5)
    return {
        "base": base,
        "transposed": base.transpose(0, 2),
        "stepped": base[:, ::2, 1::2],
        "inner": base[1, 1:3],
        "expanded": torch.tensor([1.0, 2.0]).expand(3, 2),
        "one_axis_of_one": base[:, :1, 3],
        "element": base[2, 3, 4],
        "nothing": base[3:],
        "half": torch.arange(7, dtype=torch.float16)[1:],
        "bytes": torch.arange(9, dtype=torch.uint8)[2::3],
        "float8": torch.arange(12.0).to(torch.float8_e5m2).reshape(3, 4).t(),
        "imaginary": random_tensor((6,), torch.complex64).imag,
    }


def test_strided_views_come_back_exactly(tmp_path: Path) -> None:
    path = flat_pth(tmp_path, views())
    assert_tensors(open_checkpoint(path), views(), ordered=True)
    assert_tensors(load_checkpoint(path), views(), ordered=True)


@pytest.mark.parametrize("view", [lambda wave: wave.conj(), lambda wave: wave.conj().imag])
def test_lazy_conjugates_are_refused(tmp_path: Path, view: Callable[[Tensor], Tensor]) -> None:
    """torch keeps a flag for these and not the bytes: read without the flag they would be other numbers."""
    torch.save({"w": view(random_tensor((6,), torch.complex64))}, tmp_path / "c.pt")
    with pytest.raises(MergeError, match=r"c\.pt.*conjugate.*resolve_conj"):
        open_checkpoint(tmp_path / "c.pt")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64, torch.int16])
def test_unaligned_tensors(tmp_path: Path, dtype: torch.dtype) -> None:
    """safetensors does not demand alignment; neither do zip records of other writers."""
    first, second = torch.tensor([7], dtype=torch.uint8), random_tensor((3, 2), dtype)
    data = bits(first) + bits(second)
    code = {torch.float32: "F32", torch.float64: "F64", torch.complex64: "C64", torch.int16: "I16"}[dtype]
    header = {
        "odd": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]},
        "w": {"dtype": code, "shape": [3, 2], "data_offsets": [1, len(data)]},
    }
    path = write_safetensors(tmp_path / "c.safetensors", header, data)
    assert_tensors(open_checkpoint(path), {"odd": first, "w": second})
    loaded = load_checkpoint(path)["w"]
    assert loaded.data_ptr() % dtype.itemsize == 0
    assert torch.equal(loaded, second)


def test_unaligned_zip_records(tmp_path: Path) -> None:
    values = torch.arange(6.0)
    for padding in range(1, 4):
        path = write_zip(
            tmp_path / "c.pt", one_tensor_pickle((6,), (1,), numel=6), {"x" * padding: b"", "0": bits(values)}
        )
        assert_tensors(open_checkpoint(path), {"w": values})


def test_ties_stay_ties(tmp_path: Path) -> None:
    shared = torch.arange(6.0)
    tensors = {"a": shared, "b": torch.zeros(6), "c": shared, "view": shared[:3], "other_shape": shared.view(2, 3)}
    path = flat_pth(tmp_path, tensors)
    checkpoint, loaded = open_checkpoint(path), load_checkpoint(path)
    assert checkpoint.entries["a"].tie == checkpoint.entries["c"].tie != checkpoint.entries["b"].tie
    assert checkpoint.entries["a"].tie not in (checkpoint.entries["view"].tie, checkpoint.entries["other_shape"].tie)
    assert loaded["a"].data_ptr() == loaded["c"].data_ptr() != loaded["b"].data_ptr()
    assert checkpoint.nbytes == 4 * (6 + 6 + 3 + 6)
    assert_tensors(loaded, tensors, ordered=True)


# -- sections ----------------------------------------------------------------------------------------------------------


def test_published_layout(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint_best.pt"
    torch.save(fairseq(3), path)
    model, ema = open_checkpoint(path, "model"), open_checkpoint(path, section="extra_state.ema")
    assert model.sections == ema.sections == ("model", "extra_state.ema", "extra_state.ema_fp32_params")
    assert (model.section, ema.section) == ("model", "extra_state.ema")
    assert_tensors(model, weights(3), ordered=True)
    assert_tensors(ema, weights(53, torch.float32), ordered=True)
    listed = r"model \(10 tensors\), extra_state\.ema \(10 tensors\), extra_state\.ema_fp32_params \(10 tensors\)"
    usual = r"published VQA experts are evaluated with extra_state\.ema"
    several = (
        rf"_best\.pt: has several sections with weights: {listed}; {usual}; choose one, as section='extra_state\.ema'$"
    )
    with pytest.raises(MergeError, match=several):
        open_checkpoint(path)
    with pytest.raises(MergeError, match=rf"no section 'ema' with weights; it has {listed}$"):
        open_checkpoint(path, "ema")


@pytest.mark.parametrize("section", ["model", "state_dict", "module", "model_ema", "state_dict_ema", "extra_state.ema"])
def test_every_section_is_found(tmp_path: Path, section: str) -> None:
    tensors = weights(1)
    tree: object = tensors
    for key in reversed(section.split(".")):
        tree = {"step": 3, key: tree}
    torch.save(tree, tmp_path / "c.pt")
    checkpoint = open_checkpoint(tmp_path / "c.pt")
    assert (checkpoint.section, checkpoint.sections) == (section, (section,))
    assert_tensors(checkpoint, tensors, ordered=True)


def test_a_flat_file_may_use_the_words_of_sections(tmp_path: Path) -> None:
    tensors = {"model": torch.ones(2), "module.weight": torch.zeros(3), "extra_state": torch.zeros(1)}
    checkpoint = open_checkpoint(flat_pth(tmp_path, tensors))
    assert checkpoint.section == "."
    assert_tensors(checkpoint, tensors, ordered=True)


def test_an_empty_section_is_none(tmp_path: Path) -> None:
    torch.save({"model": weights(0), "model_ema": {}, "state_dict": None, "extra_state": []}, tmp_path / "c.pt")
    assert open_checkpoint(tmp_path / "c.pt").sections == ("model",)


def test_what_is_no_tensor_is_no_weight(tmp_path: Path) -> None:
    torch.save({"model": {"w": torch.ones(2), "_extra_state": {"scale": 1.0}, "version": 2}}, tmp_path / "c.pt")
    assert list(open_checkpoint(tmp_path / "c.pt")) == ["w"]


@pytest.mark.parametrize(
    "tree", [{0: torch.ones(1)}, {1: torch.ones(1), "1": torch.zeros(1)}, {10**5000: torch.ones(1)}]
)
def test_names_that_are_no_text(tmp_path: Path, tree: object) -> None:
    """A tensor is never read under a name that it does not have."""
    torch.save({"model": tree}, tmp_path / "c.pt")
    with pytest.raises(MergeError, match=r"c\.pt.*text"):
        open_checkpoint(tmp_path / "c.pt", "model")


# -- shards ------------------------------------------------------------------------------------------------------------


def test_shards_that_are_links(tmp_path: Path) -> None:
    """The cache of a model hub: a folder of links to files with other names."""
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshot").mkdir()
    sharded_safetensors(tmp_path / "blobs", mixed())
    for number, path in enumerate(sorted((tmp_path / "blobs").iterdir())):
        path.rename(tmp_path / "blobs" / str(number))
        (tmp_path / "snapshot" / path.name).symlink_to(f"../blobs/{number}")
    assert_tensors(open_checkpoint(tmp_path / "snapshot"), mixed())


def test_a_missing_shard(tmp_path: Path) -> None:
    index = sharded_safetensors(tmp_path, mixed())
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(MergeError, match=r"index\.json: names the shard model-00002-of-00002\.safetensors.*missing"):
        open_checkpoint(index)


@pytest.mark.parametrize("layout", [sharded_safetensors, sharded_bin])
def test_an_index_that_names_a_tensor_its_shard_lacks(tmp_path: Path, layout: Callable[[Path, Tensors], Path]) -> None:
    index = layout(tmp_path, mixed())
    data = json.loads(index.read_text())
    data["weight_map"]["w.more"] = next(iter(data["weight_map"].values()))
    index.write_text(json.dumps(data))
    with pytest.raises(MergeError, match=r"stale: says that 'w\.more' is in model-00001"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("layout", [sharded_safetensors, sharded_bin])
def test_an_index_that_lacks_a_tensor_of_its_shards(tmp_path: Path, layout: Callable[[Path, Tensors], Path]) -> None:
    index = layout(tmp_path, mixed())
    data = json.loads(index.read_text())
    del data["weight_map"]["scalar"]
    index.write_text(json.dumps(data))
    with pytest.raises(MergeError, match=r"stale: model-\d+-of-00002\.\w+ holds 'scalar'"):
        open_checkpoint(tmp_path)


def test_a_shard_that_another_run_left(tmp_path: Path) -> None:
    sharded_safetensors(tmp_path, mixed())
    shutil.copy(tmp_path / "model-00001-of-00002.safetensors", tmp_path / "model-00003-of-00003.safetensors")
    with pytest.raises(MergeError, match=r"stale: model-00003-of-00003\.safetensors lies beside"):
        open_checkpoint(tmp_path)


def test_a_whole_model_beside_its_shards(tmp_path: Path) -> None:
    """A second save into the folder left both; which is newer nobody knows."""
    sharded_safetensors(tmp_path, mixed())
    save_file(mixed(), tmp_path / "model.safetensors")
    with pytest.raises(MergeError, match=r"stale: model\.safetensors lies beside"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not an index"),
        (b"{", "not an index"),
        (b"[]", "not an index"),
        (b"\xff\xfe", "not an index"),
        (b'{"weight_map": []}', "not an index"),
        (b'{"weight_map": {}}', "names no tensor"),
        (b"[" * 100_000, "not an index"),
        (b'{"weight_map": {"w": "../c.safetensors"}}', "outside its folder"),
        (b'{"weight_map": {"w": "/etc/passwd"}}', "outside its folder"),
        (b'{"weight_map": {"w": ""}}', "index.json"),
        (b'{"weight_map": {"w": ".."}}', "index.json"),
        (b'{"weight_map": {"w": "a\\u0000b"}}', "outside its folder"),
        (b'{"weight_map": {"w": "a", "w": "b"}}', "the key 'w' comes twice"),
        (b'{"weight_map": {"w\\ud800": "a"}}', "half a character"),
        (b'{"weight_map": {"w": "model.safetensors.index.json"}}', "index.json"),
        (b'{"weight_map": {"w": "notes.txt"}}', "notes.txt"),
    ],
)
def test_a_bad_index(tmp_path: Path, content: bytes, reason: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    save_file({"w": torch.ones(2)}, tmp_path / "c.safetensors")
    (folder / "notes.txt").write_text("w")
    (folder / "model.safetensors.index.json").write_bytes(content)
    with pytest.raises(MergeError, match=reason):
        open_checkpoint(folder)


def test_a_folder_with_several_answers(tmp_path: Path) -> None:
    save_file({"w": torch.ones(2)}, tmp_path / "one.safetensors")
    save_file({"w": torch.ones(2)}, tmp_path / "two.safetensors")
    with pytest.raises(MergeError, match=r"2 weight files and no index.*one\.safetensors, two\.safetensors"):
        open_checkpoint(tmp_path)
    (tmp_path / "a.index.json").write_text("{}")
    (tmp_path / "b.index.json").write_text("{}")
    with pytest.raises(MergeError, match=r"has several indexes; open one of them: a\.index\.json, b\.index\.json"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("make", [single_safetensors, flat_pth, single_in_folder, sharded_folder])
def test_no_permission_to_read(tmp_path: Path, command: Server, make: Callable[[Path, Tensors], Path]) -> None:
    folder = tmp_path / "locked"
    folder.mkdir()
    path = make(folder, {"w": torch.ones(2), "v": torch.ones(2)})
    for locked in (path, folder):
        mode = locked.stat().st_mode
        locked.chmod(0)
        shown = command("inspect", path, unprivileged=True)
        locked.chmod(mode)
        assert shown.code == 2
        assert "Traceback" not in shown.err
        assert "ermission" in shown.err
        assert str(path) in shown.err
        assert command("inspect", path, unprivileged=True).code == 0


def test_metadata_keeps_its_order(tmp_path: Path) -> None:
    """Copied verbatim, it gives the same bytes every time."""
    metadata = {f"key {number}": str(number) for number in (5, 2, 9, 0, 7, 1, 8)}
    save_checkpoint({"w": torch.zeros(2)}, tmp_path / "a.safetensors", metadata=metadata)
    again = open_checkpoint(tmp_path / "a.safetensors")
    assert list(again.metadata) == list(metadata)
    save_checkpoint(dict(again), tmp_path / "b.safetensors", metadata=again.metadata)
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
