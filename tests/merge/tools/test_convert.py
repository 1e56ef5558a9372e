"""`convert`: every format into every other, with the same digest."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest
import torch

import merge
from tests.merge.made import assert_same, weights
from tests.merge.shell import command, done
from tests.merge.t5x_made import t5x_folder
from tests.merge.t5x_made import weights as jax_weights

FORMATS = (".safetensors", ".pt", ".npz", ".t5x", "")


def sizes(folder: Path) -> list[int]:
    return [path.stat().st_size for path in sorted(folder.glob("*.safetensors"))]


@pytest.mark.parametrize("second", FORMATS)
@pytest.mark.parametrize("first", FORMATS)
def test_every_format_into_every_other(tmp_path: Path, first: str, second: str) -> None:
    state = weights(0)
    source = merge.save_checkpoint(state, tmp_path / f"a{first}")
    converted = merge.convert(source, tmp_path / f"b{second}")
    assert converted.before == converted.after == merge.digest(state)
    read = merge.load_checkpoint(converted.path)
    assert set(read) == set(state)
    assert_same({name: read[name] for name in state}, state)
    if {first, second} == {".pt"}:
        assert read["encoder.embed.weight"] is read["decoder.output.weight"]


def test_infinities_and_nans_are_bytes_like_others(tmp_path: Path) -> None:
    source = merge.save_checkpoint({"w": torch.tensor([math.nan, math.inf, -0.0])}, tmp_path / "a.pt")
    merge.convert(source, tmp_path / "b.safetensors")
    assert_same(merge.load_checkpoint(tmp_path / "b.safetensors"), merge.load_checkpoint(source))


def test_a_dtype_is_rounded_to_once(tmp_path: Path) -> None:
    state = {"w": torch.tensor([1 + 2**-9 + 2**-30], dtype=torch.float64), "n": torch.tensor([3])}
    source = merge.save_checkpoint(state, tmp_path / "a.safetensors")
    converted = merge.convert(source, tmp_path / "b.pt", dtype=torch.bfloat16)
    assert_same(merge.load_checkpoint(converted.path), {"w": state["w"].to(torch.bfloat16), "n": state["n"]})
    assert converted.before != converted.after


def test_an_open_checkpoint_is_converted_and_overwriting_is_asked_for(
    tmp_path: Path, fairseq_pair: tuple[Path, Path]
) -> None:
    opened, output = merge.open_checkpoint(fairseq_pair[0], "model"), tmp_path / "a.safetensors"
    assert merge.convert(opened, output).before == merge.digest(opened)
    with pytest.raises(merge.MergeError, match="exists"):
        merge.convert(opened, output)
    assert merge.convert(opened, output, overwrite=True, dtype=torch.float16).path == output
    with pytest.raises(merge.MergeError, match="convert takes a file, not a dict: save_checkpoint writes"):
        merge.convert({"w": torch.ones(2)}, output)  # pyright: ignore[reportArgumentType]


def test_t5x_to_shards_and_back(tmp_path: Path) -> None:
    source = t5x_folder(tmp_path / "checkpoint_7", jax_weights())
    shown = done("convert", source, "--shard-size", "130B", "-o", tmp_path / "shards")
    assert shown.out.startswith(f"{tmp_path / 'shards'}: the weights are the same, digest xxh3_128/2:")
    assert len(sizes(tmp_path / "shards")) > 1
    others = [path.name for path in (tmp_path / "shards").iterdir() if not path.name.startswith("model")]
    assert others == ["README.md"]
    done("convert", tmp_path / "shards", "-o", tmp_path / "again.t5x")
    assert merge.digest(merge.open_checkpoint(tmp_path / "again.t5x")) == merge.digest(jax_weights())


def test_a_section_of_a_training_file(fairseq_pair: tuple[Path, Path], tmp_path: Path) -> None:
    shown = json.loads(
        done("convert", fairseq_pair[0], "--section", "model", "-o", tmp_path / "a.safetensors", "--json").out
    )
    assert shown["before"] == shown["after"] == merge.digest(merge.open_checkpoint(fairseq_pair[0], "model"))
    assert shown["path"] == str(tmp_path / "a.safetensors")


def test_the_command_with_a_dtype(tmp_path: Path) -> None:
    source = merge.save_checkpoint({"w": torch.ones(2)}, tmp_path / "a.pt")
    out = done("convert", source, "--dtype", "float16", "-o", tmp_path / "b.safetensors").out
    told = r"b.safetensors: the dtype is float16; the digest is xxh3_128/2:\w+, the input's was xxh3_128/2:\w+$"
    assert re.search(told, out)
    assert merge.load_checkpoint(tmp_path / "b.safetensors")["w"].dtype == torch.float16


def test_infinities_that_a_dtype_makes_are_refused_and_those_of_the_file_are_not(tmp_path: Path) -> None:
    big = merge.save_checkpoint(
        {"w": torch.tensor([70000.0, 1.0]), "mask": torch.tensor([-math.inf])}, tmp_path / "a.pt"
    )
    shown = command("convert", big, "--dtype", "float16", "-o", tmp_path / "b.safetensors")
    assert shown.err == (
        f"error: {tmp_path / 'b.safetensors'}: values of 1 tensor (1 in w) do not fit into float16, which holds "
        "numbers up to 65504: leave --dtype out or choose a wider one, or pass --allow-nonfinite to write them\n"
    )
    assert (shown.code, [path.name for path in tmp_path.iterdir()]) == (2, ["a.pt"])
    done("convert", big, "--dtype", "float16", "--allow-nonfinite", "-o", tmp_path / "b.safetensors")
    assert merge.load_checkpoint(tmp_path / "b.safetensors")["w"].tolist() == [math.inf, 1.0]
    done("convert", big, "--dtype", "bfloat16", "-o", tmp_path / "c.safetensors")
    assert merge.load_checkpoint(tmp_path / "c.safetensors")["mask"].tolist() == [-math.inf]
    with pytest.raises(
        merge.MergeError, match=r"\(1 in w\) do not fit into float8_e5m2, .* 57344: leave dtype=... out"
    ):
        merge.convert(big, tmp_path / "d.safetensors", dtype=torch.float8_e5m2)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["-o", "b.npz"], "w is bfloat16, which npz files cannot hold; choose another, as --dtype float32"),
        (["-o", "b.onnx"], "unknown suffix '.onnx'; known are .safetensors, .pt, .pth, .bin, .ckpt, .pth.tar, .npz"),
        (
            ["-o", "b.t5x", "--shard-size", "2GB"],
            "only safetensors are written in shards; name a folder or leave --shard-size out",
        ),
        (["-o", "b.pt", "--dtype", "float17"], "float17"),
        (["-o", "a.pt"], "is the input"),
    ],
    ids=str,
)
def test_one_line_for_what_cannot_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], told: str
) -> None:
    monkeypatch.chdir(tmp_path)
    merge.save_checkpoint({"w": torch.ones(2, dtype=torch.bfloat16)}, "a.pt")
    shown = command("convert", "a.pt", *arguments)
    assert (shown.code, shown.err.count("\n"), [path.name for path in tmp_path.iterdir()]) == (2, 1, ["a.pt"])
    assert told in shown.err


def test_the_folders_are_described(tmp_path: Path) -> None:
    source = t5x_folder(tmp_path / "checkpoint_7", jax_weights())
    assert "T5X folder" in done("inspect", source).out
    merge.convert(source, tmp_path / "a.npz", dtype=torch.float32)
    assert "npz file" in done("inspect", tmp_path / "a.npz").out


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e5m2"])
def test_what_8_bits_cannot_hold_is_refused(dtype: str, tmp_path: Path) -> None:
    limit = torch.finfo(getattr(torch, dtype)).max
    merge.save_checkpoint({"w": torch.tensor([limit, -limit, 1.0])}, tmp_path / "fits.safetensors")
    made = merge.convert(tmp_path / "fits.safetensors", tmp_path / "small.safetensors", dtype=dtype)
    assert merge.load_checkpoint(made.path)["w"].float().tolist() == [limit, -limit, 1.0]
    merge.save_checkpoint({"w": torch.tensor([2 * limit, 1.0])}, tmp_path / "large.safetensors")
    with pytest.raises(merge.MergeError, match=rf"values of 1 tensor \(1 in w\) do not fit into {dtype}, which holds"):
        merge.convert(tmp_path / "large.safetensors", tmp_path / "lost.safetensors", dtype=dtype)
    assert not (tmp_path / "lost.safetensors").exists()
