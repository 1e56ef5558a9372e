"""`unival-merge study measure`: what weights say by themselves, and what merging costs."""

from __future__ import annotations

from typing import Annotated

import typer

from experiments.commands.asked import Words, asked
from experiments.commands.options import Cells, Kinds, Only, Place, which


def measure(
    words: Words,
    place: Place,
    only: Only = None,
    kinds: Kinds = None,
    seed: Annotated[list[str] | None, which(metavar="N,...", help="Seeds of the finetunings: 0, or 0,1,2.")] = None,
) -> None:
    """Measure task vectors pair by pair (DIR/weights.csv), and the merges that were chosen (DIR/merges.csv).

    Pages show them: angles beside barriers, planes in true angles, seconds in the table of methods.

    \b
    unival-merge study measure mergeability pocket-full
    """
    from experiments.commands.study import numbers
    from experiments.grid.grid import Grid
    from experiments.results.grids import grid_of
    from experiments.results.measuring import measure_merges, measure_pairs
    from experiments.statistics.weights import MERGES, WEIGHTS
    from experiments.study.cells import cells_of
    from experiments.unival.subject import UnivalSubject

    found, seeds = asked(words), numbers(seed)
    if found.file:
        found.refuse({"--kinds": kinds, "--setup": place != Place()})
        study = found.defined()
        grid, cells = grid_of(study, found.folder, file=found.file, seeds=seeds), cells_of(study, only=only)
        has_base, choose = study.pretrained is not None, study.choose
    else:
        built_in = found.built_in()
        grid = Grid(found.name, UnivalSubject(place.at(found.folder)), seeds or (0,), notes=built_in.notes)
        cells, has_base = built_in.cells(Cells(only=only, kinds=kinds).at(place.setup)), True
        choose = built_in.choose
    if has_base:
        typer.echo(f"{found.folder / WEIGHTS}: {len(measure_pairs(grid, cells, found.folder))} pairs")
    if choose:
        typer.echo(f"{found.folder / MERGES}: {len(measure_merges(grid, cells, found.folder))} merges")
