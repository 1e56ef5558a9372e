"""Finished runs kept outside a study's folder: the same start, files and settings give the same weights."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from experiments.grid.rows import content_key
from merge import __version__


def user_cache() -> Path:
    """Return the folder for this user's runs: `$XDG_CACHE_HOME/unival-merge/experts`, by default in ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "unival-merge" / "experts"


def key_of(record: Mapping[str, Any]) -> str:
    """Return the name of a run, from all that it is made of and the versions that make it."""
    text = json.dumps(record, sort_keys=True)  # which may hold infinity
    return content_key(run=text, version=__version__, torch=version("torch"))


def fetch(cache: Path | None, key: str, folder: Path) -> None:
    """Copy a kept run to where it is missing; nothing happens where a run has begun, or none is kept."""
    if cache is not None and (cache / key).is_dir():
        copy(cache / key, folder)


def keep(cache: Path | None, key: str, folder: Path) -> None:
    """Copy a finished run into the cache, if it is not there."""
    if cache is not None:
        copy(folder, cache / key)


def copy(source: Path, target: Path) -> None:
    """Copy a folder to a name that is free, all or nothing."""
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{target.name}.partial-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        shutil.copytree(source, partial)
        partial.rename(target)
    except OSError:
        if not target.exists():  # else another process was first, with the same
            raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
