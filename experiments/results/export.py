"""One study out of a folder of many, small enough to be published: packed rows, and of their scores the quoted ones."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np

from experiments.atomic import write_whole
from experiments.errors import StudyError
from experiments.grid.clusters import clusters_path
from experiments.grid.grid import ROWS
from experiments.grid.lines import entries, files_of, packed
from experiments.grid.notes import read_notes, write_notes
from experiments.grid.rows import Records, latest, read_scores, scores_entry, scores_path
from experiments.statistics.summary import CHOOSING
from experiments.statistics.weights import MERGES, WEIGHTS


def export(folder: str | Path, study: str, output: str | Path, scores: str = "quoted") -> Path:
    """Write what a folder holds of one study into another, as packed files that are read like the others.

    Of rows that say the same the last is taken. Scores by example, rounded to one part in 8,000, are those of `all`
    metrics, of the `quoted` one of every task (its first) but for val, which only chooses, or `none`: intervals of
    others are then over seeds alone. What the study is about, and what was measured of weights and merges, goes with
    it. Returns `output`. Raises StudyError for a folder without rows of the study, and where `output` has rows that
    are not packed.
    """
    source, target = Path(folder) / ROWS, Path(output) / ROWS
    if target in files_of(target):
        raise StudyError(f"{target} holds rows of its own: name another folder")
    last = {entry["key"]: entry for _, entry in entries(source) if entry.get("study") == study}
    rows = latest(list(last.values()))
    if not rows:
        raise StudyError(f"{source} holds no rows of {study}: run the study first, or name another folder")
    known = read_scores(source) if files_of(scores_path(source)) else {}
    own = [scores_entry(key, _short(known[key])) for key in _with_scores(rows, scores) if key in known]
    places, file = {(row["task"], row["split"], row["data"], row["n"]) for row in rows}, clusters_path(source)
    shared = [
        entry
        for _, entry in (entries(file) if files_of(file) else ())
        if (entry["task"], entry["split"], entry["data"], entry["n"]) in places
    ]
    for file, found in ((scores_path(target), own), (clusters_path(target), shared), (target, rows)):
        if found:
            write_whole(file.with_name(f"{file.name}.gz"), packed(json.dumps(one, ensure_ascii=False) for one in found))
    write_notes(output, study, read_notes(folder, study))
    for name in (WEIGHTS, MERGES):
        if (Path(folder) / name).is_file():
            shutil.copyfile(Path(folder) / name, Path(output) / name)
    return Path(output)


def _short(scores: np.ndarray) -> np.ndarray:
    """Round scores to 12 bits each: packed they take three quarters of what float32 takes, and no interval shows it."""
    part, exponent = np.frexp(scores)
    return np.ldexp(np.round(part * 4096) / 4096, exponent)


def _with_scores(rows: Records, scores: str) -> list[str]:
    """Return the keys of the rows whose scores by example are taken."""
    quoted: dict[str, str] = {}
    reported = [row for row in rows if row["split"] not in CHOOSING] or rows
    chosen = [row["key"] for row in reported if quoted.setdefault(row["task"], row["metric"]) == row["metric"]]
    choices = {"quoted": chosen, "all": [row["key"] for row in rows], "none": list[str]()}
    if scores not in choices:
        raise StudyError(f"scores of {scores!r}: choose one of {', '.join(choices)}")
    return choices[scores]
