"""`study plot`, `study table`, `study report` and `study samples`: the pages of a study."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

Name = Annotated[str, typer.Argument(metavar="NAME", help="The study, as in `unival-merge study list`.")]
Folder = Annotated[Path, typer.Argument(metavar="DIR", help="Folder that holds its rows.jsonl.")]


def plot(
    name: Name,
    folder: Folder,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write.")],
) -> None:
    """Draw every figure of a study from its rows alone, as PNG, SVG and PDF.

    \b
    unival-merge study plot interpolation results/interpolation -o figures
    """
    from experiments.pages.figures.choice import figures
    from experiments.pages.figures.drawing import save
    from experiments.pages.views import open_study

    drawn, missing = figures(name, open_study(folder, name)[0])
    output.mkdir(parents=True, exist_ok=True)
    for stem, _, figure in drawn:
        typer.echo(" ".join(str(path) for path in save(figure, output / stem)))
    for line in missing:
        typer.echo(f"not drawn: {line}", err=True)


def table(
    name: Name,
    folder: Folder,
    form: Annotated[str, typer.Option("--format", help="markdown, csv or latex.")] = "markdown",
) -> None:
    """Print the scores of a study with their intervals.

    \b
    unival-merge study table averaging results/averaging --format latex
    """
    from experiments.pages.tables.choice import written
    from experiments.pages.views import open_study
    from experiments.unival.costs import costs_table

    typer.echo(written(name, *open_study(folder, name), form), nl=False)
    costs = costs_table(folder) if name == "pretraining" and form == "markdown" else ""
    typer.echo(f"\n## costs\n\n{costs}" * bool(costs), nl=False)


def report(
    name: Name,
    folder: Folder,
    output: Annotated[Path, typer.Option("--output", "-o", help="HTML file to write.")],
) -> None:
    """Write one HTML page of a study: findings, sliders between experts, figures, tables, the rows behind them.

    \b
    unival-merge study report interpolation results/interpolation -o report.html
    """
    from experiments.pages.report import write_report

    words = ["unival-merge", "study", "report", name, str(folder), "-o", str(output)]
    typer.echo(write_report(folder, name, output, command=shlex.join(words)))


def samples(
    name: Name,
    folder: Folder,
    pocket: Annotated[Path, typer.Option(help="Folder of the models, made by `unival-merge pocket`.")],
    count: Annotated[int, typer.Option(min=1, help="Examples of every task.")] = 8,
) -> None:
    """Let the merged models of a study answer a few examples, for its report; goes on where it was stopped.

    \b
    unival-merge study samples interpolation results/interpolation --pocket pocket-full
    """
    from experiments.unival.samples import make_samples
    from experiments.unival.setups import PocketSetup
    from experiments.unival.subject import UnivalSubject

    made = make_samples(folder, name, UnivalSubject(PocketSetup(pocket)), count)
    typer.echo(f"{folder / 'samples.jsonl'}: {made} rows more")
