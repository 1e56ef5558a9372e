"""The choices that `run` takes in the place of those of a recipe."""

from __future__ import annotations

from dataclasses import field, fields, make_dataclass, replace
from typing import TYPE_CHECKING, get_type_hints

from merge.commands.options import Choices, inputs_of

if TYPE_CHECKING:
    from merge.recipe.recipe import Input, Recipe

if TYPE_CHECKING:
    Overrides = Choices
else:  # the same options, of which none is chosen by default: what is given stands in for what a recipe says
    Overrides = make_dataclass(
        "Overrides",
        [(name, kind, field(default=None)) for name, kind in get_type_hints(Choices, include_extras=True).items()],
        namespace={"__module__": __name__},
        frozen=True,
    )


def overridden(recipe: Recipe, given: Overrides) -> Recipe:
    """Give a recipe with the names, sections, rules and choices that the options give instead of its own."""
    from merge.plan.policy import Policy

    names = given.name or [item.name for item in recipe.inputs]
    base = None if recipe.base is None else recipe.base.path
    inputs, ancestor = inputs_of([item.path for item in recipe.inputs], names, given.section, base, given.rename)

    def chosen(old: Input, new: Input) -> Input:
        section = old.section if new.section == "auto" else new.section
        return replace(old, name=new.name, section=section, rename=new.rename or old.rename)

    inputs = tuple(map(chosen, recipe.inputs, inputs))
    if recipe.base is not None and ancestor is not None:
        ancestor = replace(chosen(recipe.base, ancestor), name=recipe.base.name)
    option = {"slice_": "slices"}
    choices = {option.get(item.name, item.name): getattr(given, item.name) for item in fields(given)}
    known = {item.name for item in fields(Policy)}
    policy = replace(
        recipe.policy, **{name: value for name, value in choices.items() if value is not None and name in known}
    )
    called = {old.name: new.name for old, new in zip(recipe.inputs, inputs, strict=True)}
    layers = {
        name: tuple({called.get(label, label): span for label, span in ranges.items()} for ranges in stretches)
        for name, stretches in recipe.layers.items()
    }
    return replace(recipe, inputs=inputs, base=ancestor, policy=policy, layers=layers)
