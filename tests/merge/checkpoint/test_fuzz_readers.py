"""Damaged files of every kind that is not torch's: the right tensors or an error that names the file, in its budget."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor

from tests.merge import t5x_made
from tests.merge.damage import altered, damaged, read, seeds
from tests.merge.handmade import assert_tensors, bits, mixed

WEIGHTS = {name: value for name, value in mixed().items() if value.numel()}
ARRAYS = {"kernel": np.arange(12, dtype=np.float32).reshape(3, 4) / 7, "bias": np.array([1, -2], np.int16)}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a good one of each kind."""
    folder = tmp_path_factory.mktemp("made")
    save = safetensors.torch.save_file
    save(WEIGHTS, folder / "model.safetensors", {"format": "pt"})
    (folder / "sharded").mkdir()
    names = {name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(WEIGHTS)}
    for file in set(names.values()):
        save({name: WEIGHTS[name] for name in WEIGHTS if names[name] == file}, folder / "sharded" / file)
    index = {"metadata": {"total_size": sum(value.nbytes for value in WEIGHTS.values())}, "weight_map": names}
    (folder / "sharded" / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "pipe").mkdir()
    for part in ("unet", "vae"):
        (folder / "pipe" / part).mkdir()
        save({f"{part}.w": torch.arange(6.0) + len(part)}, folder / "pipe" / part / "model.safetensors")
    kinds = {"_class_name": "Pipeline", "unet": ["diffusers", "UNet"], "vae": ["diffusers", "VAE"]}
    (folder / "pipe" / "model_index.json").write_text(json.dumps(kinds))
    for name, write in (("stored", np.savez), ("deflated", np.savez_compressed)):
        write(folder / f"{name}.npz", encoder=np.array({"layer": ARRAYS}), **ARRAYS)
    t5x_made.t5x_folder(folder / "t5x", t5x_made.weights())
    return folder


def known_only(found: dict[str, Tensor] | None, known: dict[str, Tensor], seed: int) -> None:
    """What was read is as it was before the damage."""
    for name, value in (found or {}).items():
        assert name in known, f"seed {seed}: {name}"
        want = known[name]
        if want.dtype == torch.bool:  # damage makes bytes other than 0 and 1, which copying evens out
            value, want = value.to(torch.uint8), want.to(torch.uint8)
        assert_tensors({name: value}, {name: want})


def as_safetensors_reads(found: dict[str, Tensor] | None, data: bytes, seed: int) -> None:
    """What was read is what the format's own library makes of the same bytes, where it makes anything of them."""
    try:
        theirs = safetensors.torch.load(data)
    except Exception:  # its own errors, and KeyError for dtypes that torch lacks
        assert not found or all(bits(value) in data for value in found.values()), f"seed {seed}"
        return
    known_only(found, theirs, seed)


def header_and_data(good: bytes) -> tuple[dict[str, Any], bytes]:
    end = 8 + int.from_bytes(good[:8], "little")
    return json.loads(good[8:end]), good[end:]


def packed(header: Any, data: bytes) -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def test_safetensors(made: Path, tmp_path: Path) -> None:
    good = (made / "model.safetensors").read_bytes()
    header, data = header_and_data(good)
    for seed, chance in seeds(150):
        bad = packed(altered(header, chance), data) if seed % 3 == 0 else damaged(good, chance)
        (tmp_path / "c.safetensors").write_bytes(bad)
        as_safetensors_reads(read(tmp_path / "c.safetensors"), bad, seed)


def test_indexes(made: Path, tmp_path: Path) -> None:
    """A damaged index leads to the right tensors or to none."""
    folder = Path(shutil.copytree(made / "sharded", tmp_path / "c"))
    index = folder / "model.safetensors.index.json"
    good = index.read_bytes()
    for seed, chance in seeds(150):
        index.write_bytes(json.dumps(altered(json.loads(good), chance)).encode() if seed % 2 else damaged(good, chance))
        known_only(read(folder), WEIGHTS, seed)


def test_shards(made: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(made / "sharded", tmp_path / "c"))
    shard = folder / "model-00001-of-00002.safetensors"
    good = shard.read_bytes()
    header, data = header_and_data(good)
    for seed, chance in seeds(50):
        bad = packed(altered(header, chance), data) if seed % 3 == 0 else damaged(good, chance)
        shard.write_bytes(bad)
        found = read(folder)
        if found is not None:
            known_only({name: found.pop(name) for name in list(found) if name not in header}, WEIGHTS, seed)
            as_safetensors_reads(found, bad, seed)


def test_folders_of_parts(made: Path, tmp_path: Path) -> None:
    """Damage to what says that there are parts changes no tensor; of a part, only that part's."""
    folder = Path(shutil.copytree(made / "pipe", tmp_path / "c"))
    told, part = folder / "model_index.json", folder / "unet" / "model.safetensors"
    known, good, weights = read(folder), told.read_bytes(), part.read_bytes()
    assert known
    assert set(known) == {"unet/unet.w", "vae/vae.w"}
    for seed, chance in seeds(60):
        told.write_bytes(json.dumps(altered(json.loads(good), chance)).encode() if seed % 2 else damaged(good, chance))
        known_only(read(folder), known, seed)
    told.write_bytes(good)
    for seed, chance in seeds(60):
        part.write_bytes(bad := damaged(weights, chance))
        found = read(folder) or {}
        known_only({name: found.pop(name) for name in list(found) if name.startswith("vae/")}, known, seed)
        as_safetensors_reads({name.removeprefix("unet/"): value for name, value in found.items()}, bad, seed)


@pytest.mark.parametrize("kind", ["stored", "deflated"])
def test_npz(made: Path, tmp_path: Path, kind: str) -> None:
    """Every member has a checksum: no other tensors can come out."""
    good = (made / f"{kind}.npz").read_bytes()
    plain = {name: torch.from_numpy(value) for name, value in ARRAYS.items()}
    known = plain | {f"encoder.layer.{name}": value for name, value in plain.items()}
    (tmp_path / "c.npz").write_bytes(good)
    assert_tensors(read(tmp_path / "c.npz") or {}, known)
    for seed, chance in seeds(100):
        (tmp_path / "c.npz").write_bytes(damaged(good, chance))
        known_only(read(tmp_path / "c.npz"), known, seed)


def test_t5x_indexes(made: Path, tmp_path: Path) -> None:
    """Tensors are those of the folder's arrays, or, where they are packed in the index, bytes of it."""
    folder = Path(shutil.copytree(made / "t5x", tmp_path / "c"))
    good, tree = (folder / "checkpoint").read_bytes(), t5x_made.read_index(folder)
    known = {bits(value) for value in t5x_made.weights().values()} | {bits(torch.ones(3))}
    for seed, chance in seeds(120):
        bad = damaged(good, chance)
        if seed % 2:
            bad = bytes(msgpack.packb(altered(tree, chance), default=str, unicode_errors="surrogatepass") or b"")
        (folder / "checkpoint").write_bytes(bad)
        found = read(folder) or {}
        assert all(bits(value) in known or bits(value) in bad for value in found.values()), f"seed {seed}"


@pytest.mark.parametrize("file", [".zarray", "0.0"])
def test_t5x_arrays(made: Path, tmp_path: Path, file: str) -> None:
    """A chunk has a checksum; an array's header can only say how its own bytes, or the fill value, are arranged."""
    folder = Path(shutil.copytree(made / "t5x", tmp_path / "c"))
    name = "token_embedder.embedding"
    path, known = folder / f"target.{name}" / file, t5x_made.weights()
    good, allowed = path.read_bytes(), set(bits(known[name])) | {0}
    for seed, chance in seeds(60):
        path.write_bytes(bad := damaged(good, chance))
        if file == ".zarray" and seed % 2:
            path.write_bytes(bad := json.dumps(altered(json.loads(good), chance)).encode())
        found = read(folder) or {}
        if file == ".zarray" and name in found and b'"fill_value": null' in bad:
            assert set(bits(found.pop(name))) <= allowed, f"seed {seed}"
        elif file == ".zarray":
            found.pop(name, None)
        known_only(found, known, seed)
