"""Which rows of a study stand beside each other: its pairs, series, policies and splits."""

import math
import sys
from pathlib import Path
from typing import Any

from experiments.errors import StudyError
from experiments.grid.lines import entries
from experiments.grid.notes import read_notes as read_notes
from experiments.grid.rows import Records, Rows, names_in, read_rows, read_scores, records, scores_path
from experiments.study.points import PRETRAINED as PRETRAINED

POLICY = "average"  # the BatchNorm policy that figures show unless they compare policies
REPORTED = "test"
CHOOSING = ("val", "train")  # splits on which nothing is reported
MIXING = ("single", "interpolate", "average")  # methods that give one set of weights
_TEXTS, _BOXES = ("name", "prompt", "answer", "reference"), ("box", "reference_box")  # of a sample
Pair = tuple[str, str]
Scores = dict[str, Any]


def open_study(folder: str | Path, study: str) -> tuple[Records, Scores]:
    """Read a study's rows in FOLDER/rows.jsonl, and the scores of examples by row key (empty if none)."""
    path = Path(folder) / "rows.jsonl"
    everything = records(read_rows(path))
    rows = [row for row in everything if row["study"] == study]
    if not rows:
        held = ", ".join(names_in(everything, "study")) or "nothing"
        raise StudyError(f"{path} holds rows of {held}, none of {study}: run the study first, or name another folder")
    return rows, read_scores(path) if scores_path(path).is_file() else {}


def read_samples(folder: str | Path) -> dict[str, list[dict[str, Any]]]:
    """Read the samples in a study's folder by row key; none if none were made. StudyError for what are no samples."""
    path = Path(folder) / "samples.jsonl"
    found: dict[str, list[dict[str, Any]]] = {}
    for number, entry in entries(path) if path.exists() else ():
        samples = entry.get("samples")
        if not (isinstance(entry.get("key"), str) and isinstance(samples, list) and all(map(_is_sample, samples))):
            raise StudyError(f"{path}:{number}: not the samples of a row: remove the line to go on")
        found[entry["key"]] = samples
    return found


def _is_sample(value: Any) -> bool:
    """Whether a value is what `experiments.unival.samples` writes: words, boxes, the name of an image and no path."""
    if not (isinstance(value, dict) and set(value) == {*_TEXTS, *_BOXES, "is_video", "image"}):
        return False
    boxes = [value[name] for name in _BOXES if value[name] is not None]
    numbers = all(isinstance(box, list) and len(box) == 4 and all(_is_share(one) for one in box) for box in boxes)
    image = value["image"]
    named = image is None or (isinstance(image, str) and Path(image).name == image and image.endswith(".png"))
    return numbers and named and isinstance(value["is_video"], bool) and all(isinstance(value[n], str) for n in _TEXTS)


def _is_share(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < sys.maxsize


def main_metrics(rows: Rows) -> Records:
    """Keep the computed rows of the metric that comes first for each task.

    A metric named after an expert, its reward ("Acc@0.5 small"), makes a task of its own, named after it.
    """
    found = [row for row in records(rows) if not math.isnan(row["value"])]
    experts = {name for row in found for name in experts_of(row)}
    first: dict[str, str] = {}
    chosen: Records = []
    for row in found:
        measure, _, reward = row["metric"].rpartition(" ")
        named = {**row, "task": reward, "metric": measure} if reward in experts else row
        if first.setdefault(named["task"], named["metric"]) == named["metric"]:
            chosen.append(named)
    return chosen


def experts_of(row: dict[str, Any]) -> list[str]:
    """Name the experts that have a share of a row's point."""
    return [name for name, share in row["shares"].items() if share]


def pairs_of(rows: Records) -> list[Pair]:
    """Find the pairs of experts that have a point between them, each once, in the order of the rows."""
    found: dict[Pair, None] = {}
    for row in rows:
        names = experts_of(row)
        if len(names) == 2 and (names[1], names[0]) not in found:
            found[names[0], names[1]] = None
    return list(found)


def is_average(row: dict[str, Any]) -> bool:
    """Tell whether a point is of three experts or more in equal shares."""
    names = experts_of(row)
    return len(names) > 2 and len({row["shares"][name] for name in names}) == 1


def weights_only(rows: Records) -> Records:
    """Keep rows of one set of weights each, so not of ensembles."""
    return [row for row in rows if row["method"] in MIXING]


def references_of(rows: Records) -> list[str]:
    """Name the models that stand beside what is merged: neither they nor others of their kind have a part in it."""
    kinds, merged = kinds_of(rows), {name for row in rows for name in experts_of(row) if len(experts_of(row)) > 1}
    single = [row for row in rows if len(experts_of(row)) == 1 and row["experts"] not in kinds]
    return [name for name in dict.fromkeys(experts_of(row)[0] for row in single) if name not in merged]


def kinds_of(rows: Records) -> list[str]:
    """Name the kinds of experts: those that are merged, or where nothing is, all but the pretrained model."""
    merged = names_in([row for row in rows if len(experts_of(row)) > 1], "experts")
    return [kind for kind in names_in(rows, "experts") if kind in merged or not (merged or kind == PRETRAINED)]


def with_series(rows: Records) -> Records:
    """Add to rows a `series`: how the experts were trained, and the method where it does not mix weights."""
    names = [row["experts"] if row["method"] in MIXING else f"{row['experts']}, {row['method']}" for row in rows]
    return [{**row, "series": name} for row, name in zip(rows, names, strict=True)]


def policies_of(rows: Records) -> list[str]:
    """Name the BatchNorm policies of points between experts."""
    return names_in([row for row in rows if len(experts_of(row)) > 1], "batchnorm")


def one_policy(rows: Records, policy: str = "") -> Records:
    """Keep rows of one policy (default: `average`, or the first there is), and all single models, whose own it is."""
    known = policies_of(rows)
    chosen = policy or (POLICY if POLICY in known or not known else known[0])
    single = [row for row in rows if len(experts_of(row)) < 2]
    exact = {_place(row) for row in single if row["batchnorm"] == chosen}
    return [
        row for row in rows if row["batchnorm"] == chosen or (len(experts_of(row)) < 2 and _place(row) not in exact)
    ]


def on_split(rows: Records, split: str) -> Records:
    """Keep the rows of a split."""
    return [row for row in rows if row["split"] == split]


def reported_split(rows: Records) -> str:
    """Name the split that scores are reported on: `test`, or the first one if that was not evaluated."""
    splits = names_in(rows, "split")
    return REPORTED if REPORTED in splits or not splits else splits[0]


def shifted_splits(rows: Records, task: str | None = None) -> list[str]:
    """Name the shifted splits (of a task), in the order of the rows."""
    named = names_in([row for row in rows if task in (None, row["task"])], "split")
    return [split for split in named if split not in (REPORTED, *CHOOSING)]


def _place(row: dict[str, Any]) -> tuple[Any, ...]:
    return row["point"], row["experts"], row["task"], row["split"], row["metric"], row["seed"]
