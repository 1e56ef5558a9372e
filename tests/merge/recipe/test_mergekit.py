"""mergekit's YAML read as our recipes: what is understood, and what each misunderstanding is told."""

from __future__ import annotations

import builtins
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

import merge
from merge import MergeError
from merge.methods import METHODS
from merge.recipe.mergekit import from_mergekit, read_mergekit


def two(**parameters: Any) -> list[dict[str, Any]]:
    return [{"model": name, "parameters": parameters} for name in ("a.safetensors", "b.safetensors")]


def write_layers(folder: Path, layers: int = 5) -> None:
    """Files base, a and b with numbered layers of attention and mlp, embeddings and a counter."""
    for seed, name in enumerate(("base", "a", "b")):
        generator = torch.Generator().manual_seed(seed)
        state = {"embed.weight": torch.randn(3, 2, generator=generator)}
        for index in range(layers):
            state[f"model.layers.{index}.self_attn.weight"] = torch.randn(2, 2, generator=generator)
            state[f"model.layers.{index}.mlp.weight"] = torch.randn(2, 2, generator=generator)
        state["steps"] = torch.tensor(7)
        save_file(state, folder / f"{name}.safetensors")


# -- what is understood ----------------------------------------------------------------------------------------------


def test_words_of_mergekit_lead_to_parameters_of_the_method() -> None:
    for name, method in METHODS.items():
        for form in method.mergekit.values():
            ours = {key for key, _ in [*form.each.values(), *form.whole.values()]} | set(form.fixed)
            assert ours <= set(method.parameters), name


def test_a_whole_recipe() -> None:
    recipe = from_mergekit(
        {
            "merge_method": "ties",
            "models": [
                {"model": "org/base"},
                {"model": "one/llama", "parameters": {"weight": 0.6, "density": 0.5}},
                {"model": "two/llama", "parameters": {"weight": 0.4}},
            ],
            "base_model": "org/base",
            "parameters": {"density": 0.7, "lambda": 0.9, "int8_mask": True, "normalize": False},
            "dtype": "float32",
            "out_dtype": "bfloat16",
            "name": "my merge",
        },
        Path("models"),
    )
    assert recipe.method == "ties"
    assert recipe.base is not None
    assert recipe.base.path == Path("org/base")  # of the hub: there is no such folder
    assert [item.name for item in recipe.sources] == ["base", "llama", "llama-2"]
    assert recipe.parameters == {
        "weights": [0.6, 0.4],
        "density": [0.5, 0.7],
        "scale": 0.9,
        "normalize": False,
        "rescale_l1": False,
    }
    assert recipe.policy.dtype == "bfloat16"


def test_relative_paths_start_at_the_recipe(tmp_path: Path) -> None:
    write_layers(tmp_path)
    path = tmp_path / "recipe.yml"
    path.write_text(yaml.safe_dump({"merge_method": "linear", "models": two(weight=0.5)}))
    merged = merge.run(read_mergekit(path), tmp_path / "out.safetensors", merge.Options(sync=False))
    a, b, got = (load_file(tmp_path / f"{name}.safetensors") for name in ("a", "b", "out"))
    assert merged == tmp_path / "out.safetensors"
    torch.testing.assert_close(got["embed.weight"], (a["embed.weight"] + b["embed.weight"]) / 2)


def test_the_base_of_slerp_is_its_first_side() -> None:
    for order in (two(), two()[::-1]):
        recipe = from_mergekit(
            {"merge_method": "slerp", "models": order, "base_model": "b.safetensors", "parameters": {"t": 0.25}}
        )
        assert [item.name for item in recipe.inputs] == ["b", "a"]
        assert recipe.parameters == {"ratio": 0.25}


def test_nuslerp_with_a_base_goes_along_task_vectors() -> None:
    data = {"merge_method": "nuslerp", "models": two(weight=1), "parameters": {"nuslerp_flatten": False}}
    assert from_mergekit(data).method == "nuslerp"
    with_base = from_mergekit({**data, "base_model": "base"})
    assert with_base.method == "nuslerp-base"
    assert with_base.parameters == {"weights": [1, 1], "flatten": False, "row_wise": False}


def test_weights_that_mergekit_normalizes() -> None:
    data = {"merge_method": "task_arithmetic", "models": two(weight=2), "base_model": "base"}
    assert from_mergekit(data).parameters["weights"] == [2, 2]
    normal = from_mergekit({**data, "parameters": {"normalize": True}})
    assert normal.parameters == {"weights": [0.5, 0.5], "scale": 1.0}
    spherical = from_mergekit({"merge_method": "multislerp", "models": two(weight=2)})
    assert spherical.parameters["weights"] == [0.5, 0.5]


def test_dare_rescales_as_mergekit_does() -> None:
    data = {"merge_method": "dare_ties", "models": two(weight=1, density=0.3), "base_model": "base"}
    assert from_mergekit(data).parameters == {
        "weights": [1, 1],
        "density": [0.3, 0.3],
        "scale": 1.0,
        "normalize": False,
        "rescale": False,
        "rescale_l1": True,
    }


def test_passthrough_is_one_model_and_a_factor() -> None:
    recipe = from_mergekit({"merge_method": "passthrough", "models": [{"model": "a", "parameters": {"scale": 0.5}}]})
    assert recipe.method == "linear"
    assert recipe.parameters == {"weights": [0.5], "normalize": False}


# -- filters and gradients -------------------------------------------------------------------------------------------


def run_slerp(folder: Path, t: Any) -> dict[str, float]:
    """The ratio of every floating tensor."""
    write_layers(folder)
    data = {"merge_method": "slerp", "models": two(), "base_model": "a.safetensors", "parameters": {"t": t}}
    recipe = from_mergekit(data, folder)
    names = [name for name, value in load_file(folder / "a.safetensors").items() if value.is_floating_point()]
    ratio = recipe.parameters["ratio"]
    merge.run(recipe, folder / "out.safetensors", merge.Options(sync=False))
    return {name: (ratio.get(name, ratio["*"]) if isinstance(ratio, dict) else ratio) for name in names}


def test_the_first_filter_in_a_name_decides(tmp_path: Path) -> None:
    filters = [{"filter": "self_attn", "value": 0.1}, {"filter": "layers.3", "value": 0.2}, {"value": 0.5}]
    found = run_slerp(tmp_path, filters)
    assert found["model.layers.3.self_attn.weight"] == 0.1
    assert found["model.layers.3.mlp.weight"] == 0.2
    assert found["model.layers.1.mlp.weight"] == 0.5
    assert found["embed.weight"] == 0.5


def test_a_gradient_is_interpolated_over_the_layers(tmp_path: Path) -> None:
    found = run_slerp(tmp_path, [0.0, 1.0, 0.5])
    assert [found[f"model.layers.{i}.mlp.weight"] for i in range(5)] == [0.0, 0.5, 1.0, 0.75, 0.5]
    assert found["embed.weight"] == 0.0


def test_gradients_in_filters(tmp_path: Path) -> None:
    filters = [{"filter": "mlp", "value": [1, 0]}, {"value": 0.5}]
    found = run_slerp(tmp_path, filters)
    assert [found[f"model.layers.{i}.mlp.weight"] for i in range(5)] == [1.0, 0.75, 0.5, 0.25, 0.0]
    assert found["model.layers.0.self_attn.weight"] == 0.5


def test_a_model_without_a_fitting_filter_falls_back_to_the_common_value(tmp_path: Path) -> None:
    write_layers(tmp_path)
    models = two()
    models[0]["parameters"] = {"weight": [{"filter": "mlp", "value": 3.0}]}
    models[1]["parameters"] = {"weight": 2.0}
    data = {"merge_method": "linear", "models": models, "parameters": {"weight": 1.0}}
    weights = from_mergekit(data, tmp_path).parameters["weights"]
    assert weights["*"] == [1.0, 2.0]
    assert weights["model.layers.0.mlp.weight"] == [3.0, 2.0]
    assert len(weights) == 6


def test_equal_values_need_no_rules(tmp_path: Path) -> None:
    assert set(run_slerp(tmp_path, [0.25, 0.25]).values()) == {0.25}


def test_names_with_signs_of_globs_are_taken_literally(tmp_path: Path) -> None:
    for seed, name in enumerate("ab"):
        state = {"w[0].mlp": torch.ones(2) * seed, "w0.mlp": torch.ones(2) * seed, "v": torch.ones(2) * seed}
        save_file(state, tmp_path / f"{name}.safetensors")
    filters = [{"filter": "w[0]", "value": 0.25}, {"value": 0.5}]
    data = {"merge_method": "slerp", "models": two(), "base_model": "a.safetensors", "parameters": {"t": filters}}
    merge.run(from_mergekit(data, tmp_path), tmp_path / "out.safetensors", merge.Options(sync=False))
    out = load_file(tmp_path / "out.safetensors")
    assert {name: value[0].item() for name, value in out.items()} == {"w[0].mlp": 0.25, "w0.mlp": 0.5, "v": 0.5}


# -- what is told ----------------------------------------------------------------------------------------------------

LINEAR: dict[str, Any] = {"merge_method": "linear", "models": two(weight=1)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"merge_methods": "x"}, "a recipe has no key 'merge_methods'; did you mean 'merge_method'"),
        ({"slices": []}, "models and slices: a recipe has one of them"),
        ({"models": None, "slices": []}, "the recipe needs a list of slices"),
        ({"models": None, "modules": {}}, "modules: must be a mapping from names to slices or models"),
        ({"tokenizer_source": "nosuch"}, "tokenizer: source 'nosuch' is neither union nor base, nor a model"),
        ({"tokenizer_source": "union", "tokenizer": {}}, "tokenizer and tokenizer_source: a recipe has one of them"),
        ({"tokenizer": "union"}, "tokenizer must be a mapping"),
        ({"tokenizer": {"pad_to_multiple": 8}}, "did you mean 'pad_to_multiple_of'"),
        ({"tokenizer": {"pad_to_multiple_of": 0}}, "pad_to_multiple_of must be a number of rows, not 0"),
        ({"tokenizer": {"tokens": {"<x>": {}}}}, "the token '<x>' needs a source"),
        ({"tokenizer": {"tokens": {"<x>": {"source": "c"}}}}, "'c' is no model of the recipe"),
        (
            {"tokenizer": {"tokens": {"<x>": {"source": {"kind": "model_token", "model": "a.safetensors"}}}}},
            "its source needs a token or a token_id",
        ),
        ({"tokenizer": {}, "base_model": "c"}, "a union begins with the tokens of the base model 'c'"),
        (
            {"chat_template": "chatlm"},
            "'chatlm' is no template, and no known name; did you mean 'chatml'",
        ),
        ({"chat_template": "{% if %}"}, "chat_template is no template of Jinja"),
        ({"merge_method": "task_aritmetic"}, "unknown method 'task_aritmetic'; did you mean 'task_arithmetic'"),
        ({"models": None}, "the recipe needs a list of models"),
        ({"models": []}, "the recipe needs a list of models"),
        ({"models": ["a"]}, "an entry of models must have the key 'model', not be 'a'"),
        (
            {"models": [{"model": "a", "params": {}}]},
            "an entry of models has no key 'params'; did you mean 'parameters'",
        ),
        ({"models": [{"model": "a+lora", "parameters": {}}]}, "model 'a\\+lora': adapters are not supported"),
        ({"models": [{"model": ["a"]}]}, "must be a path, or a name on the hub"),
        ({"parameters": {"wieght": 1}}, "linear has no parameter 'wieght'; did you mean 'weight'"),
        ({"models": two(densty=1)}, "linear has no parameter 'densty'"),
        ({"parameters": [1]}, "parameters: parameters must be a mapping"),
        ({"models": two()}, "the parameter 'weight' is missing"),
        ({"models": two(weight="much")}, "weight must be a number or a list of numbers along the layers, not 'much'"),
        ({"dtype": "bf16"}, "unknown dtype 'bf16'"),
        ({"merge_method": "ties"}, "ties needs a base_model"),
        ({"merge_method": "passthrough", "models": two()}, "passthrough takes one model, 2 were given"),
        ({"merge_method": "slerp"}, "slerp has no parameter 'weight'"),
    ],
)
def test_mistakes_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(MergeError, match=message):
        from_mergekit({**LINEAR, **change})


def test_a_filter_without_a_value_is_named(tmp_path: Path) -> None:
    write_layers(tmp_path)
    for entry, message in [
        ({"filter": "mlp"}, "weight: an entry must have a 'value'"),
        ({"value": 1, "filtre": "mlp"}, "weight: an entry must have a 'value' and may have a 'filter'"),
        ({"value": "x"}, "weight must be a number"),
    ]:
        with pytest.raises(MergeError, match=message):
            from_mergekit({**LINEAR, "models": two(weight=[entry])}, tmp_path)


def test_a_tensor_that_no_filter_covers_is_named(tmp_path: Path) -> None:
    write_layers(tmp_path)
    with pytest.raises(MergeError, match=r"the parameter 'weight' is missing for embed\.weight"):
        from_mergekit({**LINEAR, "models": two(weight=[{"filter": "layers", "value": 1}])}, tmp_path)


@pytest.mark.parametrize("content", ["models: [", "- 1\n- 2", "", "\0", "merge_method"])
def test_files_that_are_no_recipes(tmp_path: Path, content: str) -> None:
    path = tmp_path / "recipe.yml"
    path.write_text(content)
    with pytest.raises(MergeError, match=r"recipe\.yml: not a (YAML file|recipe of mergekit)"):
        read_mergekit(path)
    with pytest.raises(MergeError, match=r"absent\.yml: not a YAML file"):
        read_mergekit(tmp_path / "absent.yml")


def test_yaml_cannot_make_objects(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yml"
    path.write_text(f"merge_method: !!python/object/apply:os.mkdir ['{tmp_path / 'made'}']")
    with pytest.raises(MergeError, match="not a YAML file"):
        read_mergekit(path)
    assert not (tmp_path / "made").exists()


def test_without_pyyaml_the_way_out_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *arguments: Any, **options: Any) -> Any:
        if name == "yaml":
            raise ImportError(name)
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MergeError, match=r"reading YAML needs PyYAML: pip install 'unival-merge\[yaml\]'"):
        read_mergekit(tmp_path / "recipe.yml")


@pytest.mark.parametrize("value", [[0, 10**400], 10**400, float("inf"), float("nan")], ids=str)
def test_numbers_that_no_float_holds_are_refused(tmp_path: Path, value: Any) -> None:
    write_layers(tmp_path)
    with pytest.raises(MergeError, match="weight must be a number"):
        from_mergekit({"merge_method": "linear", "models": two(weight=value)}, tmp_path)
