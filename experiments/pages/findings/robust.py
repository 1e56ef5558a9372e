"""Merged models on shifted data, against the line that single models trace there (effective robustness)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from experiments.grid.rows import Records
from experiments.grid.units import scale_of
from experiments.pages.findings.words import Finding, number, seeds_words, unit_words
from experiments.pages.overview import Chosen
from experiments.pages.views import experts_of, is_single, plain_singles, reported_split, shifted_splits
from experiments.statistics.columns import Column
from experiments.statistics.contrasts import BySeed, Contrast, signs
from experiments.statistics.robustness import Pair, beyond, pairs_of_splits


def robust(lines: Sequence[Chosen], rows: Records, draws: Mapping[str, np.ndarray]) -> tuple[Finding | None, str]:
    """Tell of the merged model of every mixture whether its shifted scores are beyond what single models foretell, and
    in half a sentence of how many they are; nothing, and "", where no line can be drawn. `draws` are of rows by key
    (`draws_of`)."""
    home = reported_split(rows)
    plain, every = plain_singles(rows), [row for row in rows if is_single(row)]
    found: list[tuple[Contrast, str]] = []
    for line in lines:
        for column in line.among.columns:
            of_task = [row for row in rows if (row["task"], row["metric"]) == (column.task, column.metric)]
            inside = _first(line, column, home)
            for split in shifted_splits(of_task):
                model = pairs_of_splits(inside, _first(line, column, split))
                singles, all_singles = (_pairs(own, column.task, home, split) for own in (plain, every))
                away = beyond(model, singles, draws)
                if away is not None:
                    scale, name = scale_of(of_task), f"{line.name} ({line.words}), {column.task}, {split}"
                    told = f"{name}: {number(away, scale.factor)} {unit_words(scale)} above the line through "
                    told += f"{len(singles)} single models{seeds_words(away, scale.factor)}"
                    if len(all_singles) > len(singles):
                        other = beyond(model, all_singles, draws)
                        value = "none" if other is None else f"{scale.factor * other.value:+.1f}"
                        told += f"; {value} above that through all {len(all_singles)}"
                    found.append((away, told))
    if not found:
        return None, ""
    clear, of = signs([away for away, _ in found]), len(found)
    counts = f"{clear.count(1)} of {of} scores of merged models on shifted data lie above the line of single models"
    counts += f" and {clear.count(-1)} below"
    text = f"{counts}, which foretells them from scores in distribution (effective robustness)."
    unclear = clear.count(0)
    detail = tuple(told for _, told in found)
    return Finding(
        text, detail, f"{unclear} of {of} shifted scores of merged models from the line" * bool(unclear)
    ), counts


def _first(line: Chosen, column: Column, split: str) -> BySeed:
    """Return the rows of a mixture's model on a split, by seed."""
    return {seed: rows[0] for seed, rows in line.among.rows(line.model, column, split).items()}


def _pairs(rows: Iterable[dict], task: str, home: str, split: str) -> list[Pair]:
    """Pair the rows of single models on two splits of a task, each seed of each model apart."""
    models: dict[tuple[str, str], dict[str, dict[int, dict]]] = {}
    for row in rows:
        if row["task"] == task and row["split"] in (home, split):
            name = str(row["experts"]), experts_of(row)[0]
            models.setdefault(name, {}).setdefault(row["split"], {})[row["seed"]] = row
    return [pair for own in models.values() for pair in pairs_of_splits(own.get(home, {}), own.get(split, {})).values()]
