"""`unival-merge study`: which studies there are, evaluating them, and the best ratio of one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from experiments.errors import StudyError

if TYPE_CHECKING:
    from experiments.statistics.selection import Best
    from experiments.study.study import Expert
    from experiments.unival.studies import Choice

Name = Annotated[str, typer.Argument(metavar="NAME", help="A study, as `study list` names it.")]
Folder = Annotated[Path, typer.Argument(metavar="DIR", help="Where rows are kept; at setup pocket the models too.")]
SetupName = Annotated[
    str, typer.Option("--setup", help="pocket, or base: published checkpoints and data.", show_default=True)
]
Seeds = Annotated[list[str] | None, typer.Option(help="Of the finetunings: 0, or 0,1,2; may be repeated.")]
Kinds = Annotated[str | None, typer.Option(help="Kinds of experts, as vanilla,ratatouille; default: the study's.")]
Only = Annotated[str | None, typer.Option(help="One mixture, as vqa+caption.")]
Points = Annotated[int | None, typer.Option(min=2, help="Points on every line, its ends included.")]
Limit = Annotated[int | None, typer.Option(min=1, help="Rows of every split to stop after.")]
Policies = Annotated[
    list[str] | None,
    typer.Option(help="average, from:NAME, recalibrate:mixture, recalibrate:task, or all; may be repeated."),
]
Checkpoints = Annotated[Path | None, typer.Option(help="Folder of the published checkpoints (base).")]
Data = Annotated[Path | None, typer.Option(help="Folder of the published data (base).")]


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
    setup: SetupName = "pocket",
    only: Only = None,
    points: Points = None,
    limit: Limit = None,
    split: Annotated[str, typer.Option(help="test, or val to choose a ratio on.")] = "test",
    seed: Seeds = None,
    kinds: Kinds = None,
    batchnorm: Policies = None,
    device: Annotated[str, typer.Option(help="Where to run: cpu, cuda, ...")] = "cpu",
    engine: Annotated[
        str, typer.Option(help="local: processes of this machine; ray: a cluster (extra ray).")
    ] = "local",
    ray_address: Annotated[str | None, typer.Option(help="Of a running cluster; default: Ray on this machine.")] = None,
    processes: Annotated[int | None, typer.Option(min=1, help="Default: 2 at setup pocket on a CPU, else 1.")] = None,
    checkpoints: Checkpoints = None,
    data: Data = None,
    save: Annotated[
        str | None, typer.Option(help="best: write the best point's weights into DIR/best; needs --split val.")
    ] = None,
    train: Annotated[bool, typer.Option("--train", help="Finetune missing experts first (pocket).")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done and what is missing.")] = False,
) -> None:
    """Evaluate the cells of a study that have no row in DIR/rows.jsonl yet. Stopped, the same command goes on.

    \b
    unival-merge study run interpolation pocket-full --only vqa+caption
    """
    from experiments.grid.engines import engine_named
    from experiments.grid.forecast import forecast
    from experiments.grid.grid import ROWS, Grid, experts_of, run_cells
    from experiments.statistics.selection import save_best
    from experiments.unival.setups import setup_named
    from experiments.unival.studies import study_named
    from experiments.unival.subject import UnivalSubject

    study, choice = study_named(name), _choice(setup, split, points, kinds, only, batchnorm)
    if save not in (None, "best"):
        raise StudyError(f"--save {save!r}: there is only best")
    if save and split != "val":
        raise StudyError(f"a point chosen on split {split} looks too good there: choose it with --split val")
    mixtures = study.mixtures_of(choice) if save else []
    place = setup_named(setup, folder, checkpoints=checkpoints, data=data)
    grid = Grid(name, UnivalSubject(place, limit), _numbers(seed), device, study.notes)
    cells = study.cells(choice)
    if dry_run:
        typer.echo(forecast(grid, cells, folder, place.pace(cells, limit), place.size))
        return
    workers = processes or (2 if setup == "pocket" and device == "cpu" else 1)
    if train:
        for number in grid.seeds:
            place.train(experts_of(cells), number, workers)
    chosen = engine_named(engine, processes if engine == "ray" else workers, ray_address)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        summary = run_cells(grid, cells, folder, chosen)
    except (KeyboardInterrupt, SystemExit):  # Ctrl-C is either, as the program or a script calls
        typer.echo("stopped: finished cells are kept, the same command goes on", err=True)
        raise typer.Exit(130) from None
    typer.echo(f"{folder / ROWS}: {summary}")
    for found in _best(folder, name, mixtures, report=False) if mixtures else []:
        if found.batchnorm.startswith("recalibrate:"):
            typer.echo(f"not saved, since its statistics are measured: {found}")
            continue
        experts = next(own for own in mixtures if tuple(own) == found.names and own[found.names[0]].kind == found.kind)
        for number in grid.seeds:
            inputs = {one: grid.subject.source(expert, number) for one, expert in experts.items()}
            typer.echo(f"{save_best(found, inputs, folder, study=name, seed=number)}: {found}")


def best(name: Name, folder: Folder, only: Only = None, kinds: Kinds = None) -> None:
    """Print the best ratio of every mixture: picked on split val, reported on split test with 95 % intervals.

    \b
    unival-merge study best interpolation pocket-full --only vqa+caption
    """
    from experiments.unival.studies import study_named

    for found in _best(folder, name, study_named(name).mixtures_of(_choice("pocket", "val", None, kinds, only, None))):
        typer.echo(str(found))


def _best(folder: Path, name: str, mixtures: list[dict[str, Expert]], *, report: bool = True) -> list[Best]:
    """The best points of a study's mixtures in the rows of a folder."""
    from experiments.grid.grid import ROWS
    from experiments.grid.rows import read_rows
    from experiments.statistics.selection import best_points

    rows = read_rows(folder / ROWS)
    experts = [expert for own in mixtures for expert in own.values()]
    tasks, kinds = {one.name: one.task for one in experts}, list(dict.fromkeys(one.kind for one in experts))
    return best_points(rows[rows["study"] == name], tasks, dict.fromkeys(map(tuple, mixtures)), kinds, report=report)


def _choice(
    setup: str, split: str, points: int | None, kinds: str | None, only: str | None, batchnorm: list[str] | None
) -> Choice:
    from experiments.unival.studies import Choice

    named = None if kinds is None else tuple(kinds.split(","))
    policies = tuple(one for text in batchnorm or ["average"] for one in text.split(","))
    return Choice(setup, split, points, named, only, policies)


def _numbers(seeds: list[str] | None) -> tuple[int, ...]:
    try:
        return tuple(dict.fromkeys(int(number) for text in seeds or ["0"] for number in text.split(",")))
    except ValueError:
        raise StudyError(f"--seed {' '.join(seeds or [])}: give numbers, as 0 or 0,1,2") from None
