"""`unival-merge study`: which studies there are, evaluating them, and the best ratio of one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from experiments.commands.options import (
    ENGINES,
    RUNNING,
    Cells,
    Device,
    Folder,
    Kinds,
    Limit,
    Name,
    Only,
    Place,
    running,
    which,
)
from experiments.errors import StudyError
from merge.commands import one_of, printable

if TYPE_CHECKING:
    from experiments.grid.grid import Grid
    from experiments.statistics.selection import Best
    from experiments.study.points import Expert


@dataclass(frozen=True)
class Engine:
    """Options that say what evaluates."""

    device: Device = "cpu"
    engine: Annotated[
        str, one_of(ENGINES, "--engine", "Processes of this machine, or a cluster (extra ray).", panel=RUNNING)
    ] = "local"
    processes: Annotated[int | None, running(min=1, help="Default: 2 at setup pocket on a CPU, else 1.")] = None
    ray_address: Annotated[
        str | None, running(metavar="ADDRESS", help="Of a running cluster; default: this machine's.")
    ] = None

    def workers(self, setup: str) -> int:
        """Count the processes to use on this machine."""
        return self.processes or (2 if setup == "pocket" and self.device == "cpu" else 1)


def list_studies() -> None:
    """Print the studies, with the number of cells of each at setup pocket.

    \b
    unival-merge study list
    """
    from experiments.unival.studies import STUDIES, Choice

    for name, study in STUDIES.items():
        typer.echo(f"{name:16}{len(study.cells(Choice())):5} cells  {study.question}  ({study.source})")


def run(
    name: Name,
    folder: Folder,
    place: Place,
    cells: Cells,
    engine: Engine,
    limit: Limit = None,
    train: Annotated[bool, typer.Option("--train", help="Finetune missing experts first (pocket).")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done and what is missing.")] = False,
    save: Annotated[
        str | None, one_of(("best",), "--save", "Write the best point's weights into DIR/best; needs --split val.")
    ] = None,
    seed: Annotated[
        list[str] | None, which(metavar="N,...", help="Seeds of the finetunings: 0, or 0,1,2; may be repeated.")
    ] = None,
) -> None:
    """Evaluate the cells of a study that have no row in DIR/rows.jsonl yet. Stopped, the same command goes on.

    \b
    unival-merge study run interpolation pocket-full --only vqa+caption
    """
    from experiments.grid.engines import engine_named
    from experiments.grid.forecast import forecast
    from experiments.grid.grid import ROWS, Grid, experts_of, run_cells
    from experiments.grid.worker import check_device
    from experiments.unival.studies import study_named
    from experiments.unival.subject import UnivalSubject

    study, choice = study_named(name), cells.at(place.setup)
    if save and cells.split != "val":
        raise StudyError(f"a point chosen on split {cells.split} looks too good there: choose it with --split val")
    mixtures = study.mixtures_of(choice) if save else []
    setup = place.at(folder)
    grid = Grid(name, UnivalSubject(setup, limit), _numbers(seed), engine.device, study.notes)
    wanted = study.cells(choice)
    if dry_run:
        typer.echo(forecast(grid, wanted, folder, setup.pace(wanted, limit), setup.size))
        return
    if engine.engine == "local":
        check_device(engine.device)
    workers = engine.workers(place.setup)
    if train:
        for number in grid.seeds:
            setup.train(experts_of(wanted), number, workers)
    chosen = engine_named(engine.engine, engine.processes if engine.engine == "ray" else workers, engine.ray_address)
    try:
        summary = run_cells(grid, wanted, folder, chosen)
    except (KeyboardInterrupt, SystemExit) as stop:  # a signal is either, as a script or the program calls
        typer.echo("stopped: finished cells are kept, the same command goes on", err=True)
        raise typer.Exit(130 if isinstance(stop, KeyboardInterrupt) else int(stop.code or 0)) from None
    typer.echo(f"{folder / ROWS}: {summary}")
    if mixtures:
        _save_best(grid, mixtures, folder)


def _save_best(grid: Grid, mixtures: list[dict[str, Expert]], folder: Path) -> None:
    """Write the weights of every mixture's best point, with each seed's experts; measured statistics are in no file."""
    from experiments.statistics.selection import best_path, save_best

    for found in _best(folder, grid.study, mixtures, report=False):
        if found.batchnorm.startswith("recalibrate:"):
            typer.echo(printable(f"not saved, since its statistics are measured: {found}"))
            continue
        experts = next(own for own in mixtures if tuple(own) == found.names and own[found.names[0]].kind == found.kind)
        for number in grid.seeds:
            inputs = {one: grid.subject.source(expert, number) for one, expert in experts.items()}
            path = best_path(found, inputs, folder, study=grid.study, seed=number)
            # Not every expert has every encoder.
            file = save_best(found, inputs, path, missing="keep-first", overwrite=True)
            typer.echo(printable(f"{file}: {found}"))


def best(name: Name, folder: Folder, only: Only = None, kinds: Kinds = None) -> None:
    """Print the best ratio of every mixture: picked on split val, reported on split test with 95 % intervals.

    \b
    unival-merge study best interpolation pocket-full --only vqa+caption
    """
    from experiments.unival.studies import study_named

    choice = Cells("val", only=only, kinds=kinds).at("pocket")
    for found in _best(folder, name, study_named(name).mixtures_of(choice)):
        typer.echo(printable(str(found)))


def _best(folder: Path, name: str, mixtures: list[dict[str, Expert]], *, report: bool = True) -> list[Best]:
    """The best points of a study's mixtures in the rows of a folder."""
    from experiments.grid.grid import ROWS
    from experiments.grid.rows import read_rows
    from experiments.statistics.selection import best_points

    rows = read_rows(folder / ROWS)
    kinds = list(dict.fromkeys(expert.kind for own in mixtures for expert in own.values()))
    return best_points(rows[rows["study"] == name], {}, dict.fromkeys(map(tuple, mixtures)), kinds, report=report)


def _numbers(seeds: list[str] | None) -> tuple[int, ...]:
    try:
        return tuple(dict.fromkeys(int(number) for text in seeds or ["0"] for number in text.split(",")))
    except ValueError:
        raise StudyError(f"--seed {' '.join(seeds or [])}: give numbers, as 0 or 0,1,2") from None
