"""Bad files: one line that names the file and says what is wrong, from the library and from the command line."""

import os
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from merge import MergeError, load_checkpoint, open_checkpoint
from tests.merge.handmade import one_tensor_pickle, write_safetensors, write_zip
from tests.merge.running import Server


def good_zip(path: Path) -> bytes:
    torch.save({"w": torch.arange(100.0)}, path)
    return path.read_bytes()


def good_safetensors(path: Path) -> bytes:
    save_file({"w": torch.arange(100.0)}, path)
    return path.read_bytes()


def truncated(path: Path, whole: Callable[[Path], bytes]) -> None:
    path.write_bytes(whole(path)[:-150])


def zip_with_tensor(path: Path, shape: tuple[int, ...], stride: tuple[int, ...], storage: bytes = bytes(4)) -> None:
    write_zip(path, one_tensor_pickle(shape, stride, numel=len(storage) // 4), {"0": storage})


def compressed(path: Path) -> None:
    pickled = one_tensor_pickle((50,), (1,), numel=50)
    write_zip(path, pickled, {"0": bytes(200)}, compression=zipfile.ZIP_DEFLATED)


def old_tar(path: Path) -> None:
    source = path.with_suffix(".txt")
    source.write_text("x")
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        archive.add(source, "pickle")
        archive.add(source, "storages")
        archive.add(source, "tensors")


def plain_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "no weights")


def two_pickles(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", b"N.")
        archive.writestr("b/data.pkl", b"N.")


def one_header(path: Path, **changes: object) -> None:
    entry = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **changes}
    write_safetensors(path, {"w": entry}, bytes(8))


def two_headers(path: Path, first: tuple[int, int], second: tuple[int, int]) -> None:
    header = {
        name: {"dtype": "F32", "shape": [2], "data_offsets": offsets} for name, offsets in (("a", first), ("b", second))
    }
    write_safetensors(path, header, bytes(16))


BAD: dict[str, tuple[str, str, Callable[[Path], object]]] = {
    "empty pt": ("c.pt", "empty (0 bytes)", lambda p: p.write_bytes(b"")),
    "empty safetensors": ("c.safetensors", "empty (0 bytes)", lambda p: p.write_bytes(b"")),
    "seven bytes": ("c.safetensors", "is text", lambda p: p.write_bytes(b"1234567")),
    "text as pt": ("c.pt", "is text", lambda p: p.write_text("hello, this is not a checkpoint")),
    "text as safetensors": ("c.safetensors", "is text", lambda p: p.write_text("hello " * 40)),
    "html page": ("c.bin", "HTML page", lambda p: p.write_text("<!DOCTYPE html><html>404</html>")),
    "truncated zip": ("c.pt", "not a whole torch zip file", lambda p: truncated(p, good_zip)),
    "truncated safetensors": ("c.safetensors", "not a whole", lambda p: truncated(p, good_safetensors)),
    "longer safetensors": ("c.safetensors", "not a whole", lambda p: p.write_bytes(good_safetensors(p) + b"more")),
    "unknown suffix": ("c.h5", "is text", lambda p: p.write_bytes(b"x")),
    "no suffix": ("weights", "no checkpoint by its first bytes", lambda p: p.write_bytes(b"\xff\xff")),
    "bare pickle": ("c.pt", "a Python pickle", lambda p: p.write_bytes(pickle.dumps({"w": 1}))),
    "tar": ("c.pt", "tar file of torch before 0.2", old_tar),
    "zip without pickle": ("c.pt", "without a torch pickle (data.pkl)", plain_zip),
    "zip with two pickles": ("c.pt", "data.pkl", two_pickles),
    "compressed record": ("c.pt", "compressed", compressed),
    "big-endian": ("c.pt", "big-endian", lambda p: write_zip(p, b"\x80\x02N.", byteorder=b"big")),
    "list": ("c.pt", "holds a list", lambda p: torch.save([torch.ones(2)], p)),
    "tensor": ("c.pt", "not a dictionary of tensors", lambda p: torch.save(torch.ones(2), p)),
    "no tensors": (
        "c.pt",
        "no weights found; its entries are epoch, lr",
        lambda p: torch.save({"epoch": 1, "lr": 0.1}, p),
    ),
    "empty dictionary": ("c.pt", "no weights", lambda p: torch.save({}, p)),
    "sparse tensor": ("c.pt", "_rebuild_sparse_tensor", lambda p: torch.save({"w": torch.eye(2).to_sparse()}, p)),
    "empty folder": ("folder", "no weights in this folder", lambda p: p.mkdir()),
    "named pipe": ("c.pt", "c.pt", lambda p: os.mkfifo(p)),
    "missing record": ("c.pt", "storage 0 is missing", lambda p: write_zip(p, one_tensor_pickle((1,), (1,)))),
    "short record": ("c.pt", "storage 0 has 4 bytes", lambda p: zip_with_tensor(p, (2,), (1,))),
    "negative size": ("c.pt", "broken", lambda p: zip_with_tensor(p, (-2,), (1,))),
    "negative stride": ("c.pt", "broken", lambda p: zip_with_tensor(p, (2,), (-1,), bytes(8))),
    "stride beyond": ("c.pt", "broken", lambda p: zip_with_tensor(p, (2, 2), (5, 1), bytes(16))),
    "axes do not match": ("c.pt", "broken", lambda p: zip_with_tensor(p, (2,), (1, 1), bytes(8))),
    "huge product": ("c.pt", "c.pt", lambda p: zip_with_tensor(p, (2**40, 2**40), (0, 0))),
    "huge size": ("c.pt", "c.pt", lambda p: zip_with_tensor(p, (2**63,), (0,))),
    "huge beside zero": ("c.pt", "c.pt", lambda p: zip_with_tensor(p, (0, 2**70), (1, 1))),
    "huge strides beside zero": ("c.pt", "c.pt", lambda p: zip_with_tensor(p, (0, 2**62, 4), (1, 1, 1))),
    "expanded beyond memory": ("c.pt", "c.pt", lambda p: zip_with_tensor(p, (10**9, 10**9), (0, 0))),
    "no pickle": ("c.pt", "pickle is broken", lambda p: write_zip(p, b"")),
    "pickle without end": ("c.pt", "pickle is broken", lambda p: write_zip(p, b"\x80\x02}")),
    "pickle of nothing": ("c.pt", "pickle is broken", lambda p: write_zip(p, b".")),
    "pickle of a later protocol": ("c.pt", "protocol 9", lambda p: write_zip(p, b"\x80\x09N.")),
    "header of 10^18 bytes": ("c.safetensors", "not a whole", lambda p: write_safetensors(p, {}, length=10**18)),
    "header of 2^64-1 bytes": ("c.safetensors", "not a whole", lambda p: write_safetensors(p, {}, length=2**64 - 1)),
    "header beyond the file": ("c.safetensors", "not a whole", lambda p: write_safetensors(p, b"{}", length=3)),
    "header not JSON": ("c.safetensors", "not a whole", lambda p: write_safetensors(p, b"{'w': 1}")),
    "header a list": ("c.safetensors", "not a whole", lambda p: write_safetensors(p, [])),
    "header nested deep": ("c.safetensors", "not a whole", lambda p: write_safetensors(p, b'{"w":' + b"[" * 10**5)),
    "header bad UTF-8": ("c.safetensors", "not a whole", lambda p: write_safetensors(p, b'{"\xff": 1}')),
    "overlap": ("c.safetensors", "not a whole", lambda p: two_headers(p, (0, 8), (4, 12))),
    "gap": ("c.safetensors", "not a whole", lambda p: two_headers(p, (0, 8), (9, 17))),
    "same place": ("c.safetensors", "not a whole", lambda p: two_headers(p, (0, 8), (0, 8))),
    "offsets reversed": ("c.safetensors", "not a whole", lambda p: one_header(p, data_offsets=[8, 0])),
    "offsets negative": ("c.safetensors", "not a whole", lambda p: one_header(p, data_offsets=[-8, 0])),
    "offsets beyond": ("c.safetensors", "not a whole", lambda p: one_header(p, shape=[3], data_offsets=[0, 12])),
    "shape too small": ("c.safetensors", "not a whole", lambda p: one_header(p, shape=[1])),
    "shape negative": ("c.safetensors", "not a whole", lambda p: one_header(p, shape=[-2])),
    "shape of 10^18": ("c.safetensors", "not a whole", lambda p: one_header(p, shape=[10**18])),
    "shape overflows": ("c.safetensors", "not a whole", lambda p: one_header(p, shape=[2**32, 2**32, 2])),
    "shape beyond torch": (
        "c.safetensors",
        "c.safetensors",
        lambda p: write_safetensors(p, {"w": {"dtype": "F32", "shape": [0, 2**63], "data_offsets": [0, 0]}}),
    ),
    "strides beyond torch": (
        "c.safetensors",
        "c.safetensors",
        lambda p: write_safetensors(p, {"w": {"dtype": "F32", "shape": [0, 2**62, 4], "data_offsets": [0, 0]}}),
    ),
    "unknown dtype": ("c.safetensors", "not a whole", lambda p: one_header(p, dtype="F99")),
    "entry without shape": ("c.safetensors", "not a whole", lambda p: write_safetensors(p, {"w": {"dtype": "F32"}})),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files(tmp_path: Path, command: Server, case: str) -> None:
    """One line that names the file and says what is wrong, from the library and from the command line."""
    name, reason, make = BAD[case]
    path = tmp_path / name
    make(path)
    shown = command("inspect", path, seconds=10)
    assert (shown.code, shown.out) == (2, "")
    assert shown.err.startswith("error: ")
    assert shown.err.count("\n") == 1
    assert "Traceback" not in shown.err
    assert str(path) in shown.err
    assert reason in shown.err.replace(str(path.parent), "")
    with pytest.raises(MergeError, match=r"c\.|folder|weights") as error:
        load_checkpoint(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("field", [slice(42, 46), slice(46, 62)], ids=["places", "names"])
def test_a_directory_that_swaps_two_records(tmp_path: Path, field: slice) -> None:
    """A zip directory may lie: each record says its own name again, where it lies."""
    path = tmp_path / "c.pt"
    torch.save({"a": torch.zeros(4), "b": torch.ones(4)}, path)
    data = bytearray(path.read_bytes())
    first, second = (data.index(b"c/data/" + key, data.index(b"PK\x01\x02")) - 46 for key in (b"0", b"1"))
    length = min(field.stop, 46 + len("c/data/0"))
    one, two = slice(first + field.start, first + length), slice(second + field.start, second + length)
    data[one], data[two] = data[two], data[one]
    path.write_bytes(data)
    with pytest.raises(MergeError, match=r"storage 0 .*directory"):
        open_checkpoint(path)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(MergeError, match=r"nothing\.pt: no such file or folder"):
        open_checkpoint(tmp_path / "nothing.pt")


@pytest.mark.parametrize("given", ["vqa.pt", "vqa.safetensor", "vqas.safetensors"])
def test_the_file_beside_a_missing_one_is_named(tmp_path: Path, given: str) -> None:
    (tmp_path / "vqa.safetensors").touch()
    with pytest.raises(MergeError, match=r"no such file or folder; did you mean .*vqa\.safetensors\?$"):
        open_checkpoint(tmp_path / given)


@pytest.mark.parametrize("name", ["x" * 300 + ".pt", "x" * 300 + ".safetensors", "x" * 300])
def test_a_name_that_no_file_can_have(tmp_path: Path, name: str) -> None:
    with pytest.raises(MergeError, match="x"):
        open_checkpoint(tmp_path / name)
