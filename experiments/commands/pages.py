"""`study plot`, `table`, `findings`, `report`, `export`, `samples` and `claims`: the pages of studies."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from experiments.commands.asked import Words, asked
from experiments.commands.options import FORMATS, SCORES, Device
from merge.commands import one_of, printable


def plot(
    words: Words,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="DIR", show_default=False, help="Folder to write; default: DIR/figures."
        ),
    ] = None,
    form: Annotated[
        str, typer.Option("--format", metavar="png,...", help="Of files: some of png, svg and pdf.")
    ] = "png,svg,pdf",
    figures: Annotated[
        str,
        typer.Option(
            "--figures",
            metavar="KIND,...",
            show_default=False,
            help="Only figures of these kinds: the first word of their files' names, such as curves,retention.",
        ),
    ] = "",
    radar: Annotated[bool, typer.Option("--radar", help="Draw averages of all experts as a radar chart too.")] = False,
) -> None:
    """Draw every figure of a study from its rows alone.

    \b
    unival-merge study plot interpolation results/pocket-interpolation -o figures --format png,pdf
    unival-merge study plot averaging results/pocket-averaging --figures dots,retention
    """
    from experiments.errors import StudyError
    from experiments.pages.figures import SUFFIXES, draw, save
    from experiments.pages.views import open_study

    found = asked(words)
    suffixes = [f".{name}" for name in form.split(",")]
    if unknown := [name for name in suffixes if name not in SUFFIXES]:
        raise StudyError(f"--format {form}: no {unknown[0][1:]!r}: choose of {', '.join(one[1:] for one in SUFFIXES)}")
    wanted = [name.strip() for name in figures.split(",") if name.strip()]
    drawn, missing = draw(*open_study(found.folder, found.name), also=["radar"] * radar, only=wanted)
    if not drawn and not missing:
        raise StudyError(
            f"{found.folder}: nothing to draw of {found.name}: its rows have no points between experts, no averages "
            "and no shifted splits; `study table` and `study report` show them"
        )
    output = found.folder / "figures" if output is None else output
    output.mkdir(parents=True, exist_ok=True)
    for one in drawn:
        typer.echo(" ".join(str(path) for path in save(one.figure, output / one.stem, suffixes)))
    for line in missing:
        typer.echo(printable(f"not drawn: {line}"), err=True)


def table(
    words: Words,
    form: Annotated[str, one_of(FORMATS, "--format", "How the table is written.")] = "markdown",
) -> None:
    """Print the scores of a study with their intervals.

    \b
    unival-merge study table averaging results/pocket-averaging --format latex
    """
    from experiments.pages.beside import tables_beside
    from experiments.pages.tables import written
    from experiments.pages.views import coefficients, experts_of, open_study, read_notes, reported_points
    from experiments.unival.costs import costs_table

    found = asked(words)
    name, folder = found.name, found.folder
    rows, scores = open_study(folder, name)
    notes = read_notes(folder, name)
    shown = reported_points([row for row in rows if coefficients(row) is None])
    typer.echo(written(shown, scores, form, notes.tables, notes.beside), nl=False)
    if form == "markdown":
        more = {title: one.to_markdown() for title, one in tables_beside(folder, rows, scores).items()}
        more["costs"] = costs_table(folder, {one for row in rows for one in experts_of(row)})
        for title, text in more.items():
            typer.echo(f"\n## {title}\n\n{text}" * bool(text), nl=False)


def findings(words: Words) -> None:
    """Print what the rows of a study say, with its numbers: what holds after correction, and what is not told apart.

    \b
    unival-merge study findings averaging results/pocket-averaging
    """
    from experiments.pages.findings import each_finding
    from experiments.pages.views import open_study, read_notes

    found = asked(words)
    rows, scores = open_study(found.folder, found.name)
    notes = read_notes(found.folder, found.name)
    for one in each_finding(rows, scores, notes.contender, notes.tasks):
        first, *details = str(one).splitlines()
        typer.echo(printable(first))
        for line in details:
            typer.echo(printable(f"  {line}"))


def report(
    words: Words,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", show_default=False, help="HTML file to write; default: DIR/report.html."),
    ] = None,
) -> None:
    """Write one HTML page of a study: findings, sliders between experts, figures, tables, the rows behind them.

    \b
    unival-merge study report interpolation results/pocket-interpolation -o report.html
    """
    from experiments.pages.report import write_report

    found = asked(words)
    output = found.folder / "report.html" if output is None else output
    command = ["unival-merge", "study", "report", found.name, str(found.folder), "-o", str(output)]
    typer.echo(write_report(found.folder, found.name, output, command=shlex.join(command)))


def export(
    words: Words,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Folder to write.")],
    scores: Annotated[
        str,
        one_of(SCORES, "--scores", "Scores by example that go along: each task's first metric's but on val, or all."),
    ] = "quoted",
) -> None:
    """Write one study's rows, packed, into a folder of their own: small enough to publish, and read like any other.

    \b
    unival-merge study export interpolation results/pocket-interpolation -o published
    """
    from experiments.results.export import export as write

    found = asked(words)
    typer.echo(write(found.folder, found.name, output, scores))


def claims(
    folder: Annotated[Path, typer.Argument(metavar="RESULTS", help="Folder of the folders of studies.")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", show_default=False, help="Markdown file to write; default: RESULTS/README.md."),
    ] = None,
) -> None:
    """Write one page that sets the claims of UnIVAL's paper beside what the studies in a folder say of each.

    \b
    unival-merge study claims results
    """
    from experiments.unival.paper.page import write_page

    typer.echo(write_page(folder, folder / "README.md" if output is None else output))


def samples(
    words: Words,
    pocket: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Of UnIVAL's studies: folder of the models, made by `unival-merge pocket`."),
    ] = None,
    count: Annotated[int, typer.Option(min=1, help="Examples of every task.")] = 8,
    device: Device = "cpu",
) -> None:
    """Let the merged models of a study answer a few examples, for its report; goes on where it was stopped.

    Tasks of a study of your own say what to show by `Task(..., show=function)`. Images that models of UnIVAL's study
    `drawing` draw are put on one sheet, drawn.png.

    \b
    unival-merge study samples interpolation results/pocket-interpolation --pocket pocket-full
    """
    found = asked(words)
    if found.file:
        from experiments.results.samples import make_samples as of_study

        found.refuse({"--pocket": pocket})
        made = of_study(found.defined(), found.folder, count, device=device)
    else:
        from experiments.errors import StudyError
        from experiments.unival.samples import make_samples
        from experiments.unival.setups import PocketSetup
        from experiments.unival.sheets import write_sheet
        from experiments.unival.subject import UnivalSubject

        found.built_in()
        if pocket is None:
            raise StudyError(f"--pocket says where the models of {found.name} are: the folder that `pocket` made")
        setup = PocketSetup(pocket)
        made = make_samples(found.folder, found.name, UnivalSubject(setup), count, device)
        if sheet := write_sheet(found.folder, setup, count):
            typer.echo(f"{sheet}: what was drawn")
    typer.echo(f"{found.folder / 'samples.jsonl'}: {made} rows more")
