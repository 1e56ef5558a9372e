"""The pages of the Python interface: one of each package, every public name from where it lives."""

from __future__ import annotations

import importlib

ABOUT = {
    "merge": "Checkpoints in; recipe, checkpoint or live model out. Every function takes a checkpoint as a path, an "
    "open `Checkpoint`, a state dict or a module. What goes wrong is a `MergeError` in one line.",
    "experiments": "Studies of any model: a grid of merged models, tasks and splits, rows, and what they say. "
    "[Studies](../studies.md) has the contract, [ready tasks](../evaluators.md) the scoring functions.",
    "unival_core": "The UnIVAL model: loading, generating, scoring, training. Data sets, metrics and training have "
    "doors of their own: `unival_core.data`, `unival_core.metrics`, `unival_core.training`.",
}
TABLES = {"METHODS": "../methods.md", "METRICS": "metrics.md", "TASKS": "../tasks.md"}  # with pages of their own


def page(package: str) -> str:
    """Give the text of a package's page, with mkdocstrings' marks."""
    door = importlib.import_module(package)
    lines = [f"# `{package}`", "", ABOUT[package], ""]
    for name in sorted(door.__all__, key=str.lower):
        if name in TABLES:
            lines += [f"## {name}", "", f"The table with [a page of its own]({TABLES[name]}).", ""]
        elif not name.startswith("__"):
            lines += [f"::: {_home(door, name)}", ""]
    return "\n".join(lines)


def _home(door: object, name: str) -> str:
    package: str = door.__name__  # type: ignore[attr-defined]
    home: dict[str, str] = door._HOME  # type: ignore[attr-defined]
    if name in home:
        return f"{package}.{home[name]}.{name}"
    value = getattr(door, name)
    return f"{value.__module__}.{name}" if hasattr(value, "__module__") else f"{package}.{name}"
