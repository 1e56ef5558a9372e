"""The commands that reckon with checkpoints of one training, or with three models: series, add-difference."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from merge.commands.coefficients import number, numbers
from merge.commands.merging import carry_out, carry_out_sweep, recipe_for
from merge.commands.options import Choices, Output, Running, inputs_of, one_of, policy_of
from merge.errors import MergeError

# Written out, as `--help` shall not import what a merge needs; a test compares them.
KINDS = ("uniform", "ema", "wma", "wsm", "between")
SHAPES = ("sqrt", "linear", "cosine")


def series(
    sources: Annotated[
        list[Path], typer.Argument(metavar="RUN_DIR|FILE", help="The folder of a run, or its checkpoints in any order.")
    ],
    output: Output,
    choices: Choices,
    running: Running,
    kind: Annotated[
        str,
        one_of(
            KINDS,
            "--kind",
            "Equal weights; a moving average; rising weights; those of a decayed learning rate; or the steps between "
            "two averages of all steps so far.",
        ),
    ] = "uniform",
    last: Annotated[int | None, typer.Option(help="Only the last so many.")] = None,
    every: Annotated[int, typer.Option(help="Only every K-th, counted back from the last.")] = 1,
    match: Annotated[str, typer.Option(metavar="GLOB", help="Only those whose names in RUN_DIR fit.")] = "",
    decay: Annotated[
        str | None, typer.Option(metavar="DECAY", help="Of ema: the part that every checkpoint leaves: 0.9, 90%.")
    ] = None,
    shape: Annotated[
        str | None, one_of(SHAPES, "--shape", "Of wsm: how the learning rate falls; default: sqrt, 1 - sqrt(t).")
    ] = None,
    counts: Annotated[
        str | None, typer.Option(metavar="N,N", help="Of between: how many steps each of the averages is of.")
    ] = None,
    as_given: Annotated[bool, typer.Option("--as-given", help="The files are in order as they are given.")] = False,
) -> None:
    """Average checkpoints along a training run, in the order of their steps, in one pass however many there are.

    \b
    unival-merge series run --last 5 -o average.safetensors
    unival-merge series run --kind ema --decay 0.8 -o average.safetensors
    """
    from merge.recipe.recipe import Recipe
    from merge.tools.series.kinds import averaging, section_for
    from merge.tools.series.steps import find_series, shown

    found = find_series(sources, match=match, as_given=as_given).thinned(last, every)
    part = None if decay is None else number("--decay", decay)
    steps = None if counts is None else numbers("--counts", [counts])
    method, parameters = averaging(kind, found, {"decay": part, "shape": shape, "counts": steps})
    section = choices.section or [section_for(kind, found)]
    inputs, _ = inputs_of(found.paths, choices.name or found.labels, section, None, choices.rename)
    typer.echo(f"note: in order: {shown([item.name for item in inputs])}", err=True)
    if found.aside:
        typer.echo(f"note: left out: {shown(found.aside)}; to have them, name all files in order, --as-given", err=True)
    carry_out(Recipe(method, inputs, parameters, None, policy_of(choices)), output, running)


def add_difference(
    first: Annotated[Path, typer.Argument(metavar="A", help="Checkpoint to change.")],
    second: Annotated[Path, typer.Argument(metavar="B", help="Checkpoint that has what A shall get.")],
    third: Annotated[Path, typer.Argument(metavar="C", help="Checkpoint that has it not.")],
    output: Output,
    choices: Choices,
    running: Running,
    scale: Annotated[
        str | None, typer.Option(metavar="SCALE", help="Multiplier of the difference: 0.3, 30% or 1/3; default: 1.")
    ] = None,
    scales: Annotated[
        str | None,
        typer.Option(metavar="SCALE,SCALE...", help="Many multipliers; OUT is then a folder of one file each."),
    ] = None,
) -> None:
    """Add to one checkpoint what another has and a third has not: A + scale * (B - C).

    \b
    unival-merge add-difference caption.pt vqa.pt pretrained.pt --scale 0.5 -o merged.safetensors
    unival-merge add-difference caption.pt vqa.pt pretrained.pt --scales 0,0.5,1 -o points
    """
    if scale is not None and scales is not None:
        raise MergeError(f"--scale {scale} and --scales {scales}: give one of them")
    each = numbers("--scales", [scales]) if scales is not None else [number("--scale", scale or "1")]
    recipe = recipe_for("add-difference", [first, second, third], {"scale": each[0]}, choices)
    if scales is None:
        return carry_out(recipe, output, running)
    return carry_out_sweep(recipe, [{"scale": value} for value in each], output, running)
