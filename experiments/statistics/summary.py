"""What every method keeps of the experts' skills: a table of retention by mixture, method, task and split."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from experiments.grid.rows import Records, names_in
from experiments.statistics.bootstrap import NOWHERE, interval, kind_of_interval
from experiments.statistics.columns import Column, columns_of
from experiments.statistics.contrasts import measured
from experiments.statistics.retention import retention
from experiments.statistics.selection import ON, REPORT, Candidates, Model, candidates, is_merged, label_of, reckoned
from experiments.statistics.tests import Examples

CHOOSING = ("val", "train")  # splits on which nothing is reported
MEAN = "mean over tasks"


@dataclass(frozen=True)
class Kept:
    """What one model keeps of one task on one split, or in the mean over a mixture's tasks.

    `mixture` names the experts; `method` the method with its parameters and BatchNorm policy, of whose points (those of
    `experts`, a kind) this one was chosen: on "val", or as the "only point", or, where split val was not evaluated, as
    the one of "equal shares". `is_best` marks the best of the mixture's models on val. `value` is the score in its own
    `unit`, NaN in the mean over tasks. `retention` with its 95 % interval `lo`, `hi` is a share of the expert's skill,
    in the `form` named; `interval` says what it takes into account. `splits` but `test` are shifted data.
    """

    mixture: str
    method: str
    task: str
    split: str
    retention: float
    lo: float
    hi: float
    point: str
    chosen: str
    is_best: bool
    is_shifted: bool
    value: float
    metric: str
    unit: str
    form: str
    interval: str
    seeds: int
    n: int
    experts: str
    key: str


def summarise(rows: Records, scores: Examples, owners: Mapping[str, str]) -> list[Kept]:
    """Summarise every mixture of a study's rows: each method's point chosen on val, with its retention on every split
    on which results are reported (where there is none, on those there are).

    `owners` say by task which expert's own it is (`columns_of`); intervals are those of `bootstrap.interval`, from the
    `scores` of examples where there are any.
    """
    columns = columns_of(rows, owners)
    splits = names_in(rows, "split")
    reported = [split for split in splits if split not in CHOOSING] or splits
    found: list[Kept] = []
    for names, kind in mixtures_of(rows):
        among = candidates(rows, names, kind, columns)
        best = among.pick([model for model in among.models if model.series.method != "ensemble"])
        for model, how in chosen_models(among):
            for split in sorted(reported, key=lambda split: split != REPORT):
                found += kept(among, model, split, scores, chosen=how, is_best=model == best)
    return found


def mixtures_of(rows: Records) -> list[tuple[tuple[str, ...], str]]:
    """Find the experts that were merged with each other, each set once for a kind, in the order of the rows."""
    found: dict[tuple[frozenset[str], str], tuple[str, ...]] = {}
    for row in rows:
        names = tuple(name for name, share in row["shares"].items() if share)
        if len(names) > 1:
            found.setdefault((frozenset(names), row["experts"]), names)
    return [(names, kind) for (_, kind), names in found.items()]


def chosen_models(
    among: Candidates, among_these: Iterable[Model] | None = None, *, by_method: bool = False
) -> list[tuple[Model, str]]:
    """Choose of every series the point to report, and say how: on val, else the only one, else that of equal shares.

    With `among_these` only of some models; with `by_method` of every method and BatchNorm policy one.
    """
    groups: dict[tuple[str, ...], list[Model]] = {}
    for model in among.models if among_these is None else among_these:
        series = model.series
        place = (series.method, series.batchnorm) if by_method else tuple(series)
        groups.setdefault(place, []).append(model)
    found: list[tuple[Model, str]] = []
    for models in groups.values():
        best = among.pick(models)
        if best is not None and len(models) > 1:
            found.append((best, ON))
        elif len(models) == 1:
            found.append((models[0], "only point"))
        else:
            found += [(model, "equal shares") for model in models if len(set(model.shares)) == 1]
    return found


def kept(among: Candidates, model: Model, split: str, scores: Examples, *, chosen: str, is_best: bool) -> list[Kept]:
    """Measure a model's retention on every task of its mixture on a split, and in the mean of all of them."""
    told = {
        "mixture": "+".join(among.names),
        "experts": among.kind,
        "method": model.series.label if is_merged(model) else "expert alone",
        "point": label_of(among, model),
        "chosen": chosen,
        "is_best": is_best,
        "split": split,
        "is_shifted": split not in (REPORT, *CHOOSING),
    }
    found: list[Kept] = []
    parts: list[tuple[tuple[int, ...], np.ndarray, np.ndarray | None, list[Records]]] = []
    for column in among.columns:
        by_seed = dict(sorted(among.rows(model, column, split).items()))
        if not by_seed:
            continue
        rows = list(by_seed.values())
        values, draws = np.array([reckoned(own, column) for own in rows]), drawn(rows, column, scores)
        parts.append((tuple(by_seed), values, draws, rows))
        about = {"task": column.task, "metric": column.metric, "unit": column.unit.name, "form": column.form}
        about |= {"value": float(np.mean([own[0]["value"] for own in rows])), "key": str(rows[0][0].get("key", ""))}
        found.append(Kept(**told, **about, **_measured(values, draws, rows)))
    if len(parts) == len(among.columns) > 1 and len({seeds for seeds, *_ in parts}) == 1:
        every = [draws for _, _, draws, _ in parts if draws is not None]
        mean = np.mean(every, axis=0) if len(every) == len(parts) else None
        values, rows = np.mean([part[1] for part in parts], axis=0), [row for part in parts for row in part[3]]
        about = {"task": MEAN, "metric": "", "unit": "", "value": math.nan, "key": ""}
        about["form"] = "; ".join(dict.fromkeys(column.form for column in among.columns))
        found.append(Kept(**told, **about, **_measured(values, mean, rows)))
    return found


def drawn(rows: Sequence[Records], column: Column, scores: Examples) -> np.ndarray | None:
    """Return draws (samples, seeds) of a model's retention, from its rows and those beside them (`Candidates.rows`), by
    seed; None where examples have no scores."""
    models = [{i: own[place] for i, own in enumerate(rows)} for place in range(len(rows[0]))]
    draws = measured(models, scores).draws
    if draws is None:
        return None
    merged, expert, *start = draws
    return retention(expert, merged, *start, higher_is_better=column.unit.rises, form=column.form)


def _measured(values: np.ndarray, draws: np.ndarray | None, rows: Sequence[Records]) -> dict[str, Any]:
    """Return the fields of what was measured: the mean over seeds, its interval, and what that is."""
    n = min(int(own[0]["n"]) for own in rows) if draws is not None else 0
    lo, hi = NOWHERE if np.isnan(values).any() else interval(values, draws)
    about = {"seeds": len(values), "n": n, "interval": kind_of_interval(len(values), n)}
    return {"retention": float(values.mean()), "lo": lo, "hi": hi, **about}
