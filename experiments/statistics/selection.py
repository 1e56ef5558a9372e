"""The best point of a mixture: picked on the validation split, reported on the test split."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import merge
from experiments.errors import StudyError
from experiments.grid.escapes import file_stem, html, one_line
from experiments.grid.rows import Records, Rows, is_made_of, mean_of, records
from experiments.grid.units import Unit
from experiments.statistics.bootstrap import NOWHERE
from experiments.statistics.columns import Column, columns_of
from experiments.statistics.retention import retention
from experiments.study.points import PRETRAINED, START, Expert, Point, share_parameter
from merge import METHODS, share_label
from unival_core.metrics import Interval

ON, REPORT = "val", "test"
KIND = "expert"  # of experts that differ in nothing but their names: not worth saying
SHARES = Unit(100.0, "%")


class Series(NamedTuple):
    """Models that differ in their shares alone; parameters are as JSON."""

    method: str
    parameters: str
    batchnorm: str

    @property
    def values(self) -> list[str]:
        """Return the parameters in words."""
        given = json.loads(self.parameters).items()
        return [f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}" for name, value in given]

    @property
    def label(self) -> str:
        """Return the method with its parameters and BatchNorm policy in words."""
        return ", ".join([self.method, *self.values, *[f"BatchNorm {self.batchnorm}"] * (self.batchnorm != "average")])


class Model(NamedTuple):
    """One model of a mixture: its series and the share of every expert, in the order of the mixture."""

    series: Series
    shares: tuple[float, ...]


@dataclass
class Candidates:
    """The models between some experts of one kind, with their rows on the experts' own tasks.

    `cells` hold rows by training seed at (model, task, metric, split); `starts` the pretrained model's, at the last
    three.
    """

    names: tuple[str, ...]
    kind: str
    columns: list[Column]
    cells: dict[tuple[Model, str, str, str], dict[int, dict[str, Any]]] = field(default_factory=dict)
    starts: dict[tuple[str, str, str], dict[int, dict[str, Any]]] = field(default_factory=dict)

    @property
    def models(self) -> list[Model]:
        """Return the models, the experts themselves first, then by series and falling shares of the first experts."""
        found = dict.fromkeys(model for model, *_ in self.cells)
        order = list(dict.fromkeys(model.series for model in sorted(found, key=is_merged)))
        return sorted(found, key=lambda model: (order.index(model.series), [-share for share in model.shares]))

    def rows(self, model: Model, column: Column, split: str) -> dict[int, Records]:
        """Return by seed a model's row, that of the task's own expert, and the pretrained model's if there is one.

        They are of the same weights, by their digests: an expert that changed is not measured by its old rows. One that
        several seeds share has one row, which serves them all.
        """
        place = (column.task, column.metric, split)
        owner = Model(ALONE, tuple(float(name == column.owner) for name in self.names))
        own, starts = self.cells.get((owner, *place), {}), self.starts.get(place, {})
        found: dict[int, Records] = {}
        for seed, row in self.cells.get((model, *place), {}).items():
            expert, start = of_same(own, seed, row, column.owner), of_same(starts, seed, row, PRETRAINED)
            if expert is not None:
                found[seed] = [row, expert] if start is None else [row, expert, start]
        return found

    def kept(self, model: Model, split: str) -> dict[int, np.ndarray]:
        """Return a model's retention on a split by seed, (tasks,) each; of the seeds that have all tasks."""
        tables = [(column, self.rows(model, column, split)) for column in self.columns]
        seeds = [seed for seed in tables[0][1] if all(seed in table for _, table in tables)] if tables else []
        return {seed: np.array([reckoned(table[seed], column) for column, table in tables]) for seed in seeds}

    def inputs(self, model: Model, split: str) -> dict[int, Mapping[str, str]]:
        """Return the digests of what a model is made of, by seed and name, as its rows on a split say."""
        rows = self.rows(model, self.columns[0], split)
        return {seed: rows[seed][0].get("inputs", {}) for seed in self.kept(model, split)}

    def joint(self, model: Model, split: str) -> float:
        """Return the mean retention over tasks and seeds; NaN where a task has no score."""
        found = self.kept(model, split)
        return float(np.mean([*found.values()])) if found else math.nan

    def pick(self, models: Iterable[Model], on: str = ON) -> Model | None:
        """Return the model of highest joint retention on a split, of equal ones the first; None without scores."""
        known = [(self.joint(model, on), model) for model in models]
        known = [one for one in known if not math.isnan(one[0])]
        return max(known, key=lambda one: one[0])[1] if known else None


ALONE = Series("single", "{}", "average")


@dataclass(frozen=True, repr=False)
class Best:
    """The best point of a mixture for one kind of experts.

    `selected` and `reported` are joint retentions, means over the tasks (`experiments.statistics.retention`), on the
    split that chose and on the test split, there with a 95 % `interval` where it was asked for. `reported` is NaN, and
    `tasks` empty, where the test split was not evaluated; `tasks` are value and 95 % interval on it (means over seeds)
    by task and metric. `inputs` are digests of the files that it is made of, by training seed and name.
    """

    names: tuple[str, ...]
    kind: str
    batchnorm: str
    shares: Mapping[str, float]
    selected: float
    reported: float
    tasks: Mapping[tuple[str, str], tuple[float, float, float]]
    method: str = "interpolate"
    parameters: Mapping[str, Any] = field(default_factory=dict[str, Any])
    inputs: Mapping[int, Mapping[str, str]] = field(default_factory=dict[int, Mapping[str, str]])
    on: str = ON
    interval: Interval = NOWHERE
    units: Mapping[tuple[str, str], Unit] = field(default_factory=dict[tuple[str, str], Unit])

    def __repr__(self) -> str:
        return one_line(f"<Best: {self}>")

    def _repr_html_(self) -> str:
        body = "".join(f"<tr><th>{html(name)}</th><td>{html(score)}</td></tr>" for name, score in self._scores())
        return f"<table><caption>{html(str(self).partition(';')[0])}</caption>{body}</table>"

    def __str__(self) -> str:
        plain = self.method in ("single", "interpolate", "average") and not self.parameters
        how = [self.kind] * (self.kind != KIND)
        how += [f"BatchNorm {self.batchnorm}"] * (self.batchnorm != "average") if plain else [self.model.series.label]
        text = f"{', '.join(['+'.join(self.names), *how])}: {share_label(self.shares)}"
        text += f"; joint {self.selected:.4f} on {self.on}"
        if not self.tasks:
            return text
        bounds = "" if math.isnan(self.interval.lo) else f" [{self.interval.lo:.4f}, {self.interval.hi:.4f}]"
        return f"{text}, {self.reported:.4f}{bounds} on {REPORT}; {', '.join(map(' '.join, self._scores()))}"

    @property
    def model(self) -> Model:
        """Return the model that it is, among the candidates of its mixture."""
        series = Series(self.method, json.dumps(self.parameters, sort_keys=True), self.batchnorm)
        return Model(series, tuple(self.shares.get(name, 0.0) for name in self.names))

    def _scores(self) -> list[tuple[str, str]]:
        return [
            (f"{task} {metric}", in_words(*numbers, self.units.get((task, metric), SHARES)))
            for (task, metric), numbers in self.tasks.items()
        ]


def best_points(
    rows: Rows,
    owners: Mapping[str, str],
    mixtures: Iterable[tuple[str, ...]],
    kinds: Sequence[str],
    *,
    report: bool = True,
) -> list[Best]:
    """Pick the best point of every mixture, kind of experts and BatchNorm policy that has rows on the validation split.

    `rows` are of one study, `owners` say by task whose own it is (see `columns_of`). StudyError where there is no such
    point, and with `report` where the points there have no rows on the test split.
    """
    found, best, scored = records(rows), list[Best](), list[Candidates]()
    for names in mixtures:
        for kind in kinds:
            among = candidates(found, names, kind, columns_of(found, owners))
            scored += [among] * any(among.kept(model, ON) for model in among.models if is_merged(model))
            models = [model for model in among.models if model.series.method != "ensemble"]
            for policy in dict.fromkeys(model.series.batchnorm for model in models if is_merged(model)):
                own = [model for model in models if not is_merged(model) or model.series.batchnorm == policy]
                if any(is_merged(model) and not math.isnan(among.joint(model, ON)) for model in own):
                    best.append(best_of(among, own, report=report))
    if not best:
        why = [f"{'+'.join(among.names)}: {_lacking(among, among.models, ON)}" for among in scored]
        raise StudyError(why[0] if why else f"there are no merged points on {ON}: evaluate split {ON} first")
    return best


def best_of(among: Candidates, models: Iterable[Model], on: str = ON, *, report: bool = True) -> Best:
    """Pick the best of some models on a split for choosing, and report it on the test split.

    StudyError for a split that is not for choosing, where no model has scores of all tasks there, and with `report`
    where the best has none on the test split.
    """
    check_choosing(on)
    models = list(models)
    model = among.pick(models, on)
    if model is None:
        raise StudyError(f"{'+'.join(among.names)}: {_lacking(among, models, on)}")
    reported, tasks = math.nan, dict[tuple[str, str], tuple[float, float, float]]()
    if report:
        reported = among.joint(model, REPORT)
        if math.isnan(reported):
            raise StudyError(f"{label_of(among, model)} has no score on {REPORT}: evaluate split {REPORT}")
        for column in among.columns:
            own = [row for row, *_ in among.rows(model, column, REPORT).values()]
            tasks[column.task, column.metric] = (mean_of(own, "value"), mean_of(own, "lo"), mean_of(own, "hi"))
    series, shares = model.series, dict(zip(among.names, model.shares, strict=True))
    return Best(
        names=among.names,
        kind=among.kind,
        method=series.method,
        parameters=json.loads(series.parameters),
        batchnorm=series.batchnorm,
        shares=shares,
        selected=among.joint(model, on),
        reported=reported,
        tasks=tasks,
        inputs=among.inputs(model, on),
        on=on,
        units={(column.task, column.metric): column.unit for column in among.columns},
    )


def check_choosing(split: str) -> None:
    """Raise StudyError for a split that is not for validation."""
    if not split.startswith("val"):
        raise StudyError(f"points chosen on split {split!r} look too good there: choose them on {ON!r}")


def candidates(rows: Records, names: tuple[str, ...], kind: str, columns: Iterable[Column]) -> Candidates:
    """Collect the models between experts of a kind: the experts as they are, and what all of them were merged into."""
    own = [column for column in columns if column.owner in names]
    found = Candidates(names, kind, own)
    places = {(column.task, column.metric) for column in own}
    for row in rows:
        if math.isnan(row["value"]) or (row["task"], row["metric"]) not in places:
            continue
        place, seed = (row["task"], row["metric"], row["split"]), int(row.get("seed", 0))
        held = {name for name, share in row["shares"].items() if share}
        if held == {PRETRAINED}:
            found.starts.setdefault(place, {})[seed] = row
        if row["experts"] == kind and is_made_of(row, names) and (held == set(names) or _takes_some(row["method"])):
            found.cells.setdefault((model_of(row, names), *place), {})[seed] = row
    return found


def model_of(row: Mapping[str, Any], names: Sequence[str]) -> Model:
    """Return the model that a row is of, among experts in an order."""
    shares = tuple(float(row["shares"].get(name, 0)) for name in names)
    if row["method"] == "single":
        return Model(ALONE, shares)
    given = json.dumps(dict(row.get("parameters") or {}), sort_keys=True)
    return Model(Series(row["method"], given, row["batchnorm"]), shares)


def is_merged(model: Model) -> bool:
    """Tell whether a model is more than an expert as it is."""
    return model.series != ALONE


def label_of(among: Candidates, model: Model) -> str:
    """Return a model's shares in words."""
    return share_label(dict(zip(among.names, model.shares, strict=True)))


def reckoned(rows: Records, column: Column) -> float:
    """Return the retention of a model's row, beside its expert's, and the pretrained model's if there is one."""
    merged, expert, *start = (row["value"] for row in rows)
    return float(retention(expert, merged, *start, higher_is_better=column.unit.rises, form=column.form))


def in_words(value: float, lo: float, hi: float, unit: Unit) -> str:
    """Write a score with its interval, if it has one: times 100 where it is a share of 1, else with its unit."""
    form = ".2f" if unit.factor != 1 else ".4g"
    bounds = "" if math.isnan(lo) else f" [{unit.factor * lo:{form}}, {unit.factor * hi:{form}}]"
    return f"{unit.factor * value:{form}}{bounds}" + f" {unit.name}" * bool(unit.name and unit.factor == 1)


def recipe_of(best: Best, inputs: Mapping[str, merge.Input], *, missing: str = "error") -> merge.Recipe:
    """Return the recipe of a best point's weights, from its experts' files (and the pretrained model's) by name.

    An expert as it is is the end of a line. StudyError for statistics that are measured, which no recipe can tell, and
    for ensembles, which are no weights.
    """
    if best.batchnorm.startswith("recalibrate:"):
        raise StudyError(f"BatchNorm {best.batchnorm} is measured, not merged: save a point of average or from:NAME")
    if best.method == "ensemble":
        raise StudyError("an ensemble answers with several models and is no one set of weights: save a merged point")
    method = best.method
    if method in ("single", "interpolate"):
        if len(best.names) == 1:
            raise StudyError(f"{best.names[0]} is a model as it is: copy its file")
        method = "interpolate" if len(best.names) == 2 else "average"
    takes_all = method in ("interpolate", "average")  # an expert without a share counts too: the files must fit
    shares = {name: share for name, share in best.shares.items() if share or takes_all}
    base = START if METHODS[method].takes_base else None
    experts = {name: Expert(name, "", best.kind) for name in shares}
    point = Point(experts, shares, method, best.batchnorm, best.parameters, base)
    policy = merge.Policy(batchnorm=best.batchnorm, missing=missing)
    start = inputs[PRETRAINED] if base is not None else None
    return merge.Recipe(method, tuple(inputs[name] for name in shares), point.arguments, start, policy)


def save_best(
    best: Best, inputs: Mapping[str, merge.Input], path: Path, *, missing: str = "error", overwrite: bool = False
) -> Path:
    """Write the weights of a best point, merged from its experts' files, to a path, with their recipe beside them.

    They have the bits that were evaluated where the experts are stored in float32; else they are rounded to the files'.
    StudyError as `recipe_of`, MergeError as `merge.run`.
    """
    recipe = recipe_of(best, inputs, missing=missing)
    path.parent.mkdir(parents=True, exist_ok=True)
    return merge.run(recipe, path, merge.Options(overwrite=overwrite))


def best_path(best: Best, inputs: Mapping[str, merge.Input], folder: Path, *, study: str, seed: int) -> Path:
    """Return where a best point of a study and seed is kept in its folder: under a name that tells it from others, with
    a suffix of the first expert's format."""
    policy = "" if best.batchnorm == "average" else f"-{best.batchnorm.replace(':', '-')}"
    stem = file_stem(f"{study}-{'+'.join(best.names)}-{best.kind}{policy}-seed-{seed}")
    return folder / "best" / f"{stem}{merge.suffix_like(Path(inputs[best.names[0]].path))}"


def of_same(rows: Mapping[int, dict[str, Any]], seed: int, row: dict[str, Any], name: str) -> dict[str, Any] | None:
    """Return the row of a seed, else of any, of the weights that another row was made of under a name."""
    wanted = row.get("inputs", {}).get(name)
    order = sorted(rows, key=lambda one: one != seed)
    return next((rows[one] for one in order if wanted in (None, rows[one].get("inputs", {}).get(name))), None)


def _takes_some(method: str) -> bool:
    """Tell whether a method's points between some of a mixture's experts are the mixture's too: where a share of 0
    means no part, and where there is only ever one expert."""
    if method not in METHODS:
        return method == "single"
    return share_parameter(method) == "weights" or METHODS[method].inputs[1] == 1


def _lacking(among: Candidates, models: Sequence[Model], split: str) -> str:
    """Say why no model can be picked on a split."""
    if not among.columns:
        return "no task is any of these experts' own, so nothing can be measured by them"
    if not any(among.kept(model, split) for model in models):
        return f"no model has scores of all tasks on {split}: evaluate split {split} first"
    return f"retention cannot be reckoned ({'; '.join(dict.fromkeys(column.form for column in among.columns))})"
