"""Files made by hand, byte by byte where torch and safetensors would not write them, and exact comparison."""

from __future__ import annotations

import argparse
import json
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2)
INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint64, torch.uint32, torch.uint16, torch.uint8)
DTYPES = (*FLOATS, *INTEGERS, torch.bool, torch.complex64)


def random_tensor(shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> Tensor:
    """Every bit pattern may occur where the dtype has no bad ones; bools are 0 or 1; floats are finite."""
    generator = torch.Generator().manual_seed(seed)
    if dtype.is_floating_point or dtype.is_complex:
        wide = torch.complex128 if dtype.is_complex else torch.float64
        return torch.randn(shape, dtype=wide, generator=generator).to(dtype)
    if dtype == torch.bool:
        return torch.rand(shape, generator=generator) > 0.5
    raw = torch.randint(0, 256, (torch.Size(shape).numel() * dtype.itemsize,), dtype=torch.uint8, generator=generator)
    return raw.view(dtype).reshape(shape)


def mixed(seed: int = 0) -> dict[str, Tensor]:
    """A tensor of every dtype that safetensors has, one without axes, and two without elements."""
    tensors = {f"w.{str(dtype)[6:]}": random_tensor((3, 5), dtype, seed + i) for i, dtype in enumerate(DTYPES)}
    return {
        **tensors,
        "scalar": torch.tensor(2.5 + seed, dtype=torch.bfloat16),
        "empty": torch.empty(0, 7),
        "no_rows": torch.empty(4, 0, 2, dtype=torch.int16),
    }


def bits(tensor: Tensor) -> bytes:
    """A tensor's row-major bytes."""
    plain = tensor.detach().resolve_conj().resolve_neg().contiguous()
    return plain.reshape(-1).view(torch.uint8).numpy().tobytes()


def assert_tensor(got: Tensor, want: Tensor, where: str) -> None:
    assert got.dtype == want.dtype, f"{where}: {got.dtype}, not {want.dtype}"
    assert got.shape == want.shape, f"{where}: {tuple(got.shape)}, not {tuple(want.shape)}"
    assert bits(got) == bits(want), f"{where}: other values"


def assert_tensors(got: Mapping[str, Tensor], want: Mapping[str, Tensor], ordered: bool = False) -> None:
    """Same names (in the same order, if asked), dtypes, shapes and bits."""
    assert list(got) == list(want) if ordered else set(got) == set(want)
    for name in want:
        assert_tensor(got[name], want[name], name)


def assert_equal(got: Any, want: Any, where: str = "") -> None:
    """Deep equality: types, order of keys, values, tensors to the bit, attributes of objects."""
    assert type(got) is type(want), f"{where}: {type(got)}, not {type(want)}"
    if isinstance(want, Tensor):
        assert_tensor(got, want, where)
        assert got.requires_grad == want.requires_grad, f"{where}: requires_grad"
    elif isinstance(want, np.ndarray):
        assert got.dtype == want.dtype, where
        assert got.shape == want.shape, where
        assert got.tobytes() == want.tobytes(), where
    elif isinstance(want, dict):
        assert list(got) == list(want), f"{where}: keys {list(got)}, not {list(want)}"
        for key in want:
            assert_equal(got[key], want[key], f"{where}.{key}")
        if isinstance(want, OrderedDict):
            assert_equal(vars(got), vars(want), f"{where}.__dict__")
    elif isinstance(want, (list, tuple)):
        assert len(got) == len(want), f"{where}: length"
        for index, item in enumerate(want):
            assert_equal(got[index], item, f"{where}[{index}]")
    elif isinstance(want, argparse.Namespace):
        assert_equal(vars(got), vars(want), where)
    else:
        assert got == want, f"{where}: {got!r}, not {want!r}"


# -- files -------------------------------------------------------------------------------------------------------------


def write_zip(
    path: Path,
    pickled: bytes,
    storages: Mapping[str, bytes] | None = None,
    *,
    byteorder: bytes | None = b"little",
    compression: int = zipfile.ZIP_STORED,
) -> Path:
    """A torch zip file around any pickle and any records."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        if byteorder is not None:
            archive.writestr("archive/byteorder", byteorder)
        for key, content in (storages or {}).items():
            archive.writestr(f"archive/data/{key}", content, compress_type=compression)
        archive.writestr("archive/version", b"3\n")
    return path


def write_safetensors(path: Path, header: object, data: bytes = b"", length: int | None = None) -> Path:
    """A safetensors file around any header (JSON data, or bytes as they are), which may lie about its length."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def text(value: str) -> bytes:
    """The opcode that pushes a text."""
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def integer(value: int) -> bytes:
    """The opcode that pushes an integer of any size."""
    data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def tensor_opcodes(
    shape: tuple[int, ...], stride: tuple[int, ...], *, offset: int = 0, key: str = "0", numel: int = 1
) -> bytes:
    """The opcodes of a float32 tensor in storage `key`, with whatever numbers."""
    storage = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text(key) + text("cpu") + integer(numel) + b"tQ"
    sizes, strides = (b"(" + b"".join(map(integer, numbers)) + b"t" for numbers in (shape, stride))
    hooks = b"ccollections\nOrderedDict\n)R"
    return (
        b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + integer(offset) + sizes + strides + b"\x89" + hooks + b"tR"
    )


def one_tensor_pickle(shape: tuple[int, ...], stride: tuple[int, ...], **more: Any) -> bytes:
    """The pickle of `{"w": tensor}` with whatever numbers."""
    return b"\x80\x02}" + text("w") + tensor_opcodes(shape, stride, **more) + b"s."


# -- the published layout ----------------------------------------------------------------------------------------------


class Choice(Enum):
    """Stands for an enum of fairseq: tests give it the module and name of one."""

    C10D = "c10d"
    NONE = "none"


def weights(seed: int, dtype: torch.dtype = torch.float16) -> OrderedDict[str, Tensor]:
    """A tiny model: tied embeddings, a frozen parameter, a BatchNorm counter, one float32 tensor among halves."""
    embed = random_tensor((7, 4), dtype, seed)
    return OrderedDict(
        [
            ("encoder.embed_tokens.weight", embed),
            ("encoder.layers.0.fc1.weight", random_tensor((5, 4), dtype, seed + 1)),
            ("encoder.layers.0.fc1.bias", random_tensor((5,), dtype, seed + 2)),
            ("encoder.bn.running_mean", random_tensor((3,), torch.float32, seed + 3)),
            ("encoder.bn.num_batches_tracked", torch.tensor(100 - seed)),
            ("encoder.version", torch.tensor([3.0], dtype=torch.float32)),
            ("decoder.embed_tokens.weight", embed),
            ("decoder.output_projection.weight", embed),
            ("decoder.scale", torch.nn.Parameter(random_tensor((), torch.float32, seed + 4))),
            ("decoder.frozen", torch.nn.Parameter(random_tensor((2,), torch.float32, seed + 5), requires_grad=False)),
        ]
    )


def fairseq(seed: int) -> dict[str, Any]:
    """A training file as fairseq writes it, with every entry that published ones carry."""
    model = weights(seed)
    model._metadata = OrderedDict([("", {"version": 1}), ("encoder", {"version": 3})])  # type: ignore[attr-defined]
    architecture = argparse.Namespace(arch="unival_base", layers=[1, 2], dropout=0.1, nested=argparse.Namespace(a=None))
    return {
        "args": None,
        "cfg": {"_name": None, "common": {"seed": seed, "fp16": True}, "model": architecture, "task": {"_name": "vqa"}},
        "model": model,
        "criterion": None,
        "optimizer_history": [
            {"criterion_name": "Loss", "optimizer_name": "MemoryEfficientFP16", "num_updates": 2**40 + seed}
        ],
        "task_state": {},
        "extra_state": {
            "metrics": [("default", [(10, "loss", "AverageMeter", {"val": 0.25, "sum": np.float64(3.5), "round": 3})])],
            "train_iterator": {"epoch": 2, "iterations_in_epoch": 0, "shuffle": True},
            "val_loss": float("inf"),
            "best": np.float32(0.71),
            "ema": weights(seed + 50, torch.float32),
            "ema_fp32_params": weights(seed + 50, torch.float32),
        },
        "last_optimizer_state": {
            "state": {0: {"step": 7, "exp_avg": random_tensor((5, 4), torch.float32, seed + 90)}},
            "param_groups": [{"lr": 1e-5, "betas": (0.9, 0.999), "params": [0]}],
            "loss_scale": 128.0,
        },
    }
