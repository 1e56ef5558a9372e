"""What a study's tables of scores have beside them: methods ranked, pairs of experts, calibration."""

from __future__ import annotations

from pathlib import Path

from experiments.grid.rows import Records
from experiments.pages.confident import calibration_table
from experiments.pages.pairs import pair_table
from experiments.pages.plain import Plain
from experiments.pages.ranking import ranking_tables
from experiments.statistics.tests import Examples
from experiments.statistics.weights import read_merges


def tables_beside(folder: str | Path, rows: Records, scores: Examples) -> dict[str, Plain]:
    """Return by title the tables that a study's rows, and the measures in its folder, allow."""
    found: dict[str, Plain | None] = {**ranking_tables(rows, scores, read_merges(folder))}
    found |= {"pairs of experts": pair_table(rows, scores), "calibration": calibration_table(rows, scores)}
    return {title: table for title, table in found.items() if table is not None}
