"""Measuring weights pair by pair, and merges: what weights.csv and merges.csv hold."""

from __future__ import annotations

import json
import math
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING

import torch

import merge
from experiments.grid.grid import Grid
from experiments.grid.memory import forget_peak, megabytes
from experiments.grid.subject import opened
from experiments.results.steps import chosen_cells
from experiments.statistics.selection import Best, recipe_of
from experiments.statistics.weights import MERGES, WEIGHTS, Geometry, MergeCost, read_pairs, write_lines
from experiments.study.points import START, WHOLE, Cell, Point

if TYPE_CHECKING:
    from torch import Tensor

REPEATS = 3
STATISTICS = ("running_mean", "running_var")  # of inputs, which are no weights


@torch.no_grad()
def geometry(base: Mapping[str, Tensor], first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> dict[str, float]:
    """Measure two experts of a base, as the fields of `Geometry`; names that one of the three lacks are left out."""
    sums = dict.fromkeys(("first", "second", "dot", "moved", "agreeing"), 0.0)
    for name in base:
        if name not in first or name not in second or name.endswith(STATISTICS) or not base[name].is_floating_point():
            continue
        a, b = ((one[name].double() - base[name].double()).flatten() for one in (first, second))
        both = (a != 0) & (b != 0)
        sums["first"] += float(a @ a)
        sums["second"] += float(b @ b)
        sums["dot"] += float(a @ b)
        sums["moved"] += int(both.sum())
        sums["agreeing"] += int((both & (a.sign() == b.sign())).sum())
    lengths = math.sqrt(sums["first"]), math.sqrt(sums["second"])
    return {
        "first_length": lengths[0],
        "second_length": lengths[1],
        "distance": math.sqrt(max(sums["first"] + sums["second"] - 2 * sums["dot"], 0.0)),
        "cosine": sums["dot"] / math.prod(lengths) if all(lengths) else math.nan,
        "agreement": sums["agreeing"] / sums["moved"] if sums["moved"] else math.nan,
    }


def measure_pairs(grid: Grid, cells: Sequence[Cell], folder: Path) -> list[Geometry]:
    """Measure every two experts of a kind that have a part in one merge of the cells, by seed; write weights.csv,
    in which other pairs stay.

    StudyError where there is no pretrained model.
    """
    merged = [cell.point for cell in cells if len(cell.point.experts) > 1]
    pairs = dict.fromkeys((a, b) for point in merged for a, b in combinations(point.experts.values(), 2))
    found: list[Geometry] = []
    for seed in grid.seeds:
        base = opened(grid.subject.source(START, seed))
        for a, b in pairs:
            if (b, a) not in pairs or a.name < b.name:
                first, second = (opened(grid.subject.source(one, seed)) for one in (a, b))
                found.append(Geometry(a.kind, seed, a.name, b.name, **geometry(base, first, second)))
    new = {(one.kind, one.seed, one.first, one.second) for one in found}
    kept = [one for one in read_pairs(folder) if (one.kind, one.seed, one.first, one.second) not in new]
    write_lines(folder / WEIGHTS, [*kept, *found], Geometry)
    return found


def measure_merges(grid: Grid, cells: Sequence[Cell], folder: Path) -> list[MergeCost]:
    """Merge the files of every chosen point of merged weights several times, and write merges.csv. Statistics that are
    measured are left out."""
    points = {cell.point.id: cell.point for cell in chosen_cells(grid, cells, folder)}.values()
    points = [one for one in points if one.method not in WHOLE and not one.batchnorm.startswith("recalibrate:")]
    found = [merge_cost(grid, point) for point in points]
    write_lines(folder / MERGES, found, MergeCost)
    return found


def merge_cost(grid: Grid, point: Point) -> MergeCost:
    """Measure the merge of a point's files, of the first seed."""
    inputs = {name: grid.subject.source(expert, grid.seeds[0]) for name, expert in point.files.items()}
    given = {"names": tuple(point.shares), "shares": point.shares, "kind": point.kind, "batchnorm": point.batchnorm}
    best = Best(**given, selected=0, reported=0, tasks={}, method=point.method, parameters=point.parameters)
    recipe = recipe_of(best, inputs, missing="keep-first")
    seconds: list[float] = []
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "merged.safetensors"
        forget_peak()
        before = megabytes("VmRSS")
        for _ in range(REPEATS):
            began = time.perf_counter()
            merge.run(recipe, file, merge.Options(overwrite=True, threads=1))
            seconds.append(time.perf_counter() - began)
        peak = str(max(0, int(megabytes("VmHWM")) - int(before))) if before else ""
        written = file.stat().st_size / 1e6
    read = sum(one.path.stat().st_size for one in inputs.values() if one.path.is_file()) / 1e6
    parameters = json.dumps(dict(point.parameters), sort_keys=True)
    experts = "+".join(point.shares)
    return MergeCost(point.kind, experts, point.method, parameters, statistics.median(seconds), read, written, peak)
