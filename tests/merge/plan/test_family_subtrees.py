"""FAME-ViL and MOWA: parts of a model that belong to one task come from one input; extract and graft."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

import merge
from merge import MergeError, Policy, load_checkpoint, open_checkpoint, run
from merge.recipe.json import from_json, to_json
from tests.merge.handmade import assert_equal, random_tensor
from tests.merge.made import assert_same, in_memory
from tests.merge.shell import command, done
from tests.merge.ways import QUICK, merged_every_way, recipe_of

TASKS = ("fashioniq", "categories")
TRUNK = "model.clip.layers.0.fc.weight"
SHARED = tuple(f"model.clip.layers.{layer}.adapt_mlp.shared.weight" for layer in range(2))


def tensor(seed: int, *shape: int) -> Tensor:
    return random_tensor(shape, torch.float32, seed)


def fame(path: Path, seed: int) -> Path:
    """A file as mmf writes it: a dozen entries, slashes in their names, adapters and heads by task."""
    shared = tensor(seed + 1, 2, 2)
    model = {TRUNK: tensor(seed, 3, 2), **dict.fromkeys(SHARED, shared)}
    for index, task in enumerate(TASKS):
        model[f"model.clip.layers.0.adapt_mlp.{task}.weight"] = tensor(seed + 2 + index, 2, 2)
        model[f"model.heads.{task}.weight"] = tensor(seed + 4 + index, 3 + seed % 2, 2)  # classes differ
    entries = (
        "best_update",
        "best_iteration",
        "best_metric_value",
        "current_iteration",
        "current_epoch",
        "num_updates",
    )
    content = {"model": model, "optimizer": {"state": {}}, "fp16_scaler": None, "config": {"env": {"seed": seed}}}
    content |= dict.fromkeys(entries, seed)
    content |= {f"git/{name}": f"{name} {seed}" for name in ("branch", "commit_hash", "commit_author", "diff")}
    torch.save(content, path)
    return path


@pytest.fixture
def pair(tmp_path: Path) -> dict[str, Path]:
    return {"iq": fame(tmp_path / "iq.pt", 0), "cat": fame(tmp_path / "cat.pt", 101)}


def test_subtrees_come_from_one_input_and_the_trunk_is_averaged(pair: dict[str, Path], tmp_path: Path) -> None:
    picks = ("*adapt_mlp.fashioniq.*=iq", "*.heads.fashioniq.*=iq", "*.categories.*=cat")
    recipe = recipe_of("interpolate", pair, {"ratio": 0.25}, Policy(pick=picks))
    out = tmp_path / "out.pt"
    made = merged_every_way(recipe, out)
    first, second = (load_checkpoint(path) for path in pair.values())
    for name, value in made.items():
        if ".fashioniq." in name or ".categories." in name:
            assert torch.equal(value, (first if "fashioniq" in name else second)[name]), name
        else:
            assert torch.equal(value, torch.lerp(first[name], second[name], 0.25)), name
    before, after = (torch.load(path, weights_only=True) for path in (pair["iq"], out))
    assert list(after) == list(before)
    assert len(after) == 14
    assert_equal({k: v for k, v in after.items() if k != "model"}, {k: v for k, v in before.items() if k != "model"})
    assert len({after["model"][name].data_ptr() for name in SHARED}) == 1
    record = json.loads(Path(f"{out}.recipe.json").read_text())
    assert record["policy"]["pick"] == list(picks)
    assert "slices" not in record["policy"]  # what was not chosen is not noted


def test_dry_run_and_report_name_what_is_picked(pair: dict[str, Path], tmp_path: Path) -> None:
    argv = ["average", *pair.values(), "--pick", "*.fashioniq.*=iq", "--pick", "*.categories.*=cat", "-o"]
    shown = done(*argv, tmp_path / "out.pt", "--dry-run")
    assert "model.clip.layers.0.adapt_mlp.fashioniq.weight, model.heads.fashioniq.weight: picked from iq\n" in shown.out
    told = "average: 0.50 iq + 0.50 cat, *.fashioniq.* from iq, *.categories.* from cat\n"
    assert done(*argv, tmp_path / "out.pt").said.endswith(told)
    data = json.loads(done(*argv, tmp_path / "new.pt", "--dry-run", "--json").out)
    assert sorted(data["reasons"]) == ["picked from cat", "picked from iq"]


def test_the_first_pick_that_fits_decides_and_others_names_are_left_out(tmp_path: Path) -> None:
    first = {"w": tensor(0, 2), "head.a": tensor(1, 2), "head.b": tensor(2, 2)}
    second = {"w": tensor(3, 2), "head.a": tensor(4, 3), "head.c": tensor(5, 2)}
    picks = ("head.a=second", "head.*=first")
    with pytest.raises(
        MergeError, match=r"pick='head\.\*=first': first lacks head\.c, which others have: leave .* drop="
    ):
        merge.interpolate(first, second, 0.5, policy=Policy(pick=picks))
    policy = Policy(pick=picks, keep=("head.a",), drop=("head.c",))
    made = merge.interpolate(first, second, 0.5, policy=policy)
    assert list(made) == ["w", "head.a", "head.b"]
    assert torch.equal(made["head.a"], second["head.a"])
    assert list(merge.interpolate(first, second, 0.5, policy=Policy(pick=("head.*=",)))) == ["w"]


@pytest.mark.parametrize(
    ("pick", "message"),
    [
        ("heads=iq", "--pick heads decides no tensor: names look like"),
        ("*.heads.*=qi", "--pick '*.heads.*=qi' names no input: did you mean 'iq'?"),
        ("*.heads.*", "must be 'GLOB=INPUT'"),
    ],
)
def test_wrong_picks_are_told(pair: dict[str, Path], tmp_path: Path, pick: str, message: str) -> None:
    outcome = command("average", *pair.values(), "--pick", pick, "-o", tmp_path / "out.pt")
    assert outcome.code == 2
    assert message in outcome.err


def test_a_hidden_pick_is_told() -> None:
    state = {"w": tensor(0, 2), "head": tensor(1, 2)}
    with pytest.raises(MergeError, match="'head' decides no tensor: an earlier rule decides all it matches"):
        merge.interpolate(state, state, 0.5, policy=Policy(pick=("h*=first", "head=second")))


def test_ties_of_a_pick_are_those_of_its_input(tmp_path: Path) -> None:
    one = tensor(0, 2)
    tied, apart = {"a": one, "b": one, "w": one.clone()}, {"a": tensor(1, 2), "b": tensor(2, 2), "w": one.clone()}
    torch.save(tied, tmp_path / "tied.pt")
    torch.save(apart, tmp_path / "apart.pt")
    paths = {"x": tmp_path / "apart.pt", "y": tmp_path / "tied.pt"}
    run(recipe_of("average", paths, {}, Policy(pick=("[ab]=y",))), tmp_path / "out.pt", QUICK)
    made = torch.load(tmp_path / "out.pt", weights_only=True)
    assert made["a"].data_ptr() == made["b"].data_ptr()
    made = run(recipe_of("average", paths, {}, Policy(pick=("[ab]=x",))), tmp_path / "out2.pt", QUICK)
    assert_same(load_checkpoint(made), apart)


# -- slices ----------------------------------------------------------------------------------------------------------


def mowa(path: Path, seed: int) -> Path:
    """Every name with DataParallel's prefix, a table with one row for each task, buffers of integers."""
    generator = torch.Generator().manual_seed(seed)
    model = {
        "module.tps.weight": torch.randn(4, 3, generator=generator),
        "module.task_prompt": torch.randn(5, 2, 3, generator=generator),
        "module.mixed": torch.randn(2, 5, generator=generator).bfloat16(),
        "module.relative_position_index": torch.arange(6),
        "module.task_index": torch.tensor([1, 2, seed]),
    }
    torch.save({"state_dict": model, "epoch": 7}, path)
    return path


@pytest.mark.parametrize(("method", "ratio"), [("interpolate", 0.25), ("slerp", 0.25), ("interpolate", 0.0)])
def test_slices_of_a_task_come_from_one_input(method: str, ratio: float, tmp_path: Path) -> None:
    pair = {name: mowa(tmp_path / f"{name}.pth", seed) for seed, name in enumerate("ab")}
    slices = ("module.task_prompt[0,3]=b", "module.task_prompt[0,1]=a", "*mixed[1,4]=b", "*task_index[0,2]=b")
    recipe = recipe_of(method, pair, {"ratio": ratio}, Policy(slices=slices))
    made = merged_every_way(recipe, tmp_path / "out.pth")
    a, b = (load_checkpoint(path) for path in pair.values())
    whole = in_memory(method, {"a": a, "b": b}, {"ratio": ratio}, Policy(keep=("module.task_index",)))
    prompt = whole["module.task_prompt"].clone()
    prompt[3], prompt[1] = b["module.task_prompt"][3], a["module.task_prompt"][1]
    assert torch.equal(made["module.task_prompt"], prompt)
    mixed = whole["module.mixed"].clone()
    mixed[:, 4] = b["module.mixed"][:, 4]
    assert torch.equal(made["module.mixed"], mixed)
    assert made["module.task_index"].tolist() == [1, 2, 1]
    assert torch.equal(made["module.tps.weight"], whole["module.tps.weight"])
    assert list(made) == list(a)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("w[0,3]=first", "slices='w[0,3]=first': w has shape [3, 2]"),
        ("w[2,0]=first", "slices='w[2,0]=first': w has shape [3, 2]"),
        ("w[0,1]=third", "names no input: the inputs are first, second"),
        ("w[0]=first", "must be 'NAME[AXIS,INDEX]=INPUT'"),
        ("v[0,1]=first", "slices='v[0,1]=first' matches no tensor"),
        ("kept[0,1]=first", "slices='kept[0,1]=first': kept is kept, as a whole"),
        ("ids[0,0]=first", "ids is int64 and differs between first and second"),
    ],
)
def test_wrong_slices_are_told(rule: str, message: str) -> None:
    first = {"w": tensor(0, 3, 2), "kept": tensor(1, 2), "ids": torch.tensor([1, 2])}
    second = {"w": tensor(2, 3, 2), "kept": tensor(3, 2), "ids": torch.tensor([1, 3])}
    with pytest.raises(MergeError) as error:
        merge.interpolate(first, second, 0.5, policy=Policy(slices=(rule,), keep=("kept",)))
    assert message in str(error.value)


# -- extract and graft -----------------------------------------------------------------------------------------------


def test_extract_takes_a_subtree_with_the_other_entries(pair: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "part.pt"
    shown = done("extract", pair["iq"], "--only", "*.heads.*", "--only", TRUNK, "-o", out)
    assert shown.said == f"{out}: linear: 1.00 iq, *.heads.* from iq, {TRUNK} from iq, * from none\n"
    whole = load_checkpoint(pair["iq"])
    wanted = {name: value for name, value in whole.items() if ".heads." in name or name == TRUNK}
    assert_same(load_checkpoint(out), wanted)
    assert list(torch.load(out, weights_only=True)) == list(torch.load(pair["iq"], weights_only=True))
    assert command("extract", pair["iq"], "--only", "nothing", "-o", tmp_path / "no.pt").code == 2
    done("extract", pair["iq"], "--only", "*", "-o", tmp_path / "all.pt")
    assert_same(load_checkpoint(tmp_path / "all.pt"), whole)


def test_graft_puts_a_subtree_in(pair: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "grafted.pt"
    done("graft", *pair.values(), "--pick", "*.heads.*", "-o", out)
    target, source = (load_checkpoint(path) for path in pair.values())
    assert_same(load_checkpoint(out), {name: (source if ".heads." in name else target)[name] for name in target})
    assert open_checkpoint(out).section == "model"
    assert torch.load(out, weights_only=True)["git/branch"] == "branch 0"
    done("run", f"{out}.recipe.json", "-o", tmp_path / "again.pt")
    assert_same(load_checkpoint(tmp_path / "again.pt"), load_checkpoint(out))
    assert command("graft", *pair.values(), "-o", tmp_path / "no.pt").err.startswith("error: graft needs --pick")


def test_what_was_extracted_can_be_grafted_back(pair: dict[str, Path], tmp_path: Path) -> None:
    done("extract", pair["cat"], "--only", "*.heads.*", "-o", tmp_path / "heads.pt")
    done("graft", pair["cat"], tmp_path / "heads.pt", "--pick", "*.heads.*", "-o", tmp_path / "same.pt")
    assert_same(load_checkpoint(tmp_path / "same.pt"), load_checkpoint(pair["cat"]))


# -- recipes ---------------------------------------------------------------------------------------------------------


def test_a_recipe_holds_every_choice(pair: dict[str, Path]) -> None:
    chosen = Policy(pick=("a.*=iq", "b="), slices=("t[0,1]=cat",), missing="union", vocab_rows="keep-first")
    recipe = recipe_of("average", pair, {}, chosen)
    assert from_json(to_json(recipe)) == recipe
    assert to_json(recipe)["policy"]["slices"] == ["t[0,1]=cat"]
    data = to_json(recipe)
    data["policy"]["pic"] = data["policy"].pop("pick")
    with pytest.raises(MergeError, match="a policy has no key 'pic'; did you mean 'pick'"):
        from_json(data)
    with pytest.raises(MergeError, match="pick is 'a=iq'; it must be a list"):
        from_json({**data, "policy": {"pick": "a=iq"}})


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_blocks_of_zeros_are_written_as_zeros(suffix: str, tmp_path: Path) -> None:
    """They may be left as holes; what is read is the same."""
    value = torch.zeros(300_001)
    value[131_072 * 2 - 1], value[-1] = 1, 2
    state = {"holes": value, "nothing": torch.zeros(7), "odd": torch.zeros(3, dtype=torch.bool), "end": torch.ones(5)}
    merge.save_checkpoint(state, tmp_path / f"a{suffix}")
    paths = dict.fromkeys("xy", tmp_path / f"a{suffix}")
    out = run(recipe_of("average", paths, {}, Policy()), tmp_path / f"out{suffix}", QUICK)
    assert_same(load_checkpoint(out), load_checkpoint(tmp_path / f"a{suffix}"))
    if suffix == ".pt":
        assert_same(torch.load(out, weights_only=True), state)  # with the checksums of a zip file
