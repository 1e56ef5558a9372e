"""The best point of a study: picked on the validation split, reported on the test split."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import merge
from experiments.errors import StudyError
from experiments.grid.escapes import file_stem
from experiments.grid.rows import Records, Rows, is_made_of, mean_of, names_in, records
from experiments.statistics.curves import joint_score
from merge import share_label

ON, REPORT = "val", "test"
MERGES = ("single", "interpolate", "average")
Column = tuple[str, str]  # task and metric


@dataclass(frozen=True, repr=False)
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

    def __repr__(self) -> str:
        return f"<Best: {self}>"

    def _repr_html_(self) -> str:
        rows = [
            (f"{task} {metric}", 100 * value, 100 * lo, 100 * hi)
            for (task, metric), (value, lo, hi) in self.tasks.items()
        ]
        body = "".join(
            f"<tr><th>{html.escape(name)}</th><td>{value:.2f}</td><td>[{lo:.2f}, {hi:.2f}]</td></tr>"
            for name, value, lo, hi in rows
        )
        return f"<table><caption>{html.escape(str(self).partition(';')[0])}</caption>{body}</table>"

    def __str__(self) -> str:
        policy = "" if self.batchnorm == "average" else f", BatchNorm {self.batchnorm}"
        text = f"{'+'.join(self.names)}, {self.kind}{policy}: {share_label(self.shares)}"
        text += f"; joint {self.selected:.4f} on {ON}"
        if not self.tasks:
            return text
        own = ", ".join(
            f"{task} {metric} {100 * value:.2f} [{100 * lo:.2f}, {100 * hi:.2f}]"
            for (task, metric), (value, lo, hi) in self.tasks.items()
        )
        return f"{text}, {self.reported:.4f} on {REPORT}; {own}"


def best_points(
    rows: Rows,
    experts: Mapping[str, str],
    mixtures: Iterable[tuple[str, ...]],
    kinds: Sequence[str],
    *,
    report: bool = True,
) -> list[Best]:
    """Pick the best point of every mixture, kind of experts and policy that has rows on the validation split.

    `rows` are of one study, `experts` the task of every expert by name. StudyError where there is no such point, and
    with `report` where the points there have no rows on the test split.
    """
    found = [row for row in records(rows) if row["method"] in MERGES and not math.isnan(row["value"])]
    best: list[Best] = []
    for names in mixtures:
        for kind in kinds:
            own = [row for row in found if row["experts"] == kind and is_made_of(row, names)]
            for policy in names_in([row for row in own if row["method"] != "single"], "batchnorm"):
                line = [row for row in own if row["method"] == "single" or row["batchnorm"] == policy]
                if any(row["split"] == ON and row["method"] != "single" for row in line):
                    columns = {name: _column(line, experts[name], name) for name in names}
                    best.append(_best(line, columns, kind, policy, report=report))
    if not best:
        raise StudyError(f"there are no merged points on {ON}: run the study with --split {ON} first")
    return best


def save_best(best: Best, inputs: Mapping[str, merge.Input], folder: Path, *, study: str, seed: int) -> Path:
    """Write the weights of a best point, merged from its experts' files by name, with their recipe, to `folder/best`.

    They have the bits that were evaluated where the experts are stored in float32; else they are rounded to the files'.
    StudyError for statistics that were recalibrated, which no recipe can tell.
    """
    if best.batchnorm.startswith("recalibrate:"):
        raise StudyError(f"BatchNorm {best.batchnorm} is measured, not merged: save a point of average or from:NAME")
    shares = [best.shares[name] for name in best.names]
    method, given = ("interpolate", {"ratio": shares[1]}) if len(shares) == 2 else ("average", {"weights": shares})
    policy = merge.Policy(batchnorm=best.batchnorm, missing="keep-first")  # not every expert has every encoder
    recipe = merge.Recipe(method, tuple(inputs[name] for name in best.names), given, policy=policy)
    policy_name = "" if best.batchnorm == "average" else f"-{best.batchnorm.replace(':', '-')}"
    suffix = merge.suffix_like(Path(inputs[best.names[0]].path))
    stem = file_stem(f"{study}-{'+'.join(best.names)}-{best.kind}{policy_name}-seed-{seed}")
    target = folder / "best" / f"{stem}{suffix}"
    target.parent.mkdir(parents=True, exist_ok=True)
    merge.run(recipe, target, merge.Options(overwrite=True))
    return target


def _best(rows: Records, columns: Mapping[str, Column], kind: str, policy: str, *, report: bool) -> Best:
    names = tuple(columns)
    cells: dict[tuple[tuple[float, ...], Column, str], Records] = {}  # one row a seed in each
    for row in rows:
        shares = tuple(float(row["shares"].get(name, 0)) for name in names)
        cells.setdefault((shares, (row["task"], row["metric"]), row["split"]), []).append(row)
    known = sorted({shares for shares, _, split in cells if split == ON}, reverse=True)
    points = [shares for shares in known if all((shares, column, ON) in cells for column in columns.values())]
    ends = [tuple(float(name == one) for name in names) for one in names]

    def joint(split: str) -> np.ndarray:
        """Return joint scores of the points on a split, means over seeds."""
        tables: list[np.ndarray] = []
        for group in (points, ends):
            places = [[(shares, column, split) for shares in group] for column in columns.values()]
            if lacking := [place[0] for own in places for place in own if place not in cells]:
                label = share_label(dict(zip(names, lacking[0], strict=True)))
                raise StudyError(f"{label} has no score on {split}: run the study with --split {split}")
            tables.append(np.array([[mean_of(cells[place], "value") for place in own] for own in places]))
        return joint_score(*tables)

    on_val = joint(ON)
    index = int(on_val.argmax())
    shares = dict(zip(names, points[index], strict=True))
    if not report:
        return Best(names, kind, policy, shares, float(on_val[index]), math.nan, {})
    reported, tasks = float(joint(REPORT)[index]), dict[Column, tuple[float, float, float]]()
    for column in dict.fromkeys(columns.values()):
        own = cells[points[index], column, REPORT]
        tasks[column] = (mean_of(own, "value"), mean_of(own, "lo"), mean_of(own, "hi"))
    return Best(names, kind, policy, shares, float(on_val[index]), reported, tasks)


def _column(rows: Records, task: str, name: str) -> Column:
    """Name the task and metric of an expert: the metric that bears its name, else the task's first."""
    metrics = names_in([row for row in rows if row["task"] == task], "metric")
    return task, next((metric for metric in metrics if metric.endswith(f" {name}")), metrics[0])
