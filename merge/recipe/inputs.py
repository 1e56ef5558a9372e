"""The checkpoints of a recipe, opened under the names that it gives to their tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeAlias

from merge.checkpoint.names import idle_rules
from merge.checkpoint.open import Checkpoint, open_checkpoint
from merge.checkpoint.source import StateDict
from merge.errors import MergeError
from merge.methods import METHODS
from merge.plan.stacked import Stacked, stacked
from merge.plan.vocabulary import matched
from merge.recipe.recipe import Input, Recipe

Opening: TypeAlias = Callable[[Input], Checkpoint]


def plainly(item: Input) -> Checkpoint:
    """Open an input that lies in files. Raises MergeError for one that has to be computed."""
    if item.recipe is not None:
        raise MergeError(f"{item.name} is the result of a recipe, which `merge.run` makes of the recipe's file")
    return open_checkpoint(item.path, item.section)


def open_inputs(inputs: Sequence[Input], opening: Opening = plainly) -> list[Checkpoint]:
    """Open checkpoints, by default as `open_checkpoint` does, and rename their tensors.

    Raises MergeError also for a rule that fits no name of any input that has it (a typing mistake).
    """
    found = [opening(item) for item in inputs]
    idle = [idle_rules(list(one), item.rename) for item, one in zip(inputs, found, strict=True)]
    for rule in dict.fromkeys(rule for item in inputs for rule in item.rename):
        having = [index for index, item in enumerate(inputs) if rule in item.rename]
        if all(rule in idle[index] for index in having):
            called = ", ".join(inputs[index].name for index in having)
            names = ", ".join(list(found[having[0]])[:3])
            raise MergeError(f"rename={rule!r} fits no tensor of {called}; names look like {names}")
    return [one.renamed(item.rename) for item, one in zip(inputs, found, strict=True)]


def restacked(recipe: Recipe, inputs: Sequence[StateDict]) -> Stacked:
    """Give a recipe's inputs, the base first, with the rows of one vocabulary where the policy names one, and as its
    `layers` put them together. Raises MergeError.
    """
    if METHODS[recipe.method].statistics:
        if recipe.layers or recipe.policy.tokenizer:
            what = "layers" if recipe.layers else "rows"
            raise MergeError(f"{recipe.method} merges whole models: statistics are of {what} where they were collected")
        return Stacked(inputs)
    labels, base = [item.name for item in recipe.sources], recipe.base.name if recipe.base is not None else ""
    match = matched(inputs, labels, recipe.policy, has_base=recipe.base is not None)
    stack = stacked(match.inputs, labels, recipe.layers, base, untie=recipe.policy.untie)
    if match.vocabulary is None:
        return stack
    return replace(stack, vocabulary=match.vocabulary, notes=(*match.vocabulary.notes, *stack.notes))
