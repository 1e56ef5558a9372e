"""Recipes whose inputs are recipes: their files are read into one recipe, which holds the others."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from merge.checkpoint.folder import INDEX
from merge.errors import MergeError
from merge.recipe.inputs import Opening, plainly
from merge.recipe.json import FORMAT, YAML, read_recipe
from merge.recipe.recipe import Input, Recipe

DEEPEST, MOST = 40, 200  # recipes within one: how many levels, and in all; what is used twice is computed twice
_LONGEST = 1 << 24  # bytes of a recipe; rules may name every tensor


def is_recipe(path: Path) -> bool:
    """Tell whether a path is the file of a recipe, and not of a checkpoint."""
    try:
        if path.suffix in YAML:
            return path.is_file()
        if path.suffix != ".json" or INDEX.fullmatch(path.name) or not path.is_file():
            return False
        data: Any = json.loads(path.read_bytes()) if path.stat().st_size <= _LONGEST else None
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(data, dict) and cast("dict[str, Any]", data).get("format") == FORMAT


def whole(recipe: Recipe, opening: Opening = plainly) -> Recipe:
    """Give a recipe with the recipes of all inputs that are made by one, read where their files are given.

    `opening` is for `read_recipe`. Raises MergeError for circles, for files that are no recipes, and for too many.
    """
    return _Tree(opening).whole(recipe, (), 0)


class _Tree:
    """The recipes within one while they are read."""

    def __init__(self, opening: Opening):
        self.opening, self.count = opening, 0

    def whole(self, recipe: Recipe, above: Sequence[Path], depth: int) -> Recipe:
        """Give a recipe whose inputs have theirs; `above` are the files of those that it is an input of."""
        base = None if recipe.base is None else self._input(recipe.base, above, depth)
        return replace(recipe, inputs=tuple(self._input(item, above, depth) for item in recipe.inputs), base=base)

    def _input(self, item: Input, above: Sequence[Path], depth: int) -> Input:
        inner = item.recipe
        if inner is None and is_recipe(item.path):
            file = item.path.resolve()
            if file in above:
                way = " -> ".join(path.name for path in (*above[above.index(file) :], file))
                raise MergeError(f"{item.path}: is made of itself: {way}")
            inner, above = read_recipe(item.path, opening=self.opening), (*above, file)
        if inner is None:
            return item
        self.count += 1
        if self.count > MOST or depth >= DEEPEST:
            many = f"more than {MOST} recipes" if self.count > MOST else f"recipes more than {DEEPEST} levels deep"
            raise MergeError(f"{item.path}: {many} within one: write the results of some to files")
        return replace(item, recipe=self.whole(inner, above, depth + 1))
