"""The tables of a study, and how they are written down."""

from collections.abc import Callable, Mapping

from experiments.errors import StudyError
from experiments.pages.views import Scores, experts_of, pairs_of, references_of
from experiments.results import Records
from experiments.tables import Table, pivot, to_csv, to_latex, to_markdown

SWEEPS = ("interpolation", "rewarded-soups")
"""Studies whose rows are points of a line or a plane: no best is marked, as a maximum of many flatters."""

INDEX = ("experts", "method", "batchnorm", "point")


def study_tables(study: str, rows: Records, scores: Scores) -> dict[str, Table]:
    """Tables by title: one a pair where points lie between two experts; else one in all, with no title."""
    pairs = pairs_of(rows) if study == "interpolation" else []
    if not pairs:
        return {"": pivot(rows, None if study in SWEEPS else scores or None, index=INDEX)}
    tables: dict[str, Table] = {}
    for pair in pairs:
        tasks = {row["task"] for row in rows if set(experts_of(row)) == set(pair)}
        names = {*pair, *references_of(rows)}
        own = [row for row in rows if set(experts_of(row)) <= names and row["task"] in tasks]
        tables[f"{pair[0]} → {pair[1]}"] = pivot(own, index=INDEX)
    return tables


def written(tables: Mapping[str, Table], form: str) -> str:
    """The tables as text: markdown, csv or latex, each behind its title."""
    if form not in FORMATS:
        raise StudyError(f"no format {form!r}: choose {', '.join(FORMATS)}")
    write, heading = FORMATS[form]
    return "\n".join(heading.format(title) * bool(title) + write(table) for title, table in tables.items())


FORMATS: dict[str, tuple[Callable[[Table], str], str]] = {
    "markdown": (to_markdown, "## {}\n\n"),
    "csv": (to_csv, "# {}\n"),
    "latex": (to_latex, "% {}\n"),
}
