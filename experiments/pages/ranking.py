"""Methods of merging beside each other: of every mixture each method's point chosen on val, best first."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from experiments.grid.rows import Records
from experiments.pages.plain import Plain
from experiments.pages.views import losses_of, reported_split, shifted_splits
from experiments.statistics.bootstrap import interval, kind_of_interval
from experiments.statistics.columns import columns_of
from experiments.statistics.contrasts import Contrast, contrast, signs
from experiments.statistics.selection import Candidates, Model, Series, candidates, is_merged, reckoned
from experiments.statistics.summary import Examples, drawn, mixtures_of
from experiments.statistics.weights import MergeCost

FEWEST = 3  # methods that make a ranking
PLAIN = "average"  # the method that all others are held against
Kept = tuple[float, float, float]  # a mean retention and its 95 % interval, shares


@dataclass(frozen=True)
class Standing:
    """A method of a mixture: its chosen point, what it keeps in the mean over the experts' tasks on reported and on
    shifted data (None where that is not known), how much more that is than what the plain average keeps at the same
    seeds and examples, its scores by task, in words, and what merging costs."""

    mixture: str
    kind: str
    series: Series
    reported: Kept
    shifted: Kept | None
    over: Contrast | None
    over_shifted: Contrast | None
    scores: Mapping[str, str]
    interval: str
    cost: MergeCost | None


class _Mean(NamedTuple):
    """Mean retentions by seed (s,), draws of them (samples, s) where examples have scores, and of how many of these."""

    values: np.ndarray
    draws: np.ndarray | None
    examples: int

    @property
    def kept(self) -> Kept:
        """Return the mean over seeds with its interval."""
        lo, hi = interval(self.values, self.draws)
        return float(self.values.mean()), lo, hi

    def over(self, plain: _Mean | None) -> Contrast | None:
        """Compare with the plain average; None for that itself, and where there is none at these seeds."""
        if plain is None or plain is self or plain.values.shape != self.values.shape:
            return None
        draws = None if self.draws is None or plain.draws is None else self.draws - plain.draws
        return contrast(self.values - plain.values, draws)


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
        chosen = [
            model
            for models in groups.values()
            if (model := among.pick(models) or (models[0] if len(models) == 1 else None)) is not None
        ]
        measured = {model: _means(main, among, model, scores) for model in chosen}
        plain = next((means for model, means in measured.items() if model.series.method == PLAIN), (None, None))
        own = [
            _standing(main, among, model, (inside, outside), plain, costs)
            for model, (inside, outside) in measured.items()
            if inside is not None
        ]
        if len(own) >= FEWEST:
            found["+".join(names), kind] = sorted(own, key=lambda one: -one.reported[0])
    return found


def _means(rows: Records, among: Candidates, model: Model, scores: Examples) -> tuple[_Mean | None, _Mean | None]:
    """Measure what a model keeps on reported and on shifted data; None where it was not asked."""
    inside = {column.task: [reported_split(rows)] for column in among.columns}
    outside = {column.task: shifted_splits(rows, column.task) for column in among.columns}
    return tuple(_kept(among, model, splits, scores) if all(splits.values()) else None for splits in (inside, outside))  # type: ignore[return-value]


def _standing(
    rows: Records,
    among: Candidates,
    model: Model,
    means: tuple[_Mean, _Mean | None],
    plain: tuple[_Mean | None, _Mean | None],
    costs: Mapping[tuple[str, str], MergeCost],
) -> Standing:
    split, about = reported_split(rows), model.series
    words: dict[str, str] = {}
    for column in among.columns:
        own = [found[0] for found in among.rows(model, column, split).values()]
        words[f"{column.task}, {column.metric}"] = column.unit.text(float(np.mean([row["value"] for row in own])))
    inside, outside = means
    return Standing(
        mixture="+".join(among.names),
        kind=among.kind,
        series=about,
        reported=inside.kept,
        shifted=None if outside is None else outside.kept,
        over=inside.over(plain[0]),
        over_shifted=None if outside is None else outside.over(plain[1]),
        scores=words,
        interval=kind_of_interval(len(inside.values), inside.examples),
        cost=costs.get((about.method, about.parameters)),
    )


def _kept(among: Candidates, model: Model, splits: Mapping[str, Sequence[str]], scores: Examples) -> _Mean | None:
    """Return the mean retention over tasks, each the mean over its splits."""
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
    return _Mean(whole, sampled, min(examples) if sampled is not None else 0)


def ranking_tables(rows: Records, scores: Examples, merges: Sequence[MergeCost] = ()) -> dict[str, Plain]:
    """Tabulate the methods of each mixture, best first, by title; none where nothing was merged by several."""
    found = rankings(rows, scores, merges)
    return {
        "methods" + f" that merge {names} ({kind})" * (len(found) > 1): _table(own)
        for (names, kind), own in found.items()
    }


def told_apart(own: Sequence[Standing], *, shifted: bool = False) -> list[bool]:
    """Tell of every method whether it is told apart from the plain average, after Holm's correction for all of them."""
    found = [one.over_shifted if shifted else one.over for one in own]
    sure = iter(signs([over for over in found if over is not None]))
    return [over is not None and next(sure) != 0 for over in found]


def _table(own: Sequence[Standing]) -> Plain:
    tasks = list(dict.fromkeys(task for one in own for task in one.scores))
    has_costs, has_plain = any(one.cost for one in own), any(one.over for one in own)
    costs = ["seconds", "MB read", "MB of memory"] * has_costs
    against = ["against the average"] * has_plain
    head = ["method", "values", "retention, %", *against, "on shifted data, %", *against, *tasks, *costs]
    clear = zip(told_apart(own), told_apart(own, shifted=True), strict=True)
    lines: list[list[str]] = []
    for one, (inside, outside) in zip(own, clear, strict=True):
        cost = (
            ["", "", ""]
            if one.cost is None
            else [f"{one.cost.seconds:.2f}", f"{one.cost.read_mb:.0f}", one.cost.peak_mb]
        )
        lines.append(
            [
                one.series.method,
                ", ".join(one.series.values),
                _told(one.reported),
                *[_over(one.over, inside)] * has_plain,
                "" if one.shifted is None else _told(one.shifted),
                *[_over(one.over_shifted, outside)] * has_plain,
                *(one.scores.get(task, "") for task in tasks),
                *cost * has_costs,
            ]
        )
    text = f"Merges of {own[0].mixture} ({own[0].kind}) by method, best first. Retention: score over "
    text += "that of the task's own expert, mean over their tasks (and shifted splits), with 95 % intervals "
    text += f"({own[0].interval}). Values were chosen on val where there were several."
    if has_plain:
        text += " Against the average: what is kept more than by the plain average, at the same seeds and examples; "
        text += "with a star where it is told apart from that (Holm-corrected for all methods, p < 0.05)."
    if has_costs:
        text += " Seconds: of merging the files into a file, on one thread; memory: beyond what the process had before."
    return Plain(head, lines, 2, text)


def _over(found: Contrast | None, is_clear: bool) -> str:
    if found is None:
        return ""
    value, lo, hi = (100 * number for number in found[:3])
    return f"{value:+.1f}{'*' * is_clear}" + f" [{lo:+.1f}, {hi:+.1f}]" * (not math.isnan(lo))


def _told(kept: Kept) -> str:
    value, lo, hi = (100 * number for number in kept)
    return f"{value:.1f}" if math.isnan(lo) else f"{value:.1f} [{lo:.1f}, {hi:.1f}]"
