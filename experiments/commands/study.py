"""`unival-merge study`: which studies there are, evaluating them, and the best ratio of one."""

from __future__ import annotations

import shlex
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import typer

from experiments.commands.asked import Asked, Words, asked
from experiments.commands.options import (
    ENGINES,
    PRECISIONS,
    RUNNING,
    Cells,
    Device,
    Kinds,
    Limit,
    Only,
    Place,
    running,
    which,
)
from experiments.errors import StudyError
from merge.commands import one_of, printable

if TYPE_CHECKING:
    from experiments.grid.grid import Engine as Evaluate
    from experiments.grid.grid import Grid
    from experiments.statistics.selection import Best
    from experiments.study.points import Cell, Expert

TEMPLATE = Path(__file__).parents[1] / "results" / "templates" / "study.txt"


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
    precision: Annotated[
        str,
        one_of(PRECISIONS, "--precision", "Of answers, under autocast; weights are merged in float32.", panel=RUNNING),
    ] = "fp32"

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
    words: Words,
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

    A study of your own is a file that defines `study` (`study new FILE.py` writes one); UnIVAL's are in `study list`.

    \b
    unival-merge study run digits_study.py digits
    unival-merge study run interpolation pocket-full --only vqa+caption
    """
    found, seeds = asked(words), _numbers(seed)
    if found.file:
        unheard = {"--limit": limit, "--train": train, "--save": save, "--kinds": cells.kinds}
        unheard |= {"--setup": place != Place()}
        if given := [name for name, value in unheard.items() if value]:
            raise StudyError(f"{given[0]} is for the studies of `study list`: {found.name} is defined in {found.file}")
        _run_open(found, cells, engine, seeds, dry_run=dry_run)
    else:
        _run_built_in(found, place, cells, engine, limit, seeds or (0,), train=train, dry_run=dry_run, save=save)


def _run_open(found: Asked, cells: Cells, engine: Engine, seeds: tuple[int, ...] | None, *, dry_run: bool) -> None:
    """Evaluate a study that a file defines."""
    from experiments.grid.forecast import forecast
    from experiments.grid.grid import experts_of
    from experiments.results.run import check_experts, engine_for, grid_of
    from experiments.study.cells import cells_of

    study = found.defined()
    assert study is not None
    if cells.batchnorm:
        study = replace(study, batchnorm=cells.policies)
    if cells.methods:
        study = replace(study, methods=cells.methods)
    wanted = cells_of(study, points=cells.points, only=cells.only, split=cells.split)
    with TemporaryDirectory() if dry_run else nullcontext(found.folder) as folder:
        options = {"seeds": seeds, "device": engine.device, "precision": engine.precision}
        grid = grid_of(study, Path(folder), file=found.file, **options)
        if dry_run:
            typer.echo(forecast(grid, wanted, found.folder))
            return
        chosen = engine_for(grid, engine.engine, engine.processes, engine.ray_address)
        check_experts(grid, experts_of(wanted))
        _finish(grid, wanted, found.folder, chosen)


def _run_built_in(
    found: Asked,
    place: Place,
    cells: Cells,
    engine: Engine,
    limit: int | None,
    seeds: tuple[int, ...],
    *,
    train: bool,
    dry_run: bool,
    save: str | None,
) -> None:
    """Evaluate one of UnIVAL's studies."""
    from experiments.grid.engines import engine_named
    from experiments.grid.forecast import forecast
    from experiments.grid.grid import Grid, experts_of
    from experiments.grid.worker import check_device
    from experiments.unival.studies import study_named
    from experiments.unival.subject import UnivalSubject

    study, choice, folder = study_named(found.name), cells.at(place.setup), found.folder
    if save and choice.split != "val":
        raise StudyError(f"a point chosen on split {choice.split} looks too good there: choose it with --split val")
    mixtures = study.mixtures_of(choice) if save else []
    setup = place.at(folder)
    grid = Grid(study.name, UnivalSubject(setup, limit), seeds, engine.device, study.notes, engine.precision)
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
    _finish(grid, wanted, folder, chosen)
    if mixtures:
        _save_best(grid, mixtures, folder)


def _finish(grid: Grid, wanted: list[Cell], folder: Path, engine: Evaluate) -> None:
    """Evaluate what is missing, and say what was done."""
    from experiments.grid.grid import ROWS, run_cells

    try:
        summary = run_cells(grid, wanted, folder, engine)
    except (KeyboardInterrupt, SystemExit) as stop:  # a signal is either, as a script or the program calls
        typer.echo("stopped: finished cells are kept, the same command goes on", err=True)
        raise typer.Exit(130 if isinstance(stop, KeyboardInterrupt) else int(stop.code or 0)) from None
    typer.echo(f"{folder / ROWS}: {summary}")


def new(file: Annotated[Path, typer.Argument(metavar="FILE.py", help="File to write.")]) -> None:
    """Write a study to start from: a commented file that runs as it is, on handwritten digits, in half a minute.

    \b
    unival-merge study new digits_study.py
    """
    if file.suffix != ".py":
        raise StudyError(f"{file}: a study is a file of Python code: call it {file.name}.py")
    if file.exists():
        raise StudyError(f"{file} exists: name another file")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(TEMPLATE.read_bytes())
    except OSError as error:
        raise StudyError(f"{file}: {error.strerror}: name another file") from None
    typer.echo(f"{file}: run it with unival-merge study run {shlex.quote(str(file))} {shlex.quote(file.stem)}")


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


def best(words: Words, only: Only = None, kinds: Kinds = None) -> None:
    """Print the best ratio of every mixture: picked on split val, reported on split test with 95 % intervals.

    \b
    unival-merge study best interpolation pocket-full --only vqa+caption
    """
    from experiments.unival.studies import study_named

    found = asked(words)
    choice = Cells("val", only=only, kinds=kinds).at("pocket")
    for one in _best(found.folder, found.name, study_named(found.name).mixtures_of(choice)):
        typer.echo(printable(str(one)))


def _best(folder: Path, name: str, mixtures: list[dict[str, Expert]], *, report: bool = True) -> list[Best]:
    """The best points of a study's mixtures in the rows of a folder."""
    from experiments.grid.grid import ROWS
    from experiments.grid.rows import read_rows
    from experiments.statistics.selection import best_points

    rows = read_rows(folder / ROWS)
    kinds = list(dict.fromkeys(expert.kind for own in mixtures for expert in own.values()))
    return best_points(rows[rows["study"] == name], {}, dict.fromkeys(map(tuple, mixtures)), kinds, report=report)


def _numbers(seeds: list[str] | None) -> tuple[int, ...] | None:
    """Seeds as numbers, None where none were given."""
    if not seeds:
        return None
    try:
        return tuple(dict.fromkeys(int(number) for text in seeds for number in text.split(",")))
    except ValueError:
        raise StudyError(f"--seed {' '.join(seeds)}: give numbers, as 0 or 0,1,2") from None
