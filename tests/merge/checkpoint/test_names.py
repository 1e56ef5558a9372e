"""Rules that give tensors other names, on checkpoints, state dicts, recipes and the command line."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import merge
from merge import Checkpoint, MergeError
from merge.checkpoint.names import new_names, renamed_by
from tests.merge.made import assert_same, ordered_as, weights
from tests.merge.shell import command, done


@pytest.mark.parametrize(
    ("rule", "name", "new"),
    [
        ("module.=", "module.encoder.w", "encoder.w"),
        ("module.=", "encoder.module.w", None),
        ("module.=", "module.module.w", "module.w"),
        ("=module.", "w", "module.w"),
        ("encoder.=model.encoder.", "encoder.w", "model.encoder.w"),
        ("*._orig_mod.*=*.*", "layers._orig_mod.0.w", "layers.0.w"),
        ("*._orig_mod.*=*.*", "a._orig_mod.b._orig_mod.w", "a.b._orig_mod.w"),
        ("*._orig_mod.*=*.*", "layers.0.w", None),
        ("*.gamma=*.weight", "norm.gamma", "norm.weight"),
        ("*.gamma=*.weight", "norm.gamma.scale", None),
        ("h.*.attn.*=layers.*.self.*", "h.3.attn.q.w", "layers.3.self.q.w"),
        ("layers.[0]=block.", "layers.[0].w", "block..w"),  # no other character than the star is special
        ("a*a=b*b", "a", None),  # the two ends are two letters
    ],
)
def test_what_a_rule_makes_of_a_name(rule: str, name: str, new: str | None) -> None:
    assert renamed_by(rule, name) == new


@pytest.mark.parametrize("rule", ["module.", "=", "a=a", "*.x=y", "x=*.y", "*.*=*"])
def test_what_is_no_rule(rule: str) -> None:
    with pytest.raises(MergeError, match=r"^rename='"):
        renamed_by(rule, "w")


def test_rules_follow_each_other() -> None:
    assert new_names(["_orig_mod.a._orig_mod.w"], ["_orig_mod.=", "*._orig_mod.*=*.*"], "f") == {
        "_orig_mod.a._orig_mod.w": "a.w"
    }


@pytest.mark.parametrize(
    ("names", "rule", "told"),
    [
        (["module.w", "w"], "module.=", "module.w and w both become w"),
        (["a.1.w", "b.1.w"], "*.1.w=*.w", None),
        (["module."], "module.=", "module. becomes an empty name"),
    ],
)
def test_two_names_that_become_one(names: list[str], rule: str, told: str | None) -> None:
    if told is None:
        assert len(set(new_names(names, [rule], "f.pt").values())) == 2
        return
    with pytest.raises(MergeError, match=f"f.pt: rename {rule}: {told}"):
        new_names(names, [rule], "f.pt")


@given(st.text("ab.", min_size=1, max_size=12))
def test_a_prefix_goes_and_comes_back(name: str) -> None:
    assert renamed_by("=module.", name) == f"module.{name}"
    assert renamed_by("module.=", f"module.{name}") == name


def test_a_rule_of_many_stars_takes_no_time() -> None:
    rule = "*a" * 200 + "=" + "*b" * 200
    start = time.perf_counter()
    assert renamed_by(rule, "a" * 199 + "c" * 100_000) is None
    assert time.perf_counter() - start < 1


# -- checkpoints -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".npz"])
def test_a_renamed_checkpoint_merges_as_the_plain_one(tmp_path: Path, suffix: str) -> None:
    a, b = weights(0), weights(1)
    plain = merge.save_checkpoint(a, tmp_path / f"plain{suffix}")
    wrapped = merge.save_checkpoint({f"module.{n}": v for n, v in b.items()}, tmp_path / f"wrapped{suffix}")
    done("interpolate", plain, wrapped, "--ratio", 0.25, "--rename", "module.=", "-o", tmp_path / "m.safetensors")
    wanted = merge.interpolate(a, b, 0.25)
    assert_same(ordered_as(merge.load_checkpoint(tmp_path / "m.safetensors"), wanted), wanted)
    other = merge.renamed(wrapped, "module.=")
    assert isinstance(other, Checkpoint)
    assert_same(ordered_as(merge.interpolate(plain, other, 0.25), wanted), wanted)
    assert_same(dict(merge.renamed(b, ["=x.", "x.=y."])), {f"y.{n}": v for n, v in b.items()})


def test_the_first_input_renamed_names_the_output(tmp_path: Path) -> None:
    a = merge.save_checkpoint({f"_orig_mod.{n}": v for n, v in weights(0).items()}, tmp_path / "a.pt")
    b = merge.save_checkpoint(weights(1), tmp_path / "b.pt")
    done("average", a, b, "--rename", "a:_orig_mod.=", "-o", tmp_path / "m.pt")
    merged = merge.load_checkpoint(tmp_path / "m.pt")
    assert_same(merged, merge.average([weights(0), weights(1)]))
    assert merged["encoder.embed.weight"].data_ptr() == merged["decoder.output.weight"].data_ptr()


def test_ties_noted_in_metadata_are_renamed_too(tmp_path: Path) -> None:
    file = tmp_path / "tied.safetensors"
    merge.save_checkpoint({"m.w": torch.ones(2)}, file, metadata={"m.head": "m.w", "format": "pt"})
    checkpoint = merge.open_checkpoint(file).renamed(["m.="])
    assert list(checkpoint) == ["w", "head"]
    assert checkpoint.entries["head"].tie == checkpoint.entries["w"].tie is not None
    assert dict(checkpoint.metadata) == {"format": "pt", "head": "w"}


def test_the_recipe_keeps_the_rules_and_the_file_its_digest(tmp_path: Path) -> None:
    a = merge.save_checkpoint(weights(0), tmp_path / "a.safetensors")
    b = merge.save_checkpoint({f"module.{n}": v for n, v in weights(1).items()}, tmp_path / "b.safetensors")
    done("average", a, b, "--rename", "b:module.=", "-o", tmp_path / "m.safetensors")
    noted = json.loads((tmp_path / "m.safetensors.recipe.json").read_text())["inputs"]
    assert "rename" not in noted[0]
    assert noted[1]["rename"] == ["module.="]
    assert noted[1]["digest"] == merge.digest(b)
    done("run", tmp_path / "m.safetensors.recipe.json", "-o", tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "m.safetensors").read_bytes()


def test_a_rule_that_fits_nothing_is_a_mistake(tmp_path: Path) -> None:
    a = merge.save_checkpoint(weights(0), tmp_path / "a.safetensors")
    b = merge.save_checkpoint(weights(1), tmp_path / "b.safetensors")
    shown = command("average", a, b, "--rename", "modul.=", "-o", tmp_path / "m.safetensors")
    assert shown.code == 2
    assert "error: --rename modul.= fits no tensor of a, b; names look like encoder." in shown.err
    with pytest.raises(MergeError, match=r"rename='x\.=' fits no tensor; names look like"):
        merge.renamed(weights(0), "x.=")


def test_looking_takes_names_too(tmp_path: Path) -> None:
    a = merge.save_checkpoint(weights(0), tmp_path / "a.safetensors")
    b = merge.save_checkpoint({f"module.{n}": v for n, v in weights(0).items()}, tmp_path / "b.safetensors")
    assert json.loads(done("diff", a, b, "--rename", "b:module.=", "--json").out)["total"]["equal"] == len(weights(0))
    shown = command("doctor", a, b, "--rename", "b:module.=")
    assert (shown.code, "prefix" in shown.out) == (0, False)


def test_convert_under_other_names(tmp_path: Path) -> None:
    state = {f"module.{n}": v for n, v in weights(0).items()}
    source = merge.save_checkpoint(state, tmp_path / "a.pt")
    shown = done("convert", source, "--rename", "module.=", "-o", tmp_path / "b.safetensors")
    assert "b.safetensors: tensors have other names; the digest is xxh3_128/2:" in shown.out
    assert_same(ordered_as(merge.load_checkpoint(tmp_path / "b.safetensors"), weights(0)), weights(0))
    merge.convert(merge.open_checkpoint(source).renamed(["module.="]), tmp_path / "c.safetensors")
    assert merge.digest(tmp_path / "c.safetensors") == merge.digest(tmp_path / "b.safetensors")
