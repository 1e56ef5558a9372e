"""Recipes of wrong types, of broken bytes, and made to fill memory: one line each, quickly."""

from __future__ import annotations

import contextlib
import json
import random
import time
from pathlib import Path
from typing import Any

import pytest

import merge
from merge import MergeError
from tests.merge.made import weights
from tests.merge.shell import command, done

RECIPE: dict[str, Any] = {
    "format": "unival-merge recipe 1",
    "method": "interpolate",
    "base": None,
    "inputs": [{"name": "a", "path": "a.pt", "rename": ["module.="]}, {"name": "b", "path": "b.pt", "digest": ""}],
    "parameters": {"ratio": {"encoder.*": 0.3, "*": 0.5}},
    "policy": {"keep": ["head.*"], "dtype": None, "missing": "error", "extrapolate": False},
}
YAML = """merge_method: linear
models:
- model: a.pt
  parameters: {weight: [0.1, 5e-1]}
- model: b.pt
  parameters: {weight: [{filter: attn, value: 0.2}, {value: 1}]}
dtype: bfloat16
"""
WRONG: list[Any] = [None, True, -1, 0.5, 1e999, 10**400, "", "x" * 10_000, "\ud800", "\0", [], [[]], {}, {"*": []}]


def alias_bomb(levels: int) -> str:
    lists = [f"    - &{chr(98 + i)} [{','.join(['*' + chr(97 + i)] * 9)}]" for i in range(levels)]
    ones = "    - &a [1,1,1,1,1,1,1,1,1]"
    return (
        "\n".join(["merge_method: linear", "models:", "- model: a.pt", "  parameters:", "    weight:", ones, *lists])
        + "\n- {model: b.pt, parameters: {weight: 1}}\n"
    )


def merge_key_bomb() -> str:
    maps = [f"m{i}: &m{i} {{<<: [{', '.join([f'*m{i - 1}'] * 9)}]}}" for i in range(1, 12)]
    return "\n".join(["m0: &m0 {a: 1}", *maps, "merge_method: linear"])


def read(path: Path, text: str | bytes) -> str:
    """What reading a recipe, and planning it, says: "" for success. Anything but our error is raised."""
    path.write_bytes(text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text)
    start = time.process_time()
    told = ""
    try:
        merge.read_recipe(path)
    except MergeError as error:
        told = str(error)
    assert time.process_time() - start < 10
    assert "\n" not in told
    assert len(told) < 600
    return told


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("r.yml", alias_bomb(8), "weight must be a number"),
        ("r.yml", merge_key_bomb(), "r.yml: "),  # newer versions of PyYAML bring every entry once
        ("r.yml", "[" * 10_000, "not a YAML file"),
        ("r.yml", "a: " + "9" * 5000, "not a YAML file"),
        ("r.yml", "a: 2001-99-99", "not a YAML file"),
        ("r.yml", "#" + "x" * 300_000, "longer than 262,144 bytes"),
        ("r.yml", "", "not a recipe of mergekit"),
        ("r.yml", "&a [*a]", "not a recipe of mergekit"),
        ("r.json", "[" * 100_000, "not a recipe file"),
        ("r.json", "9" * 5000, "not a recipe"),
        ("r.json", b"\xff\xfe", "not a recipe file"),
        ("r.json", "{}", "'format' must be"),
        ("r.json", json.dumps({**RECIPE, "inputs": [1]}), "input is 1; it must be a dict"),
        ("r.json", json.dumps({**RECIPE, "inputs": [{"name": "a"}]}), "lacks 'path'"),
        ("r.json", json.dumps({**RECIPE, "x" * 100_000: 1}), "a recipe has no key"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_each_is_one_line(tmp_path: Path, name: str, text: str | bytes, told: str) -> None:
    merge.save_checkpoint(weights(0), tmp_path / "a.pt")
    assert told in read(tmp_path / name, text)


def test_a_recipe_without_inputs(tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text(json.dumps({**RECIPE, "inputs": []}))
    shown = command("run", tmp_path / "r.json", "-o", tmp_path / "m.pt")
    assert (shown.code, shown.err) == (2, "error: interpolate takes 2 checkpoints, 0 were given\n")


def test_a_billion_points(tmp_path: Path) -> None:
    a = merge.save_checkpoint(weights(0), tmp_path / "a.pt")
    b = merge.save_checkpoint(weights(1), tmp_path / "b.pt")
    for points, told in ((10**9, "at most 1,000,000, not 1,000,000,000"), (20_000, "at most 10,000, not 20,000")):
        shown = command("sweep", a, b, "--points", points, "-o", tmp_path / "points")
        assert shown.code == 2
        assert told in shown.err


def broken(data: Any, rng: random.Random) -> Any:
    """The data with one of its values replaced, removed or moved."""
    copied = json.loads(json.dumps(data))
    place, key = {"": copied}, ""
    here: Any = place
    while isinstance(here[key], (dict, list)) and here[key] and rng.random() < 0.75:
        here, key = here[key], None
        key = rng.choice(list(here) if isinstance(here, dict) else range(len(here)))
    if rng.random() < 0.2 and isinstance(here, dict) and here is not place:
        del here[key]
    else:
        here[key] = rng.choice(WRONG)
    return place.get("")


@pytest.mark.parametrize("seed", range(8))
def test_recipes_with_a_value_of_another_kind_are_read_or_refused(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    for state, name in ((weights(0), "a.pt"), (weights(1), "b.pt")):
        merge.save_checkpoint(state, tmp_path / name)
    for _ in range(40):
        text = json.dumps(broken(RECIPE, rng))
        if not read(tmp_path / "r.json", text):
            with contextlib.suppress(MergeError):
                merge.run(tmp_path / "r.json", tmp_path / "m.pt", merge.Options(overwrite=True))


@pytest.mark.parametrize("seed", range(8))
def test_broken_bytes_of_recipes_are_read_or_refused(tmp_path: Path, seed: int) -> None:
    pytest.importorskip("yaml")
    rng = random.Random(seed)
    merge.save_checkpoint(weights(0), tmp_path / "a.pt")
    for _ in range(60):
        for name, text in (("r.yml", YAML), ("r.json", json.dumps(RECIPE))):
            data = bytearray(text.encode())
            for _ in range(rng.randint(1, 4)):
                at = rng.randrange(len(data))
                data[at : at + rng.randint(0, 3)] = rng.choice(
                    [b"", b"[", b"{", b"&a ", b"*a", b"\xff", b"\0", b": ", b"!!python/x ", b"9"]
                )
            read(tmp_path / name, bytes(data))


def test_numbers_that_yaml_reads_as_text(tmp_path: Path) -> None:
    pytest.importorskip("yaml")
    for name in "ab":
        merge.save_checkpoint(weights(0), tmp_path / f"{name}.pt")
    text = YAML.replace("[0.1, 5e-1]", "5e-1").replace("[{filter: attn, value: 0.2}, {value: 1}]", ".5")
    assert read(tmp_path / "r.yml", text) == ""
    assert merge.read_recipe(tmp_path / "r.yml").parameters["weights"] == [0.5, 0.5]
    for word in ("1e-9", "1_000", "+1E3"):
        read(tmp_path / "r.yml", YAML.replace("[0.1, 5e-1]", word))
        weight = merge.read_recipe(tmp_path / "r.yml").parameters["weights"]
        first = weight["*"][0] if isinstance(weight, dict) else weight[0]
        assert first == float(word)
    assert "weight must be a number" in read(tmp_path / "r.yml", YAML.replace("[0.1, 5e-1]", "half"))


def test_run_takes_choices_in_the_place_of_the_recipes(tmp_path: Path) -> None:
    for seed, name in enumerate("ab"):
        merge.save_checkpoint(weights(seed), tmp_path / f"{name}.pt")
    recipe = tmp_path / "e.json"
    data = {**RECIPE, "inputs": [{"path": "a.pt"}, {"path": "b.pt"}], "parameters": {"ratio": 1.5}, "policy": {}}
    recipe.write_text(json.dumps(data))
    shown = command("run", recipe, "-o", tmp_path / "m.pt")
    assert "pass --extrapolate" in shown.err
    out = tmp_path / "m.safetensors"
    done("run", recipe, "--extrapolate", "--dtype", "bfloat16", "--name", "x", "--name", "y", "-o", out)
    noted = json.loads((tmp_path / "m.safetensors.recipe.json").read_text())
    assert (noted["policy"]["extrapolate"], noted["policy"]["dtype"]) == (True, "bfloat16")
    assert [item["name"] for item in noted["inputs"]] == ["x", "y"]
