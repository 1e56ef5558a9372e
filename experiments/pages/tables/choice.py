"""The tables of a study, and how they are written down."""

from collections.abc import Callable, Mapping

from experiments.errors import StudyError
from experiments.grid.rows import Records
from experiments.pages.tables.formats import Table, pivot, to_csv, to_latex, to_markdown
from experiments.pages.views import Scores, experts_of, pairs_of, references_of
from experiments.unival.pocket.pretrainings import COMPARISONS

SWEEPS = ("interpolation", "rewarded-soups")
"""Studies whose rows are points of a line or a plane: no best is marked, as a maximum of many flatters."""

INDEX = ("experts", "method", "batchnorm", "point")


def study_tables(study: str, rows: Records, scores: Scores) -> dict[str, Table]:
    """Tables by title: one a pair where points lie between two experts, one a comparison of pretrainings; else one in
    all, with no title."""
    if study == "pretraining":
        own = {title: compared(rows, variants) for title, variants in COMPARISONS.items()}
        return {title: pivot(found, scores or None, index=("point",)) for title, found in own.items() if found}
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


def compared(rows: Records, variants: Mapping[str, tuple[str, ...]]) -> Records:
    """The rows of trainings that are compared on the tasks asked of each, in the order of these."""
    return [
        row for name, tasks in variants.items() for row in rows if experts_of(row) == [name] and row["task"] in tasks
    ]


def written(study: str, rows: Records, scores: Scores, form: str) -> str:
    """A study's tables as markdown or latex, each behind its title, or as csv, which is one table of all rows."""
    if form not in FORMATS:
        raise StudyError(f"no format {form!r}: choose {', '.join(FORMATS)}")
    write, heading = FORMATS[form]
    tables = study_tables(study, rows, scores) if heading else {"": pivot(rows, index=INDEX)}
    return "\n".join(heading.format(title) * bool(title) + write(table) for title, table in tables.items())


FORMATS: dict[str, tuple[Callable[[Table], str], str]] = {
    "markdown": (to_markdown, "## {}\n\n"),
    "csv": (to_csv, ""),
    "latex": (to_latex, "% {}\n"),
}
