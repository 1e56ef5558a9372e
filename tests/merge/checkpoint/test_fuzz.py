"""Damaged and hostile files, by the hundred: exactly the original tensors or a MergeError, nothing else, and soon.

More inputs and other seeds: see `tests.merge.damage`.
"""

import io
import json
import struct
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from tests.merge.damage import OPCODES, START, TIMES, read
from tests.merge.handmade import (
    assert_tensors,
    bits,
    fairseq,
    mixed,
    one_tensor_pickle,
    tensor_opcodes,
    text,
    write_zip,
)


def examples(number: int) -> Callable[[Any], Any]:
    """So many examples, the same in every run of one seed."""
    checks = [HealthCheck.function_scoped_fixture]
    chosen = settings(deadline=None, database=None, max_examples=number * TIMES, suppress_health_check=checks)
    return lambda test: chosen(hypothesis.seed(START)(test))


def exact_or_refused(path: Path, data: bytes, tensors: Mapping[str, Tensor]) -> bool:
    """Write the bytes and read them. Tensors may be missing (their names were damaged), never be other ones."""
    path.write_bytes(data)
    found = read(path)
    if found is not None:
        known = {name: tensor for name, tensor in tensors.items() if name in found}
        assert_tensors({name: found[name] for name in known}, known)
        strangers = [bits(found[name]) for name in found if name not in tensors]
        assert all(stranger in {bits(tensor) for tensor in tensors.values()} for stranger in strangers)
    return found is not None


# -- damage to files that were good ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


@pytest.fixture(scope="module")
def safetensors(folder: Path) -> tuple[bytes, dict[str, Tensor]]:
    save_file(mixed(), folder / "good.safetensors", {"format": "pt", "note": "some text"})
    return (folder / "good.safetensors").read_bytes(), mixed()


@pytest.fixture(scope="module")
def zipped(folder: Path) -> tuple[bytes, dict[str, Tensor]]:
    """Many small tensors, so that most of the file is directory, headers and pickle."""
    tensors = {**mixed(), **{f"t{i}": torch.full((3,), float(i)) for i in range(12)}}
    torch.save({"model": tensors, "cfg": fairseq(0)["cfg"], "epoch": 3}, folder / "good.pt")
    return (folder / "good.pt").read_bytes(), tensors


def payload_of_zip(data: bytes, records: str = "/data/") -> list[range]:
    """Where the tensors' own bytes lie (or those of other records): damage there is other data, not a broken file."""
    ranges: list[range] = []
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        for info in archive.infolist():
            name, extra = struct.unpack_from("<HH", data, info.header_offset + 26)
            start = info.header_offset + 30 + name + extra
            if records in info.filename:
                ranges.append(range(start, start + info.file_size))
    return ranges


def structure(data: bytes, payload: list[range]) -> list[int]:
    inside = {place for part in payload for place in part}
    return [place for place in range(len(data)) if place not in inside]


@examples(25)
@given(st.data())
def test_truncated(folder: Path, safetensors: Any, zipped: Any, data: st.DataObject) -> None:
    for suffix, (good, tensors) in ((".safetensors", safetensors), (".pt", zipped)):
        cut = data.draw(st.integers(0, len(good) - 1))
        assert not exact_or_refused(folder / f"cut{suffix}", good[:cut], tensors)


@examples(60)
@given(st.data())
def test_flipped_bits_in_a_safetensors_header(folder: Path, safetensors: Any, data: st.DataObject) -> None:
    good, _ = safetensors
    length = 8 + int.from_bytes(good[:8], "little")
    bad = bytearray(good)
    for _ in range(data.draw(st.integers(1, 3))):
        bad[data.draw(st.integers(0, length - 1))] ^= 1 << data.draw(st.integers(0, 7))
    (folder / "flip.safetensors").write_bytes(bad)
    found = read(folder / "flip.safetensors")
    if found is not None:  # a digit, a name or a dtype may have become another good one: sizes then still fit
        assert sum(tensor.nbytes for tensor in found.values()) == len(good) - length


@examples(100)
@given(st.data())
def test_flipped_bits_in_a_zip(folder: Path, zipped: Any, data: st.DataObject) -> None:
    """Headers, directory, pickle: exactly the tensors, whichever bits fell over, or a refusal."""
    good, tensors = zipped
    places = structure(good, payload_of_zip(good))
    bad = bytearray(good)
    for _ in range(data.draw(st.integers(1, 3))):
        bad[data.draw(st.sampled_from(places))] ^= 1 << data.draw(st.integers(0, 7))
    exact_or_refused(folder / "flip.pt", bytes(bad), tensors)


@pytest.mark.slow
def test_every_bit_of_a_zip_directory(folder: Path) -> None:
    """All single flips in the local headers and the directory of a small file."""
    tensors = {f"t{i}": torch.full((2,), float(i)) for i in range(2)}
    torch.save(tensors, folder / "small.pt")
    good = (folder / "small.pt").read_bytes()
    places = [place for place in structure(good, payload_of_zip(good, "")) if good[place : place + 3] != b"ZZZ"]
    refused = 0
    for place in places:
        for bit in range(8):
            bad = bytearray(good)
            bad[place] ^= 1 << bit
            refused += not exact_or_refused(folder / "flip.pt", bytes(bad), tensors)
    assert refused > len(places)


@examples(50)
@given(st.data())
def test_spliced(folder: Path, safetensors: Any, zipped: Any, data: st.DataObject) -> None:
    """Bytes cut out, put in, repeated or moved: no crash, no hang, no other exception."""
    for suffix, (good, _) in ((".safetensors", safetensors), (".pt", zipped)):
        start, end = sorted(data.draw(st.tuples(*[st.integers(0, len(good))] * 2)))
        goal = data.draw(st.integers(0, len(good)))
        bad = data.draw(
            st.sampled_from(
                [
                    good[:start] + good[end:],
                    good[:goal] + good[start:end] + good[goal:],
                    good[:start] + data.draw(st.binary(max_size=64)) + good[end:],
                    good[start:end] * 2,
                ]
            )
        )
        (folder / f"splice{suffix}").write_bytes(bad)
        read(folder / f"splice{suffix}")


@examples(40)
@given(st.data())
def test_damaged_zip_directories(folder: Path, zipped: Any, data: st.DataObject) -> None:
    """Any field of the directory and of its end set to any value."""
    good, tensors = zipped
    start = good.index(b"PK\x01\x02")
    bad = bytearray(good)
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(start, len(good) - 1))
        value = data.draw(
            st.sampled_from([b"\0\0\0\0", b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", b"\x01\0"]) | st.binary(max_size=8)
        )
        bad[place : place + len(value)] = value[: len(bad) - place]
    exact_or_refused(folder / "directory.pt", bytes(bad), tensors)


# -- hostile headers ---------------------------------------------------------------------------------------------------

numbers = st.integers(-2, 20) | st.sampled_from(
    [2**31, 2**32, 2**53, 2**63 - 1, 2**63, 2**64, 10**18, 10**30, -(10**18)]
)
codes = st.sampled_from(["F32", "F16", "I64", "U8", "BOOL", "F8_E4M3", "F4", "", "f32", "F99"])
entries = st.fixed_dictionaries(
    {},
    optional={
        "dtype": codes | st.none() | numbers,
        "shape": st.lists(numbers, max_size=4) | st.none() | st.text(max_size=3),
        "data_offsets": st.tuples(numbers, numbers) | st.lists(numbers, max_size=3) | st.none(),
        "extra": st.none(),
    },
)
honest = st.builds(
    lambda shape, start: {
        "dtype": "U8",
        "shape": shape,
        "data_offsets": [start, start + max(torch.Size(shape).numel(), 0)],
    },
    st.lists(st.integers(0, 5), max_size=3),
    st.integers(0, 20),
)
headers = st.dictionaries(st.text(max_size=4) | st.just("__metadata__"), entries | honest, max_size=4)


@examples(60)
@given(
    header=headers
    | st.recursive(st.none() | numbers, lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=2), inner)),
    size=st.integers(0, 40),
    length=st.none() | numbers.filter(lambda n: 0 <= n < 2**64),
)
def test_hostile_safetensors_headers(folder: Path, header: Any, size: int, length: int | None) -> None:
    encoded = json.dumps(header).encode()
    shown = len(encoded) if length is None else length
    (folder / "hostile.safetensors").write_bytes(struct.pack("<Q", shown) + encoded + bytes(size))
    found = read(folder / "hostile.safetensors")
    assert found is None or sum(tensor.nbytes for tensor in found.values()) == size


@examples(25)
@given(
    depth=st.integers(1, 100_000), kind=st.sampled_from([b"[", b'{"a":', b'{"w":{"shape":[', b'{"__metadata__":{"a":'])
)
def test_deep_json(folder: Path, depth: int, kind: bytes) -> None:
    encoded = kind * depth
    (folder / "deep.safetensors").write_bytes(struct.pack("<Q", len(encoded)) + encoded)
    assert read(folder / "deep.safetensors") is None


@examples(25)
@given(first=st.sampled_from(["F32", "U8"]), second=st.sampled_from(["F32", "U8"]), swap=st.booleans())
def test_duplicate_keys_in_a_header(folder: Path, first: str, second: str, swap: bool) -> None:
    """One name twice: whatever a JSON reader makes of it, its bytes are those of one of the two."""
    halves = [
        b'"w":{"dtype":"%s","shape":[%d],"data_offsets":[%d,%d]}'
        % (code.encode(), 8 if code == "U8" else 2, at, at + 8)
        for at, code in ((0, first), (8 if swap else 0, second))
    ]
    encoded = b"{" + b",".join(halves) + b"}"
    data = bytes(range(8 if not swap else 16))
    (folder / "double.safetensors").write_bytes(struct.pack("<Q", len(encoded)) + encoded + data)
    found = read(folder / "double.safetensors")
    assert found is None or bits(found["w"]) in (data[:8], data[8:])


@examples(60)
@given(
    shape=st.lists(numbers, max_size=4),
    stride=st.lists(numbers, max_size=4),
    offset=numbers,
    numel=numbers,
    size=st.integers(0, 100),
)
def test_hostile_tensors_in_a_pickle(
    folder: Path, shape: list[int], stride: list[int], offset: int, numel: int, size: int
) -> None:
    """A tensor that is read lies within its storage, whatever its numbers say."""
    storage = bytes(range(size))
    pickled = one_tensor_pickle(tuple(shape), tuple(stride), offset=offset, numel=numel)
    found = read(write_zip(folder / "numbers.pt", pickled, {"0": storage}))
    if found is not None:
        assert numel * 4 <= size
        values = torch.frombuffer(bytearray(storage[: size // 4 * 4] or bytes(4)), dtype=torch.float32)
        wanted = torch.empty(shape) if 0 in shape else torch.as_strided(values, shape, stride, offset)
        assert_tensors(found, {"w": wanted})


# -- hostile pickles ---------------------------------------------------------------------------------------------------

PIECES = [
    *OPCODES,
    *[b"(", b")", b"}", b"]", b"t", b"R", b"s", b"u", b"e", b"b", b"Q", b"2", b"0", b"."] * 3,
    b"ccollections\nOrderedDict\n",
    b"cargparse\nNamespace\n",
    b"ctorch\nFloatStorage\n",
    b"ctorch._utils\n_rebuild_tensor_v2\n",
    b"ctorch._utils\n_rebuild_parameter\n",
    b"cnumpy\ndtype\n",
    b"c_codecs\nencode\n",
    b"cbuiltins\nset\n",
    b"cos\nsystem\n",
    b"q\x00",
    b"h\x00",
    b"h\x01",
    b"K\x01",
    b"J\xff\xff\xff\xff",
    b"\x8a\x09" + b"\xff" * 9,
    text("model"),
    text("w"),
    text("0"),
    b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu") + b"K\x01tQ",
    tensor_opcodes((1,), (1,)),
    tensor_opcodes((0,), (1,)),
]


@examples(150)
@given(pieces=st.lists(st.sampled_from(PIECES) | st.binary(max_size=4), max_size=40))
def test_random_pickles(folder: Path, pieces: list[bytes]) -> None:
    """Streams of opcodes and fragments of real pickles; the tensor of storage 0 is the only one there can be."""
    path = write_zip(folder / "random.pt", b"\x80\x02" + b"".join(pieces) + b".", {"0": b"\0\0\x80?"})
    found = read(path)
    assert found is None or all(tensor.tolist() in ([1.0], []) for tensor in found.values())


@examples(100)
@given(st.data())
def test_mutated_pickles(folder: Path, data: st.DataObject) -> None:
    """The pickle of a training file, damaged, in a sound archive: its storages can only come out whole."""
    path = folder / "training.pt"
    if not path.exists():
        torch.save(fairseq(0), path)
    with zipfile.ZipFile(path) as archive:
        files = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
    pickled = bytearray(files["data.pkl"])
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(pickled) - 1))
        pickled[place : place + data.draw(st.integers(0, 6))] = data.draw(
            st.binary(max_size=6) | st.sampled_from(PIECES)
        )
        pickled.append(ord("."))
    storages = {name[5:]: content for name, content in files.items() if name.startswith("data/")}
    found = read(write_zip(folder / "mutated.pt", bytes(pickled), storages), "model")
    whole = b"|".join(storages.values())
    assert found is None or all(bits(tensor) in whole for tensor in found.values() if tensor.is_contiguous())


@examples(15)
@given(content=st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_random_bytes(folder: Path, content: bytes) -> None:
    """Nothing that is not a checkpoint is read as one, under any suffix, bare or with the right first bytes."""
    for suffix in (".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".index.json"):
        for start in (b"", b"PK\x03\x04", struct.pack("<Q", len(content))):
            (folder / f"noise{suffix}").write_bytes(start + content)
            found = read(folder / f"noise{suffix}")
            assert not found
