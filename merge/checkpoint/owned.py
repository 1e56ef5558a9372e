"""What `overwrite` may replace: checkpoints and recipes, and folders that hold nothing but what this tool wrote."""

# What a file holds has no type until it is looked at.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false, reportUnknownMemberType=false

from __future__ import annotations

import contextlib
import filecmp
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from merge.checkpoint.formats import FORMATS
from merge.checkpoint.formats.format import Glimpse
from merge.errors import MergeError

RECIPE = ".recipe.json"  # ends the name of the file beside an output that says how it was made
CARD = "README.md"  # of a folder: its model card
SWEEP = "sweep.json"  # in the folder of a sweep: what its files are
_WEIGHTS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?")  # a folder that no recipe tells of
_ADAPTER = ("adapter_model.safetensors", "adapter_config.json", CARD)


def recipe_path(output: Path) -> Path:
    """Give where the recipe of an output lies: beside it."""
    return output.with_name(output.name + RECIPE)


def refuse_foreign_folder(path: Path, copied: Mapping[str, Path]) -> None:
    """Raise MergeError where something in a folder was not written by this tool, naming it.

    Its files must be named in its recipe or `sweep.json`, or be those of `copied`, which will be there again.
    """
    known = _written(path)
    for item in sorted(path.rglob("*")):
        name = item.relative_to(path).as_posix()
        if (item.is_dir() and not item.is_symlink()) or name in known or _WEIGHTS.fullmatch(name):
            continue
        with contextlib.suppress(OSError):
            if name in copied and item.is_file() and filecmp.cmp(item, copied[name], shallow=False):
                continue
        raise MergeError(
            f"{path}: holds {name}, which is not of what this tool wrote there (no recipe names it); move it away or "
            "choose another output"
        )


def refuse_foreign_file(path: Path) -> None:
    """Raise MergeError for a file that is neither a checkpoint nor a recipe, by its content, nor empty."""
    if not path.is_file():
        raise MergeError(f"{path}: is no file and is never replaced; choose another output")
    if path.name.endswith(RECIPE):
        if path.stat().st_size and "method" not in _read(path):
            raise MergeError(f"{path}: is no recipe, so it is not replaced; move it away or choose another output")
        return
    look = Glimpse.of(path)
    if look.start and not any(format.matches(look) for format in FORMATS.values() if not format.index):
        raise MergeError(f"{path}: is no checkpoint, so it is not replaced; move it away or choose another output")


def _written(folder: Path) -> set[str]:
    """The files of a folder, by relative name, that this tool says to have written."""
    told = _read(recipe_path(folder)).get("output", {})
    its = isinstance(told, dict) and told.get("file") == folder.name
    names = {str(name) for name in told.get("files", ())} if its else set[str]()
    points = _read(folder / SWEEP).get("points", ())
    files = [str(point.get("file")) for point in points if isinstance(point, dict)]
    names |= {SWEEP, *files, *(file + RECIPE for file in files)} if files else set()
    with contextlib.suppress(MergeError):
        adapter = folder / _ADAPTER[0]
        if adapter.is_file() and "unival_merge" in (FORMATS["safetensors"].read(adapter).metadata or {}):
            names |= set(_ADAPTER)
    return names


def _read(path: Path) -> dict[str, Any]:
    """A JSON file's mapping; empty where it is none."""
    with contextlib.suppress(OSError, ValueError, RecursionError):
        found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
        return found if isinstance(found, dict) else {}
    return {}
