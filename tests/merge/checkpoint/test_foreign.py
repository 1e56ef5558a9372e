"""Files of other programs are named for what they are; what has no arithmetic is carried; files come and go."""

import gzip
import io
import json
import lzma
import os
import pickle
import resource
import struct
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

import merge
from merge import MergeError, open_checkpoint
from merge.checkpoint.formats.foreign import FOREIGN
from merge.checkpoint.formats.tensors import TensorEntry
from tests.merge.handmade import assert_tensors, write_safetensors
from tests.merge.made import weights
from tests.merge.running import Server


def pointer() -> bytes:
    return b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a21\nsize 12345\n"


def zipped(*names: str) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name in names:
            archive.writestr(name, "x")
    return out.getvalue()


def tar() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("model_weights.ckpt"))
    return out.getvalue()


def array() -> bytes:
    out = io.BytesIO()
    np.save(out, np.ones(3))
    return out.getvalue()


FILES = {
    "lfs": pointer(),
    "html": b"\n<!DOCTYPE html>\n<html><head><title>Sign in</title></head></html>",
    "json": b'{"error": "Repository not found"}',
    "xml": b'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>NoSuchKey</Code></Error>',
    "gguf": b"GGUF\x03\x00\x00\x00" + bytes(64),
    "ggml": b"lmgg" + bytes(64),
    "hdf5": b"\x89HDF\r\n\x1a\n" + bytes(64),
    "keras": zipped("metadata.json", "config.json", "model.weights.h5"),
    "onnx": b"\x08\x08\x12\x07pytorch\x1a\x062.13.0:\xb8\x01",
    "flax": b"\x81\xa6params\x81\xa7encoder\x80",
    "tensorflow": b'model_checkpoint_path: "model.ckpt-100"\n',
    "saved-model": b"\x08\x01\x12\x90\x02\n\x10\x12\x05serve",
    "torchscript": zipped("m/data/0", "m/data.pkl", "m/code/m.py", "m/constants.pkl", "m/version"),
    "export": zipped("m/data/weights/weight_0", "m/models/model.json", "m/archive_format"),
    "npy": array(),
    "gzip": gzip.compress(b"weights"),
    "xz": lzma.compress(b"weights"),
    "zstd": b"\x28\xb5\x2f\xfd\x24\x07" + bytes(20),
    "7z": b"7z\xbc\xaf\x27\x1c\x00\x04" + bytes(20),
    "tar": tar(),
    "zip": zipped("model.safetensors"),
    "pickle": pickle.dumps({"coef": [1.0]}),
    "openvino": b'<?xml version="1.0"?>\n<net name="m" version="11">',
    "sentencepiece": b"\n\x0e\n\x05<unk>\x15\x00\x00\x00\x00\x18\x02",
    "empty": b"",
    "zeros": bytes(4000),
    "text": "weights, übermorgen".encode(),
}


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "weights", "m.MODEL"])
def test_files_of_others_are_named(kind: str, name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(FILES[kind])
    with pytest.raises(MergeError) as refused:
        open_checkpoint(path)
    assert str(refused.value) == f"{path}: is {FOREIGN[kind].what}; {FOREIGN[kind].advice}"


@pytest.mark.parametrize(
    ("name", "kind"), [("tf_model.h5", "hdf5"), ("flax_model.msgpack", "flax"), ("saved_model.pb", "saved-model")]
)
def test_a_folder_is_named_by_what_lies_in_it(name: str, kind: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / name).write_bytes(FILES[kind])
    with pytest.raises(MergeError, match=f"{name} is {FOREIGN[kind].what}"):
        open_checkpoint(tmp_path)


def test_every_kind_is_whole() -> None:
    for key, kind in FOREIGN.items():
        assert kind.what, key
        assert kind.advice, key
        assert kind.signature or kind.inside or kind.names, key


# -- dtypes without arithmetic ---------------------------------------------------------------------------------------


def carriers(path: Path, fill: int = 17) -> Path:
    """A file of every such dtype, and one of numbers."""
    sizes = {"q": ("F4", [2, 8], 8), "s": ("F8_E8M0", [2], 2), "x": ("F6_E3M2", [4], 3), "w": ("F32", [2], 8)}
    header, at = {}, 0
    for name, (code, shape, size) in sizes.items():
        header[name] = {"dtype": code, "shape": shape, "data_offsets": [at, at + size]}
        at += size
    return write_safetensors(path, header, bytes([fill]) * 13 + struct.pack("<2f", 1, 2))


def test_packed_dtypes_are_shown_copied_and_never_merged(tmp_path: Path, command: Server) -> None:
    a, b = carriers(tmp_path / "a.safetensors"), carriers(tmp_path / "b.safetensors", 18)
    shown = command("inspect", a)
    assert shown.code == 0
    assert "float4_e2m1fn" in shown.out
    merge.convert(a, tmp_path / "c.safetensors")
    again = {
        name: bytes(entry.raw().numpy()) for name, entry in open_checkpoint(tmp_path / "c.safetensors").entries.items()
    }
    assert again == {name: bytes(entry.raw().numpy()) for name, entry in open_checkpoint(a).entries.items()}
    assert merge.digest(a) == merge.digest(tmp_path / "c.safetensors") != merge.digest(b)
    assert command("extract", a, "--only", "q", "-o", tmp_path / "q.safetensors").code == 0
    assert open_checkpoint(tmp_path / "q.safetensors").entries["q"].shape == (2, 8)
    for refused in (
        command("average", a, b, "-o", tmp_path / "m.safetensors"),
        command("convert", a, "-o", tmp_path / "c.pt"),
        command("convert", a, "-o", tmp_path / "c.npz"),
    ):
        assert refused.code == 2
        assert "float4_e2m1fn" in refused.err
        assert refused.err.count("\n") == 1
    assert command("diff", a, b).code == 0


# -- notes in metadata, names ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "metadata", [{"format": "pt"}, {"author": "w"}, {"modelspec.title": "w"}, {"pt": "w", "x": "pt"}]
)
def test_metadata_invents_no_tensor(tmp_path: Path, metadata: dict[str, str]) -> None:
    tensors = {"pt": torch.ones(2), "w": torch.zeros(2)}
    path = merge.save_checkpoint(tensors, tmp_path / "a.safetensors", metadata=metadata)
    assert_tensors(open_checkpoint(path), tensors)
    merge.convert(path, tmp_path / "a.pt")
    assert_tensors(open_checkpoint(tmp_path / "a.pt"), tensors)


@pytest.mark.parametrize(
    ("header", "told"),
    [
        (b'{"w\\ud800":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}', "half a character"),
        (
            b'{"w":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"w":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}',
            "twice",
        ),
        (
            b'{"w":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"v":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}',
            "overlaps",
        ),
        (b'{"w":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}', "gap"),
        (b'{"w":{"dtype":"F4","shape":[1],"data_offsets":[0,1]}}', "has 1 bytes"),
        (b'{"w":{"dtype":"U8","shape":[true],"data_offsets":[0,1]}}', "no integers"),
        (b'{"__metadata__":{"a":1},"w":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}', "no mapping of texts"),
        (b'{"w":{"dtype":"U8","shape":[9],"data_offsets":[0,9]}}', "cut short"),
    ],
)
def test_headers_that_lie(tmp_path: Path, header: bytes, told: str) -> None:
    with pytest.raises(MergeError, match=rf"c\.safetensors: not a whole safetensors file of \d+ bytes: .*{told}"):
        open_checkpoint(write_safetensors(tmp_path / "c.safetensors", header, bytes(1)))


# -- budgets and files that change -----------------------------------------------------------------------------------


def test_a_small_npz_of_gigabytes(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive, archive.open("w.npy", "w") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (1 << 27,)})
        for _ in range(128):
            file.write(bytes(1 << 22))
    with pytest.raises(MergeError, match=r"a\.npz: holds 536,\d+,\d+ bytes in .* more than 100 times"):
        open_checkpoint(tmp_path / "a.npz")


def test_a_file_cut_short_after_it_was_opened(tmp_path: Path) -> None:
    path = merge.save_checkpoint({"w": torch.arange(100_000.0)}, tmp_path / "a.safetensors")
    checkpoint = open_checkpoint(path)
    os.truncate(path, 4000)
    for read in (lambda: checkpoint["w"], lambda: checkpoint.read("w"), lambda: merge.load_checkpoint(checkpoint)):
        with pytest.raises(MergeError, match=r"a\.safetensors: truncated: \d+ bytes were expected, the file has 4000"):
            read()


@pytest.mark.parametrize("call", [merge.diff, lambda a, b: merge.doctor([a, b])])
def test_a_file_cut_short_while_it_is_compared(tmp_path: Path, call: object) -> None:
    for name in "ab":
        merge.save_checkpoint({"w": torch.arange(100_000.0)}, tmp_path / f"{name}.safetensors")
    a, b = (open_checkpoint(tmp_path / f"{name}.safetensors") for name in "ab")
    os.truncate(tmp_path / "b.safetensors", 4000)
    with pytest.raises(MergeError, match=r"b\.safetensors: truncated"):
        call(a, b)  # pyright: ignore[reportCallIssue]


def test_merges_in_memory_map_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is mapped ends the process where its file shrinks meanwhile; what is read by position is an error."""
    states = [weights(seed) for seed in range(2)]
    paths = [merge.save_checkpoint(state, tmp_path / f"{seed}.safetensors") for seed, state in enumerate(states)]
    wanted = [
        merge.interpolate(*states, 0.3),
        merge.average(states),
        merge.TaskVector.between(*states).apply(states[0]),
    ]

    def mapped(entry: TensorEntry) -> None:
        raise AssertionError(f"{entry.file.path} is mapped")

    monkeypatch.setattr(TensorEntry, "tensor", mapped)
    assert_tensors(merge.interpolate(*paths, 0.3), wanted[0])
    assert_tensors(merge.average(paths), wanted[1])
    assert_tensors(merge.TaskVector.between(*paths).apply(merge.load_checkpoint(paths[0])), wanted[2])
    pair = [open_checkpoint(path) for path in paths]
    os.truncate(paths[1], 200)
    with pytest.raises(MergeError, match=r"1\.safetensors: truncated"):
        merge.interpolate(*pair, 0.3)


def test_more_shards_than_files_may_be_open(tmp_path: Path) -> None:
    states = [weights(seed) for seed in range(3)]
    for seed, state in enumerate(states):
        merge.save_checkpoint(state, tmp_path / str(seed), shard_size=64)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = len(os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 90, hard))
    try:
        opened = [open_checkpoint(tmp_path / str(seed)) for seed in range(3)] * 8
        opened += [open_checkpoint(tmp_path / str(seed % 3)) for seed in range(27)]
        assert sum(len(checkpoint.files) for checkpoint in opened) > 100
        for checkpoint in opened:
            for name in checkpoint:
                assert torch.equal(checkpoint.read(name), checkpoint[name])
        merge.run(
            merge.Recipe("average", tuple(merge.Input(str(seed), tmp_path / str(seed)) for seed in range(3))),
            tmp_path / "out.safetensors",
            merge.Options(sync=False),
        )
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_folder_of_t5x_is_read_from_itself_alone(tmp_path: Path) -> None:
    msgpack = pytest.importorskip("msgpack")
    merge.save_checkpoint({"w": torch.ones(8, 4)}, tmp_path / "in.t5x")
    index = tmp_path / "in.t5x" / "checkpoint"

    def tell(path: str) -> None:
        tree = msgpack.unpackb(index.read_bytes(), raw=False)
        tree["optimizer"]["target"]["w"]["kvstore"]["path"] = path
        index.write_bytes(msgpack.packb(tree))

    tell(str(tmp_path / "in.t5x" / "target.w"))
    merge.convert(tmp_path / "in.t5x", tmp_path / "out.t5x")
    tree = msgpack.unpackb((tmp_path / "out.t5x" / "checkpoint").read_bytes(), raw=False)
    assert tree["optimizer"]["target"]["w"]["kvstore"]["path"] == "target.w"
    assert_tensors(open_checkpoint(tmp_path / "out.t5x"), {"w": torch.ones(8, 4)})
    for path in ("/etc", "../in.t5x/target.w", "target\0.w", ""):
        tell(path)
        with pytest.raises(MergeError, match="outside its folder"):
            open_checkpoint(tmp_path / "in.t5x")
    tell("target.w")
    (tmp_path / "secret").write_bytes(bytes(128))
    (tmp_path / "in.t5x" / "target.w" / "0.0").unlink()
    (tmp_path / "in.t5x" / "target.w" / "0.0").symlink_to(tmp_path / "secret")
    with pytest.raises(MergeError, match=r"0\.0: links to a file outside"):
        open_checkpoint(tmp_path / "in.t5x")


@pytest.mark.parametrize(
    "data", [b"\xdd\x00\x98\x96\x80" * 1000, b"\xdc\xff\xff" + b"\x80" * 65535 * 40, b"\x91" * 5000]
)
def test_an_index_that_asks_for_gigabytes(tmp_path: Path, data: bytes) -> None:
    pytest.importorskip("msgpack")
    (tmp_path / "a.t5x").mkdir()
    (tmp_path / "a.t5x" / "checkpoint").write_bytes(data)
    with pytest.raises(MergeError, match="not a T5X index"):
        open_checkpoint(tmp_path / "a.t5x")


def test_an_index_by_another_name(tmp_path: Path) -> None:
    merge.save_checkpoint(weights(0), tmp_path / "m", shard_size=64)
    index = tmp_path / "m" / "model.safetensors.index.json"
    assert len(json.loads(index.read_text())["weight_map"]) == len(weights(0))
    index.rename(index.with_name("model.safetensors.index.fp16.json"))
    assert len(open_checkpoint(tmp_path / "m")) == len(weights(0))
