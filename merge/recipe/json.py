"""Recipes as JSON: written beside every merged checkpoint, and read back without a change."""

# What a file holds has no type until it is looked at.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false, reportUnknownMemberType=false

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from merge.checkpoint.hub import joined
from merge.errors import MergeError, nearest, shortened
from merge.plan.layers import Layers, layers_of
from merge.plan.policy import Policy
from merge.recipe.inputs import Opening, plainly
from merge.recipe.mergekit import read_mergekit
from merge.recipe.recipe import Input, Recipe

FORMAT = "unival-merge recipe 1"
YAML = (".yml", ".yaml")
_KEYS = ("format", "method", "inputs", "base", "parameters", "policy", "layers", "output", "provenance")


def to_json(recipe: Recipe) -> dict[str, Any]:
    """Give a recipe as plain JSON data."""
    policy = recipe.policy
    rare = {
        "pick": list(policy.pick),
        "slices": list(policy.slices),
        "vocab_rows": policy.vocab_rows,
        "accept": list(policy.accept),
        "dequantize": policy.dequantize,
        "untie": policy.untie,
        "chat_template": policy.chat_template,
        "tokenizer": policy.tokenizer,
        "missing_rows": policy.missing_rows,
        "pad_to_multiple": policy.pad_to_multiple,
        "token_rows": dict(policy.token_rows),
    }
    return {
        "format": FORMAT,
        "method": recipe.method,
        "base": None if recipe.base is None else _input_json(recipe.base),
        "inputs": [_input_json(item) for item in recipe.inputs],
        "parameters": {
            key: list(value) if isinstance(value, tuple) else value for key, value in recipe.parameters.items()
        },
        "policy": {
            "keep": list(policy.keep),
            "drop": list(policy.drop),
            "missing": policy.missing,
            "dtype": policy.dtype,
            "compute_dtype": policy.compute_dtype,
            "batchnorm": policy.batchnorm,
            "allow_nonfinite": policy.allow_nonfinite,
            "extrapolate": policy.extrapolate,
            # Choices that came later and that few merges make are noted where they are made: older files have the same
            # bytes when they are made again.
            **{key: value for key, value in rare.items() if value not in ([], "error", False, "", {})},
        },
        **({"layers": _layers_json(recipe.layers)} if recipe.layers else {}),
    }


def _layers_json(layers: Layers) -> Any:
    """Stretches by list, or alone where they are of the only list."""
    lists = {
        name: [{label: span and list(span) for label, span in ranges.items()} for ranges in stretches]
        for name, stretches in layers.items()
    }
    return lists[""] if list(lists) == [""] else lists


def _input_json(item: Input) -> dict[str, Any]:
    data = {"name": item.name, "path": str(item.path), "section": item.section, "digest": item.digest}
    data |= {"rename": list(item.rename)} if item.rename else {}
    return data | ({"recipe": to_json(item.recipe)} if item.recipe is not None else {})


def from_json(data: Any, folder: Path = Path()) -> Recipe:
    """Read a recipe from JSON data; relative paths are relative to `folder`.

    Raises MergeError for unknown keys (with the nearest known one), missing ones and values of the wrong kind.
    """
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise MergeError(f"not a recipe: its 'format' must be {FORMAT!r}")
    _check_keys(data, _KEYS, "a recipe")
    for key in ("method", "inputs"):
        if key not in data:
            raise MergeError(f"the recipe lacks {key!r}")
    base = data.get("base")
    return Recipe(
        method=_kind("method", data["method"], str),
        inputs=tuple(_input(item, folder) for item in _kind("inputs", data["inputs"], list)),
        parameters=_kind("parameters", data.get("parameters", {}), dict),
        base=None if base is None else _input(base, folder),
        policy=_policy(_kind("policy", data.get("policy", {}), dict)),
        layers=layers_of(data.get("layers")),
    )


def read_recipe(path: str | Path, *, whole_depth: bool = False, opening: Opening = plainly) -> Recipe:
    """Read a recipe file, as written beside every merged checkpoint, or mergekit's YAML (`.yml`, `.yaml`).

    With `whole_depth` gradients of the YAML run over all layers, not over each slice; `opening` opens inputs whose
    layers it has to know. Raises MergeError naming the file.
    """
    path = Path(path)
    if path.suffix in YAML:
        return read_mergekit(path, whole_depth=whole_depth, opening=opening)
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise MergeError(f"{path}: not a recipe file: {str(error)[:120]}") from error
    try:
        return from_json(data, path.parent)
    except (MergeError, RecursionError) as error:
        raise MergeError(f"{path}: {error if isinstance(error, MergeError) else 'recipes too deep in it'}") from error


def _input(data: Any, folder: Path) -> Input:
    _check_keys(_kind("input", data, dict), ("name", "path", "section", "digest", "rename", "recipe"), "an input")
    inner = from_json(data["recipe"], folder) if data.get("recipe") is not None else None
    if "path" not in data and (inner is None or "name" not in data):
        raise MergeError("an input of the recipe lacks 'path'")
    path = joined(folder, _kind("path", data["path"] if "path" in data else data["name"], str))
    texts = {key: _kind(key, data[key], str) for key in ("name", "section", "digest") if key in data}
    rules = tuple(_kind("rename", rule, str) for rule in _kind("rename", data.get("rename", []), list))
    name, section = texts.get("name") or path.stem, texts.get("section", "auto")
    return Input(name, path, section, texts.get("digest", ""), rules, inner)


def _policy(data: Mapping[str, Any]) -> Policy:
    defaults = Policy()
    _check_keys(data, vars(defaults), "a policy")
    values = dict(data)
    for key, value in data.items():
        if key in ("keep", "drop", "pick", "slices", "accept"):
            _kind(key, value, list)
            values[key] = tuple(_kind(key, item, str) for item in value)
        elif key == "token_rows":
            _kind(key, value, dict)
        elif key in ("dtype", "compute_dtype"):
            values[key] = None if value is None else _kind(key, value, str)
        else:
            _kind(key, value, type(getattr(defaults, key)))
    return replace(defaults, **values)


def _kind(key: str, value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise MergeError(f"the recipe's {key} is {shortened(value)}; it must be a {kind.__name__}")
    return value


def _check_keys(data: Mapping[str, Any], known: Iterable[str], what: str) -> None:
    for key in data:
        if key not in set(known):
            raise MergeError(f"{what} has no key {shortened(key)}{nearest(str(key), known)}")
