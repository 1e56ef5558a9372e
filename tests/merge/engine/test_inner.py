"""Recipes whose inputs are recipes: the same bits as through files, with nothing written in between."""

from __future__ import annotations

import gc
import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import merge
from merge import Input, MergeError, Options, Policy, Recipe, load_checkpoint, open_checkpoint, read_recipe
from merge.engine import stream
from merge.methods import METHODS
from merge.plan.layers import layers_of
from tests.merge.made import Carrier, assert_same, ordered_as, recipe_of, weights
from tests.merge.shell import command

QUICK = Options(sync=False)
SHARDED = Options(sync=False, shard_size=200)


@pytest.fixture(autouse=True)
def _apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What lies beside headers goes into a folder of the test's own."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))


@pytest.fixture
def four(tmp_path: Path) -> Path:
    """Files 0 to 3 and base, in both formats; those of torch tie two names."""
    for seed, name in enumerate(("0", "1", "2", "3", "base")):
        state = weights(seed, torch.bfloat16)
        merge.save_checkpoint(state, tmp_path / f"{name}.pt")
        merge.save_checkpoint({key: value.clone() for key, value in state.items()}, tmp_path / f"{name}.safetensors")
    return tmp_path


def chained(inner: Recipe, outer: Recipe, at: int, folder: Path, end: str) -> tuple[Path, Path]:
    """The outer recipe with the inner one's result as its input number `at`: through a file, and without."""
    stage = merge.run(inner, folder / f"stage{end}", QUICK)
    made: list[Path] = []
    for name, item in (("wanted", Input("in0", stage)), ("got", Input("in0", Path("nowhere"), recipe=inner))):
        inputs = [replace(item, name=old.name) if i == at else old for i, old in enumerate(outer.inputs)]
        made.append(merge.run(replace(outer, inputs=tuple(inputs)), folder / f"{name}{end}", QUICK))
    return made[0], made[1]


@pytest.mark.parametrize("method", METHODS)
def test_a_chain_of_every_method_has_the_bits_of_its_files(four: Path, method: str) -> None:
    end = (".pt", ".safetensors")[list(METHODS).index(method) % 2]
    recipe = recipe_of(method, four, end)
    wanted, got = chained(recipe, recipe, 0, four, end)
    assert_same(load_checkpoint(got), load_checkpoint(wanted))
    assert merge.inspect(got).ties == merge.inspect(wanted).ties


@pytest.mark.parametrize("end", [".pt", ".safetensors"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_every_stage_rounds_once_to_its_dtype(
    four: Path, end: str, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "BLOCK", 48)  # several blocks, of other sizes than the files' stage has
    inner = recipe_of("ties", four, end, Policy(dtype=dtype, drop=("*bn*",)), density=0.4)
    outer = recipe_of("task-arithmetic", four, end, Policy(missing="zero-delta", dtype="float32"), scale=0.7)
    wanted, got = chained(inner, outer, 1, four, end)
    assert_same(load_checkpoint(got), load_checkpoint(wanted))


def test_surveys_of_both_look_at_the_whole_models(four: Path) -> None:
    inner = recipe_of("ties", four, density=0.3, threshold="whole")
    wanted, got = chained(inner, recipe_of("lines", four), 0, four, ".safetensors")
    assert_same(load_checkpoint(got), load_checkpoint(wanted))


def test_the_recipe_beside_the_result_has_the_whole_tree_and_runs_alone(four: Path) -> None:
    inner = recipe_of("average", four)
    wanted, got = chained(inner, recipe_of("ties", four, density=0.5), 0, four, ".safetensors")
    stage = four / "stage.safetensors.recipe.json"
    noted, alone = (json.loads(Path(f"{path}.recipe.json").read_text()) for path in (got, wanted))
    first = noted["inputs"][0]
    assert first["digest"] == alone["inputs"][0]["digest"] == json.loads(stage.read_text())["output"]["digest"]
    assert [item["digest"] for item in first["recipe"]["inputs"]] == [
        merge.digest(four / f"{i}.safetensors") for i in range(3)
    ]
    header = json.loads(open_checkpoint(got).metadata["unival_merge"])
    assert header["method"] == "ties"
    assert [item["digest"] for item in header["inputs"][0]["recipe"]["inputs"]] == [
        item["digest"] for item in first["recipe"]["inputs"]
    ]
    again = merge.run(f"{got}.recipe.json", four / "again.safetensors", QUICK)
    assert again.read_bytes() == got.read_bytes()
    assert "in0/in1: " in merge.inspect(got).text()
    assert "in0: average: 0.3333 in0 + " in merge.inspect(got).text()
    merge.save_checkpoint(open_checkpoint(four / "3.safetensors"), four / "0.safetensors", overwrite=True)
    with pytest.raises(MergeError, match=r"0.safetensors \(in0\) has changed since the recipe was written"):
        merge.run(f"{got}.recipe.json", four / "no.safetensors", QUICK)


def test_a_path_may_be_a_recipe_on_the_command_line_in_memory_and_live(four: Path) -> None:
    stage = merge.run(recipe_of("average", four), four / "mean.safetensors", QUICK)
    note, other = four / "mean.safetensors.recipe.json", four / "3.safetensors"
    wanted = merge.interpolate(stage, other, 0.25)
    assert_same(merge.interpolate(note, other, 0.25), wanted)
    model = Carrier(wanted)
    with merge.LinearPath(model, note, other) as path:
        path.set(0.25)
        assert_same(ordered_as(model.now(), wanted), wanted)
    stage.unlink()
    done = command("interpolate", note, other, "--ratio", "0.25", "-o", four / "cli.safetensors", "--dry-run")
    assert "mean: average: 0.3333 in0 + 0.3333 in1 + 0.3333 in2" in done.out
    assert "0.75 mean + 0.25 3" in done.out
    command("interpolate", note, other, "--ratio", "0.25", "-o", four / "cli.safetensors")
    assert_same(load_checkpoint(four / "cli.safetensors"), wanted)
    command("sweep", note, other, "--points", "3", "-o", four / "points")
    assert (four / "points" / "0.50-mean_0.50-3.safetensors").is_file()


def folders(root: Path) -> None:
    """Model folders a, b and c in shards, with configurations of two layers, and files beside them."""
    for seed, name in enumerate("abc"):
        generator = torch.Generator().manual_seed(seed)
        names = ["model.embed_tokens.weight", *(f"model.layers.{i}.mlp.weight" for i in range(2)), "lm_head.weight"]
        state = {key: torch.randn(6, 4, generator=generator) for key in names}
        merge.save_checkpoint(state, root / name, shard_size=200)
        config = {"num_hidden_layers": 2, "vocab_size": 6, "dtype": "float32", "architectures": ["LlamaForCausalLM"]}
        (root / name / "config.json").write_text(json.dumps(config))
        (root / name / "merges.txt").write_text("a b\n")


def test_a_tree_of_folders_has_the_files_of_one_made_by_stages(tmp_path: Path) -> None:
    folders(tmp_path)
    a, b, c = (Input(name, tmp_path / name) for name in "abc")
    deeper = Recipe("linear", (a,), {}, None, Policy(dtype="bfloat16"), layers_of([{"a": (0, 2)}, {"a": (1, 2)}]))
    mixed = Recipe("slerp", (b, c), {"ratio": {"*layers.1*": 0.9, "*": 0.2}}, None, Policy(dtype="float16"))
    also = Recipe(
        "linear", (Input("m", tmp_path, recipe=mixed),), {}, None, Policy(), layers_of([{"m": (0, 2)}, {"m": (0, 1)}])
    )
    stages = [merge.run(one, tmp_path / name, SHARDED) for one, name in ((deeper, "one"), (also, "two"))]
    rest: dict[str, Any] = {
        "policy": Policy(dtype="float32", accept=("config-meaning",)),
        "parameters": {"weights": [0.25, 0.75]},
    }
    rename = ("model.=net.",)
    plain = (Input("x", stages[0], rename=rename), Input("y", stages[1], rename=rename))
    tree = tuple(replace(item, path=tmp_path, recipe=made) for item, made in zip(plain, (deeper, also), strict=True))
    made = [
        merge.run(Recipe("average", inputs, **rest), tmp_path / name, SHARDED)
        for name, inputs in (("wanted", plain), ("got", tree))
    ]
    assert_same(load_checkpoint(made[1]), load_checkpoint(made[0]))
    assert "net.layers.2.mlp.weight" in open_checkpoint(made[1])
    files = [{path.name: path for path in folder.iterdir() if path.name != "README.md"} for folder in made]
    assert files[0].keys() == files[1].keys() >= {"config.json", "merges.txt"}
    for name in ("config.json", "merges.txt", "model.safetensors.index.json"):
        assert files[0][name].read_bytes() == files[1][name].read_bytes()
    assert json.loads(files[1]["config.json"].read_text())["num_hidden_layers"] == 3
    card = (made[1] / "README.md").read_text()
    assert all(f'- "{name}"' in card for name in "abc")
    assert '"x is made by"' in card


def test_nothing_is_left_of_what_lies_beside_headers(four: Path) -> None:
    recipe = replace(recipe_of("average", four), inputs=(Input("in0", four, recipe=recipe_of("average", four)),))
    with pytest.raises(MergeError, match=r"at least 2|2 or more"):
        merge.run(recipe, four / "no.safetensors", QUICK)
    gc.collect()
    assert not list((four / "tmp").iterdir())


# -- what is refused -------------------------------------------------------------------------------------------------


def note(folder: Path, name: str, *inputs: str, **more: Any) -> Path:
    """A recipe's file that averages inputs of these paths."""
    given = [{"name": f"in{number}", "path": path} for number, path in enumerate(inputs)]
    data = {"format": "unival-merge recipe 1", "method": "average", "inputs": given, **more}
    path = folder / name
    path.write_text(json.dumps(data))
    return path


def test_circles_depths_and_mistakes_below_are_told_in_a_line(four: Path) -> None:
    circle = note(four, "x.json", "y.json", "0.safetensors")
    note(four, "y.json", "z.recipe.json", "1.safetensors")
    note(four, "z.recipe.json", "x.json", "1.safetensors")
    with pytest.raises(MergeError, match=r"made of itself: x.json -> y.json -> z.recipe.json -> x.json"):
        merge.run(note(four, "top.json", "x.json", "0.safetensors"), four / "out.safetensors", QUICK)
    with pytest.raises(MergeError, match=r"made of itself: y.json -> z.recipe.json -> x.json -> y.json"):
        merge.run(circle, four / "out.safetensors", QUICK)
    note(four, "inner.json", "0.safetensors", "gone.safetensors")
    outer = note(four, "outer.json", "inner.json", "1.safetensors")
    with pytest.raises(MergeError, match=r"^in0, made by inner.json: .*gone.safetensors: no such file or folder$"):
        merge.run(outer, four / "out.safetensors", QUICK)
    note(four, "d0.json", "0.safetensors", "1.safetensors")
    for depth in range(50):
        note(four, f"d{depth + 1}.json", f"d{depth}.json", "1.safetensors")
    with pytest.raises(MergeError, match=r"recipes more than 40 levels deep within one: write the results of some"):
        merge.run(four / "d50.json", four / "out.safetensors", QUICK)
    for depth in range(9):
        note(four, f"w{depth + 1}.json", *[f"w{depth}.json" if depth else "d0.json"] * 2)
    with pytest.raises(MergeError, match=r"more than 200 recipes within one"):
        merge.run(four / "w9.json", four / "out.safetensors", QUICK)
    (four / "deep.json").write_text('{"recipe": ' * 3000)
    with pytest.raises(MergeError):
        merge.run(note(four, "o.json", "deep.json", "1.safetensors"), four / "out.safetensors", QUICK)
    assert not list((four / "tmp").iterdir())
    assert not (four / "out.safetensors").exists()


def test_outputs_never_take_the_place_of_a_leaf_and_stages_refuse_as_files_do(four: Path) -> None:
    inner = note(four, "inner.recipe.json", "0.safetensors", "1.safetensors")
    outer = note(four, "outer.json", inner.name, "2.safetensors")
    for taken in ("1.safetensors", inner.name):
        with pytest.raises(MergeError, match=r"is the input|known are"):
            merge.run(outer, four / taken, Options(overwrite=True))
    large = {"w": torch.full((3,), 6e4, dtype=torch.float16)}
    for name in ("big", "bigger"):
        merge.save_checkpoint(large, four / f"{name}.safetensors")
    stage = Recipe(
        "linear", tuple(Input(n, four / f"{n}.safetensors") for n in ("big", "bigger")), {"normalize": False}
    )
    last = Recipe("average", (Input("sum", four, recipe=stage), Input("big", four / "big.safetensors")))
    with pytest.raises(MergeError, match=r"^sum: w: 3 infinite or NaN values in the result"):
        merge.run(last, four / "out.safetensors", QUICK)
    merge.run(replace(last, policy=Policy(allow_nonfinite=True)), four / "out.safetensors", QUICK)
    with pytest.raises(MergeError, match=r"recipe=3: must be a merge.Recipe"):
        Input("a", Path("b"), recipe=3)  # pyright: ignore[reportArgumentType]


# -- documents of one file -------------------------------------------------------------------------------------------

CHAIN = """\
name: final
merge_method: linear
dtype: float32
models:
  - {model: up, parameters: {weight: [0.2, 0.8]}}
  - {model: c, parameters: {weight: 0.5}}
---
name: first-merge
merge_method: slerp
base_model: a
models: [{model: a}, {model: b}]
parameters: {t: 0.3}
dtype: bfloat16
---
name: up
merge_method: passthrough
slices:
  - sources: [{model: first-merge, layer_range: [0, 2]}]
"""


def test_documents_take_each_others_results_by_name(tmp_path: Path) -> None:
    pytest.importorskip("yaml")
    folders(tmp_path)
    (tmp_path / "multi.yml").write_text(CHAIN)
    got = merge.run(tmp_path / "multi.yml", tmp_path / "got", QUICK)
    documents = CHAIN.split("---\n")
    for number, name in ((1, "first-merge"), (2, "up"), (0, "wanted")):  # by hand, in their order
        (tmp_path / f"{name}.yml").write_text(documents[number])
        merge.run(tmp_path / f"{name}.yml", tmp_path / name, QUICK)
    assert_same(load_checkpoint(got), load_checkpoint(tmp_path / "wanted"))
    assert (got / "config.json").read_bytes() == (tmp_path / "wanted" / "config.json").read_bytes()
    inner = read_recipe(tmp_path / "got.recipe.json").inputs[0].recipe
    assert inner is not None
    assert inner.inputs[0].recipe is not None
    assert {item.name for item in inner.inputs[0].recipe.inputs} == {"a", "b"}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (CHAIN.replace("model: a}", "model: final}").replace("base_model: a", "base_model: final"), "made of itself: "),
        (CHAIN.replace("name: up", "name: first-merge"), "two documents are called 'first-merge'"),
        (CHAIN.replace("name: up\n", "").replace("name: final\n", ""), "two documents have no name"),
        (CHAIN.replace("model: up", "model: b"), "no document takes 'final' or 'up'"),
        (CHAIN.replace("passthrough", "passthru"), "the document 'up': unknown method 'passthru'"),
        ("---\n---\n", "not a recipe of mergekit"),
        (CHAIN + "---\n- 3\n", "the document without a name: not a recipe"),
    ],
)
def test_documents_that_are_no_tree_are_refused(tmp_path: Path, text: str, problem: str) -> None:
    pytest.importorskip("yaml")
    folders(tmp_path)
    (tmp_path / "multi.yml").write_text(text)
    with pytest.raises(MergeError, match=problem):
        merge.run(tmp_path / "multi.yml", tmp_path / "got", QUICK)
