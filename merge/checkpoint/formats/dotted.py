"""Nested dictionaries of arrays, as JAX programs save them, under dotted names: `{"encoder": {"scale": x}}` is
`encoder.scale`."""

# What a file holds has no type until it is looked at.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false, reportUnknownMemberType=false

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from merge.checkpoint.formats.format import name_problem
from merge.errors import MergeError

IsLeaf = Callable[[Any], bool]


def flatten(path: Path, tree: Any, is_leaf: IsLeaf) -> dict[str, Any]:
    """Give every leaf of a tree by its dotted name, in the order of the tree.

    What is neither leaf nor dictionary is skipped. Raises MergeError, naming the file, where two leaves have one name,
    a key is no text or the tree is too deep.
    """
    found: dict[str, Any] = {}

    def walk(value: Any, prefix: str) -> None:
        for key, item in value.items():
            if not isinstance(key, str):
                raise MergeError(f"{path}: a key below {prefix or 'its root'!r} is a {type(key).__name__}, not text")
            name = prefix + key
            if is_leaf(item):
                if name in found:
                    raise MergeError(f"{path}: two arrays are called {name!r} when their keys are joined with dots")
                found[name] = item
            elif isinstance(item, dict):
                walk(item, name + ".")

    try:
        walk(tree, "")
        name_problem(found)
    except RecursionError as error:
        raise MergeError(f"{path}: its dictionaries are nested too deeply") from error
    except ValueError as error:
        raise MergeError(f"{path}: {error}") from error
    return found


def replaced(path: Path, tree: Any, is_leaf: IsLeaf, names: Iterable[str], make: Callable[[str, Any], Any]) -> Any:
    """The tree with `make(name, old leaf)` for every leaf in `names`; leaves not in `names` go, what is no leaf stays.

    Names that the tree lacks are put in, their dots as levels, as `make(name, None)`. Raises MergeError where such a
    name runs through a leaf.
    """
    wanted = dict.fromkeys(names)
    done: set[str] = set()

    def copy(value: Any, prefix: str) -> Any:
        result: dict[str, Any] = {}
        for key, item in value.items():
            name = prefix + key
            if is_leaf(item):
                if name in wanted:
                    result[key] = make(name, item)
                    done.add(name)
            elif isinstance(item, dict):
                inner = copy(item, name + ".")
                if inner or not item:
                    result[key] = inner
            else:
                result[key] = item
        return result

    root = copy(tree, "")
    for name in wanted:
        if name not in done:
            *levels, last = name.split(".")
            place: Any = root
            for level in levels:
                place = place.setdefault(level, {}) if _is_level(place, is_leaf) else None
            if not _is_level(place, is_leaf) or last in place:
                raise MergeError(f"{path}: {name} cannot be placed: cut at the dots, it runs through another entry")
            place[last] = make(name, None)
    return root


def _is_level(value: Any, is_leaf: IsLeaf) -> bool:
    return isinstance(value, dict) and not is_leaf(value)
