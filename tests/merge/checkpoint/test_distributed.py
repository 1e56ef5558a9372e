"""Torch's distributed checkpoints: read from their metadata, chunk by chunk, with nothing executed."""

from __future__ import annotations

import pickle
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint import metadata as kinds
from torch.distributed.checkpoint import save as save_distributed
from torch.distributed.checkpoint.filesystem import _StorageInfo

from merge import MergeError, convert, load_checkpoint, open_checkpoint
from tests.merge.handmade import assert_tensors, mixed

MODEL = {name: value for name, value in mixed().items() if value.numel() and value.dtype not in (torch.uint64,)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, and an optimizer beside it, as one process writes them."""
    folder = tmp_path_factory.mktemp("dcp") / "step_10"
    state = {"model": MODEL, "optimizer": {"state": {0: {"exp_avg": torch.ones(3, 5)}}, "param_groups": []}, "step": 10}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is one process
        save_distributed(state, checkpoint_id=folder, no_dist=True)
    return folder


def copied(folder: Path, target: Path) -> Path:
    shutil.copytree(folder, target)
    return target


def test_tensors_are_those_that_were_saved(folder: Path) -> None:
    assert open_checkpoint(folder).sections == ("model",)
    assert_tensors(load_checkpoint(folder), MODEL)


def test_it_is_converted(folder: Path, tmp_path: Path) -> None:
    assert_tensors(load_checkpoint(convert(folder, tmp_path / "c.pt").path), MODEL)


def rewritten(folder: Path, target: Path, change: Any) -> Path:
    """The folder with other metadata."""
    copied(folder, target)
    content = pickle.loads((target / ".metadata").read_bytes())
    change(content)
    (target / ".metadata").write_bytes(pickle.dumps(content))
    return target


def sharded(rows: list[tuple[int, int]], folder: Path, claimed: int = 6) -> Path:
    """A matrix of 6 x 4 in chunks of rows, each in a file of its own."""
    folder.mkdir()
    whole, chunks, places = torch.arange(24.0).reshape(6, 4), [], {}
    for number, (begin, end) in enumerate(rows):
        torch.save(whole[begin:end].clone(), folder / f"__{number}_0.distcp")
        at, sizes = torch.Size([begin, 0]), torch.Size([end - begin, 4])
        chunks.append(kinds.ChunkStorageMetadata(at, sizes))
        size = (folder / f"__{number}_0.distcp").stat().st_size
        places[kinds.MetadataIndex("w", at)] = _StorageInfo(f"__{number}_0.distcp", 0, size)
    known = kinds.TensorProperties(torch.float32)
    tensor = kinds.TensorStorageMetadata(known, torch.Size([claimed, 4]), chunks)
    (folder / ".metadata").write_bytes(pickle.dumps(kinds.Metadata({"w": tensor}, None, places)))
    return folder


def test_chunks_are_put_together(tmp_path: Path) -> None:
    folder = sharded([(4, 6), (0, 1), (1, 4)], tmp_path / "c")
    assert torch.equal(open_checkpoint(folder)["w"], torch.arange(24.0).reshape(6, 4))


@pytest.mark.parametrize(
    ("rows", "claimed", "told"),
    [
        ([(0, 2), (2, 5)], 6, "do not make up its shape"),
        ([(0, 4), (2, 4)], 6, "lie over each other"),
        ([(0, 6)], 5, "lies outside of it"),
    ],
)
def test_chunks_that_do_not_fit(tmp_path: Path, rows: list[tuple[int, int]], claimed: int, told: str) -> None:
    with pytest.raises(MergeError, match=told):
        load_checkpoint(sharded(rows, tmp_path / "c", claimed))


def outside(content: Any) -> None:
    for place in content.storage_data.values():
        place.relative_path = "../secret.distcp"


def beyond(content: Any) -> None:
    for place in content.storage_data.values():
        place.length = 10**9


def moved(content: Any) -> None:
    for place in content.storage_data.values():
        place.offset = 1


def emptied(content: Any) -> None:
    content.storage_data.clear()


def mistaken(content: Any) -> None:
    content.state_dict_metadata = 5


@pytest.mark.parametrize("change", [outside, beyond, moved, emptied, mistaken], ids=lambda change: change.__name__)
def test_metadata_that_lies(folder: Path, tmp_path: Path, change: Any) -> None:
    with pytest.raises(MergeError, match=str(tmp_path)):
        load_checkpoint(rewritten(folder, tmp_path / "c", change))


def test_nothing_in_metadata_is_run(folder: Path, tmp_path: Path) -> None:
    target = copied(folder, tmp_path / "c")
    (target / ".metadata").write_bytes(b"cos\nsystem\n(X\x05\0\0\0touchtR.")
    with pytest.raises(MergeError, match=r"names os\.system, which is no part of torch's metadata"):
        open_checkpoint(target)


def test_parts_are_missing(folder: Path, tmp_path: Path) -> None:
    target = copied(folder, tmp_path / "c")
    (part,) = target.glob("*.distcp")
    with pytest.raises(MergeError, match="a part of a torch distributed checkpoint: give its folder"):
        open_checkpoint(part)
    (target / ".metadata").rename(tmp_path / "metadata")
    with pytest.raises(MergeError, match=r"not its index, \.metadata: copy the whole folder"):
        open_checkpoint(target)
    (tmp_path / "metadata").rename(target / ".metadata")
    part.unlink()
    with pytest.raises(MergeError, match=f"{part.name}, which .metadata names, is missing"):
        open_checkpoint(target)
