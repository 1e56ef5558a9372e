"""Faults that people met in public with other tools, and small hostile files: each made here, with what comes of it."""

from __future__ import annotations

import json
import time
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import merge
from tests.merge.adapters import base_of, change, lora
from tests.merge.handmade import integer, tensor_opcodes, text, write_zip
from tests.merge.shell import Outcome, command, done, snapshot

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def model(folder: Path, seed: int, rows: int = 4, **beside: object) -> Path:
    """A folder as transformers writes it, with a card of its own and a tokenizer of as many words as rows."""
    generator = torch.Generator().manual_seed(seed)
    folder.mkdir()
    state = {EMBEDDING: torch.randn(rows, 3, generator=generator), "model.layers.0.w": torch.full((2, 2), float(seed))}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    config = {"vocab_size": rows, "tie_word_embeddings": True, **beside}
    (folder / "config.json").write_text(json.dumps(config))
    vocabulary = {f"word{row}": row for row in range(rows)}
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocabulary}, "added_tokens": []}))
    (folder / "README.md").write_text(f"# the card of {folder.name}")
    return folder


def tied(folder: Path, seed: int) -> Path:
    """The same model in torch's format, with the head that is the embedding."""
    state: dict[str, Any] = dict(load_file(model(folder, seed) / "model.safetensors"))
    (folder / "model.safetensors").unlink()
    torch.save({**state, HEAD: state[EMBEDDING]}, folder / "pytorch_model.bin")
    return folder


def refused(shown: Outcome, output: Path, *words: str) -> None:
    """One line on stderr with these words, exit code 2, and nothing written."""
    assert (shown.code, shown.out, shown.err.count("\n")) == (2, "", 1), shown
    assert shown.err.startswith("error: ")
    assert all(word in shown.err for word in words), shown.err
    assert not output.exists()


# -- what people merge -----------------------------------------------------------------------------------------------


def test_folders_of_adapters_are_not_interpolated(tmp_path: Path) -> None:
    pair = [lora(tmp_path / name, seed) for seed, name in enumerate("ab")]
    out = tmp_path / "out"
    refused(command("interpolate", *pair, "--ratio", 0.5, "-o", out), out, "unival-merge adapters", "--accept")
    done("adapters", *pair, "-o", out)  # the advice
    merged, (a, b) = merge.open_adapter(out), map(merge.open_adapter, pair)
    for module, factors in merged.modules.items():
        torch.testing.assert_close(change(factors), (change(a.modules[module]) + change(b.modules[module])) / 2)


@pytest.mark.parametrize(("weights", "average"), [("state_dict", "ema_state_dict"), ("model", "ema")])
def test_a_moving_average_beside_the_weights_does_not_stay_the_firsts(
    tmp_path: Path, weights: str, average: str
) -> None:
    for name, value in (("a", 1.0), ("b", 3.0)):
        state = {weights: {"w": torch.full((3, 4), value)}, average: {"w": torch.full((3, 4), -value)}, "epoch": 3}
        torch.save(state, tmp_path / f"{name}.pt")
    pair = [tmp_path / "a.pt", tmp_path / "b.pt"]
    shown = done("average", *pair, "-o", tmp_path / "out.pt")
    assert f"note: left out {average}: weights that were not merged" in shown.err
    result = torch.load(tmp_path / "out.pt", weights_only=True)
    assert (list(result), result[weights]["w"].unique().tolist()) == ([weights, "epoch"], [2.0])
    done("average", *pair, "--section", average, "-o", tmp_path / "average.pt")
    assert torch.load(tmp_path / "average.pt", weights_only=True)[average]["w"].unique().tolist() == [-2.0]


def test_a_section_that_only_tutorials_name(tmp_path: Path) -> None:
    for name, value in (("a", 1.0), ("b", 3.0)):
        optimizer = {"state": {0: {"exp_avg": torch.full((3, 4), value)}}, "param_groups": []}
        state = {"w": torch.full((3, 4), value)}
        torch.save({"epoch": 5, "model_state_dict": state, "optimizer_state_dict": optimizer}, tmp_path / f"{name}.pt")
    done("average", tmp_path / "a.pt", tmp_path / "b.pt", "-o", tmp_path / "out.pt")
    result = torch.load(tmp_path / "out.pt", weights_only=True)
    assert list(result) == ["epoch", "model_state_dict"]
    assert result["model_state_dict"]["w"].unique().tolist() == [2.0]


def test_a_head_that_one_file_ties_and_the_other_leaves_out(tmp_path: Path) -> None:
    pair, out = [tied(tmp_path / "a_bin", 0), model(tmp_path / "b", 1)], tmp_path / "out"
    for more in ([], ["--missing", "keep-first"]):
        shown = command("average", *pair, *more, "-o", out)
        refused(shown, out, "b lacks lm_head.weight", "--drop 'lm_head.*'")
        assert "--missing" not in shown.err
    done("average", *pair, "--drop", "lm_head.*", "-o", out)
    states = [merge.load_checkpoint(folder) for folder in pair]
    assert torch.equal(
        merge.load_checkpoint(out)[EMBEDDING], torch.lerp(states[0][EMBEDDING], states[1][EMBEDDING], 0.5)
    )


def test_an_adapter_of_the_embedding_beside_one_without(tmp_path: Path) -> None:
    shapes = {"encoder.layers.0.q": (6, 5)}
    plain = lora(tmp_path / "plain", 0, 2, shapes)
    factors = {"embed.lora_embedding_A": torch.randn(2, 8), "embed.lora_embedding_B": torch.randn(3, 2)}
    copy = base_of()["embed.weight"]
    words = lora(tmp_path / "words", 1, 2, shapes, extra={**factors, "embed.base_layer.weight": copy})
    done("adapters", words, plain, "-o", tmp_path / "out")
    merged = merge.open_adapter(tmp_path / "out")
    wanted = 0.5 * change(merge.open_adapter(words).modules["embed"])
    torch.testing.assert_close(change(merged.modules["embed"]), wanted)
    assert torch.equal(merged.copies["embed"], copy)


def test_a_longer_vocabulary_and_its_files(tmp_path: Path) -> None:
    pair = [model(tmp_path / "a", 0), model(tmp_path / "c", 1, rows=6)]
    done("average", *pair, "--vocab-rows", "keep-first", "-o", tmp_path / "out")
    out, states = tmp_path / "out", [load_file(folder / "model.safetensors") for folder in pair]
    rows = load_file(out / "model.safetensors")[EMBEDDING]
    assert json.loads((out / "config.json").read_text())["vocab_size"] == len(rows) == 6
    assert (out / "tokenizer.json").read_bytes() == (pair[1] / "tokenizer.json").read_bytes()
    assert torch.equal(rows[:4], torch.lerp(states[0][EMBEDDING], states[1][EMBEDDING][:4], 0.5))
    assert torch.equal(rows[4:], states[1][EMBEDDING][4:])
    card = (out / "README.md").read_text()
    assert card.startswith("---\nbase_model:\n")
    assert "the card of a" not in card


def test_numbers_of_yaml_that_it_reads_as_text(tmp_path: Path) -> None:
    pytest.importorskip("yaml")
    model(tmp_path / "a", 0), model(tmp_path / "b", 1)
    for name, number in (("text", "5e-1"), ("number", "0.5")):
        models = f"models: [{{model: a, parameters: {{weight: {number}}}}}, {{model: b, parameters: {{weight: 0.5}}}}]"
        (tmp_path / f"{name}.yml").write_text(f"merge_method: linear\n{models}\n")
        done("run", tmp_path / f"{name}.yml", "-o", tmp_path / name)
    assert merge.digest(tmp_path / "text") == merge.digest(tmp_path / "number")


def test_a_recipe_beyond_its_ends_names_an_option_that_run_has(tmp_path: Path) -> None:
    pytest.importorskip("yaml")
    a, b = model(tmp_path / "a", 1), model(tmp_path / "b", 2)
    recipe, out = tmp_path / "e.yml", tmp_path / "out"
    recipe.write_text(
        "merge_method: slerp\nmodels: [{model: a}, {model: b}]\nbase_model: a\nparameters: {t: 1.5}\ndtype: float32\n"
    )
    refused(command("run", recipe, "-o", out), out, "ratio 1.5 is outside [0, 1]; pass --extrapolate")
    done("run", recipe, "--extrapolate", "-o", out)
    done("slerp", a, b, "--ratio", 1.5, "--extrapolate", "-o", tmp_path / "slerp")
    assert merge.digest(out) == merge.digest(tmp_path / "slerp")


# -- hostile files ---------------------------------------------------------------------------------------------------


def pickled(value: bytes = b"", storage: str = "0") -> bytes:
    """A pickle of one tensor `w`, after an entry of any other content."""
    more = text("e") + value + b"s" if value else b""
    return b"\x80\x02}" + more + text("w") + tensor_opcodes((1,), (1,), key=storage) + b"s."


def doubled(path: Path, pickle: bytes, name: str, second: bytes) -> None:
    """A torch file with two entries of one name."""
    write_zip(path, pickle, {"0": bytes(4), "1": bytes(4)})
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr(name, second)


def deflated_pickle(path: Path) -> None:
    """A few kilobytes that unfold to 64 megabytes."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("archive/data.pkl", "w", force_zip64=True) as file:
            for _ in range(16):
                file.write(bytes(1 << 22))
        archive.writestr("archive/version", b"3\n")


FLOOD = b"}(" + b"".join(integer(i * (2**61 - 1)) + b"N" for i in range(1, 60_001)) + b"u"
AMPLIFIER = text("a" * (8 << 20)) + b"q\x0a0]" + b"c_codecs\nencode\n(h\x0aX\x06\0\0\0latin1tRa" * 300
HOSTILE: dict[str, tuple[Callable[[Path], object], str]] = {
    "two storages of one name": (
        lambda path: doubled(path, pickled(), "archive/data/0", b"\0\0\x80?"),
        "has two entries named 'archive/data/0'; programs differ in which one they read",
    ),
    "two pickles": (
        lambda path: doubled(path, pickled(), "archive/data.pkl", pickled(storage="1")),
        "has two entries named 'archive/data.pkl'; programs differ in which one they read",
    ),
    "a name that is no text": (
        lambda path: write_zip(
            path, b"\x80\x02}X\x04\0\0\0w\xed\xa0\x80" + tensor_opcodes((1,), (1,)) + b"s.", {"0": bytes(4)}
        ),
        "of a tensor is no text (surrogates)",
    ),
    "a flood of hashes": (
        lambda path: write_zip(path, pickled(FLOOD), {"0": bytes(4)}),
        "a few bytes that ask for more work and memory than any real file of this size",
    ),
    "a deflated pickle": (deflated_pickle, "archive/data.pkl is compressed; save the file again with torch.save"),
    "an amplifier": (
        lambda path: write_zip(path, pickled(AMPLIFIER), {"0": bytes(4)}),
        "a few bytes that ask for more work and memory than any real file of this size",
    ),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_files_are_refused_soon(tmp_path: Path, kind: str) -> None:
    make, told = HOSTILE[kind]
    make(tmp_path / "bad.pt")
    start, out = time.process_time(), tmp_path / "out.pt"
    refused(command("inspect", tmp_path / "bad.pt"), out, "bad.pt: ", told)
    pair = ["--name", "a", "--name", "b"]
    refused(command("average", tmp_path / "bad.pt", tmp_path / "bad.pt", *pair, "-o", out), out, "bad.pt: ", told)
    assert time.process_time() - start < 20  # two commands, 10 s each


@pytest.mark.parametrize("metadata", [{"global_dict_indices": "{"}, {"global_dict_indices": "[" * 100_000}], ids=len)
def test_metadata_that_cannot_be_read_is_text(tmp_path: Path, metadata: Mapping[str, str]) -> None:
    save_file({"w": torch.ones(2)}, tmp_path / "a.safetensors", metadata=dict(metadata))
    save_file({"w": torch.zeros(2)}, tmp_path / "b.safetensors")
    done("inspect", tmp_path / "a.safetensors")
    out = tmp_path / "out.safetensors"
    shown = command("average", tmp_path / "a.safetensors", tmp_path / "b.safetensors", "-o", out)
    assert (shown.code, shown.err) == (0, "")
    assert load_file(out)["w"].tolist() == [0.5, 0.5]


def test_metadata_invents_no_tensor(tmp_path: Path) -> None:
    for name, value in (("a", 1.0), ("b", 3.0)):
        state = {"pt": torch.full((2,), value), "w": torch.zeros(2)}
        save_file(state, tmp_path / f"{name}.safetensors", metadata={"format": "pt"})
    out = tmp_path / "out.safetensors"
    done("average", tmp_path / "a.safetensors", tmp_path / "b.safetensors", "-o", out)
    result = load_file(out)
    assert {name: value.tolist() for name, value in result.items()} == {"pt": [2.0, 2.0], "w": [0.0, 0.0]}


RECIPES = {
    "no inputs": (
        "r.json",
        {"format": "unival-merge recipe 1", "method": "interpolate", "inputs": [], "parameters": {"ratio": 0.5}},
        "interpolate takes 2 checkpoints, 0 were given",
    ),
    "aliases": (
        "r.yml",
        "merge_method: linear\nmodels:\n- model: a.pt\n  parameters:\n    weight:\n    - &a [1,1,1,1,1,1,1,1,1]\n"
        + "".join(f"    - &{chr(98 + i)} [{','.join(['*' + chr(97 + i)] * 9)}]\n" for i in range(8))
        + "- {model: b.pt, parameters: {weight: 1}}\n",
        "weight must be a number or a list of numbers along the layers, not [1, 1, 1,",
    ),
}


@pytest.mark.parametrize("kind", RECIPES)
def test_hostile_recipes(tmp_path: Path, kind: str) -> None:
    name, content, told = RECIPES[kind]
    if name.endswith("yml"):
        pytest.importorskip("yaml")
    (tmp_path / name).write_text(content if isinstance(content, str) else json.dumps(content))
    for part in "ab":
        torch.save({"w": torch.ones(2)}, tmp_path / f"{part}.pt")
    out, before = tmp_path / "out.pt", snapshot(tmp_path)
    refused(command("run", tmp_path / name, "-o", out), out, told)
    assert snapshot(tmp_path) == before


def test_two_checkpoints_have_two_digests() -> None:
    a, b = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0])
    content = merge.digest({"a": a}, "sha256/1")  # some text: what matters is the name of several lines
    inner: dict[str, Tensor] = {f"a\0torch.float32\0[2]\0{content}\nb": b}
    assert merge.digest({"a": a, "b": b}, "sha256") != merge.digest(inner, "sha256")


def test_an_index_may_name_its_own_folder(tmp_path: Path) -> None:
    msgpack = pytest.importorskip("msgpack")
    given, out = tmp_path / "in.t5x", tmp_path / "out.t5x"
    merge.save_checkpoint({"w": torch.ones(8, 4)}, given)
    tree = msgpack.unpackb((given / "checkpoint").read_bytes(), raw=False)
    tree["optimizer"]["target"]["w"]["kvstore"]["path"] = str(given / "target.w")
    (given / "checkpoint").write_bytes(msgpack.packb(tree))
    done("interpolate", given, given, "--name", "a", "--name", "b", "--ratio", 0.5, "-o", out)
    tree = msgpack.unpackb((out / "checkpoint").read_bytes(), raw=False)
    assert tree["optimizer"]["target"]["w"]["kvstore"] == {"driver": "file", "path": "target.w"}
    assert torch.equal(merge.load_checkpoint(out)["w"], torch.ones(8, 4))
