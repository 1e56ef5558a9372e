"""Methods of merging beside each other: of every mixture each method's point chosen on val, best first."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from experiments.grid.rows import Records
from experiments.pages.plain import Plain
from experiments.pages.views import losses_of, reported_split, shifted_splits
from experiments.statistics.bootstrap import interval, kind_of_interval
from experiments.statistics.columns import columns_of
from experiments.statistics.selection import Candidates, Model, Series, candidates, is_merged, reckoned
from experiments.statistics.summary import Examples, drawn, mixtures_of
from experiments.statistics.weights import MergeCost

FEWEST = 3  # methods that make a ranking
Kept = tuple[float, float, float]  # a mean retention and its 95 % interval, shares


@dataclass(frozen=True)
class Standing:
    """A method of a mixture: its chosen point, what it keeps in the mean over the experts' tasks on reported and on
    shifted data (None where that is not known), its scores by task, in words, and what merging costs."""

    mixture: str
    kind: str
    series: Series
    reported: Kept
    shifted: Kept | None
    scores: Mapping[str, str]
    interval: str
    cost: MergeCost | None


def rankings(
    rows: Records, scores: Examples, merges: Sequence[MergeCost] = ()
) -> dict[tuple[str, str], list[Standing]]:
    """Rank the methods of every mixture and kind that was merged by several, under BatchNorm policy average, by mean
    retention on reported data."""
    owners = {row["task"]: row["owner"] for row in rows if "owner" in row}
    losses = {id(row) for row in losses_of(rows)}
    main = [row for row in rows if id(row) not in losses]
    columns = columns_of(main, owners)
    found: dict[tuple[str, str], list[Standing]] = {}
    for names, kind in mixtures_of(main):
        among = candidates(main, names, kind, columns)
        groups: dict[str, list[Model]] = {}
        for model in filter(is_merged, among.models):
            if model.series.batchnorm == "average":
                groups.setdefault(model.series.method, []).append(model)
        costs = {
            (one.method, one.parameters): one for one in merges if (one.kind, one.experts) == (kind, "+".join(names))
        }
        own = [
            standing
            for models in groups.values()
            if (model := among.pick(models) or (models[0] if len(models) == 1 else None)) is not None
            if (standing := _standing(main, among, model, scores, costs)) is not None
        ]
        if len(own) >= FEWEST:
            found["+".join(names), kind] = sorted(own, key=lambda one: -one.reported[0])
    return found


def _standing(
    rows: Records, among: Candidates, model: Model, scores: Examples, costs: Mapping[tuple[str, str], MergeCost]
) -> Standing | None:
    """Measure a model; None where it has no scores on reported data."""
    split, about = reported_split(rows), model.series
    inside = _kept(among, model, {column.task: [split] for column in among.columns}, scores)
    if inside is None:
        return None
    shifted = {column.task: shifted_splits(rows, column.task) for column in among.columns}
    outside = _kept(among, model, shifted, scores) if all(shifted.values()) else None
    words: dict[str, str] = {}
    for column in among.columns:
        own = [found[0] for found in among.rows(model, column, split).values()]
        words[f"{column.task}, {column.metric}"] = column.unit.text(float(np.mean([row["value"] for row in own])))
    return Standing(
        mixture="+".join(among.names),
        kind=among.kind,
        series=about,
        reported=inside[0],
        shifted=None if outside is None else outside[0],
        scores=words,
        interval=inside[1],
        cost=costs.get((about.method, about.parameters)),
    )


def _kept(
    among: Candidates, model: Model, splits: Mapping[str, Sequence[str]], scores: Examples
) -> tuple[Kept, str] | None:
    """Return the mean retention over tasks, each the mean over its splits, with its interval and what that is of."""
    values: list[np.ndarray] = []
    draws: list[np.ndarray | None] = []
    examples: list[int] = []
    for column in among.columns:
        for split in splits[column.task]:
            by_seed = dict(sorted(among.rows(model, column, split).items()))
            own = list(by_seed.values())
            if not own or (values and len(values[-1]) != len(own)):
                return None
            weight = len(among.columns) * len(splits[column.task])
            values.append(np.array([reckoned(found, column) for found in own]) / weight)
            sampled = drawn(own, column, scores)
            draws.append(None if sampled is None else sampled / weight)
            examples.append(min(int(found[0]["n"]) for found in own))
    whole, known = np.sum(values, axis=0), [one for one in draws if one is not None]
    if np.isnan(whole).any():
        return None
    sampled = np.sum(known, axis=0) if len(known) == len(draws) else None
    lo, hi = interval(whole, sampled)
    return (float(whole.mean()), lo, hi), kind_of_interval(len(whole), min(examples) if sampled is not None else 0)


def ranking_tables(rows: Records, scores: Examples, merges: Sequence[MergeCost] = ()) -> dict[str, Plain]:
    """Tabulate the methods of each mixture, best first, by title; none where nothing was merged by several."""
    found = rankings(rows, scores, merges)
    return {
        "methods" + f" that merge {names} ({kind})" * (len(found) > 1): _table(own)
        for (names, kind), own in found.items()
    }


def _table(own: Sequence[Standing]) -> Plain:
    tasks = list(dict.fromkeys(task for one in own for task in one.scores))
    has_costs = any(one.cost for one in own)
    costs = ["seconds", "MB read", "MB of memory"] * has_costs
    head = ["method", "values", "retention, %", "on shifted data, %", *tasks, *costs]
    lines: list[list[str]] = []
    for one in own:
        cost = (
            ["", "", ""]
            if one.cost is None
            else [f"{one.cost.seconds:.2f}", f"{one.cost.read_mb:.0f}", one.cost.peak_mb]
        )
        kept = [_told(one.reported), "" if one.shifted is None else _told(one.shifted)]
        cells = [
            one.series.method,
            ", ".join(one.series.values),
            *kept,
            *(one.scores.get(task, "") for task in tasks),
        ]
        lines.append([*cells, *cost * has_costs])
    text = f"Merges of {own[0].mixture} ({own[0].kind}) by method, best first. Retention: score over "
    text += "that of the task's own expert, mean over their tasks (and shifted splits), with 95 % intervals "
    text += f"({own[0].interval}). Values were chosen on val where there were several."
    if has_costs:
        text += " Seconds: of merging the files into a file, on one thread; memory: beyond what the process had before."
    return Plain(head, lines, 2, text)


def _told(kept: Kept) -> str:
    value, lo, hi = (100 * number for number in kept)
    return f"{value:.1f}" if math.isnan(lo) else f"{value:.1f} [{lo:.1f}, {hi:.1f}]"
