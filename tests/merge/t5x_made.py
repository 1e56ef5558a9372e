"""T5X folders made by hand, as T5X, flax and TensorStore write them."""

from __future__ import annotations

import gzip
import itertools
import json
import zlib
from pathlib import Path
from typing import Any

import msgpack
import torch
from torch import Tensor

from merge.checkpoint.formats.elements import element_of
from merge.checkpoint.formats.tensors import raw_bytes

WRAPPED = {"gzip": gzip.compress, "zlib": zlib.compress, None: bytes}


def write_zarr(
    folder: Path, value: Tensor, chunks: tuple[int, ...], compressor: str | None = "gzip", **header: Any
) -> None:
    """A Zarr v2 array: chunks of one size, those at the edge padded; chunks of zeros are left out."""
    folder.mkdir(parents=True)
    fields = {
        "zarr_format": 2,
        "shape": list(value.shape),
        "chunks": list(chunks),
        "dtype": element_of(value.dtype).numpy,
        "compressor": compressor and {"id": compressor, "level": 1},
        "fill_value": None,
        "filters": None,
        "order": "C",
        **header,
    }
    (folder / ".zarray").write_text(json.dumps(fields))
    for place in itertools.product(*(range(-(-n // step)) for n, step in zip(value.shape, chunks, strict=True))):
        part = value[tuple(slice(i * step, (i + 1) * step) for i, step in zip(place, chunks, strict=True))]
        whole = torch.zeros(chunks, dtype=value.dtype)
        whole[tuple(map(slice, part.shape))] = part
        if fields["order"] == "F":
            whole = whole.permute(*reversed(range(whole.ndim)))
        data = bytes(raw_bytes(whole))
        if any(data):
            name = fields.get("dimension_separator", ".").join(map(str, place)) or "0"
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(WRAPPED[compressor](data))


def packed(value: Tensor) -> msgpack.ExtType:
    """An array inside the index."""
    name = str(value.dtype).removeprefix("torch.")
    return msgpack.ExtType(1, msgpack.packb((tuple(value.shape), name, bytes(raw_bytes(value))), use_bin_type=True))


def spec(path: str, value: Tensor) -> dict[str, Any]:
    """A TensorStore spec as the index holds it."""
    metadata = {"compressor": {"id": "gzip"}, "shape": list(value.shape), "chunks": list(value.shape)}
    kvstore = {"driver": "file", "path": path}
    name = str(value.dtype).removeprefix("torch.")
    return {"driver": "zarr", "dtype": name, "kvstore": kvstore, "metadata": metadata}


def weights(seed: int = 0) -> dict[str, Tensor]:
    """A small model's tensors under their dotted names."""
    generator = torch.Generator().manual_seed(seed)
    normal = lambda *shape: torch.randn(shape, generator=generator)  # noqa: E731
    return {
        "decoder.layers_0.wi.kernel": normal(6, 5),
        "decoder.layers_0.scale": normal(5).to(torch.bfloat16),
        "encoder.scalar": normal(),
        "encoder.steps": torch.arange(4, dtype=torch.int32),
        "token_embedder.embedding": normal(7, 3),
    }


def t5x_folder(folder: Path, tensors: dict[str, Tensor], inline: tuple[str, ...] = ("encoder.scalar",)) -> Path:
    """A checkpoint: the tensors (those of `inline` inside the index), and a state of which one array is not there."""
    target: dict[str, Any] = {}
    folder.mkdir()
    for name, value in tensors.items():
        *levels, last = name.split(".")
        place = target
        for level in levels:
            place = place.setdefault(level, {})
        place[last] = packed(value) if name in inline else spec(f"target.{name}", value)
        if name not in inline:
            write_zarr(folder / f"target.{name}", value, tuple(max(1, -(-size // 2)) for size in value.shape))
    there, gone = torch.ones(3), torch.ones(2)
    write_zarr(folder / "state.there", there, (3,))
    state = {
        "step": packed(torch.tensor(7)),
        "v": {"there": spec("state.there", there), "gone": spec("state.gone", gone)},
    }
    write_index(folder, {"version": 3, "optimizer": {"target": target, "state": state}})
    (folder / "train_ds-000-of-001").write_bytes(b"an iterator")
    return folder


def write_index(folder: Path, tree: Any) -> None:
    (folder / "checkpoint").write_bytes(msgpack.packb(tree, strict_types=True))


def read_index(folder: Path) -> Any:
    return msgpack.unpackb((folder / "checkpoint").read_bytes())
