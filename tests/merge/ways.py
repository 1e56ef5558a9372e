"""One recipe in files, in memory and in a live model: the three must agree to the bit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from merge import Input, Options, Policy, Recipe, load_checkpoint, open_checkpoint, run
from merge.engine.live import LivePath
from merge.recipe.json import read_recipe
from tests.merge.made import Carrier, assert_same, in_memory, ordered_as

QUICK = Options(sync=False)


def recipe_of(
    method: str, paths: Mapping[str, Path], parameters: Mapping[str, Any], policy: Policy, section: str = "auto"
) -> Recipe:
    """A recipe of named files; the one called "base" is the base."""
    inputs = tuple(Input(name, path, section) for name, path in paths.items() if name != "base")
    base = Input("base", paths["base"], section) if "base" in paths else None
    return Recipe(method, inputs, parameters, base, policy)


def merged_every_way(recipe: Recipe, out: Path) -> dict[str, Tensor]:
    """The merged tensors, the same in a file, in memory, in a live model and in a file made from the file's recipe."""
    made = load_checkpoint(run(recipe, out, QUICK))
    opened = {item.name: open_checkpoint(item.path, item.section) for item in recipe.inputs}
    base = None if recipe.base is None else open_checkpoint(recipe.base.path, recipe.base.section)
    remembered = in_memory(recipe.method, opened, recipe.parameters, recipe.policy, base)
    assert_same(ordered_as(remembered, made), made)
    assert set(remembered) == set(made)
    model = Carrier({name: value.clone() for name, value in made.items()})
    live = LivePath(model, recipe.method, opened, base, policy=recipe.policy)
    live.set_parameters(**recipe.parameters)
    assert_same(ordered_as(model.now(), made), made)
    again = out.with_name("again-" + out.name)
    run(read_recipe(out.with_name(out.name + ".recipe.json")), again, QUICK)
    assert_same(load_checkpoint(again), made)
    return made
