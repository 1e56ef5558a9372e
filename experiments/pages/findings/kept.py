"""What the merged model of every mixture keeps of its experts' skills, and whether that is more than mixing gives."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from experiments.grid.rows import Records
from experiments.pages.findings.words import Finding, listed, number, versus
from experiments.pages.overview import INSIDE, SHIFTED, Chosen, title_of
from experiments.pages.views import PRETRAINED, reported_split
from experiments.statistics.columns import Column
from experiments.statistics.contrasts import BySeed, Contrast, contrast, measured, signs
from experiments.statistics.retention import retention
from experiments.statistics.selection import ALONE, Candidates, Model, of_same
from experiments.statistics.tests import Examples


def kept(lines: Sequence[Chosen], beyond: str = "") -> Finding | None:
    """Say how much of their experts' scores merged models keep, and where that is less or more than the expert's.

    `beyond` says what of shifted scores the line of single models foretells.
    """
    if not lines:
        return None
    means: dict[str, str] = {}
    for where in (INSIDE, SHIFTED):
        every = [[cell.gain.value for (_, place), cell in line.cells.items() if place == where] for line in lines]
        shown = sorted(100 * (1 + float(np.mean(own))) for own in every if own)
        if shown:
            low, high = f"{shown[0]:.0f}", f"{shown[-1]:.0f}"
            means[where] = f"{low if low == high else f'{low} to {high}'} %"
    several = len(lines) > 1
    text = f"The {len(lines)} merged models keep" if several else "The merged model keeps"
    text += f" {means.get(INSIDE, '')} of {'their' if several else 'its'} own experts' scores" * (INSIDE in means)
    text += ", and" * (len(means) > 1) + f" {means.get(SHIFTED, '')} on shifted data" * (SHIFTED in means)
    text += f" (means over tasks{beyond and '; '}{beyond})"
    cells = [(line, column, cell) for line in lines for (column, where), cell in line.cells.items() if where == INSIDE]
    found = signs([cell.gain for *_, cell in cells])
    details = [
        f"{line.name} ({line.words}) keeps {listed([f'{cell.text} % of {title_of(c)}' for c, cell in own])}"
        for line in lines
        if (own := [(column, cell) for other, column, cell in cells if other is line])
    ]
    below, above, unclear = found.count(-1), found.count(1), found.count(0)
    words = versus(above, below, len(found), "the task's own expert")
    text += f": {'they are' if several else 'it is'} {words}."
    return Finding(
        text, tuple(details), f"{unclear} of {len(found)} merged scores from the own expert's" * bool(unclear)
    )


def above_mixing(lines: Sequence[Chosen], rows: Records, scores: Examples) -> Finding | None:
    """Compare merged models with their experts' scores in the same shares: of two, with the straight line between
    them."""
    found = [(line, gap) for line in lines if (gap := _above(line, reported_split(rows), scores)) is not None]
    if not found:
        return None
    found_signs = signs([gap for _, gap in found])
    above, below, of = found_signs.count(1), found_signs.count(-1), len(found)
    pairs = all(len(line.among.names) == 2 for line in lines)
    than = "the straight line between the two experts" if pairs else "their experts' scores in the same shares"
    if above == of:
        verdict = f"keep more of all skills than {than}" + f", all {of} of them" * (of > 1)
    elif above or below:
        verdict = f"are {versus(above, below, of, than, 'mixture')}"
    else:
        verdict = f"cannot be told apart from {than}"
    details = tuple(
        f"{line.name} ({line.words}): {number(gap, 100)} points of retention against {than}" for line, gap in found
    )
    unclear = of - above - below
    words = f"{unclear} of {of} merged models from {than}" * bool(unclear)
    return Finding(f"Merged models {verdict}.", details, words)


def _above(line: Chosen, split: str, scores: Examples) -> Contrast | None:
    """Measure a model's mean retention less that of its experts' scores in the same shares; None where some are
    missing."""
    among, total = line.among, sum(line.model.shares)
    weights = np.array([1, *(-share / total for share in line.model.shares)])
    seeds: set[tuple[int, ...]] = set()
    values: list[np.ndarray] = []
    draws: list[np.ndarray] = []
    for column in among.columns:
        place = (column.task, column.metric, split)
        own = {seed: rows[0] for seed, rows in among.rows(line.model, column, split).items()}
        models = [own, *(_same(among.cells.get((_alone(among, name), *place), {}), own, name) for name in among.names)]
        start = _same(among.starts.get(place, {}), own, PRETRAINED)
        if not all(models):
            return None
        found = measured([*models, *([start] if start else [])], scores)
        seeds.add(found.seeds)
        if len(seeds) > 1 or not found.seeds:
            return None
        tables = [table for table in (found.values, found.draws) if table is not None]
        above = [np.tensordot(weights, _retained(table, among, column), axes=1) for table in tables]
        values.append(above[0])
        draws += above[1:]
    if not values or np.isnan(values).any():
        return None
    return contrast(np.mean(values, axis=0), np.mean(draws, axis=0) if len(draws) == len(values) else None)


def _alone(among: Candidates, name: str) -> Model:
    """Return an expert as it is."""
    return Model(ALONE, tuple(float(name == one) for one in among.names))


def _same(rows: BySeed, own: BySeed, name: str) -> BySeed:
    """Return the rows of an expert, or the pretrained model, by the seeds of the models made of the same weights."""
    found = {seed: of_same(rows, seed, row, name) for seed, row in own.items()}
    return {seed: row for seed, row in found.items() if row is not None}


def _retained(table: np.ndarray, among: Candidates, column: Column) -> np.ndarray:
    """Return the retention of a model and of the experts from a table of their scores, the pretrained model's last if
    there is one."""
    count = 1 + len(among.names)
    expert, start = table[1 + among.names.index(column.owner)], table[count:]
    rises, form = column.unit.rises, column.form
    return np.array([retention(expert, own, *start, higher_is_better=rises, form=form) for own in table[:count]])
