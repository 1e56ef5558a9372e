"""`unival-merge study`: which studies there are, evaluating them, and the best ratio of one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from experiments.errors import StudyError

if TYPE_CHECKING:
    from experiments.grid.grid import Engine
    from experiments.grid.worker import Setting
    from experiments.study.study import AnyStudy, Choice, Study

Name = Annotated[str, typer.Argument(metavar="NAME", help="A study, as `study list` names it.")]
Folder = Annotated[Path, typer.Argument(metavar="DIR", help="Where rows are kept; at pocket scale the models too.")]
ScaleName = Annotated[str, typer.Option(help="pocket, or base: published checkpoints and data.")]
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
    """Print the studies, with the number of cells of each at pocket scale."""
    from experiments.study.study import STUDIES, Choice

    for name, study in STUDIES.items():
        typer.echo(f"{name:16}{len(study.cells(Choice())):5} cells  {study.question}  ({study.source})")


def run(
    name: Name,
    folder: Folder,
    scale: ScaleName = "pocket",
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
    processes: Annotated[int | None, typer.Option(min=1, help="Default: 2 at pocket scale on a CPU, else 1.")] = None,
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
    from experiments.grid.grid import ROWS, Plan, known_rows, run_study, train_missing
    from experiments.study.study import study_named

    study = study_named(name)
    if save is not None:
        _check_saving(save, split)
    choice = _choice(scale, split, points, kinds, only, batchnorm)
    setting = _setting(scale, folder, seed, limit, device, checkpoints, data)
    plan = Plan(study, choice, setting)
    if dry_run:
        from experiments.grid.forecast import forecast

        typer.echo(forecast(plan, folder))
        return
    workers = processes or (2 if scale == "pocket" and device == "cpu" else 1)
    if train:
        train_missing(plan, workers)
    chosen: Engine = engine_named(engine, processes if engine == "ray" else workers, ray_address)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        summary = run_study(plan, folder, chosen)
    except (KeyboardInterrupt, SystemExit):  # Ctrl-C is either, as the program or a script calls
        typer.echo("stopped: finished cells are kept, the same command goes on", err=True)
        raise typer.Exit(130) from None
    typer.echo(f"{folder / ROWS}: {summary}")
    if save is not None:
        from experiments.statistics.selection import best_points, save_best
        from experiments.unival.setups import expert_inputs

        own = _with_mixtures(study)
        rows = known_rows(folder / ROWS)
        rows = rows[rows["study"] == own.name]
        wanted = own.chosen_mixtures(choice), own.chosen_kinds(choice)
        for found in best_points(rows, own.experts, *wanted, report=False):
            if found.batchnorm.startswith("recalibrate:"):
                typer.echo(f"not saved, since its statistics are measured: {found}")
                continue
            for seed_number, scale_of_seed in setting.scales.items():
                inputs = expert_inputs(scale_of_seed, own, found.names, found.kind)
                file = save_best(found, inputs, folder, study=own.name, seed=seed_number)
                typer.echo(f"{file}: {found}")


def best(name: Name, folder: Folder, only: Only = None, kinds: Kinds = None) -> None:
    """Print the best ratio of every mixture: picked on split val, reported on split test with 95 % intervals.

    \b
    unival-merge study best interpolation pocket-full --only vqa+caption
    """
    from experiments.grid.grid import ROWS
    from experiments.grid.rows import read_rows
    from experiments.statistics.selection import best_points
    from experiments.study.study import study_named

    study, choice = _with_mixtures(study_named(name)), _choice("pocket", "val", None, kinds, only, None)
    rows = read_rows(folder / ROWS)
    rows = rows[rows["study"] == study.name]
    for found in best_points(rows, study.experts, study.chosen_mixtures(choice), study.chosen_kinds(choice)):
        typer.echo(str(found))


def _check_saving(save: str, split: str) -> None:
    if save != "best":
        raise StudyError(f"--save {save!r}: there is only best")
    if split != "val":
        raise StudyError(f"the best point of split {split} would flatter itself there: choose it with --split val")


def _with_mixtures(study: AnyStudy) -> Study:
    from experiments.study.study import Study

    if not isinstance(study, Study):
        raise StudyError(f"study {study.name} mixes nothing: there is no ratio to choose")
    return study


def _choice(
    scale: str, split: str, points: int | None, kinds: str | None, only: str | None, batchnorm: list[str] | None
) -> Choice:
    from experiments.study.study import Choice

    named = None if kinds is None else tuple(kinds.split(","))
    policies = tuple(one for text in batchnorm or ["average"] for one in text.split(","))
    return Choice(scale, split, points, named, only, policies)


def _setting(
    scale: str,
    folder: Path,
    seeds: list[str] | None,
    limit: int | None,
    device: str,
    checkpoints: Path | None,
    data: Path | None,
) -> Setting:
    from experiments.grid.worker import Setting
    from experiments.unival.setups import scale_named

    places = {"checkpoints": checkpoints, "data": data}
    return Setting({seed: scale_named(scale, folder, seed, **places) for seed in _numbers(seeds)}, limit, device)


def _numbers(seeds: list[str] | None) -> list[int]:
    try:
        return [int(number) for text in seeds or ["0"] for number in text.split(",")]
    except ValueError:
        raise StudyError(f"--seed {' '.join(seeds or [])}: give numbers, as 0 or 0,1,2") from None
