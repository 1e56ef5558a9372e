"""What results/ prints comes from its rows: entries of tables drawn by chance are reckoned again, by other code."""

import base64
import gzip
import json
import random
import re
import zlib
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest

from tests import ROOT

RESULTS = ROOT / "results"
TABLES = sorted(RESULTS.glob("*/table*.md"))
HEAD = re.compile(r"(?P<task>\S+) (?P<split>\S+), (?P<metric>.+?)(?: \((?P<unit>.*?),? ?(?:n = [\d, ]+)?\))?$")
ENTRY = re.compile(r"(?:\*\*)?(-?[\d.]+)(?:\*\*)?°?(?: \[(-?[\d.]+), (-?[\d.]+)\])?$")
MOST_MB = 12


def entries(path):
    """Every score of the tables of a file: what names its row, what its column, and the numbers as printed."""
    head, found = [], []
    for line in path.read_text().splitlines():
        cells = [cell.strip().replace("\\", "") for cell in line.strip().strip("|").split(" | ")]
        if not line.startswith("|"):
            head = []
        elif not head:
            head = cells
        elif set(cells[0]) != {"-"} and "chance" not in cells:
            names = {name: cell for name, cell in zip(head, cells, strict=False) if not HEAD.match(name)}
            for name, cell in zip(head, cells, strict=False):
                column, numbers = HEAD.match(name), ENTRY.match(cell)
                if column and numbers and "point" in names:
                    found.append((path, tuple(names.items()), tuple(column.groupdict().items()), numbers.groups()))
    return found


ALL = [entry for table in TABLES for entry in entries(table)]
DRAWN = random.Random(20261128).sample(ALL, min(10, len(ALL)))


def lines_of(folder, name):
    """The lines of a file of rows, of its packed part first."""
    files = (folder / f"{name}.gz", gzip.decompress), (folder / name, bytes)
    return [line for file, read in files if file.exists() for line in read(file.read_bytes()).decode().splitlines()]


def words(row):
    """The method of a row as tables call it."""
    given = row.get("parameters", {}).items()
    return ", ".join([row["method"], *(f"{k} {v:g}" if isinstance(v, float) else f"{k} {v}" for k, v in given)])


def rows_of(folder, names, column):
    """The rows of an entry by seed, the last one of each."""
    point = [part.split(" ", 1) for part in names["point"].split(" + ")]
    shares = {name: float(share) for share, name in point}
    found = {}
    for line in lines_of(folder, "rows.jsonl"):
        row = json.loads(line)
        held = {name: share for name, share in row["shares"].items() if share}
        same = held.keys() == shares.keys() and all(abs(held[name] - shares[name]) < 1e-4 for name in held)
        about = {"experts": row["experts"], "method": words(row), "batchnorm": row["batchnorm"]}
        same = same and all(about[name] == told for name, told in names.items() if name in about)
        if same and all(row[name] == column[name] for name in ("task", "split", "metric")):
            found[row["seed"]] = row
    return found


def packed(folder, name, key, kind):
    for line in lines_of(folder, name):
        if key in line[:100] and (entry := json.loads(line))["key"] == key:
            return np.frombuffer(zlib.decompress(base64.b64decode(entry["scores"])), f"<{kind}{entry.get('bytes', 4)}")
    return np.empty(0)


def groups_of(folder, row):
    """Numbers that examples of one image share; all apart where nothing is noted."""
    for line in lines_of(folder, "rows.clusters.jsonl"):
        entry = json.loads(line)
        if all(entry[name] == row[name] for name in ("task", "split", "data", "n")) and entry["clusters"]:
            return np.frombuffer(zlib.decompress(base64.b64decode(entry["clusters"])), "<u4")
    return np.arange(row["n"])


def quantile(freedom):
    """Student's, two-sided 95 %."""
    x = np.sinh(np.linspace(0, 12, 100_001))
    density = (1 + x**2 / freedom) ** (-(freedom + 1) / 2)
    below = np.concatenate([[0], np.cumsum((density[1:] + density[:-1]) * np.diff(x))])
    return float(np.interp(0.95, below / below[-1], x))


def half_width(scores, groups):
    """Of the mean over seeds of scores (s, n): their own variance, and what examples move all seeds by."""
    seeds, members = len(scores), defaultdict(list)
    for place, group in enumerate(groups):
        members[group].append(place)
    members = [np.array(own) for own in members.values()]
    sums = np.array([scores[:, own].sum(axis=1) for own in members]).T
    sizes = np.array([len(own) for own in members])
    drawn = np.random.default_rng(7).integers(len(members), size=(4000, len(members)))
    means = sums[:, drawn].sum(axis=2) / sizes[drawn].sum(axis=1)
    noise, apart = means.mean(axis=0).var(), means.var(axis=1).mean() / seeds
    common = max(noise - apart, 0) * seeds / (seeds - 1)
    own = max(scores.mean(axis=1).var(ddof=1) / seeds, noise / seeds - common)
    return quantile((seeds - 1) * (own + common) / own) * np.sqrt(own + common)


@pytest.mark.parametrize("entry", DRAWN, ids=lambda entry: f"{entry[0].parent.name}, {dict(entry[1])['point']}")
def test_entries_of_tables_come_from_the_rows(entry):
    path, names, column, printed = entry[0], dict(entry[1]), dict(entry[2]), entry[3]
    folder, unit = path.parent, column["unit"] or ""
    found = rows_of(folder, names, column)
    assert found
    factor = 100 if unit.startswith(("%", "×")) else 1
    rows = list(found.values())
    kept = [packed(folder, "rows.scores.jsonl", row["key"], "f") for row in rows]
    value = np.mean([own.mean() if len(own) else row["value"] for own, row in zip(kept, rows, strict=True)])
    last = 0.5000001 * 10.0 ** -len(printed[0].partition(".")[2])
    assert abs(factor * value - float(printed[0])) <= last + 1e-4 * abs(factor * value)  # scores are kept rounded
    if printed[1] is None:
        return
    lo, hi = map(float, printed[1:])
    if len(rows) == 1:
        assert [factor * rows[0]["lo"], factor * rows[0]["hi"]] == pytest.approx([lo, hi], abs=last)
        return
    if not all(map(len, kept)):  # of what is not quoted no scores by example are kept: over seeds alone
        own = np.array([row["value"] for row in rows])
        half = factor * quantile(len(own) - 1) * own.std(ddof=1) / np.sqrt(len(own))
        assert (float(printed[0]) - lo, hi - float(printed[0])) == pytest.approx((half, half), rel=0.01, abs=2 * last)
        return
    half = factor * half_width(np.array(kept), groups_of(folder, rows[0]))
    if unit.startswith("%"):
        assert [lo, hi] == pytest.approx(
            np.clip([100 * value - half, 100 * value + half], 0, 100), abs=0.12 * half + last
        )
    else:
        assert hi - lo == pytest.approx(2 * half, rel=0.12, abs=2 * last)


def test_results_are_small_and_say_how_they_were_made():
    files = [file for file in RESULTS.rglob("*") if file.is_file()]
    assert len(ALL) > 100
    assert sum(file.stat().st_size for file in files) < MOST_MB * 1e6
    assert {file.suffix for file in files} <= {".md", ".jsonl", ".gz", ".json", ".csv", ".png"}
    for folder in filter(Path.is_dir, RESULTS.iterdir()):
        assert "unival-merge" in (folder / "README.md").read_text(), folder
