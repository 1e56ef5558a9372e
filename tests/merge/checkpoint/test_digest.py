"""Digests: the identity of weights, whatever file, order or memory they lie in."""

from __future__ import annotations

import hashlib
import importlib
import json
import pkgutil
import struct
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
import xxhash
from torch import Tensor

import merge
from merge import Input, MergeError, Options, Recipe
from tests.merge.made import copied, weights


def one(value: Tensor) -> str:
    return merge.digest({"w": value})


def test_the_definition() -> None:
    """One hash of every tensor's row-major bytes, one over name, dtype, shape and it, each with its length before."""
    state = {"b": torch.tensor([[1.0, 2.0]]), "a": torch.tensor(3, dtype=torch.int16)}
    for algorithm, make in (("xxh3_128", xxhash.xxh3_128), ("sha256", hashlib.sha256)):
        fields = [
            *("a", "torch.int16", "[]", make(bytes([3, 0])).hexdigest()),
            *("b", "torch.float32", "[1, 2]", make(state["b"].numpy().tobytes()).hexdigest()),
        ]
        framed = b"".join(struct.pack("<Q", len(field)) + field.encode() for field in fields)
        assert merge.digest(state, algorithm) == f"{algorithm}/2:{make(framed).hexdigest()}"
        before = "".join("\0".join(fields[i : i + 4]) + "\n" for i in (0, 4)).encode()
        assert merge.digest(state, f"{algorithm}/1") == f"{algorithm}:{make(before).hexdigest()}"


def test_no_name_stands_for_two_tensors() -> None:
    a, b = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0])
    content = hashlib.sha256(a.numpy().tobytes()).hexdigest()
    twins = ({"a": a, "b": b}, {f"a\0torch.float32\0[2]\0{content}\nb": b})
    assert merge.digest(twins[0], "sha256") != merge.digest(twins[1], "sha256")
    assert merge.digest(twins[0], "sha256/1") == merge.digest(twins[1], "sha256/1")  # why there is a second version


@pytest.mark.parametrize("algorithm", ["xxh3_128", "sha256"])
def test_files_folders_and_memory_have_one_digest(tmp_path: Path, algorithm: str) -> None:
    wanted = merge.digest(weights(0), algorithm)
    for name in ("a.safetensors", "a.pt", "folder"):
        merge.save_checkpoint(weights(0), tmp_path / name)
        assert merge.digest(merge.open_checkpoint(tmp_path / name), algorithm) == wanted
        assert merge.digest(merge.load_checkpoint(tmp_path / name), algorithm) == wanted
    merge.save_checkpoint(weights(0), tmp_path / "shards", shard_size=300)
    assert merge.digest(merge.open_checkpoint(tmp_path / "shards"), algorithm) == wanted


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_the_engine_s_digests_are_those_of_the_state_dicts(tmp_path: Path, suffix: str) -> None:
    """Also for tensors that the merge does not use, and strided ones."""
    first, second = weights(0), weights(1)
    second["extra"] = torch.arange(6.0).view(2, 3)
    for name, state in (("a", first), ("b", second)):
        if suffix == ".pt":
            state["turned"] = torch.arange(12.0).view(3, 4).t() + 0
            torch.save(state, tmp_path / f"{name}.pt")
        else:
            merge.save_checkpoint(state, tmp_path / f"{name}.safetensors")
    inputs = tuple(Input(name, tmp_path / f"{name}{suffix}") for name in "ab")
    recipe = Recipe("interpolate", inputs, {"ratio": 0.5}, policy=merge.Policy(drop=("extra", "decoder.scale")))
    out = merge.run(recipe, tmp_path / f"m{suffix}", Options(sync=False))
    record = json.loads((tmp_path / f"m{suffix}.recipe.json").read_text())
    assert [item["digest"] for item in record["inputs"]] == [merge.digest(first), merge.digest(second)]
    assert record["output"]["digest"] == merge.digest(merge.open_checkpoint(out))


def test_order_of_names_ties_and_strides_do_not_count() -> None:
    state = weights(0)
    backwards = OrderedDict(reversed(list(state.items())))
    assert merge.digest(backwards) == merge.digest(state)
    untied = {name: value.clone() for name, value in state.items()}
    assert merge.digest(untied) == merge.digest(state)
    turned = {**state, "encoder.layers.0.fc.weight": state["encoder.layers.0.fc.weight"].t().contiguous().t()}
    assert merge.digest(turned) == merge.digest(state)


def test_names_values_shapes_and_dtypes_count() -> None:
    zeros = torch.zeros(4)
    different = [
        one(zeros),
        merge.digest({"v": zeros}),
        merge.digest({"w": zeros, "v": zeros}),
        one(torch.zeros(2, 2)),
        one(torch.zeros(4, 1)),
        one(torch.zeros(4, dtype=torch.int32)),
        one(torch.zeros(2, dtype=torch.float64)),
        one(torch.zeros(8, dtype=torch.float16)),
        one(torch.zeros(8, dtype=torch.bfloat16)),
        one(torch.tensor([0.0, 0.0, 0.0, -0.0])),
        one(torch.tensor([0.0, 0.0, 0.0, 1e-45])),
        merge.digest({}),
        one(torch.zeros(0)),
        one(torch.zeros(0, 3)),
    ]
    assert len(set(different)) == len(different)


def test_values_under_other_names_count() -> None:
    a, b = torch.zeros(2), torch.ones(2)
    assert merge.digest({"x": a, "y": b}) != merge.digest({"x": b, "y": a})


def test_parameters_and_views_have_the_digest_of_their_values() -> None:
    value = torch.randn(3, 4)
    assert one(torch.nn.Parameter(value)) == one(value)
    assert one(torch.stack([value, value], 2)[..., 0]) == one(value)
    complex_value = torch.randn(3, dtype=torch.complex64)
    assert one(complex_value.conj()) == one(complex_value.conj().resolve_conj())
    assert one(complex_value.conj().imag) == one(-complex_value.imag)


def test_the_digest_leaves_the_state_alone() -> None:
    state = weights(0)
    before = copied(state)
    merge.digest(state)
    assert all(torch.equal(state[name], before[name]) for name in state)


def test_an_unknown_algorithm() -> None:
    with pytest.raises(MergeError, match="unknown digest 'md5'; known are xxh3_128, sha256"):
        merge.digest({}, "md5")


def test_public_names_are_themselves_whatever_was_imported() -> None:
    """A module of the same name would take the place of a function once something imports it."""
    for module in pkgutil.walk_packages(merge.__path__, "merge."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    for name in merge.__all__:
        home = merge._HOME.get(name)  # pyright: ignore[reportPrivateUsage]
        assert home is None or getattr(merge, name) is getattr(importlib.import_module(f"merge.{home}"), name), name
        assert name in dir(merge) or getattr(merge, name) is not None
    with pytest.raises(AttributeError, match="module 'merge' has no attribute 'nothing'"):
        _ = merge.nothing
    with pytest.raises(AttributeError, match="did you mean 'merge_with'"):
        _ = merge.merge
