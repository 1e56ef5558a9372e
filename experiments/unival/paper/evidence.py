"""What the rows of a study say of a claim: one number with its interval, over seeds and examples.

A measure is a function of `Evidence`; it returns `Told`, or None where the rows it needs are missing. Means over tasks
are of shares of another model's scores, or of scores in one unit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.grid.lines import files_of
from experiments.grid.rows import Records, names_in, read_rows, records
from experiments.grid.units import Unit, scale_of
from experiments.pages.findings.lines import Between, best_of, chords, lines_in
from experiments.pages.findings.words import number, unit_words
from experiments.pages.views import (
    experts_of,
    is_average,
    is_single,
    main_metrics,
    one_policy,
    open_study,
    reported_split,
    shifted_splits,
    weights_only,
)
from experiments.statistics.bootstrap import over_seeds, p_of_no_effect
from experiments.statistics.contrasts import BySeed, Contrast, Part, averaged, draws_of, measured
from experiments.unival.costs import read_costs, whole_seconds

Selector = Callable[[Mapping[str, Any]], bool]
Where = tuple[str, str]  # task and split
SHARE = Unit(100.0, "% of the own expert's score")
RELATIVE = Unit(100.0, "% of the other's score")
SAVED = Unit(100.0, "% saved")


class Told(NamedTuple):
    """A number for which above 0 is what is claimed, its unit, and what else is to be said of it. It has a `margin` in
    it where less than that may be lost, which is not printed."""

    contrast: Contrast
    unit: Unit
    note: str = ""
    margin: float = 0.0

    @property
    def text(self) -> str:
        """Write the number with its interval, and how many seeds it is of."""
        given, factor = self.contrast, self.unit.factor
        gap = given._replace(value=given.value - self.margin, lo=given.lo - self.margin, hi=given.hi - self.margin)
        words = number(gap._replace(lo=math.nan) if math.isinf(gap.hi) else gap, factor)
        text = f"{words} {unit_words(self.unit)}" + f", at least {factor * gap.lo:+.1f}" * math.isinf(gap.hi)
        seeds = len(gap.seeds)
        return f"{text}{self.note and f' ({self.note})'}; {seeds} seed{'s' * (seeds > 1)}" + ", no interval" * (
            math.isnan(gap.lo)
        )


@dataclass
class Evidence:
    """The rows of a study in a folder, those of main metrics that are of weights and nothing more."""

    folder: Path
    study: str

    @cached_property
    def _read(self) -> tuple[Records, dict[str, Any]]:
        return open_study(self.folder, self.study)

    @cached_property
    def rows(self) -> Records:
        """Return the rows, each with the `owner` of its task."""
        return weights_only(one_policy(main_metrics(self._read[0])))

    @cached_property
    def draws(self) -> dict[str, np.ndarray]:
        """Return draws of the rows' values on resampled examples, by key."""
        return draws_of(self.rows, self._read[1])

    @cached_property
    def lines(self) -> list[Between]:
        """Return the lines between two experts on their own tasks."""
        return lines_in(self.rows, self._read[1])

    @property
    def scores(self) -> dict[str, Any]:
        """Return the scores of examples by row key."""
        return self._read[1]

    def points(self, wanted: Selector, place: Where) -> list[BySeed]:
        """Return the rows of the models wanted on a task and split, by seed, each model apart."""
        found: dict[str, dict[int, dict[str, Any]]] = {}
        for row in self.rows:
            if (row["task"], row["split"]) == place and wanted(row):
                found.setdefault(row["point"], {})[int(row["seed"])] = row
        return [*found.values()]

    @cached_property
    def homes(self) -> list[Where]:
        """Return the tasks on the reported split."""
        return [(task, reported_split(self.rows)) for task in names_in(self.rows, "task")]

    @cached_property
    def aways(self) -> list[Where]:
        """Return the tasks on their shifted splits."""
        return [(task, split) for task in names_in(self.rows, "task") for split in shifted_splits(self.rows, task)]


Measure = Callable[[Evidence], "Told | None"]
Places = Callable[[Evidence], list[Where]]


def evidence_in(folder: Path) -> dict[str, Evidence]:
    """Find the studies in the folders of a folder, each where it has most rows."""
    found: dict[str, tuple[int, Evidence]] = {}
    files = (place / "rows.jsonl" for place in sorted(folder.glob("*/")))
    for file in filter(files_of, files):
        counts: dict[str, int] = {}
        for row in records(read_rows(file)):
            counts[row["study"]] = counts.get(row["study"], 0) + 1
        for study, count in counts.items():
            if count > found.get(study, (0,))[0]:
                found[study] = count, Evidence(file.parent, study)
    return {study: evidence for study, (_, evidence) in found.items()}


# -- which models, and where


def own(kind: str) -> Selector:
    """Choose of a task the expert of a kind whose own it is."""
    return lambda row: is_single(row) and row["experts"] == kind and experts_of(row) == [row["owner"]]


def named(name: str) -> Selector:
    """Choose a model as it is by its name."""
    return lambda row: is_single(row) and experts_of(row) == [name]


def average(kind: str) -> Selector:
    """Choose the average of all experts of a kind, three or more."""
    return lambda row: row["experts"] == kind and is_average(row)


def inside(kind: str) -> Selector:
    """Choose all points in which three experts of a kind have a share."""
    return lambda row: row["experts"] == kind and len(experts_of(row)) == 3


OTHER = named("")  # in place of a model: the second of two that are compared


def home(evidence: Evidence) -> list[Where]:
    """Return the tasks in distribution."""
    return evidence.homes


def away(evidence: Evidence) -> list[Where]:
    """Return the tasks on shifted data."""
    return evidence.aways


def at(*places: Where) -> Places:
    """Return some tasks and splits."""
    return lambda evidence: [*places]


# -- measures


def gain(
    first: Selector, second: Selector, places: Places, per: Selector | None = None, margin: float = 0.0
) -> Measure:
    """Measure by how much the first model is better than the second: in their unit, or as a share of the scores of the
    model `per`, the own expert or OTHER, the second. The mean over places where all are scored, and over the points
    that the first names. With a `margin` that much may be lost."""

    def measure(evidence: Evidence) -> Told | None:
        parts: list[Part] = []
        for place in places(evidence):
            firsts, seconds = (evidence.points(one, place) for one in (first, second))
            wholes = seconds if per is OTHER else evidence.points(per, place) if per else []
            if not firsts or len(seconds) != 1 or (per and len(wholes) != 1):
                continue
            for one in firsts:
                found = measured([one, *seconds, *wholes], evidence.scores, evidence.draws)
                if found.seeds:
                    unit = scale_of([*one.values()]) if per is None else RELATIVE if per is OTHER else SHARE
                    values, draws = (
                        None if table is None else margin + (table[0] - table[1]) / (1.0 if per is None else table[2])
                        for table in (found.values, found.draws)
                    )
                    assert values is not None
                    parts.append(Part(unit, found.seeds, values, draws))
        gap = averaged(parts)
        note = f"{100 * margin:g} % less would do" if margin else ""
        return None if gap is None else Told(gap, parts[0].unit, note, margin)

    return measure


def above(*pairs: tuple[str, str], kind: str) -> Measure:
    """Measure how far the points between two experts lie above the straight line between these: the mean over points,
    the tasks of the two and pairs, as shares of the own experts' scores."""

    def measure(evidence: Evidence) -> Told | None:
        found = [part for pair in pairs for part in _heights(evidence, pair, kind)]
        gap = averaged(found) if len(found) == 2 * len(pairs) else None
        return None if gap is None else Told(gap, SHARE)

    return measure


def best(pair: tuple[str, str], task: str, kind: str) -> Measure:
    """Measure by how much the best point between two experts beats the own expert of a task: that chosen on val, else
    the best of all, corrected for being that (max-T)."""

    def measure(evidence: Evidence) -> Told | None:
        for line in _lines(evidence, pair, kind):
            found = best_of(line) if line.task == task else None
            if found is not None:
                corrected = found.chosen.startswith("best")
                gap = found.gap._replace(p=min(1.0, 2 * found.p))
                gap = gap._replace(lo=found.lowest, hi=math.inf) if corrected else gap
                return Told(gap, line.scale, f"{line.point(found.place)}; {found.chosen}")
        return None

    return measure


def front(first: str, second: str, *pairs: tuple[str, str]) -> Measure:
    """Measure by how much the points between experts of one kind are better than those of another, shares alike: the
    mean over points, tasks and pairs, as shares of the second kind's own experts' scores."""

    def measure(evidence: Evidence) -> Told | None:
        parts: list[Part] = []
        for pair in pairs:
            others = {line.task: line for line in _lines(evidence, pair, second)}
            for line in _lines(evidence, pair, first):
                other = others.get(line.task)
                if other is not None and np.array_equal(line.shares, other.shares):
                    parts.append(_between(line, other))
        gap = averaged([part for part in parts if part.seeds])
        return None if gap is None else Told(gap, SHARE)

    return measure


def weakest(**measures: Measure) -> Measure:
    """Take of several measures the one that says least for the claim: where that holds all do."""

    def measure(evidence: Evidence) -> Told | None:
        found = {name: told for name, one in measures.items() if (told := one(evidence)) is not None}
        if not found:
            return None
        name = min(found, key=lambda name: _sureness(found[name].contrast))
        told = found[name]
        missing = [name for name in measures if name not in found]
        note = f"weakest of {', '.join(found)}: {name}" * (len(found) > 1)
        note += f"; not run: {', '.join(missing)}" * bool(missing)
        return told._replace(note="; ".join(filter(None, (told.note, note))))

    return measure


def cheaper(first: str, second: str, column: str) -> Measure:
    """Measure which share of the second training's costs the first one saves, with all before it: of `seconds`, or of
    the `memory` of the hungriest step."""

    def measure(evidence: Evidence) -> Told | None:
        costs = read_costs(evidence.folder)
        seeds = [seed for seed, name in costs if name == first and (seed, second) in costs]
        if not seeds:
            return None
        values = np.array([1 - whole(costs, seed, first) / whole(costs, seed, second) for seed in seeds])
        p = p_of_no_effect(values) if len(values) > 1 else math.nan
        return Told(Contrast(float(values.mean()), *over_seeds(values), p, tuple(map(float, values))), SAVED)

    def whole(costs: Mapping[tuple[str, str], Mapping[str, str]], seed: str, name: str) -> float:
        return whole_seconds(costs, (seed, name)) if column == "seconds" else float(costs[seed, name]["peak_mb"])

    return measure


def _lines(evidence: Evidence, pair: tuple[str, str], kind: str) -> list[Between]:
    return [line for line in evidence.lines if line.kind == kind and set(line.pair) == set(pair)]


def _heights(evidence: Evidence, pair: tuple[str, str], kind: str) -> list[Part]:
    """Return how far the points of a pair lie above the line between its ends on each of its tasks, in their mean."""
    parts: list[Part] = []
    for line in _lines(evidence, pair, kind):
        values, draws = line.against(chords(line.shares))
        wholes = [None if table is None else table[_end(line)] for table in (line.values, line.draws)]
        parts.append(_part(line.seeds, [values, draws], wholes))
    return parts


def _between(line: Between, other: Between) -> Part:
    """Return by how much the points of one line are better than those of another, in their mean."""
    seeds = sorted({*line.seeds} & {*other.seeds})
    first, second = ([one.seeds.index(seed) for seed in seeds] for one in (line, other))
    tables = zip((line.values, line.draws), (other.values, other.draws), strict=True)
    found = [None if a is None or b is None else (a[..., first], b[..., second]) for a, b in tables]
    gaps = [None if both is None else (both[0] - both[1])[1:-1] for both in found]
    return _part(tuple(seeds), gaps, [None if both is None else both[1][_end(other)] for both in found])


def _part(seeds: tuple[int, ...], tables: Sequence[np.ndarray | None], wholes: Sequence[np.ndarray | None]) -> Part:
    """Return the mean over points of values (k, s), and of draws (k, samples, s), as shares of wholes."""
    values, draws = (
        None if table is None or whole is None else table.mean(axis=0) / whole
        for table, whole in zip(tables, wholes, strict=True)
    )
    assert values is not None
    return Part(SHARE, seeds, values, draws)


def _end(line: Between) -> int:
    return 0 if line.owner == line.pair[0] else -1


def _sureness(gap: Contrast) -> float:
    """Order numbers by how much they say for a claim."""
    return float(np.sign(gap.value)) * (1 - gap.p) if gap.p == gap.p else gap.value
