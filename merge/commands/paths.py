"""Paths as a shell would read them: `~`, and globs that were quoted or come from another program."""

from __future__ import annotations

import glob
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import typer


def as_a_shell_reads(values: Mapping[str, Any], params: Sequence[Any]) -> dict[str, Any]:
    """Give the values of a command's parameters with the home folder for `~` in every path, and files for globs.

    A glob may stand for an argument or for `--base`; a path that is there is itself, whatever signs it has. Raises
    typer.BadParameter for a glob that fits no file, or several where one is meant.
    """
    kinds = {param.name: param for param in params}
    return {name: _read(value, kinds.get(name)) for name, value in values.items()}


def _read(value: Any, param: Any) -> Any:
    items: list[Any] = list(value) if isinstance(value, (list, tuple)) else []  # pyright: ignore[reportUnknownArgumentType]
    if items and all(isinstance(item, Path) for item in items):
        return [path for item in items for path in _files(_at_home(item), param)]
    if not isinstance(value, Path):
        return value  # pyright: ignore[reportUnknownVariableType]
    path = _at_home(value)
    found = _files(path, param) if param is not None and _is_input(param) else [path]
    if len(found) > 1:
        named = ", ".join(map(str, found[:3]))
        raise typer.BadParameter(f"{path} fits {len(found)} files, and one is meant: {named}", param=param)
    return found[0]


def _at_home(path: Path) -> Path:
    if not str(path).startswith("~"):
        return path
    try:
        return path.expanduser()
    except RuntimeError:  # of a user who is not there
        return path


def _is_input(param: Any) -> bool:
    return param.param_type_name == "argument" or param.name == "base"


def _files(path: Path, param: Any) -> list[Path]:
    """Give the files that fit a glob in the order of their names; a path without its signs is itself."""
    if not glob.has_magic(str(path)) or os.path.lexists(path):
        return [path]
    found = sorted(glob.glob(str(path), recursive=True))
    if not found:
        raise typer.BadParameter(f"{path}: fits no file", param=param)
    return list(map(Path, found))
