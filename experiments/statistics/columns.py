"""Tasks as columns: the metric that counts of each, whose own it is, and what retention means there."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

from experiments.grid.rows import Records, mean_of, names_in
from experiments.grid.units import Unit, unit_of
from experiments.statistics.retention import GAIN, UNSURE, form_of
from experiments.study.points import PRETRAINED


class Column(NamedTuple):
    """A task by the metric that counts: whose own it is, and the form of its retention."""

    task: str
    metric: str
    owner: str
    unit: Unit
    form: str


def columns_of(rows: Records, owners: Mapping[str, str]) -> list[Column]:
    """Name the tasks that are some expert's own, each by its first metric, with the form that retention has there.

    `owners` name the expert by task; without any a task is the expert's of its name. A task that is nobody's may have
    metrics named after experts, their rewards ("Acc@0.5 small"): each is an own task of that expert.
    """
    scored = [row for row in rows if not math.isnan(row["value"])]
    experts = {name for row in scored for name, share in row["shares"].items() if share}
    found: list[Column] = []
    for task in names_in(scored, "task"):
        here = [row for row in scored if row["task"] == task]
        metrics = names_in(here, "metric")
        owner = owners.get(task, "") if owners else task if task in experts else ""
        own = {metrics[0]: owner} if owner else {metric: metric.rpartition(" ")[2] for metric in metrics}
        for metric, name in own.items():
            if name in experts:
                found.append(_column([row for row in here if row["metric"] == metric], name))
    return found


def form_in(experts: Records, others: Records, start: Records) -> str:
    """Return the form of retention on a task, from the rows of its own expert, of all other models but the pretrained
    one, and of that one.

    A share of the expert's gain needs a gain: one whose sides are told apart by the intervals of their scores, on the
    first split where both have some. Where scores have no intervals, any gain will do.
    """
    rises = unit_of(experts or others or start).rises
    values = [[row["value"] for row in rows] for rows in (experts, others)]
    form = form_of(*values, has_start=bool(start), higher_is_better=rises)
    return UNSURE if form == GAIN and not _gained(experts, start, rises) else form


def _gained(experts: Records, start: Records, rises: bool) -> bool:
    split = next((row["split"] for row in experts if any(row["split"] == one["split"] for one in start)), None)
    own, begun = ([row for row in rows if row["split"] == split] for rows in (experts, start))
    if not own or not begun:
        return False
    gain = mean_of(own, "value") - mean_of(begun, "value")
    halves = [(mean_of(rows, "hi") - mean_of(rows, "lo")) / 2 for rows in (own, begun)]
    noise = math.hypot(*halves) if all(map(math.isfinite, halves)) else 0.0
    return (gain if rises else -gain) > noise


def _column(rows: Records, owner: str) -> Column:
    """Return the column of a task's rows by one metric."""
    own: Records = []
    others: Records = []
    start: Records = []
    for row in rows:
        held = [name for name, share in row["shares"].items() if share]
        alone = row["method"] == "single"
        (start if held == [PRETRAINED] else own if alone and held == [owner] else others).append(row)
    return Column(rows[0]["task"], rows[0]["metric"], owner, unit_of(rows), form_in(own, others, start))
