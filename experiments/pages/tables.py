"""Tables of rows: points down, (task, split, metric) across, as markdown, CSV, LaTeX and HTML.

Scores are printed in the unit of their metric (`experiments.grid.units`), with 95 % intervals; CSV has the rows' own
numbers. Rows of several seeds are averaged, and their intervals are over seeds and examples. Marked is the best of a
column, the lowest where lower is better, with every row that is not told apart from it over seeds and examples,
Holm-corrected, at p < 0.05. Where rows know what guessing scores, that is a row of its own.
"""

import csv
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from experiments.errors import StudyError
from experiments.grid.escapes import csv_cell, html, latex, markdown, one_line
from experiments.grid.rows import Records, Rows, mean_of, names_in, records
from experiments.grid.units import Unit, unit_of
from experiments.pages.views import experts_of, method_words, pairs_of, references_of, with_intervals
from experiments.statistics.contrasts import difference, draws_of, signs
from experiments.statistics.tests import Examples

COLUMNS = ("task", "split", "metric")
INDEX = ("experts", "method", "batchnorm", "point")
CHANCE, NEAR = "chance", "°"  # the row of what guessing scores, and the sign of a score whose interval reaches it
Label = tuple[str, ...]
Groups = Mapping[str, Mapping[str, Sequence[str]]]  # by title the models to compare, each with its tasks


@dataclass(frozen=True)
class Entry:
    """Mean score, its interval, examples, the note of a score that was not computed, the key of the first row, and
    whether it is marked."""

    value: float
    lo: float
    hi: float
    n: int
    note: str
    key: str
    marked: bool


@dataclass(frozen=True, repr=False)
class Table:
    """Cells by row label and column label; a label is a tuple of the values of `index`, or of task, split, metric.

    `tested` says that bests were found by tests; `units` are those of the columns, `over` says what intervals are over.
    """

    index: tuple[str, ...]
    rows: list[Label]
    columns: list[Label]
    cells: dict[tuple[Label, Label], Entry]
    tested: bool
    units: dict[Label, Unit]
    over: str = ""

    def __repr__(self) -> str:
        return f"<Table: {len(self.rows)} x {len(self.columns)} scores by {', '.join(self.index)}>"

    def _repr_html_(self) -> str:
        return to_html(self)

    def title(self, column: Label) -> str:
        """Name a column, with its unit and the number of examples behind its scores."""
        sizes = sorted({cell.n for (_, name), cell in self.cells.items() if name == column and cell.n})
        words = [self.units[column].words] if self.units[column].words else []
        words += [f"n = {', '.join(f'{size:,}' for size in sizes)}"] if sizes else []
        return f"{' '.join(column[:2])}, {column[2]}" + f" ({', '.join(words)})" * bool(words)

    def texts(self, label: Label, mark: str, interval: str) -> list[str]:
        """Write the scores of a row, with formats for what is marked and for the bounds of an interval."""
        found: list[str] = []
        for column in self.columns:
            cell, sign = self.cells.get((label, column)), NEAR * self.reaches_chance(label, column)
            if cell is None or math.isnan(cell.value):
                found.append("" if cell is None else "not computed")
                continue
            value, lo, hi = map(self.units[column].text, (cell.value, cell.lo, cell.hi))
            bounds = "" if math.isnan(cell.lo) else interval.format(lo, hi)
            found.append((mark.format(value) if cell.marked else value) + sign + bounds)
        return found

    def reaches_chance(self, label: Label, column: Label) -> bool:
        """Tell whether the interval of a score reaches what guessing scores, or the score is worse."""
        cell, chance = (self.cells.get((own, column)) for own in (label, self.chance))
        if cell is None or chance is None or label == self.chance:
            return False
        return cell.lo <= chance.value if self.units[column].rises else cell.hi >= chance.value

    @property
    def chance(self) -> Label:
        """Return the label of what guessing scores."""
        return (*[""] * (len(self.index) - 1), CHANCE)

    @property
    def legend(self) -> str:
        """Say what the numbers and the bold ones are, and why scores are missing."""
        intervals = any(not math.isnan(cell.lo) for cell in self.cells.values())
        text = f"Scores with 95 % intervals{self.over and f' ({self.over})'}." if intervals else "Scores."
        if self.tested:
            text += " Bold: the best of a column, and every row that is not told apart from it (differences over seeds "
            text += "and examples, Holm-corrected, p < 0.05)."
        if self.chance in self.rows:
            text += f" {CHANCE.capitalize()}: what guessing scores"
            near = any(self.reaches_chance(label, column) for label in self.rows for column in self.columns)
            text += f"; {NEAR}: the interval reaches it." if near else "."
        notes = {cell.note for cell in self.cells.values() if math.isnan(cell.value)}
        return " ".join([text, *sorted(notes)])


def study_tables(
    rows: Records, scores: Examples, groups: Groups | None = None, beside: Sequence[str] = ()
) -> dict[str, Table]:
    """Tabulate a study, by title: one table of each of `groups`; else one of each pair, where all that is merged lies
    between two experts; else one of all rows, with no title.

    The metrics `beside` have tables of their own, behind these. `scores` are per example by row key, for tests. Points
    along a line or a plane are not tested for a best: a maximum of many is likely to be too high.
    """
    if beside:
        tables = study_tables([row for row in rows if row["metric"] not in beside], scores, groups)
        for metric in beside:
            own = [row for row in rows if row["metric"] == metric]
            found = study_tables(own, scores, groups) if own else {}
            tables |= {f"{title}, {metric}" if title else metric: table for title, table in found.items()}
        return tables
    rows = with_intervals(rows, scores)
    if groups:
        kept = {title: [row for name in own for row in _asked(rows, name, own[name])] for title, own in groups.items()}
        return {title: pivot(found, scores, index=("point",)) for title, found in kept.items() if found}
    pairs = pairs_of(rows)
    if not pairs or any(len(experts_of(row)) > 2 for row in rows):
        return {"": pivot(rows, None if pairs else scores, index=INDEX)}
    tables: dict[str, Table] = {}
    for pair in pairs:
        tasks = {row["task"] for row in rows if set(experts_of(row)) == set(pair)}
        names = {*pair, *references_of(rows)}
        own = [row for row in rows if set(experts_of(row)) <= names and row["task"] in tasks]
        tables[f"{pair[0]} → {pair[1]}"] = pivot(own, index=INDEX)
    return tables


def written(
    rows: Records, scores: Examples, form: str, groups: Groups | None = None, beside: Sequence[str] = ()
) -> str:
    """Write a study's tables as markdown or latex, each behind its title, or as csv, which is one table of all rows."""
    if form not in FORMATS:
        raise StudyError(f"no format {form!r}: choose {', '.join(FORMATS)}")
    write, heading, escaped = FORMATS[form]
    if not heading:
        return write(pivot(with_intervals(rows, scores), index=INDEX))
    tables = study_tables(rows, scores, groups, beside)
    return "\n".join(heading.format(escaped(title)) * bool(title) + write(table) for title, table in tables.items())


def pivot(rows: Rows, scores: Examples | None = None, *, index: Sequence[str] = ("experts", "point")) -> Table:
    """Make one table row of each value of the `index` columns, in order of appearance.

    Without `scores` (per example by row key, from `read_scores`) no best is marked, and none in a column where neither
    seeds nor examples say how sure a difference is.
    """
    found = [{**row, "method": method_words(row)} if "method" in row else row for row in records(rows)]
    if not found:
        raise StudyError("no rows to tabulate: run the study first")
    groups: dict[Label, dict[Label, Records]] = {}
    for row in found:
        groups.setdefault(_label(row, COLUMNS), {}).setdefault(_label(row, index), []).append(row)
    cells: dict[tuple[Label, Label], Entry] = {}
    over = ", ".join(sorted({str(row["interval"]) for row in found if "interval" in row}))
    for column, own in groups.items():
        marked = set[Label]() if scores is None else _best(own, scores)
        for label, group in own.items():
            value, lo, hi = (mean_of(group, name) for name in ("value", "lo", "hi"))
            note, first = "; ".join(names_in(group, "note")), group[0]
            cells[label, column] = Entry(value, lo, hi, int(first["n"]), note, str(first["key"]), label in marked)
    labels = list(dict.fromkeys(_label(row, index) for row in found))
    units = {column: unit_of([row for own in lines.values() for row in own]) for column, lines in groups.items()}
    tested = any(cell.marked for cell in cells.values())
    table = Table(tuple(index), labels, list(groups), cells, tested, units, over)
    for column, own in groups.items():
        levels = [float(row["chance"]) for group in own.values() for row in group if "chance" in row]
        if levels:
            cells[table.chance, column] = Entry(levels[-1], math.nan, math.nan, 0, "", "", marked=False)
    return replace(table, rows=[*labels, table.chance]) if any(own == table.chance for own, _ in cells) else table


def to_markdown(table: Table) -> str:
    """Write a pipe table, and a line that says what the numbers and the bold ones are."""
    head = [*map(markdown, table.index), *(markdown(table.title(column)) for column in table.columns)]
    body = [[*map(markdown, label), *table.texts(label, "**{}**", " [{}, {}]")] for label in table.rows]
    lines = [head, ["---"] * len(table.index) + ["---:"] * len(table.columns), *body]
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"{text}\n\n{markdown(table.legend)}\n"


def to_latex(table: Table) -> str:
    """Write a tabular for the booktabs package, with the legend as a comment."""
    head = map(latex, [*table.index, *map(table.title, table.columns)])
    body = [
        [*map(latex, label), *table.texts(label, r"\textbf{{{}}}", r" {{\scriptsize [{}, {}]}}")]
        for label in table.rows
    ]
    shape = "l" * len(table.index) + "r" * len(table.columns)
    start = [
        f"% {one_line(table.legend)}",
        rf"\begin{{tabular}}{{{shape}}}",
        r"\toprule",
        " & ".join(head) + r" \\",
        r"\midrule",
    ]
    return "\n".join([*start, *(" & ".join(line) + r" \\" for line in body), r"\bottomrule", r"\end{tabular}"]) + "\n"


def to_csv(table: Table) -> str:
    """Write value, lo, hi and n of every column, in the metric's own unit; empty where there is no score."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    fields = ("value", "lo", "hi", "n")
    columns = [f"{' '.join(column)} {field}" for column in table.columns for field in fields]
    writer.writerow(map(csv_cell, [*table.index, *columns]))
    for label in table.rows:
        cells = [table.cells.get((label, column)) for column in table.columns]
        numbers = [math.nan if cell is None else getattr(cell, field) for cell in cells for field in fields]
        writer.writerow([*map(csv_cell, label), *("" if math.isnan(number) else f"{number:.6g}" for number in numbers)])
    return out.getvalue()


def to_html(table: Table) -> str:
    """Write a table element with the legend as its caption; every number leads to its first row, `#row-<key>`."""
    head = [f'<th scope="col">{html(name)}</th>' for name in table.index]
    head += [f'<th scope="col" class="number">{html(table.title(column))}</th>' for column in table.columns]
    lines: list[str] = []
    for label in table.rows:
        cells = [f"<td>{html(part)}</td>" for part in label]
        texts = table.texts(label, "<strong>{}</strong>", " [{}, {}]")
        for column, text in zip(table.columns, texts, strict=True):
            cell = table.cells.get((label, column))
            linked = text if cell is None or not cell.key else f'<a href="#row-{html(cell.key)}">{text}</a>'
            cells.append(f'<td class="number">{linked}</td>')
        lines.append(f"<tr>{''.join(cells)}</tr>")
    body = f"<thead><tr>{''.join(head)}</tr></thead><tbody>{''.join(lines)}</tbody>"
    return f"<table><caption>{html(table.legend)}</caption>{body}</table>"


# What a form is written by, the line above a table with a title ("" for one table of all rows), how titles are escaped.
FORMATS: dict[str, tuple[Callable[[Table], str], str, Callable[[str], str]]] = {
    "markdown": (to_markdown, "## {}\n\n", markdown),
    "csv": (to_csv, "", csv_cell),
    "latex": (to_latex, "% {}\n", one_line),
}


def _asked(rows: Records, name: str, tasks: Sequence[str]) -> Records:
    return [row for row in rows if experts_of(row) == [name] and row["task"] in tasks]


def _best(groups: Mapping[Label, Records], scores: Examples) -> set[Label]:
    """Find the best label, and those that are not told apart from it, of rows with a score; none where a label has
    several rows of a seed, or a difference cannot be tested."""
    groups = {label: own for label, own in groups.items() if not any(math.isnan(row["value"]) for row in own)}
    models = {label: {row["seed"]: row for row in own} for label, own in groups.items()}
    if len(groups) < 2 or any(len(models[label]) < len(own) for label, own in groups.items()):
        return set()
    rows = [row for own in groups.values() for row in own]
    unit, draws = unit_of(rows), draws_of(rows, scores)
    top = [*groups][unit.best([mean_of(own, "value") for own in groups.values()])]
    others = [label for label in groups if label != top]
    gaps = [difference(models[top], models[label], scores, rises=unit.rises, draws=draws) for label in others]
    known = [gap for gap in gaps if gap is not None and gap.p == gap.p]
    if len(known) < len(others):
        return set()
    return {top, *(label for label, sign in zip(others, signs(known), strict=True) if sign <= 0)}


def _label(row: Mapping[str, object], columns: Sequence[str]) -> Label:
    return tuple(str(row[name]) for name in columns)
