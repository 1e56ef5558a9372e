"""Result rows: an append-only file that a kill cannot spoil, and how a merged point is called everywhere."""

import base64
import hashlib
import json
import math
import sys
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pandas as pd

from experiments.errors import StudyError
from experiments.grid.lines import append_lines, entries
from merge import share_label

ROW_DIGEST = "xxh3_128/1"  # of weights: keys of rows are made of it, so it stays what it was


@dataclass(frozen=True)
class Row:
    """One evaluated cell: the score of one point on one split of one task by one metric.

    `shares` are the coefficients by expert name; `experts` says how those were trained. `value` with its 95 % interval
    `lo`, `hi` is in the metric's own unit (accuracies in 0..1); all three are NaN where the metric could not be
    computed, and `note` says why. `seed` is the training seed of the experts. `versions` are by package name, `inputs`
    digests of checkpoints by name, `data` the digest of the evaluated file. `key` names the content (`content_key`): a
    later row with the same key replaces an earlier one. `parameters` are the method's besides the shares, by name;
    `device` and `precision` say on what and in what numbers the model answered. Rows written before these were kept
    lack the fields behind `note`.
    """

    study: str
    shares: Mapping[str, float]
    experts: str
    method: str
    batchnorm: str
    task: str
    split: str
    metric: str
    value: float
    lo: float
    hi: float
    n: int
    seconds: float
    seed: int
    versions: Mapping[str, str]
    inputs: Mapping[str, str]
    data: str
    key: str
    note: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict[str, Any])
    unit: str = ""
    higher_is_better: bool = True
    device: str = "cpu"
    precision: str = "fp32"

    def __repr__(self) -> str:
        score = f"{self.metric} {self.value:.4f} [{self.lo:.4f}, {self.hi:.4f}] of {self.n}"
        return f"<{share_label(self.shares)} ({self.experts}, {self.method}) on {self.task} {self.split}: {score}>"


Rows = pd.DataFrame | Iterable[Mapping[str, Any]]
"""What figures and tables accept: a frame of `read_rows`, filtered as you like, or such rows as mappings."""

Records = list[dict[str, Any]]


_NAMES = [one.name for one in fields(Row)]
_REQUIRED = [one.name for one in fields(Row) if one.default is MISSING and one.default_factory is MISSING]
_KINDS: dict[str, Any] = {one.name: one.type for one in fields(Row)}
_WORDS = {
    str: "text",
    int: "whole number",
    float: "number",
    Mapping[str, float]: "numbers by name",
    Mapping[str, str]: "texts by name",
    Mapping[str, Any]: "values by name",
    bool: "true or false",
}
_LARGEST = {int: 2**63 - 1, float: sys.float_info.max}
_LONGEST = 64 << 20  # bytes of the scores of one row
_MAY_BE_MISSING = ("value", "lo", "hi")  # JSON has no NaN: null in the file


def content_key(**parts: Any) -> str:
    """Return sixteen hexadecimal digits of everything a row depends on (digests, shares, method, task, seed, code
    version).

    Equal parts give equal keys in any order of names and on any machine; values are what JSON can hold.
    """
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def append_row(path: str | Path, row: Row, per_example: np.ndarray | None = None) -> None:
    """Add one row to the file, and its per-example scores (1-D) to the file beside it, durably.

    When this returns both are on the disk. A kill in between loses at most this row; what a torn write left at the
    end of a file is cut off by the next append, with a warning.
    """
    append_rows(path, [(row, per_example)])


def append_rows(path: str | Path, rows: Sequence[tuple[Row, np.ndarray | None]], *, durable: bool = True) -> None:
    """Add several rows as `append_row` does one, all of them or none, waiting for the disk as for one.

    Not `durable` it waits for their scores only: then a power cut loses rows of the last seconds, and never leaves one
    without its scores.
    """
    path = Path(path)
    scores = [json.dumps(scores_entry(row.key, own)) for row, own in rows if own is not None]
    lines = [_line(row) for row, _ in rows]
    if scores:  # first, so that no row ever stands without its scores
        append_lines(scores_path(path), scores)
    if lines:
        append_lines(path, lines, durable=durable)


def read_rows(path: str | Path) -> pd.DataFrame:
    """Return the rows of a file: one column a field of `Row`, and `point`, the point in words.

    Of rows with one key the last counts. A torn last line is ignored with a warning; any other broken line raises
    StudyError with its number.
    """
    path = Path(path)
    rows: dict[str, Row] = {}
    for number, entry in entries(path):
        row = _row(entry, f"{path}:{number}")
        rows.pop(row.key, None)
        rows[row.key] = row
    columns = {name: [getattr(row, name) for row in rows.values()] for name in _NAMES}
    frame = pd.DataFrame(columns)
    frame["point"] = [share_label(row.shares) for row in rows.values()]
    return frame.astype(dict.fromkeys((*_MAY_BE_MISSING, "seconds"), float))


def read_scores(path: str | Path, keys: Iterable[str] | None = None) -> dict[str, np.ndarray]:
    """Return per-example scores by row key, of all rows or of `keys`; StudyError names a key without scores."""
    path = scores_path(Path(path))
    packed: dict[str, tuple[str, int]] = {}
    for number, entry in entries(path):
        size = entry.get("bytes", 4)
        if not (_is(entry.get("key"), str) and _is(entry.get("scores"), str) and size in (4, 8)):
            raise StudyError(f"{path}:{number}: not the scores of a row: remove the line to go on")
        packed[entry["key"]] = entry["scores"], size
    wanted = list(packed) if keys is None else list(keys)
    missing = [key for key in wanted if key not in packed]
    if missing:
        raise StudyError(f"{path}: no scores of row {missing[0]} ({len(missing)} missing): evaluate it again")
    try:
        return {key: _unpacked(*packed[key]) for key in wanted}
    except (ValueError, zlib.error) as error:
        raise StudyError(f"{path}: broken scores ({error}): remove the file to go on without them") from error


def scores_path(path: str | Path) -> Path:
    """Say where the per-example scores of a row file lie: rows.jsonl -> rows.scores.jsonl."""
    return Path(path).with_suffix(".scores.jsonl")


def records(rows: Rows) -> Records:
    """Return rows as plain dicts, each with its `point` in words."""
    found = rows.to_dict("records") if isinstance(rows, pd.DataFrame) else rows
    return [{"point": share_label(row["shares"]), **{str(name): value for name, value in row.items()}} for row in found]


def latest(rows: Records) -> Records:
    """Keep the last of the rows that say the same: of one study, point, task, split, metric and seed.

    What was evaluated before weights, data, version, limit, device or precision changed does not count any more.
    """
    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        said = [row["study"], row["experts"], row["method"], row["batchnorm"], row["task"], row["split"], row["metric"]]
        point = [sorted(row["shares"].items()), row.get("parameters") or {}, row["seed"]]
        name = json.dumps([said, point], sort_keys=True, default=str)
        found.pop(name, None)
        found[name] = row
    return list(found.values())


def names_in(rows: Records, column: str) -> list[str]:
    """Return the values of a column as text, each once, in order of appearance."""
    return list(dict.fromkeys(str(row[column]) for row in rows))


def scored(rows: Records, task: str, split: str | None = None) -> Records:
    """Return the computed rows of a task (on a split), which must be of one split and one metric."""
    chosen = [row for row in rows if row["task"] == task and split in (None, row["split"])]
    chosen = [row for row in chosen if not math.isnan(row["value"])]
    if not chosen:
        raise StudyError(f"no scores of {task} {f'on split {split}' if split else ''}: run the study first")
    for column in ("split", "metric"):
        if len(names_in(chosen, column)) > 1:
            raise StudyError(f"rows of {task} mix {column} {', '.join(names_in(chosen, column))}: keep one of them")
    return chosen


def is_made_of(row: Mapping[str, Any], experts: Iterable[str]) -> bool:
    """Tell whether a row's point has no share of any other expert."""
    return {name for name, share in row["shares"].items() if share} <= set(experts)


def mean_of(rows: Records, column: str) -> float:
    """Return the mean of a column of numbers, of rows of one metric: StudyError for others, whose units differ."""
    if len(metrics := {str(row.get("metric", "")) for row in rows}) > 1:
        raise StudyError(f"scores of {', '.join(sorted(metrics))} have no mean: average the rows of one metric")
    return float(np.mean([row[column] for row in rows]))


def _line(row: Row) -> str:
    """A row as JSON, which has no NaN."""
    entry = asdict(row)
    for name in _MAY_BE_MISSING:
        entry[name] = None if math.isnan(entry[name]) else entry[name]
    try:
        return json.dumps(entry, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise StudyError(f"row {row.key} cannot be written as JSON ({error}): use plain finite values") from error


def _row(entry: dict[str, Any], place: str) -> Row:
    """A row of an entry; StudyError for one of another version, and for values of a wrong kind."""
    missing = [name for name in _REQUIRED if name not in entry]
    unknown = [name for name in entry if name not in _NAMES]
    if missing or unknown:
        raise StudyError(f"{place}: not a row of this version (missing {missing}, unknown {unknown}): start a new file")
    for name, kind in ((name, _KINDS[name]) for name in entry):
        if not (_is(entry[name], kind) or (entry[name] is None and name in _MAY_BE_MISSING)):
            raise StudyError(f"{place}: {name} is {entry[name]!r:.60}, no {_WORDS[kind]}: remove the line to go on")
    if not any(entry["shares"].values()):
        raise StudyError(f"{place}: shares {entry['shares']} name no expert: remove the line to go on")
    for name in _MAY_BE_MISSING:
        entry[name] = math.nan if entry[name] is None else entry[name]
    return Row(**entry)


def _is(value: Any, kind: Any) -> bool:
    """Whether a value of JSON is of a kind of field: text that UTF-8 can hold, a number that a float can."""
    if kind is str:
        return isinstance(value, str) and not any("\ud800" <= sign <= "\udfff" for sign in value)
    if kind is Any:
        if isinstance(value, (list, dict)):
            return all(_is(own, Any) for own in (value if isinstance(value, list) else [*value, *value.values()]))
        return value is None or any(_is(value, one) for one in (str, bool, float))
    if kind is bool:
        return isinstance(value, bool)
    if kind in (int, float):
        fits = isinstance(value, (int, kind)) and not isinstance(value, bool)
        return fits and -_LARGEST[kind] <= value <= _LARGEST[kind]
    inner = get_args(kind)[1]
    return isinstance(value, dict) and all(_is(key, str) and _is(own, inner) for key, own in value.items())


def scores_entry(key: str, per_example: np.ndarray) -> dict[str, Any]:
    """Return the line of a row's scores (n,): 4 bytes each where that holds them exactly, as it does 0 and 1, or 8."""
    values = np.asarray(per_example, dtype="<f8")
    if values.ndim != 1:
        raise StudyError(f"per-example scores have shape {values.shape}: give one number an example")
    size = 4 if np.array_equal(values.astype("<f4"), values, equal_nan=True) else 8
    text = base64.b64encode(zlib.compress(values.astype(f"<f{size}").tobytes())).decode("ascii")
    return {"key": key, "scores": text} | ({"bytes": size} if size == 8 else {})


def _unpacked(text: str, size: int) -> np.ndarray:
    packing = zlib.decompressobj()
    values = packing.decompress(base64.b64decode(text, validate=True), _LONGEST)
    if not packing.eof:
        raise ValueError(f"torn, or more than {_LONGEST:,} bytes")
    return np.frombuffer(values, dtype=f"<f{size}").astype(np.float64)
