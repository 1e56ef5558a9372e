"""`unival-merge pocket`: the study's models from nothing, on a laptop."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from experiments.commands.options import DEMOS, PRESETS, SPLITS
from merge.commands import one_of

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="Where everything is made, and goes on if stopped.")]
Processes = Annotated[int, typer.Option(min=1, help="Processes of one thread each.")]


def pocket(
    folder: Folder,
    preset: Annotated[
        str,
        one_of(
            PRESETS,
            "--preset",
            "Seven experts from nothing; four from the shipped pretrained weights; or a few updates of three, which "
            "shows that everything runs.",
        ),
    ] = "full",
    seed: Annotated[int, typer.Option(min=0, help="Of all training; the world is the same.")] = 0,
    split: Annotated[str, one_of(SPLITS, "--split", "What to evaluate on; val to choose settings.")] = "test",
    processes: Processes = 2,
) -> None:
    """Make the embedded world, pretrain a small model, finetune experts, and print the table that compares them.

    \b
    unival-merge pocket pocket-full
    """
    from experiments.unival.pocket.experts import make_models
    from experiments.unival.pocket.pipeline import Pocket
    from experiments.unival.pocket.table import write_table

    made = Pocket(folder, preset, seed)
    make_models(made, processes)
    typer.echo(write_table(made, split, processes).read_text())


def demo(
    folder: Folder,
    preset: Annotated[
        str,
        one_of(DEMOS, "--preset", "From the shipped pretrained weights; or from nothing, and more of everything."),
    ] = "quick",
    processes: Processes = 2,
) -> None:
    """Make a world and experts, merge them at many ratios, and write curves, tables, reports and what they say.

    \b
    unival-merge demo demo-quick
    """
    from experiments.unival.demo import run_demo

    for line in run_demo(folder, preset, processes, progress=sys.stderr.isatty()):
        typer.echo(line)
