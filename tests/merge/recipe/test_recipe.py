"""Recipes: enough to make a merge again, written and read back without a change, wrong ones named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import merge
from merge import Input, MergeError, Options, Policy, Recipe, read_recipe, share_label
from merge.methods import METHODS
from merge.plan.units import Unit
from merge.recipe.json import FORMAT, from_json, to_json
from merge.recipe.parameters import parameters_for
from merge.recipe.shares import describe, shares
from tests.merge.made import assert_same, in_memory, parameters_of, weights

QUICK = Options(sync=False)
PAIR = (Input("vqa", Path("/x/vqa.pt")), Input("caption", Path("/x/caption.pt")))
FULL = Recipe(
    "task-arithmetic",
    (Input("vqa", Path("/x/vqa.pt"), "model", "xxh3_128:00"), *PAIR[1:]),
    {"scale": 0.3, "weights": [1.0, -0.5]},
    Input("base", Path("/x/base.pt"), "extra_state.ema"),
    Policy(
        keep=("head.*",),
        drop=("audio.*", "video.*"),
        missing="keep-first",
        dtype=torch.bfloat16,
        compute_dtype=torch.float64,
        batchnorm="from:vqa",
        allow_nonfinite=True,
        extrapolate=True,
    ),
)


@pytest.mark.parametrize("recipe", [FULL, Recipe("interpolate", PAIR, {"ratio": {"encoder.*": 0.25, "*": 0.5}})])
def test_recipes_come_back_from_json_as_they_were(recipe: Recipe) -> None:
    assert from_json(json.loads(json.dumps(to_json(recipe)))) == recipe


def test_recipes_say_what_they_are() -> None:
    assert to_json(FULL)["format"] == FORMAT
    assert set(to_json(FULL)) == {"format", "method", "base", "inputs", "parameters", "policy"}
    rare = {"pick", "slices", "vocab_rows", "accept", "dequantize", "untie", "chat_template"}
    rare |= {"tokenizer", "missing_rows", "pad_to_multiple", "token_rows"}
    assert set(to_json(FULL)["policy"]) | rare == set(vars(Policy()))


def test_relative_paths_are_relative_to_the_recipe(tmp_path: Path) -> None:
    data = to_json(Recipe("interpolate", (Input("a", Path("a.pt")), Input("b", Path("/abs/b.pt"))), {"ratio": 0.5}))
    (tmp_path / "r.json").write_text(json.dumps(data))
    recipe = read_recipe(tmp_path / "r.json")
    assert [item.path for item in recipe.inputs] == [tmp_path / "a.pt", Path("/abs/b.pt")]


def test_a_short_recipe_is_filled_with_defaults() -> None:
    data = {"format": FORMAT, "method": "interpolate", "inputs": [{"path": "vqa.pt"}, {"path": "b/caption.x.pt"}]}
    recipe = from_json(data)
    assert [item.name for item in recipe.inputs] == ["vqa", "caption.x"]
    assert [item.section for item in recipe.inputs] == ["auto", "auto"]
    assert (recipe.policy, recipe.parameters, recipe.base) == (Policy(), {}, None)


def changed(**changes: Any) -> dict[str, Any]:
    data = json.loads(json.dumps(to_json(Recipe("interpolate", PAIR, {"ratio": 0.5}))))
    data.update(changes)
    return data


def inputs(**changes: Any) -> dict[str, Any]:
    return changed(inputs=[{**changed()["inputs"][0], **changes}, changed()["inputs"][1]])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "not a recipe: its 'format' must be"),
        ({}, "not a recipe"),
        (changed(format="unival-merge recipe 2"), "its 'format' must be 'unival-merge recipe 1'"),
        (changed(polcy={}), "a recipe has no key 'polcy'; did you mean 'policy'?"),
        (changed(zzz={}), "a recipe has no key 'zzz'; known are base, format, inputs"),
        (changed(policy={"mising": "error"}), "a policy has no key 'mising'; did you mean 'missing'?"),
        (inputs(sektion="model"), "an input has no key 'sektion'; did you mean 'section'?"),
        (changed(policy={"dtype": "float23"}), "unknown dtype 'float23'; did you mean 'float"),
        (changed(policy={"keep": "abc"}), "keep"),
        (changed(policy={"keep": [1]}), "keep"),
        (changed(policy={"allow_nonfinite": "no"}), "allow_nonfinite"),
        (changed(policy={"extrapolate": 1}), "extrapolate"),
        (changed(policy={"missing": 3}), "missing"),
        (changed(policy=[1]), "it must be a "),
        (changed(inputs=None), "it must be a "),
        (changed(inputs=["vqa.pt"]), "."),
        (changed(inputs=[{"name": "vqa"}]), "lacks 'path'"),
        (inputs(section=None), "section"),
        (inputs(path=3), "path"),
        (inputs(digest=7), "digest"),
        (changed(parameters=[0.5]), "it must be a "),
        (changed(base="base.pt"), "."),
    ],
)
def test_wrong_recipes_are_named(tmp_path: Path, data: Any, message: str) -> None:
    file = tmp_path / "r.json"
    file.write_text(json.dumps(data))
    with pytest.raises(MergeError) as caught:
        read_recipe(file)
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"{file}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", ["method", "inputs"])
def test_recipes_without_the_essentials(key: str) -> None:
    data = changed()
    del data[key]
    with pytest.raises(MergeError, match=f"lacks '{key}'"):
        from_json(data)


@pytest.mark.parametrize("text", ["", "{", "null", "[" * 100_000, '"x"', "\x00", "{'a': 1}"])
def test_files_that_are_no_recipe(tmp_path: Path, text: str) -> None:
    (tmp_path / "r.json").write_text(text)
    with pytest.raises(MergeError, match=r"r\.json: not a recipe"):
        read_recipe(tmp_path / "r.json")


def test_a_missing_recipe_and_a_folder(tmp_path: Path) -> None:
    for path in (tmp_path / "none.json", tmp_path):
        with pytest.raises(MergeError, match="not a recipe file"):
            read_recipe(path)


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "r.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(MergeError, match=r"r\.json: not a recipe file"):
        read_recipe(tmp_path / "r.json")


# -- parameters ------------------------------------------------------------------------------------------------------


UNITS = [Unit(("w",), "merge", (0, 1), torch.float32, (1,))]


def checked(method: str, parameters: dict[str, Any], count: int = 3, **policy: Any) -> dict[str, Any]:
    named = tuple(Input(name, Path(name)) for name in ("vqa", "caption", "grounding")[:count])
    base = Input("base", Path("base")) if method == "task-arithmetic" else None
    return parameters_for(Recipe(method, named, parameters, base, Policy(**policy)), UNITS)["w"]


def test_weights_are_given_in_order_or_by_name() -> None:
    assert checked("average", {"weights": [0.5, 0.3, 0.2]})["weights"] == (0.5, 0.3, 0.2)
    by_name = {"grounding": 0.2, "vqa": 0.5, "caption": 0.3}
    assert checked("average", {"weights": by_name})["weights"] == (0.5, 0.3, 0.2)
    assert checked("average", {})["weights"] == (1 / 3, 1 / 3, 1 / 3)
    assert checked("task-arithmetic", {"scale": 0.3})["weights"] == (1.0, 1.0, 1.0)


@pytest.mark.parametrize(
    ("method", "parameters", "message"),
    [
        ("average", {"weights": [0.5, 0.5]}, r"2 weights were given for 3 inputs \(vqa, caption, grounding\)"),
        (
            "average",
            {"weights": [0.5, 0.5, 0.5]},
            r"weights 0\.5, 0\.5, 0\.5 sum to 1\.5, not to 1: pass extrapolate=True",
        ),
        ("average", {"weights": [0.0, 0.0, 0.0]}, "sum to 0, not to 1: which erases every tensor"),
        ("average", {"weights": [0.5, 0.5, float("inf")]}, "weights must be a finite number, not inf"),
        ("average", {"weights": [0.5, 0.5, "x"]}, "weights must be a finite number"),
        ("average", {"weights": {"vqa": 1.0}}, "weights names vqa; the inputs are vqa, caption, grounding"),
        ("average", {"weights": [1.5, -0.5, 0.0]}, r"weights.*outside \[0, 1\].*extrapolate=True"),
        ("average", {"wieghts": [1]}, r"average has no parameter 'wieghts'; did you mean 'weights'\?"),
        ("average", {"ratio": 0.5}, "average has no parameter 'ratio'"),
        ("task-arithmetic", {}, "task-arithmetic needs the parameter 'scale'"),
        ("task-arithmetic", {"scale": [1, 2]}, "scale must be a finite number"),
        ("task-arithmetic", {"scale": 10**400}, "scale must be a finite number"),
        ("interpolate", {"ratio": 0.5}, "interpolate takes 2 checkpoints, 3 were given"),
    ],
)
def test_wrong_parameters_are_named(method: str, parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(MergeError, match=message):
        checked(method, parameters)


def test_weights_beyond_the_simplex_on_request() -> None:
    assert checked("average", {"weights": [1.5, -0.5, 0.5]}, extrapolate=True)["weights"] == (1.5, -0.5, 0.5)
    with pytest.raises(MergeError, match="erases every tensor"):
        checked("average", {"weights": [1.0, -1.0, 0.0]}, extrapolate=True)
    assert checked("interpolate", {"ratio": -0.5}, 2, extrapolate=True) == {"ratio": -0.5}
    with pytest.raises(MergeError, match=r"t -1 is outside \[0, inf\]"):  # not a share
        in_memory("nearswap", {"a": weights(0)}, {"t": -1}, Policy(extrapolate=True), base=weights(1))


def test_extrapolation_goes_on_along_the_line() -> None:
    a, b = {"w": torch.tensor([1.0])}, {"w": torch.tensor([3.0])}
    policy = Policy(extrapolate=True)
    assert merge.interpolate(a, b, 1.5, policy=policy)["w"].item() == 4.0
    assert merge.interpolate(a, b, -0.5, policy=policy)["w"].item() == 0.0
    assert merge.average([a, b], weights=[2.0, 1.0], policy=policy)["w"].item() == 5.0
    assert merge.average([a, b], weights=[1.5, -0.5], policy=policy)["w"].item() == 0.0


def test_shares_that_are_nearly_one_mean_one() -> None:
    """Three times 0.3333333 is a third each: frozen tensors stay frozen."""
    frozen = {"w": torch.randn(1000)}
    assert_same(merge.average([frozen, frozen, frozen], weights=[0.3333333] * 3), frozen)


def test_names_are_unique_and_methods_known() -> None:
    twice = (PAIR[0], Input("vqa", Path("other.pt")))
    with pytest.raises(MergeError, match="two inputs are called 'vqa'; tell them apart with name='NAME'"):
        parameters_for(Recipe("interpolate", twice, {"ratio": 0.5}), [])
    with pytest.raises(MergeError, match=r"unknown method 'slrep'; did you mean 'slerp'\?"):
        parameters_for(Recipe("slrep", PAIR, {"ratio": 0.5}), [])
    with pytest.raises(MergeError, match="task-arithmetic needs base"):
        parameters_for(Recipe("task-arithmetic", PAIR, {"scale": 0.5}), [])
    with pytest.raises(MergeError, match="interpolate takes no base"):
        parameters_for(Recipe("interpolate", PAIR, {"ratio": 0.5}, Input("base", Path("b"))), [])
    with pytest.raises(MergeError, match="average takes at least 2 checkpoints, 1 "):
        parameters_for(Recipe("average", PAIR[:1]), [])


# -- shares ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parts", "text"),
    [
        ({"vqa": 0.2, "caption": 0.8}, "0.20 vqa + 0.80 caption"),
        ({"vqa": 1.0, "caption": 0.0}, "1.00 vqa"),
        ({"vqa": 1 - 0.9, "caption": 0.9}, "0.10 vqa + 0.90 caption"),
        ({"vqa": 0.125, "caption": 0.875}, "0.125 vqa + 0.875 caption"),
        ({"a": 1 / 3, "b": 2 / 3}, "0.3333 a + 0.6667 b"),
        ({"a": 1.5, "b": -0.5}, "1.50 a - 0.50 b"),
        ({"a": 0.0}, "nothing"),
    ],
)
def test_shares_are_printed_in_one_way(parts: dict[str, float], text: str) -> None:
    assert share_label(parts) == text


def test_shares_name_every_checkpoint() -> None:
    assert shares(Recipe("interpolate", PAIR, {"ratio": 0.25})) == {"vqa": 0.75, "caption": 0.25}
    assert shares(Recipe("slerp", PAIR, {"ratio": 0.25})) == {"vqa": 0.75, "caption": 0.25}
    assert shares(Recipe("average", PAIR, {"weights": [0.25, 0.75]})) == {"vqa": 0.25, "caption": 0.75}
    assert shares(Recipe("average", PAIR, {"weights": {"caption": 0.75, "vqa": 0.25}})) == {
        "vqa": 0.25,
        "caption": 0.75,
    }
    base = Input("base", Path("base.pt"))
    assert shares(Recipe("task-arithmetic", PAIR, {"scale": 0.3}, base)) == {"vqa": 0.3, "caption": 0.3}
    assert shares(Recipe("interpolate", PAIR, {"ratio": {"*": 0.5}})) is None


def test_an_average_without_weights_has_equal_shares() -> None:
    assert shares(Recipe("average", PAIR)) == {"vqa": 0.5, "caption": 0.5}
    assert describe(Recipe("average", PAIR)) == "average: 0.50 vqa + 0.50 caption"


def test_recipes_in_words() -> None:
    assert describe(Recipe("interpolate", PAIR, {"ratio": 0.8})) == "interpolate: 0.20 vqa + 0.80 caption"
    base = Input("pretrained", Path("base.pt"))
    words = describe(Recipe("task-arithmetic", PAIR, {"scale": 0.3}, base))
    assert words == "task-arithmetic: pretrained + 0.30 vqa + 0.30 caption"


def test_recipes_without_shares_name_their_inputs_and_parameters() -> None:
    base = Input("pretrained", Path("base.pt"))
    fishers = tuple(Input(f"{name}-fisher", Path(f"{name}-fisher.pt")) for name in ("vqa", "caption"))
    fisher = Recipe("fisher", (*PAIR, *fishers), {"floor": 0.5})
    assert shares(fisher) is None
    assert describe(fisher) == "fisher: vqa, caption by statistics vqa-fisher, caption-fisher (floor 0.5)"
    stock = Recipe("model-stock", PAIR, {"filter_wise": True}, base)
    assert shares(stock) is None
    assert describe(stock) == "model-stock: pretrained, vqa, caption (filter_wise true)"
    rules = Recipe("interpolate", PAIR, {"ratio": {"encoder.*": 0.2, "*": 0.5}})
    assert describe(rules) == 'interpolate: vqa, caption (ratio {"encoder.*": 0.2, "*": 0.5})'
    ties = Recipe("ties", PAIR, {"density": (0.2, 0.4), "weights": {"vqa": 1, "caption": 2}}, base)
    assert describe(ties) == "ties: pretrained + 1.00 vqa + 2.00 caption (density [0.2, 0.4])"


def test_relative_weights_are_told_as_shares() -> None:
    assert shares(Recipe("linear", PAIR)) == {"vqa": 0.5, "caption": 0.5}
    assert shares(Recipe("nuslerp", PAIR, {"weights": [1, 3]})) == {"vqa": 0.25, "caption": 0.75}
    assert shares(Recipe("linear", PAIR, {"weights": [1, 3], "normalize": False})) == {"vqa": 1.0, "caption": 3.0}
    assert shares(Recipe("linear", PAIR, {"weights": [1, -1]})) == {"vqa": 1.0, "caption": -1.0}  # refused when run


@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_described_by_its_inputs_alone(method: str) -> None:
    count = max(METHODS[method].inputs[0], 2) if METHODS[method].inputs[1] != 1 else 1
    names = [f"in{index}" for index in range(count)]
    recipe = Recipe(
        method,
        tuple(Input(name, Path(f"{name}.pt")) for name in names),
        parameters_of(method),
        Input("pretrained", Path("base.pt")) if METHODS[method].takes_base else None,
    )
    words = describe(recipe)
    assert all(name in words for name in names)
    assert ("pretrained" in words) == METHODS[method].takes_base
    has_shares = bool({"ratio", "scale", "weights"} & set(METHODS[method].parameters) or METHODS[method].shares)
    assert (" + " in words or "1.00" in words) == has_shares


# -- a merge made again ----------------------------------------------------------------------------------------------


@pytest.fixture
def made(tmp_path: Path) -> Path:
    for seed, name in enumerate(("vqa", "caption", "base")):
        merge.save_checkpoint(weights(seed), tmp_path / f"{name}.pt")
    named = tuple(Input(name, tmp_path / f"{name}.pt") for name in ("vqa", "caption"))
    recipe = Recipe(
        "task-arithmetic",
        named,
        {"scale": {"encoder.layers.*": 0.25, "*": 0.3}, "weights": {"caption": -1.0, "vqa": 1.0}},
        Input("base", tmp_path / "base.pt"),
        Policy(keep=("decoder.scale",), dtype=torch.bfloat16),
    )
    return merge.run(recipe, tmp_path / "merged.safetensors", QUICK)


def beside(path: Path) -> Path:
    return path.with_name(path.name + ".recipe.json")


def test_a_recipe_remakes_the_same_bytes(made: Path) -> None:
    recipe = read_recipe(beside(made))
    again = merge.run(recipe, made.with_name("again.safetensors"), QUICK)
    assert again.read_bytes() == made.read_bytes()
    first, second = (json.loads(beside(path).read_text()) for path in (made, again))
    assert {**first, "output": None} == {**second, "output": None}
    assert first["output"]["digest"] == second["output"]["digest"] == merge.digest(merge.load_checkpoint(made))


def test_the_recipe_holds_digests_of_the_inputs_and_versions(made: Path) -> None:
    data = json.loads(beside(made).read_text())
    for item in [data["base"], *data["inputs"]]:
        assert item["digest"] == merge.digest(merge.open_checkpoint(item["path"]))
        assert Path(item["path"]).is_absolute()
    assert {"unival-merge", "torch", "python", "command"} <= set(data["provenance"])
    assert data["provenance"]["unival-merge"] == merge.__version__


@pytest.mark.parametrize("algorithm", ["xxh3_128", "sha256"])
def test_a_recipe_keeps_its_kind_of_digest(tmp_path: Path, algorithm: str) -> None:
    for seed, name in enumerate(("vqa", "caption")):
        merge.save_checkpoint(weights(seed), tmp_path / f"{name}.pt")
    named = tuple(Input(name, tmp_path / f"{name}.pt") for name in ("vqa", "caption"))
    options = Options(sync=False, digest=algorithm)
    out = merge.run(Recipe("interpolate", named, {"ratio": 0.5}), tmp_path / "m.safetensors", options)
    recipe = read_recipe(beside(out))
    assert all(item.digest.startswith(f"{algorithm}/2:") for item in recipe.inputs)
    again = merge.run(recipe, tmp_path / "again.safetensors", QUICK)
    assert again.read_bytes() == out.read_bytes()


@pytest.mark.parametrize("algorithm", ["xxh3_128", "sha256"])
def test_a_recipe_with_digests_of_before_still_runs(tmp_path: Path, algorithm: str) -> None:
    inputs: list[Input] = []
    for seed, name in enumerate(("vqa", "caption")):
        path = merge.save_checkpoint(weights(seed), tmp_path / f"{name}.pt")
        inputs.append(Input(name, path, digest=merge.digest(path, f"{algorithm}/1")))
    recipe = Recipe("interpolate", tuple(inputs), {"ratio": 0.5})
    out = merge.run(recipe, tmp_path / "m.safetensors", QUICK)
    assert [item.digest for item in read_recipe(beside(out)).inputs] == [item.digest for item in inputs]
    merge.save_checkpoint(weights(9), tmp_path / "vqa.pt", overwrite=True)
    with pytest.raises(MergeError, match="has changed since the recipe was written"):
        merge.run(recipe, tmp_path / "again.safetensors", QUICK)


@pytest.mark.parametrize("which", [["base"], ["caption"], ["vqa", "caption"]])
def test_changed_inputs_are_named(made: Path, which: list[str]) -> None:
    for name in which:
        state = weights(7)
        merge.save_checkpoint(state, made.with_name(f"{name}.pt"), overwrite=True)
    before = sorted(made.parent.iterdir())
    with pytest.raises(MergeError) as caught:
        merge.run(read_recipe(beside(made)), made.with_name("again.safetensors"), QUICK)
    for name in ("base", "vqa", "caption"):
        assert (str(made.with_name(f"{name}.pt")) in str(caught.value)) == (name in which)
    assert sorted(made.parent.iterdir()) == before


def test_one_changed_bit_is_a_change(made: Path) -> None:
    path = made.with_name("vqa.pt")
    state = merge.load_checkpoint(path)
    state["decoder.scale"].view(torch.int32).bitwise_xor_(1)
    merge.save_checkpoint(state, path, overwrite=True)
    with pytest.raises(MergeError, match=r"vqa.* has changed since the recipe was written: .*xxh3_128/2:"):
        merge.run(read_recipe(beside(made)), made.with_name("again.safetensors"), QUICK)


def test_a_changed_tensor_that_the_merge_leaves_out_is_a_change_too(tmp_path: Path) -> None:
    for seed, name in enumerate(("a", "b")):
        merge.save_checkpoint(weights(seed), tmp_path / f"{name}.safetensors")
    named = tuple(Input(name, tmp_path / f"{name}.safetensors") for name in "ab")
    recipe = Recipe("interpolate", named, {"ratio": 0.5}, policy=Policy(drop=("decoder.scale",)))
    out = merge.run(recipe, tmp_path / "m.safetensors", QUICK)
    state = weights(1)
    state["decoder.scale"] += 1
    merge.save_checkpoint(state, tmp_path / "b.safetensors", overwrite=True)
    with pytest.raises(MergeError, match=r"b\.safetensors .*has changed"):
        merge.run(read_recipe(beside(out)), tmp_path / "again.safetensors", QUICK)


def test_a_cleared_digest_accepts_the_change(made: Path) -> None:
    merge.save_checkpoint(weights(7), made.with_name("vqa.pt"), overwrite=True)
    data = json.loads(beside(made).read_text())
    data["inputs"][0]["digest"] = ""
    (made.parent / "edited.json").write_text(json.dumps(data))
    merge.run(read_recipe(made.parent / "edited.json"), made.with_name("again.safetensors"), QUICK)
