"""Damaged torch files of every kind: the right tensors or an error that names the file, within the time limit.

More inputs and other seeds: see `tests.merge.damage`.
"""

from __future__ import annotations

import shutil
import tracemalloc
import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.distributed.checkpoint import save as save_distributed

from merge.checkpoint.formats.pickle.reader import FREE, RATE, loads
from merge.checkpoint.formats.pickle.values import PickleBroken
from tests.merge.checkpoint.test_fuzz import PIECES
from tests.merge.damage import OPCODES, damaged, read, seeds
from tests.merge.handmade import assert_tensors, bits, integer, mixed, text

INPUTS = 120
BITS = (*PIECES, *OPCODES)
WEIGHTS = {name: value for name, value in mixed().items() if value.numel() and value.dtype is not torch.uint64}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    tree = {"model": WEIGHTS, "epoch": 3}
    torch.save(tree, folder / "zip.pt")
    torch.save(tree, folder / "legacy.pt", _use_new_zipfile_serialization=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is one process
        save_distributed(tree, checkpoint_id=folder / "dcp", no_dist=True)
    return folder


def check(found: dict[str, Tensor] | None, exact: bool, seed: int, whole: bytes = b"") -> None:
    """Tensors under their own names are exact where there are checksums; without them they are bytes of the file."""
    for name, tensor in (found or {}).items():
        if exact:
            assert name in WEIGHTS, f"seed {seed}"
            assert_tensors({name: tensor}, {name: WEIGHTS[name]})
        else:
            size, data = tensor.dtype.itemsize, bits(tensor)  # strides may have changed too: element by element
            assert all(data[at : at + size] in whole for at in range(0, len(data), size)), f"seed {seed}: {name}"


@pytest.mark.parametrize("kind", ["zip", "legacy"])
def test_damaged_files(made: Path, tmp_path: Path, kind: str) -> None:
    good = (made / f"{kind}.pt").read_bytes()
    for seed, chance in seeds(INPUTS):
        bad = damaged(good, chance, BITS)
        (tmp_path / "c.pt").write_bytes(bad)
        check(read(tmp_path / "c.pt"), kind == "zip", seed, bad)


@pytest.mark.parametrize("part", [".metadata", "__0_0.distcp"])
def test_damaged_distributed_checkpoints(made: Path, tmp_path: Path, part: str) -> None:
    """Without a checksum, what the metadata says can only lead to tensors that were saved."""
    shutil.copytree(made / "dcp", tmp_path / "c")
    good, known = (made / "dcp" / part).read_bytes(), {bits(value) for value in WEIGHTS.values()}
    for seed, chance in seeds(INPUTS):
        (tmp_path / "c" / part).write_bytes(damaged(good, chance, BITS))
        found = read(tmp_path / "c")
        assert all(bits(tensor) in known or not tensor.numel() for tensor in (found or {}).values()), f"seed {seed}"


AMPLIFIERS: dict[str, bytes] = {
    "encode": text("a" * 2**17) + b"q\x0a0]" + b"c_codecs\nencode\n(h\x0aX\x06\0\0\0latin1tRa" * 30_000,
    "ordered": b"]("
    + b"(NNt" * 10_000
    + b"eq\x0a0"
    + b"ccollections\nOrderedDict\nq\x0b0"
    + b"h\x0bh\x0a\x85R0" * 30_000,
    "sets": b"\x8f" * 300_000,
    "memo": b"N" + b"\x94" * 300_000,
    "hash flood": b"}(" + b"".join(integer(i * (2**61 - 1)) + b"N" for i in range(1, 60_001)) + b"u",
    "tuples": b"}(" + b"".join(b"(K\0" + integer(i << 40) + b"tN" for i in range(15_000)) + b"u",
    "one long key": b"}" + text("a" * 2**20) + b"q\x0aNs" + text("a" * 2**20) + b"q\x0b0" + b"h\x0bNs" * 10**5,
    "one long number": b"}" + b"\x8b\0\0\x10\0" + b"\1" * 2**20 + b"q\x0a0" + b"h\x0aNs" * 10**5,
    "attributes": b"}("
    + b"".join(text(str(i)) + b"N" for i in range(20_000))
    + b"uq\x0a0ccollections\nOrderedDict\n)R"
    + b"h\x0ab" * 10**5,
}


@pytest.mark.parametrize("kind", AMPLIFIERS)
def test_a_pickle_is_worth_its_size(kind: str) -> None:
    """Few bytes that ask for much: refused or read within memory that its size bounds, and within seconds."""
    data = b"\x80\x02" + AMPLIFIERS[kind] + b"."
    tracemalloc.start(1)
    try:
        loads(data, lambda factory, args: NotImplemented)
    except PickleBroken:
        pass
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 2 * (FREE + RATE * len(data))


def test_a_view_that_repeats_a_number_is_no_tensor_of_gigabytes(tmp_path: Path) -> None:
    torch.save({"w": torch.zeros(1).expand(2**30)}, tmp_path / "c.pt")
    assert read(tmp_path / "c.pt") is None
    torch.save({"w": torch.zeros(1).expand(2**20)}, tmp_path / "c.pt")
    assert (read(tmp_path / "c.pt") or {})["w"].shape == (2**20,)


def test_a_turned_bit_of_the_weights_is_noticed(tmp_path: Path) -> None:
    """Also where a tensor is a part of a storage, or a view of it."""
    base = torch.arange(24.0).reshape(4, 6)
    for name, tree in {"whole": {"w": base}, "part": {"w": base[1:3]}, "view": {"w": base.t()}}.items():
        torch.save(tree, tmp_path / f"{name}.pt")
        data = bytearray((tmp_path / f"{name}.pt").read_bytes())
        data[bytes(data).index(base.numpy().tobytes()) + 40] ^= 1
        (tmp_path / f"{name}.pt").write_bytes(data)
        assert read(tmp_path / f"{name}.pt") is None, name
