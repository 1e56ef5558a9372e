"""Tables of rows: points down, (task, split, metric) across, as markdown, CSV, LaTeX and HTML.

Scores are printed times 100, with 95 % intervals; CSV keeps the metrics' own units. Rows of several seeds are averaged.
The best of a column is marked only where it beats every other row in paired tests, Holm-corrected, at p < 0.05.
"""

import csv
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from experiments.errors import StudyError
from experiments.grid.rows import Records, Rows, mean_of, names_in, records
from experiments.statistics.tests import holm, paired_test

COLUMNS = ("task", "split", "metric")


@dataclass(frozen=True)
class Cell:
    """Mean score, its interval, examples, the note of a score that was not computed, the key of the first row, and
    whether it is marked."""

    value: float
    lo: float
    hi: float
    n: int
    note: str
    key: str
    marked: bool


@dataclass(frozen=True)
class Table:
    """Cells by row label and column label; a label is a tuple of the values of `index`, or of task, split, metric."""

    index: tuple[str, ...]
    rows: list[tuple[str, ...]]
    columns: list[tuple[str, ...]]
    cells: dict[tuple[tuple[str, ...], tuple[str, ...]], Cell]
    tested: bool


def pivot(
    rows: Rows, scores: Mapping[str, np.ndarray] | None = None, *, index: Sequence[str] = ("experts", "point")
) -> Table:
    """One table row a value of the `index` columns, in order of appearance.

    Without `scores` (per example by row key, from `read_scores`) no best is marked, and none in a column where a row
    has no scores.
    """
    found = records(rows)
    if not found:
        raise StudyError("no rows to tabulate: run the study first")
    labels, columns = _labels(found, index), _labels(found, COLUMNS)
    cells: dict[tuple[tuple[str, ...], tuple[str, ...]], Cell] = {}
    groups: dict[tuple[str, ...], dict[tuple[str, ...], Records]] = {column: {} for column in columns}
    for row in found:
        groups[_label(row, COLUMNS)].setdefault(_label(row, index), []).append(row)
    for column, own in groups.items():
        marked = None if scores is None else _best(own, scores)
        for label, group in own.items():
            cells[label, column] = _cell(group, label == marked)
    return Table(tuple(index), labels, columns, cells, scores is not None)


def to_markdown(table: Table) -> str:
    """A pipe table, and a line that says what the numbers and the bold ones are."""
    body = [
        [*label, *(_text(table.cells.get((label, column)), "**{}**", " [{}, {}]") for column in table.columns)]
        for label in table.rows
    ]
    head = [*table.index, *(_title(table, column) for column in table.columns)]
    lines = [head, ["---"] * len(table.index) + ["---:"] * len(table.columns), *body]
    text = "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)
    return f"{text}\n\n{_legend(table)}\n"


def to_latex(table: Table) -> str:
    """A tabular for the booktabs package, with the legend as a comment."""
    body = [
        [*map(_escaped, label)]
        + [
            _text(table.cells.get((label, column)), r"\textbf{{{}}}", r" {{\scriptsize [{}, {}]}}")
            for column in table.columns
        ]
        for label in table.rows
    ]
    head = [*map(_escaped, table.index), *(_escaped(_title(table, column)) for column in table.columns)]
    lines = [" & ".join(line) + r" \\" for line in body]
    shape = "l" * len(table.index) + "r" * len(table.columns)
    start = [f"% {_legend(table)}", rf"\begin{{tabular}}{{{shape}}}", r"\toprule", " & ".join(head) + r" \\"]
    return "\n".join([*start, r"\midrule", *lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def to_csv(table: Table) -> str:
    """Value, lo, hi and n of every column, in the metric's own unit; empty where there is no score."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    fields = ("value", "lo", "hi", "n")
    names = [f"{' '.join(column)} {field}" for column in table.columns for field in fields]
    writer.writerow([*table.index, *names])
    for label in table.rows:
        cells = [table.cells.get((label, column)) for column in table.columns]
        writer.writerow([*label, *(_number(cell, field) for cell in cells for field in fields)])
    return out.getvalue()


def to_html(table: Table) -> str:
    """A table element with the legend as its caption; every number leads to its first row, `#row-<key>`."""
    head = [f'<th scope="col">{escape(name)}</th>' for name in table.index]
    head += [f'<th scope="col" class="number">{escape(_title(table, column))}</th>' for column in table.columns]
    lines: list[str] = []
    for label in table.rows:
        cells = [f"<td>{escape(part)}</td>" for part in label]
        for column in table.columns:
            cell = table.cells.get((label, column))
            text = _text(cell, "<strong>{}</strong>", " [{}, {}]")
            linked = text if cell is None else f'<a href="#row-{escape(cell.key)}">{text}</a>'
            cells.append(f'<td class="number">{linked}</td>')
        lines.append(f"<tr>{''.join(cells)}</tr>")
    body = f"<thead><tr>{''.join(head)}</tr></thead><tbody>{''.join(lines)}</tbody>"
    return f"<table><caption>{escape(_legend(table))}</caption>{body}</table>"


WRITERS: dict[str, Callable[[Table], str]] = {"md": to_markdown, "csv": to_csv, "tex": to_latex}


def _best(groups: Mapping[tuple[str, ...], Records], scores: Mapping[str, np.ndarray]) -> tuple[str, ...] | None:
    """The label that beats every other, or None."""
    seeds = {tuple(sorted(str(row["seed"]) for row in group)) for group in groups.values()}
    if len(groups) < 2 or len(seeds) > 1 or any(row["key"] not in scores for group in groups.values() for row in group):
        return None
    examples = {
        label: np.concatenate([scores[row["key"]] for row in sorted(group, key=lambda row: str(row["seed"]))])
        for label, group in groups.items()
    }
    top = max(groups, key=lambda label: mean_of(groups[label], "value"))
    tests = [paired_test(examples[label], examples[top]) for label in groups if label != top]
    won = all(test.difference > 0 for test in tests) and holm([test.p for test in tests]).max() < 0.05
    return top if won else None


def _cell(group: Records, marked: bool) -> Cell:
    value, lo, hi = (mean_of(group, name) for name in ("value", "lo", "hi"))
    return Cell(value, lo, hi, int(group[0]["n"]), "; ".join(names_in(group, "note")), str(group[0]["key"]), marked)


def _labels(rows: Records, columns: Sequence[str]) -> list[tuple[str, ...]]:
    return list(dict.fromkeys(_label(row, columns) for row in rows))


def _label(row: Mapping[str, object], columns: Sequence[str]) -> tuple[str, ...]:
    return tuple(str(row[name]) for name in columns)


def _title(table: Table, column: tuple[str, ...]) -> str:
    sizes = {cell.n for (_, name), cell in table.cells.items() if name == column}
    return f"{' '.join(column[:2])}, {column[2]} (n = {', '.join(f'{size:,}' for size in sorted(sizes))})"


def _text(cell: Cell | None, mark: str, interval: str) -> str:
    if cell is None or math.isnan(cell.value):
        return "" if cell is None else "not computed"
    value = f"{100 * cell.value:.1f}"
    value = mark.format(value) if cell.marked else value
    return value if math.isnan(cell.lo) else value + interval.format(f"{100 * cell.lo:.1f}", f"{100 * cell.hi:.1f}")


def _number(cell: Cell | None, field: str) -> str:
    number = math.nan if cell is None else getattr(cell, field)
    return "" if math.isnan(number) else f"{number:.6g}"


def _legend(table: Table) -> str:
    text = "Scores times 100 with 95 % intervals."
    if table.tested:
        text += " Bold: better than every other row of the column (paired tests, Holm-corrected, p < 0.05)."
    notes = {cell.note for cell in table.cells.values() if math.isnan(cell.value)}
    return " ".join([text, *sorted(notes)])


def _escaped(text: str) -> str:
    for sign in "&%#_$":
        text = text.replace(sign, rf"\{sign}")
    return text
