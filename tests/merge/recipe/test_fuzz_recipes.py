"""Damaged recipes: one that is read can be written and read again; every other one is refused in a line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file

from merge import Input, MergeError, Policy, Recipe, merge_with, read_recipe
from merge.engine.files import plan_run
from merge.recipe.json import FORMAT, from_json, to_json
from tests.merge.damage import altered, damaged, or_refused, seeds


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in "abc":
        save_file({f"layers.{i}.w": torch.ones(2) for i in range(3)}, tmp_path / f"{name}.safetensors")
    return tmp_path


def survives(path: Path, folder: Path, seed: int) -> None:
    """Read a recipe, plan its merge, write it as JSON and read that."""
    recipe = or_refused(path, lambda: read_recipe(path))
    if recipe is not None:
        if or_refused("", lambda: plan_run(path, folder / "out" / "o.safetensors")) is None:
            return
        again = from_json(json.loads(json.dumps(to_json(recipe))))
        assert repr(to_json(again)) == repr(to_json(recipe)), f"seed {seed}"


def test_json(folder: Path) -> None:
    inputs = tuple(Input(name, Path(f"{name}.safetensors"), rename=("layers.=",)) for name in "ab")
    parameters = {"weights": {"1.*": [0.2, 0.8], "*": [0.5, 0.5]}, "density": 0.5, "scale": 1.0}
    policy = Policy(keep=("0.*",), dtype="float32")
    good = to_json(
        Recipe("ties", inputs, parameters, Input("base", Path("c.safetensors"), rename=("layers.=",)), policy)
    )
    path = folder / "r.json"
    for seed, chance in seeds(180):
        text = json.dumps(altered(good, chance)).encode() if seed % 3 else damaged(json.dumps(good).encode(), chance)
        path.write_bytes(text)
        survives(path, folder, seed)


def test_mergekit(folder: Path) -> None:
    filtered: list[Any] = [{"filter": "layers.1", "value": [0, 0.5, 1]}, {"value": 0.5}]
    models = [{"model": f"{name}.safetensors", "parameters": {"weight": filtered, "density": 0.5}} for name in "ab"]
    good = {
        "merge_method": "ties",
        "models": models,
        "base_model": "c.safetensors",
        "parameters": {"normalize": True, "int8_mask": True, "lambda": 1.0},
        "dtype": "float32",
    }
    path = folder / "r.yml"
    for seed, chance in seeds(150):
        text = (
            yaml.safe_dump(altered(good, chance)).encode()
            if seed % 3
            else damaged(yaml.safe_dump(good).encode(), chance)
        )
        path.write_bytes(text)
        survives(path, folder, seed)


def test_a_recipe_without_inputs(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    path.write_text(json.dumps({"format": FORMAT, "method": "interpolate", "inputs": [], "parameters": {"ratio": 0.5}}))
    with pytest.raises(MergeError, match="interpolate takes 2 checkpoints, 0 were given"):
        plan_run(path, tmp_path / "o.safetensors")
    with pytest.raises(MergeError, match="average takes at least 2 checkpoints, 0 were given"):
        merge_with("average", {})
