"""What every mixture keeps, as the first thing a page shows: a line a mixture, a column a task, retention on data as in
training (ID) and on shifted data."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from experiments.grid.escapes import html
from experiments.grid.rows import Records, names_in
from experiments.pages.views import reported_split, shifted_splits
from experiments.statistics.bootstrap import kind_of_interval
from experiments.statistics.columns import Column, columns_of
from experiments.statistics.contrasts import Contrast, contrast
from experiments.statistics.retention import RATIO
from experiments.statistics.selection import ON, Candidates, Model, candidates, is_merged, label_of, reckoned
from experiments.statistics.summary import Examples, chosen_models, drawn, mixtures_of

INSIDE, SHIFTED = "ID", "shifted"
# Shares of an expert's score at which the colour of a cell changes, with what the scale says of it.
STEPS = (0.5, 0.7, 0.85, 0.95, 1.05, 1.2)
CHOSEN = {
    ON: "Of every mixture the merged model that was best on val.",
    "only point": "A method's only point was not chosen.",
    "equal shares": "Points of equal shares, as none could be chosen: merged models were not evaluated on val.",
    "not reckoned": "Points of equal shares: on val none could be chosen, as a task's retention cannot be reckoned.",
    "": "Models as they are, on each other's tasks.",
}
MOST = 12  # lines that are shown at once


class Retained(NamedTuple):
    """Retention on one task, the mean over `splits`: less 1 it is `gain`, the rest says what the interval is of, and to
    which row the number leads."""

    gain: Contrast
    splits: tuple[str, ...]
    interval: str
    key: str

    @property
    def text(self) -> str:
        """Write the retention in percent, with its interval."""
        value, lo, hi = (100 * (1 + number) for number in self.gain[:3])
        return f"{value:.0f}" if lo != lo else f"{value:.0f} [{lo:.0f}, {hi:.0f}]"

    @property
    def step(self) -> int:
        """Return the step of the colours."""
        return int(np.searchsorted(STEPS, round(1 + self.gain.value, 2), side="right"))


class Chosen(NamedTuple):
    """A model of a mixture, how it was chosen, and its cells by column and INSIDE or SHIFTED."""

    among: Candidates
    model: Model
    chosen: str
    cells: Mapping[tuple[Column, str], Retained]

    @property
    def name(self) -> str:
        """Name the mixture, or the single model."""
        return " + ".join(self.among.names) if is_merged(self.model) else label_of(self.among, self.model)[5:]

    @property
    def words(self) -> str:
        """Say which of the mixture's models it is."""
        if not is_merged(self.model):
            return "a model as it is"
        series, kind = self.model.series.label, self.among.kind
        parts = [label_of(self.among, self.model), kind * (kind != "expert"), series * (series not in PLAIN)]
        return ", ".join(filter(None, parts))


PLAIN = ("interpolate", "average")


def lines_of(rows: Records, scores: Examples, owners: Mapping[str, str]) -> list[Chosen]:
    """Measure the model of every mixture that is best on val; where val was not evaluated, one a method: the only
    point, or that of equal shares. Where nothing was merged the single models, on each other's tasks.

    `owners` say by task which expert's own it is (`Notes.tasks`).
    """
    columns = columns_of(rows, owners)
    found: list[Chosen] = []
    for names, kind in mixtures_of(rows):
        among = candidates(rows, names, kind, columns)
        merged = [model for model in among.models if is_merged(model) and model.series.method != "ensemble"]
        best = among.pick(merged)
        listed = [(best, ON)] if best is not None else [one for one in chosen_models(among) if one[0] in merged]
        if best is None and any(among.kept(model, ON) for model in merged):
            listed = [(model, "not reckoned" if how == "equal shares" else how) for model, how in listed]
        found += [_line(among, model, how, scores, rows) for model, how in listed]
    if not found:
        names = tuple(dict.fromkeys(column.owner for column in columns))
        for kind in names_in([row for row in rows if row["method"] == "single"], "experts"):
            among = candidates(rows, names, kind, columns)
            found += [_line(among, model, "", scores, rows) for model in among.models]
        found = [line for line in found if len(line.cells) > 1]  # on their own task alone they say nothing
    return [line for line in found if line.cells]


def _line(among: Candidates, model: Model, chosen: str, scores: Examples, rows: Records) -> Chosen:
    cells: dict[tuple[Column, str], Retained] = {}
    for column in among.columns:
        own = [row for row in rows if row["task"] == column.task]
        for where, splits in ((INSIDE, [reported_split(rows)]), (SHIFTED, shifted_splits(own))):
            there = [split for split in splits if among.rows(model, column, split)]
            cell = _cell(among, model, column, there, scores) if there else None
            if cell is not None:
                cells[column, where] = cell
    return Chosen(among, model, chosen, cells)


def _cell(among: Candidates, model: Model, column: Column, splits: Sequence[str], scores: Examples) -> Retained | None:
    """Measure what a model keeps of a task in the mean over splits, at the seeds that all of these have."""
    tables = [among.rows(model, column, split) for split in splits]
    seeds = [seed for seed in sorted(tables[0]) if all(seed in table for table in tables)]
    if not seeds:
        return None
    parts = [[table[seed] for seed in seeds] for table in tables]
    values = np.mean([[reckoned(own, column) for own in part] for part in parts], axis=0)
    if np.isnan(values).any():
        return None
    every = [draws for part in parts if (draws := drawn(part, column, scores)) is not None]
    draws = np.mean(every, axis=0) - 1 if len(every) == len(parts) else None
    n = min(int(own[0]["n"]) for part in parts for own in part) if draws is not None else 0
    words = kind_of_interval(len(seeds), n)
    return Retained(contrast(values - 1, draws), tuple(splits), words, str(parts[0][0][0].get("key", "")))


def title_of(column: Column) -> str:
    """Name a column: the task, or where several experts are rewarded on one, what this one is rewarded for."""
    return column.owner if column.metric.endswith(f" {column.owner}") else column.task


def to_html(lines: Sequence[Chosen]) -> str:
    """Write the heat map as a table element, the first lines open and others folded, with a scale of its colours."""
    columns = list(dict.fromkeys(column for line in lines for column, _ in line.cells))
    if not columns:
        return ""
    text = _table(lines[:MOST], columns) + _scale(lines)
    if len(lines) > MOST:
        text += f"<details><summary>{len(lines) - MOST} more</summary>{_table(lines[MOST:], columns)}</details>"
    return text


def _table(lines: Sequence[Chosen], columns: Sequence[Column]) -> str:
    """Write a column a task; where no line has cells of all tasks, the cells of each beside each other, with their
    tasks inside."""
    most = max(len({column for column, _ in line.cells}) for line in lines)
    is_dense = most == len(columns)
    body: list[str] = []
    for line in lines:
        cells = [f'<th scope="row">{html(line.name)}<small>{html(line.words)}</small></th>']
        own = [column for column in columns if (column, INSIDE) in line.cells or (column, SHIFTED) in line.cells]
        for column in columns if is_dense else own:
            halves = "".join(_half(line.cells.get((column, where)), where) for where in (INSIDE, SHIFTED))
            task = "" if is_dense else f"<b>{html(title_of(column))}</b>"
            cells.append(f"<td>{task}{halves}</td>")
        body.append(f"<tr>{''.join(cells)}</tr>")
    heads = [f'<th scope="col">{html(title_of(column))}</th>' for column in columns]
    head = "".join(heads) if is_dense else f'<th scope="colgroup" colspan="{most}">tasks</th>'
    first = "mixture" if any(is_merged(line.model) for line in lines) else "model"
    top = f'<thead><tr><th scope="col">{first}</th>{head}</tr></thead>'
    return f'<div class="wide"><table class="heat">{top}<tbody>{"".join(body)}</tbody></table></div>'


def _half(cell: Retained | None, where: str) -> str:
    if cell is None:
        return ""
    about = html(f"{where}: {', '.join(cell.splits)}; interval: {cell.interval}")
    link = f'<a href="#row-{html(cell.key)}" title="{about}">{cell.text}</a>'
    return f'<span class="h{cell.step}"><small>{where}</small> {link}</span>'


def _scale(lines: Sequence[Chosen]) -> str:
    """Explain numbers and colours."""
    steps = [f"{100 * step:.0f}" for step in STEPS]
    marks = [f"under {steps[0]}", *(f"{low}–{high}" for low, high in itertools.pairwise(steps)), f"{steps[-1]} or more"]
    swatches = "".join(f'<span class="h{i}">{mark}</span>' for i, mark in enumerate(marks))
    forms = list(dict.fromkeys(column.form for line in lines for column, _ in line.cells))
    meant = "" if forms == [RATIO] else f" ({'; '.join(forms)})"
    intervals = "; ".join(dict.fromkeys(cell.interval for line in lines for cell in line.cells.values()))
    shifted = {
        split for line in lines for (_, where), cell in line.cells.items() if where == SHIFTED for split in cell.splits
    }
    text = f"Retention: percent of the score of the task's own expert that is kept{meant}, with 95 % intervals "
    text += f"({intervals}). " + "shifted: mean over the shifted splits of the task. " * (len(shifted) > 1)
    text += " ".join(CHOSEN[line.chosen] for line in {line.chosen: line for line in lines}.values())
    return f'<p class="quiet">{html(text)}</p><p class="scale" aria-hidden="true">{swatches}</p>'
