"""Sweeps: every point named by its shares, all from one read, the folder whole or not there."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import merge
from merge import Input, MergeError, Options, Policy, Recipe
from tests.merge.made import Carrier, assert_same, ordered_as, weights

QUICK = Options(sync=False)


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    for seed, name in enumerate(("vqa", "caption")):
        merge.save_checkpoint(weights(seed), tmp_path / f"{name}.safetensors")
    return Recipe("interpolate", tuple(Input(n, tmp_path / f"{n}.safetensors") for n in ("vqa", "caption")))


def points(*ratios: float) -> list[dict[str, float]]:
    return [{"ratio": ratio} for ratio in ratios]


# -- in memory -------------------------------------------------------------------------------------------------------


def test_a_sweep_in_memory_is_lazy() -> None:
    asked: list[float] = []

    def ratios() -> Iterator[float]:
        for ratio in (0.0, 0.5, 1.0):
            asked.append(ratio)
            yield ratio

    sweep = merge.sweep(weights(0), weights(1), ratios())
    assert asked == []
    ratio, state = next(sweep)
    assert (ratio, asked) == (0.0, [0.0])
    assert_same(state, merge.interpolate(weights(0), weights(1), 0.0))
    assert [(ratio, len(state)) for ratio, state in sweep] == [(0.5, 11), (1.0, 11)]


def test_a_sweep_in_memory_gives_what_single_merges_give() -> None:
    policy = Policy(dtype=torch.bfloat16, drop=("decoder.*",))
    for ratio, state in merge.sweep(weights(0), weights(1), merge.ratios(5), policy=policy):
        assert_same(state, merge.interpolate(weights(0), weights(1), ratio, policy=policy))


def test_points_do_not_share_memory() -> None:
    states = [state for _, state in merge.sweep(weights(0), weights(1), [0.5, 0.5])]
    states[0]["decoder.scale"].fill_(7)
    assert states[1]["decoder.scale"].item() != 7


# -- to files --------------------------------------------------------------------------------------------------------


def test_names_and_the_index_say_the_shares(recipe: Recipe, tmp_path: Path) -> None:
    folder = merge.sweep_to_files(recipe, points(0.0, 0.25, 1 / 3, 1.0), tmp_path / "points", QUICK)
    names = [
        "1.00-vqa_0.00-caption.safetensors",
        "0.75-vqa_0.25-caption.safetensors",
        "0.666667-vqa_0.333333-caption.safetensors",
        "0.00-vqa_1.00-caption.safetensors",
    ]
    assert {path.name for path in folder.iterdir()} == {
        "sweep.json",
        *names,
        *(f"{name}.recipe.json" for name in names),
    }
    index = json.loads((folder / "sweep.json").read_text())
    assert [row["file"] for row in index["points"]] == names
    assert [row["shares"] for row in index["points"]] == [
        {"vqa": 1 - ratio, "caption": ratio} for ratio in (0.0, 0.25, 1 / 3, 1.0)
    ]
    for row in index["points"]:
        assert row["digest"] == merge.digest(merge.open_checkpoint(folder / row["file"]))
    for item in index["inputs"]:
        assert item["digest"] == merge.digest(merge.open_checkpoint(item["path"]))
        assert Path(item["path"]).is_absolute()


def test_endpoints_have_the_digests_of_the_inputs(recipe: Recipe, tmp_path: Path) -> None:
    """So that a study evaluates them once for all pairs."""
    folder = merge.sweep_to_files(recipe, points(0.0, 0.5, 1.0), tmp_path / "points", QUICK)
    digests = [row["digest"] for row in json.loads((folder / "sweep.json").read_text())["points"]]
    inputs = [merge.digest(merge.open_checkpoint(item.path)) for item in recipe.inputs]
    assert [digests[0], digests[2]] == inputs
    assert digests[1] not in inputs


def test_every_point_is_the_single_merge(recipe: Recipe, tmp_path: Path) -> None:
    folder = merge.sweep_to_files(recipe, points(*merge.ratios(11)), tmp_path / "points", QUICK)
    for row in json.loads((folder / "sweep.json").read_text())["points"]:
        single = merge.run(recipe.with_parameters(**row["parameters"]), tmp_path / row["file"], QUICK)
        assert single.read_bytes() == (folder / row["file"]).read_bytes()


def test_a_point_is_made_again_from_its_recipe(recipe: Recipe, tmp_path: Path) -> None:
    folder = merge.sweep_to_files(recipe, points(0.0, 0.3), tmp_path / "points", QUICK)
    name = "0.70-vqa_0.30-caption.safetensors"
    again = merge.run(merge.read_recipe(folder / f"{name}.recipe.json"), tmp_path / "again.safetensors", QUICK)
    assert again.read_bytes() == (folder / name).read_bytes()


def test_inputs_are_read_once_for_all_points(recipe: Recipe, tmp_path: Path) -> None:
    read: list[int] = []
    merge.sweep_to_files(recipe, points(*merge.ratios(11)), tmp_path / "points", Options(progress=read.append))
    assert sum(read) == sum(merge.open_checkpoint(item.path).nbytes for item in recipe.inputs)


def test_points_of_torch_files_are_torch_files(tmp_path: Path) -> None:
    for seed, name in enumerate("ab"):
        torch.save({"model": weights(seed), "epoch": 3}, tmp_path / f"{name}.pt")
    recipe = Recipe("interpolate", tuple(Input(name, tmp_path / f"{name}.pt") for name in "ab"))
    folder = merge.sweep_to_files(recipe, points(0.0, 0.5), tmp_path / "points", QUICK)
    loaded = torch.load(folder / "0.50-a_0.50-b.pt", weights_only=True)
    assert loaded["epoch"] == 3
    wanted = merge.interpolate(weights(0), weights(1), 0.5)
    assert_same(ordered_as(loaded["model"], wanted), wanted)


def test_points_of_other_methods(recipe: Recipe, tmp_path: Path) -> None:
    merge.save_checkpoint(weights(2), tmp_path / "base.safetensors")
    arithmetic = Recipe("task-arithmetic", recipe.inputs, {}, Input("base", tmp_path / "base.safetensors"))
    folder = merge.sweep_to_files(arithmetic, [{"scale": 0.3}, {"scale": 1.0}], tmp_path / "scales", QUICK)
    wanted = merge.task_arithmetic(weights(2), [weights(0), weights(1)], 0.3)
    got = merge.load_checkpoint(folder / "0.30-vqa_0.30-caption.safetensors")
    assert_same(ordered_as(got, wanted), wanted)
    average = Recipe("average", recipe.inputs)
    folder = merge.sweep_to_files(average, [{"weights": [0.2, 0.8]}, {"weights": [0.5, 0.5]}], tmp_path / "w", QUICK)
    assert (folder / "0.20-vqa_0.80-caption.safetensors").is_file()


def test_points_of_one_share_are_told_apart(recipe: Recipe, tmp_path: Path) -> None:
    merge.save_checkpoint(weights(2), tmp_path / "base.safetensors")
    ties = Recipe("ties", recipe.inputs, {"scale": 0.5}, Input("base", tmp_path / "base.safetensors"))
    folder = merge.sweep_to_files(ties, [{"density": 0.2}, {"density": 0.8}], tmp_path / "points", QUICK)
    for density in (0.2, 0.8):
        out = merge.run(ties.with_parameters(density=density), tmp_path / f"{density}.safetensors", QUICK)
        assert out.read_bytes() == (folder / f"0.50-vqa_0.50-caption_density-{density}.safetensors").read_bytes()


def test_rules_by_module_make_names_that_a_folder_can_hold(recipe: Recipe, tmp_path: Path) -> None:
    merge.save_checkpoint(weights(2), tmp_path / "base.safetensors")
    ties = Recipe("ties", recipe.inputs, {"scale": 0.5}, Input("base", tmp_path / "base.safetensors"))
    rules = [{"density": {"encoder[./]*": low, "*": 0.5}} for low in (0.2, 0.8)]
    folder = merge.sweep_to_files(ties, rules, tmp_path / "points", QUICK)
    names = [path.name for path in folder.glob("*.safetensors")]
    assert len(names) == 2
    assert not any(set(name) & set("/*{}' ") for name in names)


def test_points_by_module_have_names_too(recipe: Recipe, tmp_path: Path) -> None:
    rules = [{"ratio": {"encoder.image.*": ratio, "*": 0.5}} for ratio in (0.25, 0.75)]
    folder = merge.sweep_to_files(recipe, rules, tmp_path / "points", QUICK)
    rows = json.loads((folder / "sweep.json").read_text())["points"]
    assert [row["parameters"] for row in rows] == rules
    for row, rule in zip(rows, rules, strict=True):
        wanted = merge.interpolate(weights(0), weights(1), rule["ratio"])
        got = merge.load_checkpoint(folder / row["file"])
        assert torch.equal(got["encoder.image.bn.weight"], wanted["encoder.image.bn.weight"])
        assert torch.equal(got["decoder.scale"], wanted["decoder.scale"])


@pytest.mark.parametrize(
    ("ratios", "message"),
    [
        ([0.5, 0.5], "two points have the same shares: 0.50-vqa_0.50-caption"),
        ([0.5, 0.5 + 1e-9], "two points have the same shares"),
        ([0.5, 1.5], r"ratio 1\.5 is outside \[0, 1\]"),
        ([float("nan")], "ratio must be a finite number, not nan"),
        ([float("inf")], "ratio must be a finite number, not inf"),
        ([], "point"),
    ],
)
def test_bad_points_write_nothing(recipe: Recipe, tmp_path: Path, ratios: list[float], message: str) -> None:
    before = sorted(tmp_path.iterdir())
    with pytest.raises(MergeError, match=message):
        merge.sweep_to_files(recipe, points(*ratios), tmp_path / "points", QUICK)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("shares", [[0.5], {"vqa": 1.0}, "half", {"vqa": 0.5, "captoin": 0.5}])
def test_bad_weights_write_nothing(recipe: Recipe, tmp_path: Path, shares: object) -> None:
    before = sorted(tmp_path.iterdir())
    with pytest.raises(MergeError, match="weights"):
        merge.sweep_to_files(Recipe("average", recipe.inputs), [{"weights": shares}], tmp_path / "points", QUICK)
    assert sorted(tmp_path.iterdir()) == before


def test_an_existing_folder_is_replaced_as_a_whole_on_request(recipe: Recipe, tmp_path: Path) -> None:
    folder = merge.sweep_to_files(recipe, points(0.0, 0.5), tmp_path / "points", QUICK)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(MergeError, match="points: exists; choose another name or pass overwrite=True"):
        merge.sweep_to_files(recipe, points(0.25), folder, QUICK)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    merge.sweep_to_files(recipe, points(0.25), folder, Options(sync=False, overwrite=True))
    assert {path.name for path in folder.iterdir()} == {
        "sweep.json",
        "0.75-vqa_0.25-caption.safetensors",
        "0.75-vqa_0.25-caption.safetensors.recipe.json",
    }


def test_points_load_into_a_model(recipe: Recipe, tmp_path: Path) -> None:
    folder = merge.sweep_to_files(recipe, points(0.5), tmp_path / "points", QUICK)
    model = Carrier(weights(5))
    model.load_state_dict(merge.load_checkpoint(folder / "0.50-vqa_0.50-caption.safetensors"))
    assert_same(ordered_as(model.now(), weights(0)), merge.interpolate(weights(0), weights(1), 0.5))


def test_points_have_no_shards(recipe: Recipe, tmp_path: Path) -> None:
    with pytest.raises(MergeError, match="shard"):
        merge.sweep_to_files(recipe, points(0.5), tmp_path / "points", Options(sync=False, shard_size=200))
