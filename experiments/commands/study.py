"""`unival-merge study`: which studies there are, evaluating them, and the best ratio of one."""

from __future__ import annotations

import shlex
from contextlib import nullcontext
from dataclasses import dataclass, replace
from importlib.util import find_spec
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
    from collections.abc import Iterable, Sequence

    from experiments.grid.grid import Engine as Evaluate
    from experiments.grid.grid import Grid
    from experiments.statistics.selection import Best
    from experiments.study.points import Cell

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
    """Print the studies, with the number of cells of each at setup pocket, or else at setup base.

    \b
    unival-merge study list
    """
    from experiments.unival.studies import STUDIES, Choice

    for name, study in STUDIES.items():
        typer.echo(f"{name:16}{len(study.cells(Choice(study.setups[0]))):5} cells  {study.question}  ({study.source})")


def run(
    words: Words,
    place: Place,
    cells: Cells,
    engine: Engine,
    limit: Limit = None,
    train: Annotated[
        bool, typer.Option("--train", help="Finetune missing experts first (at setup base: ratatouille, fusing).")
    ] = False,
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
    found, seeds = asked(words), numbers(seed)
    if found.file:
        found.refuse({"--limit": limit, "--train": train, "--kinds": cells.kinds, "--setup": place != Place()})
        _run_open(found, cells, engine, seeds, dry_run=dry_run, save=save)
    else:
        _run_built_in(found, place, cells, engine, limit, seeds or (0,), train=train, dry_run=dry_run, save=save)


def _run_open(
    found: Asked, cells: Cells, engine: Engine, seeds: tuple[int, ...] | None, *, dry_run: bool, save: str | None
) -> None:
    """Evaluate a study that a file defines."""
    from experiments.grid.grid import experts_of
    from experiments.results.run import check_experts, engine_for, grid_of
    from experiments.study.cells import cells_of

    study = found.defined()
    if save:
        check_saving(study.name, cells.split or ("val" if "val" in study.splits else study.splits[0]))
    if cells.batchnorm:
        study = replace(study, batchnorm=cells.policies)
    if cells.methods:
        study = replace(study, methods=cells.methods)
    wanted = cells_of(study, points=cells.points, only=cells.only, split=cells.split)
    with TemporaryDirectory() if dry_run else nullcontext(found.folder) as folder:
        options = {"seeds": seeds, "device": engine.device, "precision": engine.precision}
        grid = grid_of(study, Path(folder), file=found.file, **options)
        _tell_left_out(study.methods, wanted, has_base=study.pretrained is not None)
        if dry_run:
            _forecast(grid, wanted, found.folder, choose=study.choose)
            return
        chosen = engine_for(grid, engine.engine, engine.processes, engine.ray_address)
        check_experts(grid, experts_of(wanted))
        _finish(grid, wanted, found.folder, chosen, choose=study.choose)
    if save:
        _save_best(grid, wanted, found.folder)


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
    from experiments.grid.grid import Grid, experts_of
    from experiments.grid.worker import check_device
    from experiments.unival.subject import UnivalSubject

    study, choice, folder = found.built_in(), cells.at(place.setup), found.folder
    if save:
        check_saving(study.name, choice.split)
    setup = place.at(folder)
    subject, wanted = UnivalSubject(setup, limit), study.cells(choice)
    notes = replace(study.notes, files=subject.files(experts_of(wanted), seeds))
    grid = Grid(study.name, subject, seeds, engine.device, notes, engine.precision)
    _tell_left_out(choice.methods or getattr(study, "methods", ()), wanted, has_base=True)
    if dry_run:
        _forecast(grid, wanted, folder, setup.pace(wanted, limit), setup.size, choose=study.choose)
        return
    grid.chance = subject.chance
    if engine.engine == "local":
        check_device(engine.device)
    workers = engine.workers(place.setup)
    if train:
        for number in grid.seeds:
            setup.train(experts_of(wanted), number, workers, engine.device)
    chosen = engine_named(engine.engine, engine.processes if engine.engine == "ray" else workers, engine.ray_address)
    _finish(grid, wanted, folder, chosen, choose=study.choose)
    if save:
        _save_best(grid, wanted, folder, missing="keep-first")  # not every expert has every encoder


def _tell_left_out(methods: Sequence[object], wanted: list[Cell], *, has_base: bool) -> None:
    """Say on stderr, where all methods were asked for, which are not compared and why."""
    from experiments.study.methods import ALL, left_out

    if ALL in methods:
        most = max((len(cell.point.experts) for cell in wanted), default=1)
        for name, why in left_out({cell.point.method for cell in wanted}, most, has_base=has_base).items():
            typer.echo(f"left out: {name} {why}", err=True)


def _forecast(grid: Grid, wanted: list[Cell], folder: Path, pace: str = "", size: float = 0.0, *, choose: bool) -> None:
    """Say what a run would do, in both steps."""
    from experiments.grid.forecast import forecast
    from experiments.results.steps import steps_of

    first, rest = steps_of(wanted) if choose else (wanted, [])
    typer.echo(forecast(grid, first, folder, pace, size))
    if rest:
        places = len({(cell.task, cell.split) for cell in rest})
        typer.echo(f"then, on {places} other splits of tasks, the point of each mixture and method that is best on val")


def _finish(grid: Grid, wanted: list[Cell], folder: Path, engine: Evaluate, *, choose: bool) -> None:
    """Evaluate what is missing, and say what was done."""
    from experiments.grid.grid import ROWS
    from experiments.results.steps import run_in_steps

    try:
        summary = run_in_steps(grid, wanted, folder, engine, choose=choose)
    except (KeyboardInterrupt, SystemExit) as stop:  # a signal is either, as a script or the program calls
        typer.echo("stopped: finished cells are kept, the same command goes on", err=True)
        raise typer.Exit(130 if isinstance(stop, KeyboardInterrupt) else int(stop.code or 0)) from None
    typer.echo(f"{folder / ROWS}: {summary}")
    if summary.evaluated:
        at = shlex.quote(str(folder))
        typer.echo(f"unival-merge study findings {at} says what it found, study report {at} draws it", err=True)


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
    if find_spec("sklearn") is None:
        typer.echo("its digits come with scikit-learn: pip install 'unival-merge[world]'", err=True)
    typer.echo(f"{file}: run it with unival-merge study run {shlex.quote(str(file))} {shlex.quote(file.stem)}")


def check_saving(study: str, split: str) -> None:
    """Raise StudyError for a split that the best point is not to be chosen on."""
    if not split.startswith("val"):
        raise StudyError(
            f"study {study}: a point chosen on split {split} looks too good there: choose it with --split val"
        )


def _save_best(grid: Grid, cells: list[Cell], folder: Path, *, missing: str = "error") -> None:
    """Write the weights of every mixture's best point, with each seed's experts; measured statistics are in no file."""
    from experiments.grid.grid import experts_of
    from experiments.statistics.selection import best_path, save_best
    from experiments.study.points import PRETRAINED

    mixed = [cell.point for cell in cells if len(cell.point.experts) > 1]
    if not mixed:
        raise StudyError(f"study {grid.study} mixes nothing: there is no ratio to choose")
    names, kinds = dict.fromkeys(tuple(point.experts) for point in mixed), dict.fromkeys(point.kind for point in mixed)
    for found in _best(folder, grid.study, names, kinds, report=False):
        if found.batchnorm.startswith("recalibrate:"):
            typer.echo(printable(f"not saved, since its statistics are measured: {found}"))
            continue
        experts = [expert for expert in experts_of(cells) if expert.kind in (found.kind, PRETRAINED)]
        for number in grid.seeds:
            inputs = {expert.name: grid.subject.source(expert, number) for expert in experts}
            path = best_path(found, inputs, folder, study=grid.study, seed=number)
            file = save_best(found, inputs, path, missing=missing, overwrite=True)
            typer.echo(printable(f"{file}: {found}"))


def best(words: Words, only: Only = None, kinds: Kinds = None) -> None:
    """Print the best point of every mixture: picked on split val, reported on split test with 95 % intervals.

    Nothing but the rows in DIR is needed.

    \b
    unival-merge study best interpolation pocket-full --only vqa+caption
    """
    found = asked(words)
    for one in _best(found.folder, found.name, *_mixtures(found, only, kinds)):
        typer.echo(printable(str(one)))


def _mixtures(found: Asked, only: str | None, kinds: str | None) -> tuple[list[tuple[str, ...]], list[str]]:
    """The mixtures and the kinds of experts that are meant, of those that rows have, or that a built-in study names."""
    from experiments.grid.rows import records
    from experiments.results.results import open_results
    from experiments.statistics.summary import mixtures_of
    from experiments.unival.studies import STUDIES

    if not found.file and found.name in STUDIES:
        own = STUDIES[found.name].mixtures_of(Cells("val", only=only, kinds=kinds).at("pocket"))
        known = [(tuple(experts), expert.kind) for experts in own for expert in experts.values()]
        return list(dict.fromkeys(names for names, _ in known)), list(dict.fromkeys(kind for _, kind in known))
    known = mixtures_of(records(open_results(found.folder, found.name).rows))
    wanted = None if only is None else set(only.split("+"))
    names = dict.fromkeys(own for own, _ in known if wanted in (None, set(own)))
    if known and not names:
        choices = ", ".join(dict.fromkeys("+".join(own) for own, _ in known))
        raise StudyError(f"study {found.name} has nothing of {only!r}: choose one of {choices}")
    found_kinds = list(dict.fromkeys(kind for _, kind in known))
    return list(names), [kind for kind in found_kinds if kinds is None or kind in kinds.split(",")]


def _best(
    folder: Path, name: str, mixtures: Iterable[tuple[str, ...]], kinds: Iterable[str], *, report: bool = True
) -> list[Best]:
    """The best points of mixtures of a study, of some kinds of experts, in the rows of a folder."""
    from experiments.results.results import open_results
    from experiments.statistics.selection import best_points

    results = open_results(folder, name)
    report = report and "test" in set(results.rows["split"])
    return best_points(results.rows, results.notes.tasks, mixtures, list(kinds), report=report)


def numbers(seeds: list[str] | None) -> tuple[int, ...] | None:
    """Read seeds as numbers; None where none were given."""
    if not seeds:
        return None
    try:
        return tuple(dict.fromkeys(int(number) for text in seeds for number in text.split(",")))
    except ValueError:
        raise StudyError(f"--seed {' '.join(seeds)}: give numbers, as 0 or 0,1,2") from None
