"""Averages of many experts: against the pretrained model, and kinds of experts against each other."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from experiments.grid.rows import Records, names_in
from experiments.grid.units import Unit, scale_of
from experiments.pages.findings.words import (
    RETENTION,
    Finding,
    Where,
    by_place,
    counted,
    gap_words,
    gaps_of,
    number,
    seeds_words,
    unit_words,
    versus,
)
from experiments.pages.views import (
    PRETRAINED,
    experts_of,
    is_average,
    is_single,
    reported_split,
    shifted_splits,
)
from experiments.statistics.columns import Column, columns_of
from experiments.statistics.contrasts import BySeed, Contrast, Part, averaged, contrast, measured, signs
from experiments.statistics.retention import retention
from experiments.statistics.tests import Examples

Model = Mapping[Where, BySeed]
_FEW = 3  # pairs of kinds that are each named, told apart or not
HOME, AWAY = "in distribution", "on shifted data"


class Setting(NamedTuple):
    """What averages are compared on: the rows of main metrics, scores of examples and draws of their means by row key,
    the own tasks of experts, and every kind's average by place."""

    rows: Records
    scores: Examples
    draws: Mapping[str, np.ndarray]
    columns: Mapping[str, Column]
    models: Mapping[str, Model]

    @property
    def splits(self) -> dict[str, list[str]]:
        """Return the splits in distribution and those of shifted data."""
        found = {HOME: [reported_split(self.rows)], AWAY: shifted_splits(self.rows)}
        return {where: splits for where, splits in found.items() if splits}

    def own_expert(self, kind: str, place: Where) -> BySeed:
        """Return the rows of a kind's own expert of a task."""
        owner = self.columns[place[0]].owner if place[0] in self.columns else ""
        return {
            row["seed"]: row
            for row in self.rows
            if is_single(row)
            and (row["task"], row["split"]) == place
            and row["experts"] == kind
            and experts_of(row) == [owner]
        }


def setting(rows: Records, scores: Examples, draws: Mapping[str, np.ndarray]) -> Setting | None:
    """Find the averages of three experts or more of rows of main metrics; None where there are none."""
    merged = [row for row in rows if is_average(row)]
    most = max((len(experts_of(row)) for row in merged), default=0)
    merged = [row for row in merged if len(experts_of(row)) == most]  # of all experts, where some were averaged too
    if not merged:
        return None
    models = {kind: by_place([row for row in merged if row["experts"] == kind]) for kind in names_in(merged, "experts")}
    columns = {column.task: column for column in columns_of(rows, {row["task"]: row["owner"] for row in rows})}
    return Setting(rows, scores, draws, columns, models)


def against_pretrained(given: Setting, beyond: str = "") -> Finding | None:
    """Count where averages are better than the pretrained model, and tell by how much, a unit at a time; `beyond` says
    what of shifted scores the line of single models foretells."""
    start = by_place([row for row in given.rows if experts_of(row) == [PRETRAINED]])
    known = [split for splits in given.splits.values() for split in splits]
    compared = {
        (kind, *place): (own[place], start[place])
        for kind, own in given.models.items()
        for place in own
        if place in start and place[1] in known
    }
    gaps = gaps_of(compared, given.scores)
    if not gaps:
        return None
    clear = dict(zip(gaps, signs([*gaps.values()]), strict=True))
    counts: list[str] = []
    for where, splits in given.splits.items():
        found = [clear[place] for place in gaps if place[2] in splits]
        if found:
            other = "it" if counts else "the pretrained model"
            words = versus(found.count(1), found.count(-1), len(found), other)
            counts.append(f"{'on shifted data ' * (where == AWAY)}{words}")
    text = f"Averages of all experts are {'; '.join(counts)}: {counted([*gaps.values()], 'scores are higher')}"
    text += f"{beyond and '; '}{beyond}."
    details = [
        f"{kind}, {where}: {line}"
        for kind, own in given.models.items()
        for where, splits in given.splits.items()
        for line in _means(given, own, start, kind, splits)
    ]
    details += [
        f"{kind}, {task}, {split}: {gap_words(gap, given.rows, task)}" for (kind, task, split), gap in gaps.items()
    ]
    unclear = [*clear.values()].count(0)
    return Finding(
        text, tuple(details), f"{unclear} of {len(gaps)} scores of averages from the pretrained model's" * bool(unclear)
    )


def contests(given: Setting, contender: str, beyond: str = "") -> Finding | None:
    """Compare the averages of kinds of experts, the contender's with each other one's first: means over tasks are of
    retention, and of scores a unit at a time. For `beyond` see `against_pretrained`."""
    kinds = sorted(given.models, key=lambda kind: kind != contender)
    found: dict[tuple[str, str, str], Contrast] = {}
    details: list[str] = []
    for (first, second), (where, splits) in itertools.product(_couples(kinds, contender), given.splits.items()):
        one, other = given.models[first], given.models[second]
        kept = averaged(_kept_parts(given, one, other, second, splits))
        if kept is not None:
            found[first, second, where] = kept
        details += [f"{first} - {second}, {where}: {line}" for line in _means(given, one, other, second, splits)]
    if not found:
        return None
    clear = dict(zip(found, signs([*found.values()]), strict=True))
    sentences: list[str] = []
    for where in given.splits:
        own = {place: sign for place, sign in clear.items() if place[2] == where}
        alike = [place for place, sign in own.items() if not sign and len(own) > _FEW]
        words = {
            place: versus(int(sign > 0), int(sign < 0), 1, f"that of {place[1]}")
            for place, sign in own.items()
            if place not in alike
        }
        named = [f"that of {kind} experts is {verdict}" for (kind, _, _), verdict in words.items()]
        if alike:
            named.append(f"none of the {'other ' * bool(named)}{len(alike)} pairs of kinds is told apart")
        if named:
            sentences.append(f"{where} {', '.join(named)}")
    text = f"Averages of kinds of experts, by mean retention: {'; '.join(sentences)}"
    text += f"{beyond and '; '}{beyond}."
    unclear = [*clear.values()].count(0)
    return Finding(
        text, tuple(details), f"{unclear} of {len(found)} mean retentions of kinds of experts" * bool(unclear)
    )


def _couples(kinds: Sequence[str], contender: str) -> Iterator[tuple[str, str]]:
    """Pair kinds, the contender before the others, of others the later before the earlier."""
    first, rest = ([kind for kind in kinds if (kind == contender) == own] for own in (True, False))
    for one, other in itertools.product(first, rest):
        yield one, other
    for one, other in itertools.combinations(rest, 2):
        yield other, one


def _means(given: Setting, one: Model, other: Model, kind: str, splits: Sequence[str]) -> Iterator[str]:
    """Write the mean difference of two models over tasks: of retention (of a kind's experts), then a unit at a time."""
    kept = _kept_parts(given, one, other, kind, splits)
    if (gap := averaged(kept)) is not None:
        yield _mean_words(gap, RETENTION, len(kept))
    parts: dict[Unit, list[Part]] = {}
    for place in _places(one, other, splits):
        scale = scale_of(list(one[place].values()))
        found = measured([one[place], other[place]], given.scores, given.draws)
        if found.seeds:
            sign = 1 if scale.rises else -1
            drawn = None if found.draws is None else sign * (found.draws[0] - found.draws[1])
            parts.setdefault(scale, []).append(
                Part(scale, found.seeds, sign * (found.values[0] - found.values[1]), drawn)
            )
    for scale, own in parts.items():
        if (gap := averaged(own)) is not None:
            yield _mean_words(gap, scale, len(own))
    if len(parts) > 1:
        yield from _mixed_words(parts)


def _mean_words(gap: Contrast, scale: Unit, count: int) -> str:
    words = unit_words(scale)
    mean = f" (mean of {count})" * (count > 1)
    return f"{number(gap, scale.factor)} {words}{mean}{seeds_words(gap, scale.factor)}"


def _mixed_words(parts: Mapping[Unit, Sequence[Part]]) -> Iterator[str]:
    """Write what a mean over units would say: it is told so that such a number, printed elsewhere, is known again."""
    every = [(scale.factor, part) for scale, own in parts.items() for part in own]
    if len({part.seeds for _, part in every}) == 1 and all(scale.factor == 100 for scale in parts):
        values = np.mean([factor * part.values for factor, part in every], axis=0)
        gap = contrast(values, None)
        named = " and ".join(unit_words(scale) for scale in parts)
        yield f"no result: a mean of {named}, units mixed, would be {gap.value:+.1f}{seeds_words(gap, 1.0)}"


def _kept_parts(given: Setting, one: Model, other: Model, kind: str, splits: Sequence[str]) -> list[Part]:
    """Return by how much more of a task's own expert (of a kind) one model keeps than the other, by task and split;
    nothing where a task lacks it."""
    found: list[Part] = []
    for place in _places(one, other, splits):
        expert, column = given.own_expert(kind, place), given.columns.get(place[0])
        if column is None or not expert:
            return []
        start = {row["seed"]: row for row in given.rows if experts_of(row) == [PRETRAINED] and _is_at(row, place)}
        models = [one[place], other[place], expert, *([start] if start else [])]
        table = measured(models, given.scores, given.draws)
        if not table.seeds:
            return []
        how = {"higher_is_better": column.unit.rises, "form": column.form}
        values, *drawn = [
            retention(of[2], of[0], *of[3:], **how) - retention(of[2], of[1], *of[3:], **how)
            for of in (table.values, table.draws)
            if of is not None
        ]
        if not np.isfinite(values).all():
            return []
        found.append(Part(RETENTION, table.seeds, values, drawn[0] if drawn else None))
    return found


def _is_at(row: Mapping, place: Where) -> bool:
    return (row["task"], row["split"]) == place


def _places(one: Model, other: Model, splits: Sequence[str]) -> list[Where]:
    return [place for place in one if place in other and place[1] in splits]
