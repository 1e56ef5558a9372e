"""Which examples belong together, since they share an image or a video: FOLDER/rows.clusters.jsonl, beside the scores.

A line is of one split of a task as it was evaluated: its `key` (of the task, the split, the digest of its data and what
else decides which rows count), `task`, `split`, `data`, the number `n` of examples, and `clusters`, numbers (n,) that
examples of one cluster share, packed; "" where every example is alone. Rows older than the file lack it: then, too,
every example is alone.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Hashable, Sequence
from pathlib import Path

import numpy as np

from experiments.errors import StudyError
from experiments.grid.lines import append_lines, entries, files_of
from experiments.grid.rows import Records

_MOST = 1 << 28  # bytes of the numbers of one split


def clusters_path(path: str | Path) -> Path:
    """Say where the clusters of a row file lie: rows.jsonl -> rows.clusters.jsonl."""
    return Path(path).with_suffix(".clusters.jsonl")


def known_clusters(path: str | Path) -> set[str]:
    """Return the keys of what is noted beside a row file."""
    file = clusters_path(path)
    return {str(entry.get("key")) for _, entry in entries(file)} if files_of(file) else set()


def append_clusters(
    path: str | Path, key: str, place: tuple[str, str, str], given: Sequence[Hashable] | np.ndarray
) -> None:
    """Add to what lies beside a row file which examples of a place (task, split, digest of its data) share what each is
    `given`."""
    numbers: dict[Hashable, int] = {}
    ids = np.array([numbers.setdefault(one, len(numbers)) for one in given], dtype="<u4")
    alone = len(numbers) == len(ids)
    packed = "" if alone else base64.b64encode(zlib.compress(ids.tobytes(), 9)).decode("ascii")
    entry = {"key": key, **dict(zip(("task", "split", "data"), place, strict=True)), "n": len(ids), "clusters": packed}
    append_lines(clusters_path(path), [json.dumps(entry)])


def with_clusters(rows: Records, path: str | Path) -> Records:
    """Add to rows the `clusters` (n,) of their examples, where some share one."""
    file = clusters_path(path)
    found: dict[tuple[str, str, str, int], np.ndarray] = {}
    for number, entry in entries(file) if files_of(file) else ():
        try:
            place = (str(entry["task"]), str(entry["split"]), str(entry["data"]), int(entry["n"]))
            if packed := str(entry["clusters"]):
                found[place] = _unpacked(packed, place[3])
        except (KeyError, TypeError, ValueError, zlib.error) as error:
            raise StudyError(f"{file}:{number}: not the clusters of examples ({error}): remove the line") from error
    if not found:
        return rows
    places = [(row["task"], row["split"], row["data"], int(row["n"])) for row in rows]
    return [
        {**row, "clusters": found[place]} if place in found else row for row, place in zip(rows, places, strict=True)
    ]


def _unpacked(packed: str, n: int) -> np.ndarray:
    values = zlib.decompressobj().decompress(base64.b64decode(packed, validate=True), _MOST)
    ids = np.frombuffer(values, dtype="<u4")
    if len(ids) != n:
        raise ValueError(f"{len(ids)} numbers for {n} examples")
    return ids
