"""The best point of a study: picked on the validation split, reported on the test split."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from experiments.errors import StudyError
from experiments.grid.rows import Records, Rows, is_made_of, mean_of, names_in, records, share_label
from experiments.statistics.curves import joint_score, select
from experiments.study.study import Choice, Expert, Study
from experiments.unival.setups import Scale
from merge import Input, Options, Policy, Recipe
from merge import run as write_merged

ON, REPORT = "val", "test"
MERGES = ("single", "interpolate", "average")
Column = tuple[str, str]  # task and metric


@dataclass(frozen=True)
class Best:
    """The best point of a mixture for one kind of experts and one BatchNorm policy.

    Scores are joint ones: means over the tasks of merged over expert. `reported` is NaN, and `tasks` empty, where the
    test split was not evaluated; `tasks` are value and 95 % interval on it (means over seeds) by task and metric.
    """

    names: tuple[str, ...]
    kind: str
    batchnorm: str
    shares: Mapping[str, float]
    selected: float
    reported: float
    tasks: Mapping[Column, tuple[float, float, float]]

    def __str__(self) -> str:
        policy = "" if self.batchnorm == "average" else f", BatchNorm {self.batchnorm}"
        head = f"{'+'.join(self.names)}, {self.kind}{policy}: {share_label(self.shares)}"
        scores = f"joint {self.selected:.4f} on {ON}"
        if not self.tasks:
            return f"{head}; {scores}"
        own = ", ".join(
            f"{task} {metric} {100 * value:.2f} [{100 * lo:.2f}, {100 * hi:.2f}]"
            for (task, metric), (value, lo, hi) in self.tasks.items()
        )
        return f"{head}; {scores}, {self.reported:.4f} on {REPORT}; {own}"


def best_points(rows: Rows, study: Study, choice: Choice, *, report: bool = True) -> list[Best]:
    """The best point of every mixture, kind of experts and policy that has rows on the validation split.

    StudyError where there is none, and with `report` where the points there have no rows on the test split.
    """
    found = [row for row in records(rows) if row["study"] == study.name and row["method"] in MERGES]
    best: list[Best] = []
    for names in study.chosen_mixtures(choice):
        for kind in study.chosen_kinds(choice):
            own = [row for row in found if row["experts"] == kind and is_made_of(row, names)]
            for policy in names_in([row for row in own if row["method"] != "single"], "batchnorm"):
                line = [row for row in own if row["method"] == "single" or row["batchnorm"] == policy]
                if any(row["split"] == ON and row["method"] != "single" for row in line):
                    best.append(_best(line, study, (names, kind, policy), report=report))
    if not best:
        raise StudyError(f"study {study.name} has no merged points on {ON}: run it with --split {ON} first")
    return best


def _best(rows: Records, study: Study, which: tuple[tuple[str, ...], str, str], *, report: bool) -> Best:
    names, kind, policy = which
    columns = {name: _column(rows, study.experts[name], name) for name in names}
    points = list(_points(rows, names, list(columns.values()), ON))
    joint = {ON: _joint(rows, points, columns, ON)}
    if not report:
        index = int(np.argmax(joint[ON]))
        return Best(names, kind, policy, points[index], joint[ON][index], float("nan"), {})
    joint[REPORT] = _joint(rows, points, columns, REPORT)
    chosen = select(joint, on=ON, report=REPORT)
    shares = points[chosen.index]
    tasks: dict[Column, tuple[float, float, float]] = {}
    for column in dict.fromkeys(columns.values()):
        own = _of(rows, shares, column, REPORT)
        tasks[column] = (mean_of(own, "value"), mean_of(own, "lo"), mean_of(own, "hi"))
    return Best(names, kind, policy, shares, chosen.selected, chosen.reported, tasks)


def _column(rows: Records, task: str, name: str) -> Column:
    """What an expert is a specialist in: the metric that bears its name, else the task's first."""
    metrics = names_in([row for row in rows if row["task"] == task], "metric")
    return task, next((metric for metric in metrics if metric.endswith(f" {name}")), metrics[0])


def _points(rows: Records, names: Sequence[str], columns: Sequence[Column], split: str) -> Iterator[dict[str, float]]:
    """The shares of the points with a score in every column on a split, the ends included."""
    every = {tuple(float(row["shares"].get(name, 0)) for name in names) for row in rows if row["split"] == split}
    for values in sorted(every, reverse=True):
        shares = dict(zip(names, values, strict=True))
        if all(_of(rows, shares, column, split) for column in columns):
            yield shares


def _of(rows: Records, shares: Mapping[str, float], column: Column, split: str) -> Records:
    """The rows of a point in a column, one a seed."""
    return [
        row
        for row in rows
        if (row["task"], row["metric"], row["split"]) == (*column, split)
        and all(row["shares"].get(name, 0) == share for name, share in shares.items())
    ]


def _joint(
    rows: Records, points: Sequence[Mapping[str, float]], columns: Mapping[str, Column], split: str
) -> list[float]:
    """Joint scores of points on a split, means over seeds."""
    ends = [{name: float(name == one) for name in columns} for one in columns]
    tables: list[list[list[float]]] = []
    for group in (points, ends):
        table = [[_of(rows, shares, column, split) for shares in group] for column in columns.values()]
        lacking = [shares for own in table for shares, there in zip(group, own, strict=True) if not there]
        if lacking:
            raise StudyError(f"{share_label(lacking[0])} has no row on {split}: run the study with --split {split}")
        tables.append([[mean_of(cell, "value") for cell in own] for own in table])
    return joint_score(np.array(tables[0]), np.array(tables[1])).tolist()


def save_best(best: Best, study: Study, scale: Scale, folder: Path) -> Path:
    """Writes the weights of a best point, with their recipe, below `folder/best`.

    They have the bits that were evaluated where the experts are stored in float32; else they are rounded to the files'.
    StudyError for statistics that were recalibrated, which no recipe can tell.
    """
    if best.batchnorm.startswith("recalibrate:"):
        raise StudyError(f"BatchNorm {best.batchnorm} is measured, not merged: save a point of average or from:NAME")
    inputs: list[Input] = []
    for name in best.names:
        expert = Expert(name, study.experts[name], best.kind)
        inputs.append(Input(name, scale.expert_file(expert), scale.section(expert)))
    shares: list[float] = [best.shares[name] for name in best.names]
    policy = Policy(batchnorm=best.batchnorm, missing="keep-first")  # not every expert has every encoder
    if len(shares) == 2:
        recipe = Recipe("interpolate", tuple(inputs), {"ratio": shares[1]}, policy=policy)
    else:
        recipe = Recipe("average", tuple(inputs), {"weights": shares}, policy=policy)
    policy_name = "" if best.batchnorm == "average" else f"-{best.batchnorm.replace(':', '-')}"
    name = f"{study.name}-{'+'.join(best.names)}-{best.kind}{policy_name}-seed-{scale.seed}{inputs[0].path.suffix}"
    target = folder / "best" / name
    target.parent.mkdir(parents=True, exist_ok=True)
    write_merged(recipe, target, Options(overwrite=True))
    return target
