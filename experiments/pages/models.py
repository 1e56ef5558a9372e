"""Which models a page compares: experts as they are, and of everything that was merged the point chosen on val."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.grid.rows import Records, names_in
from experiments.grid.units import unit_of
from experiments.pages.views import (
    PRETRAINED,
    experts_of,
    has_equal_shares,
    is_single,
    kinds_of,
)
from experiments.statistics.columns import columns_of, form_in
from experiments.statistics.retention import retention
from experiments.statistics.selection import candidates, model_of
from experiments.statistics.summary import CHOOSING, chosen_models

VAL = CHOOSING[0]


class Model(NamedTuple):
    """A model that others are compared with: its name, its experts, and its rows on all tasks and splits."""

    name: str
    experts: tuple[str, ...]
    rows: Records

    @property
    def kind(self) -> str:
        """Say how its experts were trained."""
        return str(self.rows[0]["experts"])


def singles_of(rows: Records) -> list[Model]:
    """Return the models as they are, the pretrained one first; experts of several kinds with their kind."""
    several = len(kinds_of(rows)) > 1
    found: dict[tuple[str, str], Records] = {}
    for row in sorted(filter(is_single, rows), key=lambda row: row["experts"] != PRETRAINED):
        found.setdefault((experts_of(row)[0], str(row["experts"])), []).append(row)
    merged = kinds_of(rows)
    return [
        Model(f"{name}, {kind}" if several and kind in merged else name, (name,), own)
        for (name, kind), own in found.items()
    ]


def merges_of(rows: Records, *, by_method: bool = False) -> list[Model]:
    """Return of every mixture, kind of experts, method with its parameters, and BatchNorm policy the point that is best
    on val (`chosen_models`); with `by_method` the parameters are chosen there too.

    Without scores on val it is the only point, or that of equal shares, which stands in also where the best point was
    not asked all that equal shares were, such as shifted data. Rows have their `series`; only those of the main metric
    count.
    """
    columns = columns_of(rows, {row["task"]: row["owner"] for row in rows})
    groups: dict[tuple[frozenset[str], str], dict[Any, Records]] = {}
    names: dict[frozenset[str], tuple[str, ...]] = {}
    for row in rows:
        if not is_single(row):
            held = frozenset(experts_of(row))
            own = names.setdefault(held, tuple(experts_of(row)))
            groups.setdefault((held, str(row["experts"])), {}).setdefault(model_of(row, own), []).append(row)
    found: list[Model] = []
    for (held, kind), models in groups.items():
        among = candidates(rows, names[held], kind, columns)
        chosen = chosen_models(among, models, by_method=by_method) or [(next(iter(models)), "")]
        for own in (_whole(models, model) for model, _ in chosen):
            found.append(Model(_name(own[0]), names[held], own))
    return found


def _whole(models: Mapping[Any, Records], chosen: Any) -> Records:
    """Return the rows of a model, or those of equal shares of its series where these are of more tasks and splits."""
    for model, rows in models.items():
        if model.series == chosen.series and has_equal_shares(rows[0]) and _places(rows) - _places(models[chosen]):
            return rows
    return models[chosen]


def _places(rows: Records) -> set[tuple[str, str]]:
    return {(str(row["task"]), str(row["split"])) for row in rows}


def is_chosen_on_val(rows: Records) -> bool:
    """Tell whether points of merged models were scored on val, so that they can be chosen there."""
    return any(row["split"] == VAL and not is_single(row) for row in rows)


def kept_on(models: Sequence[Model], rows: Records, task: str, splits: Sequence[str]) -> tuple[np.ndarray, str]:
    """Measure what models keep of the score of a task's own expert, means over seeds and splits (m,), and say how.

    The expert is that of the model's own kind, where there is one. NaN where a score is missing, and "" for a task that
    is nobody's.
    """
    here = [row for row in rows if row["task"] == task and row["split"] in splits]
    owner = here[0]["owner"] if here else ""
    experts = [row for row in here if is_single(row) and experts_of(row) == [owner]]
    if not experts:
        return np.full(len(models), np.nan), ""
    kinds = names_in(experts, "experts")
    start = [row for row in here if is_single(row) and experts_of(row) == [PRETRAINED]]
    places = list(dict.fromkeys((row["split"], row["seed"]) for row in here))
    by_kind = {kind: _column([row for row in experts if row["experts"] == kind], places) for kind in kinds}
    own = np.array([by_kind.get(model.kind, by_kind[kinds[0]]) for model in models])
    found = np.array([_column([row for row in model.rows if row["task"] == task], places) for model in models])
    begun, rises = np.array(_column(start, places)), unit_of(here).rises
    form = form_in(experts, [row for model in models for row in model.rows if row["task"] == task], start)
    kept = retention(own, found, begun if start else None, higher_is_better=rises, form=form)
    return np.array([line[np.isfinite(line)].mean() if np.isfinite(line).any() else np.nan for line in kept]), form


def _column(rows: Records, places: Sequence[tuple[Any, Any]]) -> list[float]:
    """Return the scores of a model on splits by seed, NaN where one is missing."""
    found = {(row["split"], row["seed"]): float(row["value"]) for row in rows}
    return [found.get(place, np.nan) for place in places]


def _name(row: Mapping[str, Any]) -> str:
    """Name a merged model: its experts, their shares where these differ, and how it was made."""
    held = experts_of(row)
    shares = "" if has_equal_shares(row) else " " + "/".join(f"{row['shares'][name]:.2f}" for name in held)
    return f"{'+'.join(held)}{shares}, {row['series']}"
