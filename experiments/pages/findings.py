"""What a study's rows say, in plain sentences with their numbers: good or bad, as it came out.

What a sentence claims was told apart from chance after Holm's correction for all comparisons that the sentence is
about; the others are counted as not told apart. Tests and 95 % intervals are of seeds and examples
(`experiments.statistics.contrasts`); with one seed they are of the examples alone. Scores of different units are never
averaged: what is said of several tasks is said of retention, or in counts.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from experiments.grid.rows import Records, Rows, names_in, records
from experiments.grid.units import Unit, unit_of
from experiments.pages.overview import INSIDE, SHIFTED, Chosen, lines_of, title_of
from experiments.pages.views import (
    PRETRAINED,
    experts_of,
    is_average,
    is_single,
    kinds_of,
    main_metrics,
    on_split,
    one_policy,
    reported_split,
    shifted_splits,
    weights_only,
    with_owners,
)
from experiments.statistics.contrasts import BySeed, Contrast, contrast, difference, measured, signs
from experiments.statistics.retention import retention
from experiments.statistics.selection import ALONE, Candidates, Column, Model, is_merged, of_same
from experiments.statistics.tests import Examples

Where = tuple[str, str]  # task and split


@dataclass(frozen=True)
class Finding:
    """A sentence, the numbers behind it, a line each, and what was not told apart, in words ("" for nothing)."""

    text: str
    details: tuple[str, ...] = ()
    open: str = ""

    def __str__(self) -> str:
        return "\n".join([f"{self.text}{f' Not told apart: {self.open}.' if self.open else ''}", *self.details])


def findings(
    rows: Rows, scores: Examples | None = None, contender: str = "", tasks: Mapping[str, str] | None = None
) -> list[str]:
    """State what the rows of a study allow to be said; the first line of a text is the sentence, further lines details.

    What merged models keep of their experts' skills; whether that is more than the experts' scores in the same shares;
    what finetuning gave and cost; averages against the pretrained model, and that of the `contender`, a kind of
    experts, against the others on shifted data. `scores` are of the examples by row key (`read_scores`), `tasks` say
    whose own the tasks are (`Notes.tasks`).
    """
    found = records(rows)
    return [str(one) for one in told(found, scores or {}, contender, tasks or {})]


def told(
    rows: Records,
    scores: Examples,
    contender: str = "",
    tasks: Mapping[str, str] | None = None,
    lines: Sequence[Chosen] | None = None,
) -> list[Finding]:
    """Return the findings one by one (see `findings`); `lines` are those of the overview, where they are known."""
    known = lines_of(rows, scores, tasks or {}) if lines is None else lines
    merged = [line for line in known if is_merged(line.model)]
    main = weights_only(one_policy(main_metrics(with_owners(rows, tasks) if tasks else rows)))
    found = [kept(merged), above_mixing(merged, rows, scores), averages(main, scores, contender)]
    found.append(specialists(main, scores))
    return [one for one in found if one is not None]


def kept(lines: Sequence[Chosen]) -> Finding | None:
    """Say how much of their experts' scores merged models keep, and where that is less or more than the expert's."""
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
    text += " (means over tasks)"
    cells = [(line, column, cell) for line in lines for (column, where), cell in line.cells.items() if where == INSIDE]
    found = signs([cell.gain for *_, cell in cells])
    details = [
        f"{line.name} ({line.words}) keeps {_list([f'{cell.text} % of {title_of(c)}' for c, cell in own])}"
        for line in lines
        if (own := [(column, cell) for other, column, cell in cells if other is line])
    ]
    below, above, unclear = found.count(-1), found.count(1), found.count(0)
    versus = _versus(above, below, len(found), "the task's own expert")
    text += f": {'they are' if several else 'it is'} {versus}."
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
        verdict = f"are {_versus(above, below, of, than, 'mixture')}"
    else:
        verdict = f"cannot be told apart from {than}"
    details = tuple(
        f"{line.name} ({line.words}): {_percent(gap)} points of retention against {than}" for line, gap in found
    )
    unclear = of - above - below
    words = f"{unclear} of {of} merged models from {than}" * bool(unclear)
    return Finding(f"Merged models {verdict}.", details, words)


def specialists(rows: Records, scores: Examples) -> Finding | None:
    """Compare experts with the pretrained model, on their own task and on the others; without one, every task's own
    expert with the others."""
    here = [row for row in on_split(rows, reported_split(rows)) if is_single(row)]
    kind = next(iter(kind for kind in kinds_of(rows) if kind in names_in(here, "experts")), "")
    models: dict[tuple[str, str], dict[int, dict]] = defaultdict(dict)
    for row in here:
        if row["experts"] in (kind, PRETRAINED):
            models[experts_of(row)[0], row["task"]][row["seed"]] = row
    owners = {row["task"]: row["owner"] for row in here}
    if any(name == PRETRAINED for name, _ in models):
        places = [place for place in models if place[0] != PRETRAINED and (PRETRAINED, place[1]) in models]
        compared = {place: (models[place], models[PRETRAINED, place[1]]) for place in places}
        return _against_start(compared, owners, here, scores)
    compared = {
        (name, task): (models[owners[task], task], own)
        for (name, task), own in models.items()
        if name != owners[task] and (owners[task], task) in models
    }
    gaps = _gaps(compared, here, scores)
    if not gaps:
        return None
    found = signs([*gaps.values()])
    text = f"On its own task an expert is {_versus(found.count(1), found.count(-1), len(found), 'another expert')}."
    details = tuple(f"{task}: {_gap(gap, here, task)} better than {name}" for (name, task), gap in gaps.items())
    unclear = found.count(0)
    return Finding(text, details, f"{unclear} of {len(found)} experts from the task's own" * bool(unclear))


def _against_start(
    compared: Mapping[tuple[str, str], tuple], owners: Mapping[str, str], rows: Records, scores: Examples
) -> Finding | None:
    gaps = _gaps(compared, rows, scores)
    own = [place for place in gaps if owners[place[1]] == place[0]]
    others = [place for place in gaps if place not in own]
    if not own:
        return None
    clear = dict(zip(gaps, signs([*gaps.values()]), strict=True))
    won = sum(clear[place] > 0 for place in own)
    text = f"{won} of {len(own)} experts beat the pretrained model on their own task"
    details = [f"{name} on its own {task}: {_gap(gaps[name, task], rows, task)}" for name, task in own]
    if others:
        lost, gained = (sum(clear[place] == sign for place in others) for sign in (-1, 1))
        text += f"; on the tasks of others they are {_versus(gained, lost, len(others), 'it')}"
        details += [f"{name} on {task}: {_gap(gaps[name, task], rows, task)}" for name, task in others]
    unclear = list(clear.values()).count(0)
    words = f"{unclear} of {len(gaps)} experts' scores from the pretrained model's" * bool(unclear)
    return Finding(f"{text}.", tuple(details), words)


def averages(rows: Records, scores: Examples, contender: str = "") -> Finding | None:
    """Compare averages of three experts or more with the pretrained model, on every task and split, and the
    contender's with the others' on shifted data."""
    merged = [row for row in rows if is_average(row)]
    start = _by_place([row for row in rows if experts_of(row) == [PRETRAINED]])
    inside, outside = reported_split(rows), shifted_splits(rows)
    models = {
        kind: _by_place([row for row in merged if row["experts"] == kind]) for kind in names_in(merged, "experts")
    }
    gaps = {
        (kind, *place): gap
        for kind, own in models.items()
        for place, gap in _gaps({p: (own[p], start[p]) for p in own if p in start}, rows, scores).items()
        if place[1] == inside or place[1] in outside
    }
    if not gaps:
        return None
    clear = dict(zip(gaps, signs([*gaps.values()]), strict=True))
    counts: list[str] = []
    for splits, words in (([inside], ""), (outside, "on shifted data ")):
        found = [clear[place] for place in gaps if place[2] in splits]
        if found:
            other = "it" if counts else "the pretrained model"
            counts.append(f"{words}{_versus(found.count(1), found.count(-1), len(found), other)}")
    text = f"Averages of all experts are {'; '.join(counts)}."
    details = [f"{kind}, {task}, {split}: {_gap(gap, rows, task)}" for (kind, task, split), gap in gaps.items()]
    unclear = [*clear.values()].count(0)
    words = f"{unclear} of {len(gaps)} scores of averages from the pretrained model's" * bool(unclear)
    if contender in models:
        text += _contest(models, contender, outside, rows, scores)
    return Finding(text, tuple(details), words)


def _contest(
    models: Mapping[str, Mapping[Where, dict]], contender: str, splits: Sequence[str], rows: Records, scores: Examples
) -> str:
    """Compare the contender's average with the others' on shifted data, in a sentence; "" where there are none."""
    own = models[contender]
    gaps: dict[tuple[str, Where], Contrast] = {}
    for kind, other in models.items():
        places = [place for place in own if place in other and place[1] in splits and kind != contender]
        gaps |= {(kind, p): gap for p, gap in _gaps({p: (own[p], other[p]) for p in places}, rows, scores).items()}
    clear = dict(zip(gaps, signs([*gaps.values()]), strict=True))
    details: list[str] = []
    for kind in dict.fromkeys(kind for kind, _ in gaps):
        found = [sign for (other, _), sign in clear.items() if other == kind]
        details.append(_versus(found.count(1), found.count(-1), len(found), f"that of {kind}"))
    return f" On shifted data the average of {contender} experts is {', '.join(details)}." if details else ""


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


def _gaps(compared: Mapping, rows: Records, scores: Examples) -> dict:
    """Test of every pair of models, by seed, by how much the first is better, in the unit of their metric."""
    found = {place: difference(one, other, scores, rises=_unit(one).rises) for place, (one, other) in compared.items()}
    return {place: gap for place, gap in found.items() if gap is not None}


def _unit(model: Mapping[int, Mapping]) -> Unit:
    return unit_of([dict(row) for row in model.values()])


def _by_place(rows: Records) -> dict[Where, dict[int, dict]]:
    found: dict[Where, dict[int, dict]] = defaultdict(dict)
    for row in rows:
        found[row["task"], row["split"]][row["seed"]] = row
    return found


def _gap(gap: Contrast, rows: Records, task: str) -> str:
    """Write by how much a model is better, in the unit of the task's metric."""
    own = [row for row in rows if row["task"] == task]
    unit = unit_of(own)
    name = "points" if unit.name == "%" else f"{own[0]['metric']} {unit.name}".strip()
    return f"{_number(gap, unit.factor)} {name}" + " (lower is better: + is better)" * (not unit.rises)


def _versus(better: int, worse: int, of: int, other: str, times: str = "comparison") -> str:
    """Write in how many comparisons something was better and worse than another, in words that stand behind "is".

    >>> _versus(3, 0, 3, "the base"), _versus(1, 2, 4, "the base")
    ('better than the base in all 3 comparisons', 'better than the base in 1 of 4 comparisons and worse in 2')
    >>> _versus(0, 0, 1, "the base")
    'not told apart from the base'
    """
    parts = [(better, "better"), (worse, "worse")]
    seen = [(count, word) for count, word in parts if count]
    if not seen:
        return f"not told apart from {other}" + f" in any of {of} {times}s" * (of > 1)
    (count, word), *more = seen
    if of == 1:
        return f"{word} than {other}"
    often = f"in all {of} {times}s" if count == of else f"in {count} of {of} {times}s"
    return f"{word} than {other} {often}" + "".join(f" and {word} in {count}" for count, word in more)


def _percent(gap: Contrast) -> str:
    return _number(gap, 100)


def _number(gap: Contrast, factor: float) -> str:
    form = "+.1f" if factor != 1 or abs(gap.value) >= 100 else "+.3g"
    bounds = "" if gap.lo != gap.lo else f" [{factor * gap.lo:{form}}, {factor * gap.hi:{form}}]"
    return f"{factor * gap.value:{form}}{bounds}"


def _list(parts: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(parts[:-1]), *parts[-1:]]))
