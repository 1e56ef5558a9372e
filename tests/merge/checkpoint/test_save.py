"""Writing: the layout follows the name of the output; metadata, shards, folders, saving from scripts."""

import inspect
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import merge
from merge import Input, MergeError, Options, Recipe, load_checkpoint, open_checkpoint, run, save_checkpoint
from tests.merge.handmade import (
    assert_equal,
    assert_tensor,
    assert_tensors,
    bits,
    fairseq,
    mixed,
    random_tensor,
    write_safetensors,
)
from tests.merge.running import Server

QUICK = Options(sync=False)


def recipe_of(*paths: Path, ratio: float = 0.5, section: str = "auto") -> Recipe:
    return Recipe("interpolate", tuple(Input(f"m{i}", path, section) for i, path in enumerate(paths)), {"ratio": ratio})


def metadata_of(path: Path) -> dict[str, str] | None:
    with safe_open(path, framework="pt") as file:
        return file.metadata()


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# -- metadata and recipes ----------------------------------------------------------------------------------------------


def test_metadata_of_the_input_is_copied_verbatim(tmp_path: Path) -> None:
    """A model that rebuilds itself from its metadata breaks on a key more."""
    metadata = {"format": "pt", "config": '{"layers": 2}', "ключ": "значение", "empty": ""}
    save_file({"w": torch.ones(2)}, tmp_path / "a.safetensors", metadata)
    save_file({"w": torch.ones(2)}, tmp_path / "b.safetensors", {"config": "another"})
    out = run(recipe_of(tmp_path / "a.safetensors", tmp_path / "b.safetensors"), tmp_path / "out.safetensors", QUICK)
    assert metadata_of(out) == metadata


@pytest.mark.parametrize("metadata", [None, {}, {"format": "pt"}, {"format": "np"}])
def test_provenance_where_the_input_had_no_metadata(tmp_path: Path, metadata: dict[str, str] | None) -> None:
    path = tmp_path / "a.safetensors"
    header: dict[str, Any] = {"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}
    if metadata is not None:
        header["__metadata__"] = metadata
    write_safetensors(path, header, bits(torch.ones(2)))
    found = metadata_of(run(recipe_of(path, path, ratio=0.25), tmp_path / "out.safetensors", QUICK))
    assert found is not None
    assert set(found) == {"format", "unival_merge"}
    assert found["format"] == (metadata or {}).get("format", "pt")
    provenance = json.loads(found["unival_merge"])
    assert provenance["method"] == "interpolate"
    assert provenance["parameters"] == {"ratio": 0.25}
    assert [item["name"] for item in provenance["inputs"]] == ["m0", "m1"]
    assert {item["digest"] for item in provenance["inputs"]} == {merge.digest({"w": torch.ones(2)})}
    assert str(tmp_path) not in found["unival_merge"], "the bytes must not depend on where the inputs lie"


def test_metadata_given_to_save_checkpoint(tmp_path: Path) -> None:
    save_checkpoint({"w": torch.ones(2)}, tmp_path / "a.safetensors", metadata={"who": "me"})
    assert metadata_of(tmp_path / "a.safetensors") == {"who": "me"}
    save_checkpoint({"w": torch.ones(2)}, tmp_path / "b.safetensors")
    assert not metadata_of(tmp_path / "b.safetensors")


def test_what_the_recipe_file_holds(pair: tuple[Path, Path], tmp_path: Path, command: Server) -> None:
    out = tmp_path / "out.safetensors"
    argv = ["interpolate", "in/a.safetensors", "in/b.safetensors", "--ratio", "0.3", "-o", "out.safetensors"]
    assert command(*argv, cwd=tmp_path).code == 0
    record = json.loads((tmp_path / "out.safetensors.recipe.json").read_text())
    digests = [merge.digest(load_file(path)) for path in pair]
    assert record["method"] == "interpolate"
    assert record["parameters"] == {"ratio": 0.3}
    assert record["inputs"] == [
        {"name": path.stem, "path": str(path), "section": "auto", "digest": digest}
        for path, digest in zip(pair, digests, strict=True)
    ]
    assert record["output"] == {
        "file": "out.safetensors",
        "digest": merge.digest(load_file(out)),
        "notes": [],
        "nonfinite": {},
        "summary": ["4 tensors were merged"],
    }
    assert record["provenance"]["torch"] == torch.__version__
    assert record["provenance"]["unival-merge"] == merge.__version__
    assert record["provenance"]["command"] == "unival-merge " + " ".join(argv)


# -- safetensors and folders -------------------------------------------------------------------------------------------


def test_safetensors_of_every_dtype(tmp_path: Path) -> None:
    path = save_checkpoint(mixed(), tmp_path / "a.safetensors")
    assert_tensors(load_file(path), mixed())
    again = run(recipe_of(path, path, ratio=0.0), tmp_path / "b.safetensors", QUICK)
    assert_tensors(load_file(again), mixed())


def test_any_reader_can_map_it(tmp_path: Path) -> None:
    """Every tensor starts at a multiple of its element size, whatever the order of the input."""
    tensors = {
        "a": torch.ones(3, dtype=torch.uint8),
        "b": torch.ones(2, dtype=torch.float64),
        "c": torch.ones(1).half(),
    }
    path = save_checkpoint(tensors, tmp_path / "a.safetensors")
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    assert length % 8 == 0
    for name, tensor in tensors.items():
        assert (8 + length + header[name]["data_offsets"][0]) % tensor.dtype.itemsize == 0, name
    assert_tensors(load_file(path), tensors)


def test_an_aligned_order_is_kept(tmp_path: Path) -> None:
    """Tensors that are used together lie together, as they did in the input."""
    tensors = {
        "z": torch.zeros(2),
        "b": torch.zeros(1, dtype=torch.float64),
        "a": torch.zeros(2).half(),
        "c": torch.zeros(1),
    }
    assert list(open_checkpoint(save_checkpoint(tensors, tmp_path / "a.safetensors"))) == list(tensors)


def test_a_dtype_that_safetensors_lacks(tmp_path: Path) -> None:
    with pytest.raises(MergeError, match=r"'w'.*complex128.*\.pt"):
        save_checkpoint({"w": torch.ones(2, dtype=torch.complex128)}, tmp_path / "a.safetensors")
    assert names_in(tmp_path) == []


def test_shards_and_their_index(tmp_path: Path, command: Server) -> None:
    for seed in range(2):
        tensors = {f"layers.{i}.weight": random_tensor((50, 5), torch.float32, 10 * seed + i) for i in range(7)}
        save_file(tensors, tmp_path / f"{seed}.safetensors", {"config": "kept"})
    argv = ["interpolate", tmp_path / "0.safetensors", tmp_path / "1.safetensors", "--ratio", "0.5"]
    assert command(*argv, "-o", tmp_path / "whole.safetensors").code == 0
    assert command(*argv, "-o", tmp_path / "out", "--shard-size", "2.5KB").code == 0
    out = tmp_path / "out"
    shards = [f"model-0000{i}-of-00004.safetensors" for i in range(1, 5)]
    assert names_in(out) == ["README.md", *shards, "model.safetensors.index.json"]
    index = json.loads((out / "model.safetensors.index.json").read_text())
    loaded = {name: load_file(out / name) for name in shards}
    assert index["metadata"]["total_size"] == 7 * 1000
    assert index["weight_map"] == {tensor: name for name in shards for tensor in loaded[name]}
    assert [len(part) for part in loaded.values()] == [2, 2, 2, 1]
    assert {str(metadata_of(out / name)) for name in shards} == {"{'config': 'kept'}"}
    assert_tensors(load_checkpoint(out), load_file(tmp_path / "whole.safetensors"))
    assert (tmp_path / "out.recipe.json").is_file()


def test_a_tensor_larger_than_a_shard_has_one_to_itself(tmp_path: Path) -> None:
    tensors = {"small": torch.ones(1), "large": torch.ones(100), "last": torch.ones(1)}
    save_checkpoint(tensors, tmp_path / "out", shard_size=50)
    assert_tensors(load_checkpoint(tmp_path / "out"), tensors)
    assert len(names_in(tmp_path / "out")) == 4


def test_torch_files_have_no_shards(pair: tuple[Path, Path], tmp_path: Path, command: Server) -> None:
    shown = command("interpolate", *pair, "--ratio", "0.5", "-o", tmp_path / "out.pt", "--shard-size", "1MB")
    assert shown.code == 2
    assert "shard" in shown.err
    assert names_in(tmp_path) == ["in"]


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    """A folder as the Hugging Face hub has it: weights twice, sharded, and everything around them."""
    folder = tmp_path / "hub"
    folder.mkdir()
    tensors = {"w": torch.arange(4.0), "v": torch.arange(3.0)}
    save_checkpoint(tensors, folder / "made", shard_size=12)
    for path in (folder / "made").iterdir():
        path.rename(folder / path.name)
    (folder / "made").rmdir()
    (folder / "config.json").write_text('{"model_type": "unival"}')
    (folder / "tokenizer.json").write_bytes(bytes(range(256)) * 40)
    (folder / "README.md").write_text("a model")
    torch.save(tensors, folder / "pytorch_model.bin")
    torch.save({"lr": 1}, folder / "training_args.bin")
    (folder / "old.safetensors.recipe.json").write_text("{}")
    return folder


def test_a_folder_takes_everything_but_weights_along(model_folder: Path, tmp_path: Path) -> None:
    out = run(recipe_of(model_folder, model_folder), tmp_path / "out", QUICK)
    assert names_in(out) == ["README.md", "config.json", "model.safetensors", "tokenizer.json"]
    assert "# out" in (out / "README.md").read_text()  # its own
    for name in ("config.json", "tokenizer.json"):
        assert (out / name).read_bytes() == (model_folder / name).read_bytes()
    assert_tensors(load_checkpoint(out), {"w": torch.arange(4.0), "v": torch.arange(3.0)})


def test_a_folder_of_torch_shards_with_a_safetensors_file_beside(tmp_path: Path) -> None:
    """The copy beside the index is not what was opened, and must not come out as what was merged."""
    folder = tmp_path / "hub"
    folder.mkdir()
    torch.save({"w": torch.zeros(4)}, folder / "pytorch_model-00001-of-00001.bin")
    index = {"weight_map": {"w": "pytorch_model-00001-of-00001.bin"}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    save_file({"w": torch.full((4,), 9.0), "other": torch.ones(100)}, folder / "model.safetensors")
    (folder / "config.json").write_text("{}")
    out = run(recipe_of(folder, folder), tmp_path / "out", QUICK)
    assert_tensors(load_checkpoint(out), {"w": torch.zeros(4)})
    assert names_in(out) == ["README.md", "config.json", "model.safetensors"]


def test_a_single_file_output_of_a_folder(model_folder: Path, tmp_path: Path) -> None:
    out = run(recipe_of(model_folder, model_folder), tmp_path / "out.safetensors", QUICK)
    assert_tensors(load_file(out), {"w": torch.arange(4.0), "v": torch.arange(3.0)})


def test_an_overwritten_folder_keeps_no_old_shard(tmp_path: Path) -> None:
    tensors = {f"w{i}": torch.full((10,), float(i)) for i in range(6)}
    save_checkpoint(tensors, tmp_path / "out", shard_size=40)
    assert len(names_in(tmp_path / "out")) == 7
    save_checkpoint({"w": torch.ones(2)}, tmp_path / "out", overwrite=True)
    assert names_in(tmp_path / "out") == ["model.safetensors"]
    assert_tensors(load_checkpoint(tmp_path / "out"), {"w": torch.ones(2)})


def test_an_unknown_suffix(pair: tuple[Path, Path], tmp_path: Path, command: Server) -> None:
    shown = command("interpolate", *pair, "--ratio", "0.5", "-o", tmp_path / "out.h5")
    assert shown.code == 2
    known = ".safetensors, .pt, .pth, .bin, .ckpt, .pth.tar, .npz, .t5x, or none for a folder"
    assert f"out.h5: unknown suffix '.h5'; known are {known}" in shown.err
    assert names_in(tmp_path) == ["in"]


# -- save_checkpoint ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["c.safetensors", "c.pt", "c.pth", "c.bin", "c.ckpt", "folder"])
def test_save_and_load(tmp_path: Path, name: str) -> None:
    tensors = mixed(4)
    assert save_checkpoint(tensors, tmp_path / name) == tmp_path / name
    assert_tensors(load_checkpoint(tmp_path / name), tensors)
    with pytest.raises(MergeError, match=rf"{name}: exists; choose another name or pass overwrite=True"):
        save_checkpoint({"w": torch.ones(1)}, tmp_path / name)
    assert_tensors(load_checkpoint(tmp_path / name), tensors)
    save_checkpoint({"w": torch.ones(1)}, tmp_path / name, overwrite=True)
    assert_tensors(load_checkpoint(tmp_path / name), {"w": torch.ones(1)})


@pytest.mark.parametrize("name", ["c.safetensors", "c.pt"])
def test_saving_views_and_parameters(tmp_path: Path, name: str) -> None:
    base = torch.nn.Parameter(torch.arange(24.0).reshape(4, 6))
    wave = random_tensor((6,), torch.complex64)
    tensors = {"base": base, "view": base.t(), "step": base[::2, 1::3], "wide": torch.ones(1).expand(3, 4)}
    tensors |= {"conjugate": wave.conj(), "negative": wave.clone().conj().imag}
    save_checkpoint(tensors, tmp_path / name)
    assert_tensors(load_checkpoint(tmp_path / name), tensors)


def test_saving_keeps_ties_where_the_format_can(tmp_path: Path) -> None:
    shared = torch.arange(100_000.0)
    tensors = {"a": shared, "b": shared, "c": shared.clone()}
    sizes = [save_checkpoint(tensors, tmp_path / name).stat().st_size for name in ("c.pt", "c.safetensors")]
    assert sizes[0] < 2.1 * shared.nbytes
    assert sizes[1] > 3 * shared.nbytes
    loaded = torch.load(tmp_path / "c.pt")
    assert loaded["a"].data_ptr() == loaded["b"].data_ptr() != loaded["c"].data_ptr()
    assert_tensors(load_file(tmp_path / "c.safetensors"), tensors)


def test_saving_like_a_training_file(fairseq_pair: tuple[Path, Path], tmp_path: Path) -> None:
    """A script's own arithmetic goes back into the layout it came from."""
    source = open_checkpoint(fairseq_pair[0], "model")
    changed = {name: tensor + 1 if tensor.is_floating_point() else tensor for name, tensor in source.items()}
    save_checkpoint(changed, tmp_path / "out.pt", like=source)
    before, after = fairseq(0), torch.load(tmp_path / "out.pt", weights_only=False)
    assert_tensors(after["model"], changed, ordered=True)
    assert_equal(after["cfg"], before["cfg"])
    assert "last_optimizer_state" not in after


def test_saving_a_checkpoint_as_it_is(tmp_path: Path) -> None:
    """An open file is a mapping of tensors: copying it to another layout is one call."""
    torch.save(mixed(), tmp_path / "a.pt")
    save_checkpoint(open_checkpoint(tmp_path / "a.pt"), tmp_path / "b.safetensors")
    assert_tensors(load_file(tmp_path / "b.safetensors"), mixed())


@pytest.mark.parametrize(
    ("value", "reason"), [(3, "w"), (None, "w"), ("text", "w"), (torch.eye(2).to_sparse(), "w"), ([1.0], "w")]
)
@pytest.mark.parametrize("name", ["c.safetensors", "c.pt"])
def test_saving_what_is_no_plain_tensor(tmp_path: Path, value: Any, reason: str, name: str) -> None:
    with pytest.raises(MergeError, match=reason):
        save_checkpoint({"v": torch.ones(1), "w": value}, tmp_path / name)
    assert names_in(tmp_path) == []


def test_saving_nothing(tmp_path: Path) -> None:
    save_checkpoint({}, tmp_path / "c.safetensors")
    assert load_file(tmp_path / "c.safetensors") == {}


def test_saved_tensors_are_left_alone(tmp_path: Path) -> None:
    tensors = {"w": torch.arange(6.0).reshape(2, 3).t(), "p": torch.nn.Parameter(torch.ones(2))}
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    save_checkpoint(tensors, tmp_path / "c.pt")
    for name, tensor in tensors.items():
        assert_tensor(tensor, before[name], name)
    assert tensors["w"].stride() == (1, 3)
    assert tensors["p"].requires_grad


def test_all_but_source_and_output_is_given_by_name(tmp_path: Path) -> None:
    shape = inspect.signature(save_checkpoint).parameters.values()
    assert [item.name for item in shape if item.kind is item.POSITIONAL_OR_KEYWORD] == ["source", "output"]
    with pytest.raises(TypeError, match="positional"):
        save_checkpoint({"w": torch.ones(2)}, tmp_path / "a.safetensors", {"who": "me"})  # type: ignore[misc]
