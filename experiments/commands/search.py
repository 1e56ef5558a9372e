"""`unival-merge study search`: look for good shares with few evaluations."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from experiments.errors import StudyError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from experiments.search.driver import History
    from experiments.search.space import Space


def search(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A study, as `study list` names it.")],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where rows are kept, known ones are not made again.")],
    only: Annotated[str | None, typer.Option(help="The mixture, as vqa+caption.")] = None,
    method: Annotated[
        str, typer.Option(help="grid, random, coordinate, adaptive, cma (extra search) or greedy-soup.")
    ] = "adaptive",
    budget: Annotated[int, typer.Option(min=1, help="Points to evaluate; those with rows cost nothing.")] = 7,
    objective: Annotated[
        str, typer.Option(help="joint: mean of merged over expert; hypervolume: what a point dominates.")
    ] = "joint",
    split: Annotated[str, typer.Option(help="To search on: a validation split.")] = "val",
    kind: Annotated[str, typer.Option(help="Of the experts.")] = "vanilla",
    batchnorm: Annotated[str, typer.Option(help="average, recalibrate:mixture, ...: one policy.")] = "average",
    seed: Annotated[int, typer.Option(help="Of the finetunings, and of methods that draw.")] = 0,
    limit: Annotated[int | None, typer.Option(min=1, help="Rows of every split to stop after.")] = None,
    setup: Annotated[str, typer.Option(help="pocket, or base: published checkpoints and data.")] = "pocket",
    device: Annotated[str, typer.Option(help="Where to run: cpu, cuda, ...")] = "cpu",
    checkpoints: Annotated[Path | None, typer.Option(help="Folder of the published checkpoints (base).")] = None,
    data: Annotated[Path | None, typer.Option(help="Folder of the published data (base).")] = None,
) -> None:
    """Search the shares of a study's mixture on its validation split. Stopped, what was evaluated is kept.

    \b
    unival-merge study search interpolation pocket-full --only vqa+caption --method adaptive --budget 7
    """
    from experiments.grid.grid import Grid
    from experiments.search.cells import Mixture
    from experiments.search.driver import search as look
    from experiments.search.space import Space
    from experiments.unival.setups import setup_named
    from experiments.unival.studies import Choice, study_named
    from experiments.unival.subject import UnivalSubject

    Space.check_split(split)
    study, choice = study_named(name), Choice(setup, split, kinds=(kind,), only=only, batchnorm=(batchnorm,))
    mixtures = study.mixtures_of(choice)
    if len(mixtures) != 1:
        known = ", ".join("+".join(experts) for experts in mixtures)
        raise StudyError(f"study {name} has {len(mixtures)} mixtures of {kind}: choose one with --only of {known}")
    place = setup_named(setup, folder, checkpoints=checkpoints, data=data)
    grid = Grid(name, UnivalSubject(place, limit), (seed,), device, study.notes)
    mixture = Mixture(grid, mixtures[0], folder, split=split, batchnorm=batchnorm, metrics=study.metrics)

    def evaluate(shares: Mapping[str, float]) -> Mapping[str, float]:
        scores = mixture.evaluate(shares)
        typer.echo(trial_line(shares, scores), err=True)
        return scores

    history = look(mixture.space, method, evaluate, budget, seed, objective=objective, known=mixture.known())
    typer.echo(report(history, mixture.space))
    if history.ended == "interrupted":
        raise typer.Exit(130)


def trial_line(shares: Mapping[str, float], scores: Mapping[str, float]) -> str:
    """A point and its scores in words."""
    from merge import share_label

    return f"{share_label(shares)}: {', '.join(f'{task} {score:.4f}' for task, score in scores.items())}"


def report(history: History, space: Space) -> str:
    """The whole history as a table, the best point, and what it cost."""
    from merge import share_label

    tasks = "".join(f"{task:>12}" for task in space.tasks)
    lines = [f"{'point':36}{tasks}{history.objective:>12}{'best':>8}{'hypervolume':>13}"]
    for trial in history.trials:
        scores = "".join(f"{trial.scores[task]:12.4f}" for task in space.tasks)
        origin = "  known" if trial.cached else ""
        lines.append(
            f"{share_label(trial.shares):36}{scores}{trial.value:12.4f}{trial.best:8.4f}{trial.hypervolume:13.4f}{origin}"
        )
    best = history.best
    where = (
        f"best on {space.split}: {share_label(best.shares)} ({history.objective} {best.value:.4f}); " if best else ""
    )
    why = {"budget": "the budget is used up", "method": "nothing more to ask", "interrupted": "stopped"}[history.ended]
    cost = f"{history.evaluations} of {history.budget} evaluations, {history.cached} points were known: {why}"
    return "\n".join([*lines, where + cost])
