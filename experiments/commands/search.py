"""`unival-merge study search`: look for good shares with few evaluations."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from experiments.commands.asked import Asked, Words, asked
from experiments.commands.options import OBJECTIVES, SEARCHES, Device, Limit, Only, Place, which
from experiments.errors import StudyError
from merge.commands import one_of, printable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from experiments.grid.grid import Grid
    from experiments.searches.cells import Mixture
    from experiments.searches.driver import History
    from experiments.searches.space import Space
    from experiments.unival.studies import Choice


def search(
    words: Words,
    place: Place,
    only: Only = None,
    method: Annotated[
        str, one_of(SEARCHES, "--method", "How points are chosen; cma needs the extra search.")
    ] = "adaptive",
    budget: Annotated[int, typer.Option(min=1, help="Points to evaluate; those with rows cost nothing.")] = 7,
    objective: Annotated[
        str, one_of(OBJECTIVES, "--objective", "The mean of merged over expert, or the volume that a point dominates.")
    ] = "joint",
    split: Annotated[str, typer.Option(metavar="SPLIT", help="To search on: a validation split.")] = "val",
    limit: Limit = None,
    kind: Annotated[str | None, which(metavar="KIND", help="Of UnIVAL's experts; default: vanilla.")] = None,
    batchnorm: Annotated[
        str, which(metavar="POLICY", help="One policy: average, recalibrate:mixture, ...")
    ] = "average",
    seed: Annotated[
        int | None, which(help="Of the finetunings, and of methods that draw; default: the first, and 0.")
    ] = None,
    device: Device = "cpu",
) -> None:
    """Search the shares of a study's mixture on its validation split. Stopped, what was evaluated is kept.

    \b
    unival-merge study search interpolation pocket-full --only vqa+caption --method adaptive --budget 7
    """
    from experiments.grid.grid import Grid
    from experiments.searches.driver import search as look
    from experiments.statistics.selection import check_choosing
    from experiments.unival.studies import Choice
    from experiments.unival.subject import UnivalSubject

    check_choosing(split)
    found = asked(words)
    if found.file:
        found.refuse({"--limit": limit, "--kind": kind, "--setup": place != Place()})
        mixture = _open(found, only, split, batchnorm=batchnorm, seed=seed, device=device)
    else:
        grid = Grid(found.name, UnivalSubject(place.at(found.folder), limit), (seed or 0,), device)
        choice = Choice(place.setup, split, kinds=(kind or "vanilla",), only=only, batchnorm=(batchnorm,))
        mixture = _built_in(found, grid, choice)

    codes: list[int] = []

    def evaluate(shares: Mapping[str, float]) -> Mapping[str, float]:
        try:
            scores = mixture.evaluate(shares)
        except SystemExit as stop:  # what the command line makes of signals: what was found is still reported
            codes.append(int(stop.code or 0))
            raise KeyboardInterrupt from None
        typer.echo(trial_line(shares, scores), err=True)
        return scores

    history = look(mixture.space, method, evaluate, budget, seed or 0, objective=objective, known=mixture.known())
    typer.echo(report(history, mixture.space))
    if history.ended == "interrupted":
        raise typer.Exit(codes[0] if codes else 130)


def _open(found: Asked, only: str | None, split: str, *, batchnorm: str, seed: int | None, device: str) -> Mixture:
    """The mixture of a study that a file defines; a seed is that of its experts where there are several."""
    from experiments.results.search import space_in

    study = found.defined()
    own = seed if len(study.all_seeds) > 1 else None
    options = {"split": split, "batchnorm": batchnorm, "file": found.file, "device": device}
    return space_in(study, only, found.folder, seed=own, **options)


def _built_in(found: Asked, grid: Grid, choice: Choice) -> Mixture:
    """The mixture of one of UnIVAL's studies."""
    from experiments.searches.cells import Mixture

    study = found.built_in()
    mixtures = study.mixtures_of(choice)
    if len(mixtures) != 1:
        known = ", ".join("+".join(experts) for experts in mixtures)
        count = f"study {study.name} has {len(mixtures)} mixtures of {'+'.join(choice.kinds or ())}"
        raise StudyError(f"{count}: choose one with --only of {known}")
    grid.notes = study.notes
    (policy,) = choice.batchnorm
    return Mixture(grid, mixtures[0], found.folder, split=choice.split, batchnorm=policy, metrics=study.metrics)


def trial_line(shares: Mapping[str, float], scores: Mapping[str, float]) -> str:
    """Return a point and its scores in words."""
    from merge import share_label

    return printable(f"{share_label(shares)}: {', '.join(f'{task} {score:.4f}' for task, score in scores.items())}")


def report(history: History, space: Space) -> str:
    """Return the whole history as a table, the best point, and what it cost."""
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
    return "\n".join(map(printable, [*lines, where + cost]))
