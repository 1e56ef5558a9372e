"""mergekit's recorded folders: slices, gradients, tied heads and templates; our folder beside theirs."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import merge
from merge import MergeError, Options, open_checkpoint, read_recipe
from merge.recipe.mergekit import from_mergekit
from tests import DATA
from tests.merge.shell import command

FOLDER = DATA / "mergekit_folders"
# Where mergekit errs: what holds here of the configuration, and names that only our folder has.
UNTIED: dict[str, set[str]] = {
    "passthrough_tied": {"lm_head.weight"},
    "passthrough_untied_to_tied": {"lm_head.weight"},
    "passthrough_tied_to_untied": set(),
    "tied_and_untied": set(),
}
REFUSED = {
    "layer_count_wrong": "layers\\[0\\]: same1 gives 4, same2_sharded gives 3 layers",
    "layer_range_beyond": "layers\\[0\\]: same1 has no layer 4, 5: it has 4, numbered 0 to 3",
    "chat_template_bad": "chat_template 'nosuch' is no template, and no known name",
}


@cache
def recordings() -> dict[str, Any]:
    return json.loads((FOLDER / "recipes.json").read_text())


@pytest.mark.parametrize("name", [name for name in recordings() if name not in REFUSED])
def test_near_the_recording(tmp_path: Path, name: str) -> None:
    recorded = recordings()[name]
    out = merge.run(read_recipe(FOLDER / f"{name}.yml"), tmp_path / "out", Options(sync=False))
    got, config = open_checkpoint(out), json.loads((out / "config.json").read_text())
    wanted = {**recorded["config"], **({"tie_word_embeddings": False} if name in UNTIED else {})}
    assert {key: config[key] for key in wanted} == wanted
    assert set(got) == set(recorded["tensors"]) | UNTIED.get(name, set())
    for tensor, (dtype, shape) in recorded["tensors"].items():
        assert (got[tensor].dtype, list(got[tensor].shape)) == (getattr(torch, dtype), shape)
    for tensor, source in recorded.get("copied_from", {}).items():
        folder, _, other = source.partition(":")
        assert torch.equal(got[tensor], open_checkpoint(FOLDER / "inputs" / folder)[other]), tensor
    close = name in ("task_arithmetic_gradient", "chat_template_text")  # rounded once here
    for tensor, theirs in (load_file(FOLDER / recorded["file"]) if "file" in recorded else {}).items():
        if close:
            torch.testing.assert_close(got[tensor], theirs, rtol=0, atol=1e-6)
        else:
            assert torch.equal(got[tensor], theirs), tensor


@pytest.mark.parametrize("name", REFUSED)
def test_refused_before_anything_is_written(tmp_path: Path, name: str) -> None:
    with pytest.raises(MergeError, match=REFUSED[name]):
        merge.run(read_recipe(FOLDER / f"{name}.yml"), tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_lone_tied_head_is_the_embedding_of_its_own_model(tmp_path: Path) -> None:
    shown = command("run", FOLDER / "passthrough_tied.yml", "-o", tmp_path / "out", "--no-sync")
    assert "note: lm_head.weight is the embedding of tied2, where the two are tied" in shown.err
    head = open_checkpoint(tmp_path / "out")["lm_head.weight"]
    assert torch.equal(head, open_checkpoint(FOLDER / "inputs" / "tied2")["model.embed_tokens.weight"])


def test_a_template_is_written_as_a_file(tmp_path: Path) -> None:
    for name in ("chat_template_text", "same_rows_other_tokens"):
        out = merge.run(read_recipe(FOLDER / f"{name}.yml"), tmp_path / name, Options(sync=False))
        theirs, ours = recordings()[name]["template"], (out / "chat_template.jinja").read_text()
        jinja2 = pytest.importorskip("jinja2")
        said = [
            jinja2.Environment().from_string(text).render(messages=[{"role": "user", "content": "x"}])
            for text in (theirs, ours)
        ]
        assert said[0].strip() == said[1].strip() != ""


def test_the_order_of_sources_of_a_slice_is_of_no_weight() -> None:
    """Also where every slice names them in another."""
    one, two = ({"model": name, "layer_range": [0, 2]} for name in ("a", "b"))
    data = {"merge_method": "slerp", "base_model": "b", "parameters": {"t": 0.25}}
    recipe = from_mergekit({**data, "slices": [{"sources": [one, two]}, {"sources": [two, one]}]})
    assert [item.name for item in recipe.inputs] == ["b", "a"]
    assert [list(ranges) for ranges in recipe.layers[""]] == [["b", "a"]] * 2


def test_gradients_over_the_whole_depth(tmp_path: Path) -> None:
    ratio = read_recipe(FOLDER / "slerp_two_slices.yml").parameters["ratio"]
    assert [ratio.get(f"model.layers.{n}.mlp.up_proj.weight", ratio["*"]) for n in range(4)] == [0, 1, 0, 1]
    assert ratio.get("lm_head.weight", ratio["*"]) == 0
    whole = read_recipe(FOLDER / "slerp_two_slices.yml", whole_depth=True).parameters["ratio"]
    found = [whole.get(f"model.layers.{n}.mlp.up_proj.weight", whole["*"]) for n in range(4)]
    assert found == pytest.approx([0, 0.4 * 2 / 3, 0.4 + 0.6 / 3, 1])
    assert [whole.get(name, whole["*"]) for name in ("model.embed_tokens.weight", "lm_head.weight")] == [0, 1]


def test_modules_name_lists_of_layers(tmp_path: Path) -> None:
    for seed, name in enumerate("ab"):
        state = {
            f"{side}.layers.{n}.w": torch.full((2,), seed + n / 8) for side in ("encoder", "decoder") for n in range(3)
        }
        merge.save_checkpoint(state, tmp_path / f"{name}.pt")
    source = {"model": "a.pt", "layer_range": [0, 3]}
    deeper = [{"sources": [source]}, {"sources": [{"model": "b.pt", "layer_range": [1, 2]}]}]
    modules = {"encoder": {"slices": [{"sources": [source]}]}, "decoder": {"slices": deeper}}
    recipe = from_mergekit({"merge_method": "passthrough", "modules": modules}, tmp_path)
    got = open_checkpoint(merge.run(recipe, tmp_path / "out.pt", Options(sync=False)))
    assert got["decoder.layers.3.w"][0] == 1 + 1 / 8
    assert sorted(got) == sorted(
        [*(f"encoder.layers.{n}.w" for n in range(3)), *(f"decoder.layers.{n}.w" for n in range(4))]
    )
    with pytest.raises(MergeError, match=r"modules: vision is no single list of layers of a: it has encoder\.layers"):
        from_mergekit({"merge_method": "passthrough", "modules": {"vision": modules["encoder"]}}, tmp_path)
