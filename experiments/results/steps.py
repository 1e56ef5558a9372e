"""A study in two steps: every point on val, then of each mixture and method the one that is best there on all else."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from experiments.grid.grid import Engine, Grid, Summary, known_rows, run_cells
from experiments.grid.rows import latest, records
from experiments.statistics.columns import columns_of
from experiments.statistics.selection import ON, Candidates, Model, Series, candidates, is_merged
from experiments.study.points import WHOLE, Cell, Point

Steps = tuple[list[Cell], list[Cell]]


def run_in_steps(
    grid: Grid, cells: Sequence[Cell], folder: Path, engine: Engine, *, choose: bool, progress: bool = True
) -> Summary:
    """Evaluate cells as `run_cells` does; to `choose` first those on val, then what `chosen_cells` leaves of the
    others. All seeds choose together, so they belong in one run."""
    if not choose:
        return run_cells(grid, cells, folder, engine, progress=progress)
    first, rest = steps_of(cells)
    done = run_cells(grid, first, folder, engine, progress=progress)
    chosen = chosen_cells(grid, rest, folder)
    return _both(done, run_cells(grid, chosen, folder, engine, progress=progress)) if chosen else done


def steps_of(cells: Sequence[Cell]) -> Steps:
    """Return the cells on val, and the others."""
    return [cell for cell in cells if cell.split == ON], [cell for cell in cells if cell.split != ON]


def chosen_cells(grid: Grid, cells: Sequence[Cell], folder: Path) -> list[Cell]:
    """Leave the cells of models as they are, of ensembles, and of each mixture, kind of experts, method and BatchNorm
    policy of the point that has the highest mean retention on val, by the rows of a folder."""
    mixtures = dict.fromkeys((tuple(cell.point.experts), cell.point.kind) for cell in cells if not _is_whole(cell))
    found = [row for row in latest(records(known_rows(folder / "rows.jsonl"))) if row["study"] == grid.study]
    columns = columns_of(found, {} if grid.notes is None else grid.notes.tasks)
    chosen = {(names, kind): _best(candidates(found, names, kind, columns)) for names, kind in mixtures}
    return [
        cell
        for cell in cells
        if _is_whole(cell) or _model(cell.point) in chosen[tuple(cell.point.experts), cell.point.kind]
    ]


def _is_whole(cell: Cell) -> bool:
    return cell.point.method in WHOLE


def _best(among: Candidates) -> set[Model]:
    """Return the best model of each method and BatchNorm policy."""
    groups: dict[tuple[str, str], list[Model]] = {}
    for model in filter(is_merged, among.models):
        groups.setdefault((model.series.method, model.series.batchnorm), []).append(model)
    return {best for models in groups.values() if (best := among.pick(models)) is not None}


def _model(point: Point) -> Model:
    """Return the model of a point, as its rows tell it."""
    given = json.dumps(dict(point.parameters), sort_keys=True)
    return Model(Series(point.method, given, point.batchnorm), tuple(map(float, point.shares.values())))


def _both(first: Summary, second: Summary) -> Summary:
    """Add up what two runs did."""
    values = {one.name: (getattr(first, one.name), getattr(second, one.name)) for one in fields(Summary)}
    return Summary(**{name: a or b if name == "note" else a + b for name, (a, b) in values.items()})
