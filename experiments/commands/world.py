"""`world make` and `world show`: write the embedded world, and look at it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from experiments.commands.options import DOMAINS, SIZES
from merge.commands import one_of

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="Folder of the world.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")]


def make(
    folder: Folder,
    seed: Annotated[int, typer.Option(help="The same seed gives the same bytes.")] = 0,
    size: Annotated[
        str,
        one_of(SIZES, "--size", "Everything; all but what only pretraining reads; or a dozen rows of each file."),
    ] = "quick",
    domains: Annotated[
        str, one_of(DOMAINS, "--domains", "Whether tasks see images of one domain, or of different ones.")
    ] = "shared",
    overwrite: Overwrite = False,
) -> None:
    """Write the world into DIR as UnIVAL's tab-separated files, with a record in world.json.

    \b
    unival-merge world make world
    """
    from experiments.unival.world.build import make_world
    from experiments.unival.world.tables import read_world

    world = read_world(make_world(folder, seed, size, domains, overwrite=overwrite, progress=True))
    rows, size_bytes = (sum(getattr(file, name) for file in world.files.values()) for name in ("rows", "bytes"))
    typer.echo(f"{folder}: {len(world.files)} files, {rows:,} rows, {size_bytes / 1e6:.0f} MB, seed {world.seed}")


def show(
    folder: Folder,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Image to write; default: contact-sheet.png in DIR.")
    ] = None,
    task: Annotated[str | None, typer.Option(metavar="TASK", help="Draw one task only.")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Draw rows of every split, and print what the answers are worth without the images.

    \b
    unival-merge world show world
    """
    from experiments.errors import StudyError
    from experiments.unival.world.audit import audit_all
    from experiments.unival.world.sheet import contact_sheet
    from experiments.unival.world.tables import SHEET

    file = output or folder / SHEET
    if file.exists() and not overwrite:
        raise StudyError(f"{file} exists: choose another file with -o or pass --overwrite")
    typer.echo(f"{contact_sheet(folder, file, task)}\n")
    typer.echo(f"{'blind scores on test':24}{'n':>6}{'majority':>10}{'by kind':>10}{'text only':>11}")
    for row in audit_all(folder):
        scores = f"{row.majority:10.1%}{row.prior:10.1%}{row.text_only:11.1%}"
        typer.echo(f"{row.task:24}{row.n:6}{scores}")
