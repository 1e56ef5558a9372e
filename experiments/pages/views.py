"""Which rows of a study stand beside each other: its pairs, series, policies and splits."""

import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.errors import StudyError
from experiments.grid.clusters import with_clusters
from experiments.grid.lines import entries, files_of
from experiments.grid.notes import read_notes as read_notes
from experiments.grid.rows import Records, Rows, latest, names_in, read_rows, read_scores, records, scores_path
from experiments.grid.units import SHARES, unit_of
from experiments.statistics.bootstrap import interval
from experiments.statistics.contrasts import draws_of
from experiments.statistics.summary import CHOOSING
from experiments.statistics.weights import Geometry, read_pairs
from experiments.study.points import PRETRAINED as PRETRAINED
from experiments.study.points import WHOLE, share_parameter
from merge import METHODS

POLICY = "average"  # the BatchNorm policy that figures show unless they compare policies
REPORTED = "test"
SINGLE = "single"  # the method of a model as it is
MIXING = (SINGLE, "interpolate", "average")  # methods that mix weights and do nothing more
_TEXTS, _BOXES = ("name", "prompt", "answer", "reference"), ("box", "reference_box")  # of a sample
_VIDEO = ("is_video", "is_film")
_SAID = ("prompt", "text", "reference")  # of a sample of any study
Pair = tuple[str, str]
Scores = dict[str, Any]


def open_study(folder: str | Path, study: str) -> tuple[Records, Scores]:
    """Read a study's rows in FOLDER/rows.jsonl, and the scores of examples by row key (empty if none).

    Where FOLDER/study.json says whose own the tasks are, each row has the `owner` of its task; where it says how far
    along one finetuning the kinds of experts are, their rows have the `progress`; where FOLDER/weights.csv knows how
    two experts' weights stand to each other, rows of their merges have the `geometry`. Rows of main metrics have the
    `chance`, what guessing scores, where FOLDER/study.json knows it.
    """
    path = Path(folder) / "rows.jsonl"
    everything = records(read_rows(path))
    rows = latest([row for row in everything if row["study"] == study])
    if not rows:
        held = ", ".join(names_in(everything, "study")) or "nothing"
        raise StudyError(f"{path} holds rows of {held}, none of {study}: run the study first, or name another folder")
    notes = read_notes(folder, study)
    owned = with_owners(rows, notes.tasks) if notes.tasks else rows
    if notes.progress:
        known = {PRETRAINED: 0.0, **notes.progress}
        owned = [{**row, "progress": known[row["experts"]]} if row["experts"] in known else row for row in owned]
    owned = with_chance(with_geometry(owned, read_pairs(folder)), notes.chance)
    return with_clusters(owned, path), read_scores(path) if files_of(scores_path(path)) else {}


def with_chance(rows: Records, chance: Mapping[str, Mapping[str, float]]) -> Records:
    """Add to the rows of each task's first metric what guessing scores on their split, where that is known."""
    main: dict[str, str] = {}
    found: Records = []
    for row in rows:
        is_main = main.setdefault(row["task"], row["metric"]) == row["metric"]
        level = chance.get(row["task"], {}).get(row["split"]) if is_main else None
        found.append(row if level is None else {**row, "chance": level})
    return found


def with_geometry(rows: Records, pairs: Sequence[Geometry]) -> Records:
    """Add to the rows of merges of two experts how their task vectors stand to each other, where that was measured:
    `cosine`, `distance`, `agreement`, and the lengths of the `first` and the `second`."""
    known: dict[tuple[str, int, str, str], dict[str, float]] = {}
    for one in pairs:
        about = {"cosine": one.cosine, "distance": one.distance, "agreement": one.agreement}
        place, lengths = (one.kind, one.seed, one.first, one.second), (one.first_length, one.second_length)
        known[place] = {**about, "first": lengths[0], "second": lengths[1]}
        known[(*place[:2], one.second, one.first)] = {**about, "first": lengths[1], "second": lengths[0]}
    return [
        {**row, "geometry": known[place]} if len(place) == 4 and place in known else row
        for row in rows
        for place in [(row["experts"], row["seed"], *experts_of(row))]
    ]


def read_samples(folder: str | Path) -> dict[str, list[dict[str, Any]]]:
    """Read the samples in a study's folder by row key; none if none were made. StudyError for what are no samples.

    A line of samples.jsonl is an object with the `key` of a row and its `samples`, whatever else it holds. A sample has

    * `title`: what it is called, text;
    * `prompt`, `text`, `reference`: what the model was asked, what it said and what is right, text or null;
    * `image`: the name of a PNG in the folder's `samples/`, or null;
    * `table`: lines of cells, text, or null.

    All but `title` may be left out. The built-in studies write samples of another form: `name`, `prompt`, `answer` and
    `reference` are text, `box` and `reference_box` are shares of the image's width and height (x0, y0, x1, y1) or null,
    `image` as above, and `is_video` says that it shows frames side by side (`is_film` in older files).
    """
    path = Path(folder) / "samples.jsonl"
    found: dict[str, list[dict[str, Any]]] = {}
    for number, entry in entries(path) if path.exists() else ():
        samples = entry.get("samples")
        if not (isinstance(entry.get("key"), str) and isinstance(samples, list) and all(map(_is_sample, samples))):
            raise StudyError(f"{path}:{number}: not the samples of a row: remove the line to go on")
        found[entry["key"]] = [_renamed(one) for one in samples]
    return found


def _renamed(sample: dict[str, Any]) -> dict[str, Any]:
    """Return a sample under the names of today."""
    return {"is_video" if name == "is_film" else name: value for name, value in sample.items()}


def _is_sample(value: Any) -> bool:
    """Whether a value is a sample (`read_samples`): words, boxes, tables, the name of an image and no path."""
    if not isinstance(value, dict):
        return False
    image, name = value.get("image"), next((name for name in _VIDEO if name in value), "")
    if not (image is None or (isinstance(image, str) and Path(image).name == image and image.endswith(".png"))):
        return False
    if "title" in value:
        words, table = [value.get(name) for name in _SAID], value.get("table")
        lines = [cell for line in table for cell in (line if isinstance(line, list) else [None])] if table else []
        return (
            set(value) <= {"title", *_SAID, "image", "table"}
            and isinstance(value["title"], str)
            and all(word is None or isinstance(word, str) for word in words)
            and (table is None or isinstance(table, list))
            and all(isinstance(cell, str) for cell in lines)
        )
    if set(value) != {*_TEXTS, *_BOXES, name, "image"}:
        return False
    boxes = [value[name] for name in _BOXES if value[name] is not None]
    numbers = all(isinstance(box, list) and len(box) == 4 and all(_is_share(one) for one in box) for box in boxes)
    return numbers and isinstance(value[name], bool) and all(isinstance(value[text], str) for text in _TEXTS)


def _is_share(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < sys.maxsize


def with_owners(rows: Rows, tasks: Mapping[str, str]) -> Records:
    """Add to rows the `owner` of their task, an expert or "", by `Notes.tasks`.

    Where these name no task an expert owns the task of its own name, and a metric named after an expert, its reward
    ("Acc@0.5 small"), makes a task of its own.
    """
    found = records(rows)
    if any(row["task"] in tasks for row in found):
        return [{**row, "owner": tasks.get(row["task"], "")} for row in found]
    experts = {name for row in found for name in experts_of(row)}
    named: Records = []
    for row in found:
        measure, _, reward = row["metric"].rpartition(" ")
        own = {**row, "task": reward, "metric": measure} if reward in experts else row
        named.append({**own, "owner": own["task"] if own["task"] in experts else ""})
    return named


def main_metrics(rows: Rows) -> Records:
    """Keep the computed rows of the metric that comes first for each task, each with the `owner` of its task."""
    found = [row for row in records(rows) if not math.isnan(row["value"])]
    owned = found if found and all("owner" in row for row in found) else with_owners(found, {})
    first: dict[str, str] = {}
    return [row for row in owned if first.setdefault(row["task"], row["metric"]) == row["metric"]]


def losses_of(rows: Records) -> Records:
    """Keep the computed rows of each task's first loss, in nats, that stands beside another main metric."""
    main: dict[str, str] = {}
    first: dict[str, str] = {}
    found: Records = []
    for row in rows:
        is_main = main.setdefault(row["task"], row["metric"]) == row["metric"]
        if is_main or row.get("higher_is_better", True) or not str(row.get("unit", "")).startswith("nats"):
            continue
        if first.setdefault(row["task"], row["metric"]) == row["metric"] and not math.isnan(row["value"]):
            found.append(row)
    return found


def reported_points(rows: Records) -> Records:
    """Leave out merged points that have rows only on the split where others were chosen before them."""
    reported = reported_split(rows)
    there = {_point(row) for row in rows if row["split"] == reported}
    return [row for row in rows if is_single(row) or _point(row) in there]


def coefficients(row: Mapping[str, Any]) -> tuple[float, float] | None:
    """Return where in a plane a row's point lies; None for one of no plane."""
    weights = (row.get("parameters") or {}).get("weights")
    if not isinstance(weights, (list, tuple)) or len(weights) != 2 or len(experts_of(row)) != 2:
        return None
    scale = float(row["parameters"].get("scale", 1))
    return scale * float(weights[0]), scale * float(weights[1])


def experts_of(row: Mapping[str, Any]) -> list[str]:
    """Name the experts that have a share of a row's point."""
    return [name for name, share in row["shares"].items() if share]


def is_single(row: Mapping[str, Any]) -> bool:
    """Tell whether a row is of a model as it is, which some methods that take one expert's shares are not."""
    return row["method"] == SINGLE


def plain_singles(rows: Records) -> Records:
    """Keep the models as they are whose making was plain: experts of the first kind, and the pretrained model. Experts
    of other kinds may come from averages themselves, and models of several tasks know more than one of them."""
    first = {*kinds_of(rows)[:1], PRETRAINED}
    return [row for row in rows if is_single(row) and row["experts"] in first]


def pairs_of(rows: Records) -> list[Pair]:
    """Find the pairs of experts that have a point between them, each once, in the order of the rows."""
    found: dict[Pair, None] = {}
    for row in rows:
        names = experts_of(row)
        if len(names) == 2 and (names[1], names[0]) not in found:
            found[names[0], names[1]] = None
    return list(found)


def between(rows: Records, pair: Pair) -> Records:
    """Keep the rows of two experts as they are, and of all that is made of both."""
    return [
        row for row in rows if (experts_of(row)[0] in pair if is_single(row) else set(experts_of(row)) == set(pair))
    ]


def reported(rows: Rows) -> Records:
    """Keep what figures show unless they compare it: main metrics on the reported split under one BatchNorm policy."""
    found = main_metrics(rows)
    return with_series(one_policy(on_split(found, reported_split(found))))


def tasks_of(rows: Records, names: Sequence[str]) -> list[str]:
    """Name the tasks that are some experts' own, in the order of these, or all tasks where none is."""
    owners = {row["task"]: row.get("owner", row["task"]) for row in rows}
    return [task for name in names for task, owner in owners.items() if owner == name] or [*owners]


def is_average(row: Mapping[str, Any]) -> bool:
    """Tell whether a point is of three experts or more in equal shares."""
    return len(experts_of(row)) > 2 and has_equal_shares(row)


def has_equal_shares(row: Mapping[str, Any]) -> bool:
    """Tell whether all experts of a point have the same share."""
    return len({row["shares"][name] for name in experts_of(row)}) == 1


def follows_shares(row: Mapping[str, Any]) -> bool:
    """Tell whether the shares of a row's point say anything to its method, so that it lies on a line."""
    return row["method"] not in METHODS or bool(share_parameter(row["method"]))


def weights_only(rows: Records) -> Records:
    """Keep rows of weights that are mixed and nothing more."""
    return [row for row in rows if row["method"] in MIXING]


def references_of(rows: Records) -> list[str]:
    """Name the models that stand beside what is merged: neither they nor others of their kind have a part in it."""
    kinds, merged = kinds_of(rows), {name for row in rows if not is_single(row) for name in experts_of(row)}
    single = [row for row in rows if is_single(row) and row["experts"] not in kinds]
    return [name for name in dict.fromkeys(experts_of(row)[0] for row in single) if name not in merged]


def kinds_of(rows: Records) -> list[str]:
    """Name the kinds of experts: those that are merged, or where nothing is, all but the pretrained model."""
    merged = names_in([row for row in rows if not is_single(row)], "experts")
    return [kind for kind in names_in(rows, "experts") if kind in merged or not (merged or kind == PRETRAINED)]


def method_words(row: Mapping[str, Any]) -> str:
    """Name the method of a row with its parameters: "ties, density 0.1"."""
    given = row.get("parameters") or {}
    return ", ".join([str(row["method"]), *(f"{name} {_value(value)}" for name, value in given.items())])


def with_series(rows: Records, *, policies: bool = True) -> Records:
    """Add to rows a `series`: how the model was made.

    That is the kind of its experts where there are several, the method with its parameters where it is more than a
    mean of weights or nothing else is said, and with `policies` the BatchNorm policy where there are several. Models
    as they are go by their kind.
    """
    several, kinds = policies and len(policies_of(rows)) > 1, kinds_of(rows)
    named: Records = []
    for row in rows:
        words = [row["experts"]] if len(kinds) > 1 or is_single(row) else []
        if not is_single(row) and (row["method"] not in MIXING or not words):
            words.append(method_words(row))
        if several and is_merged(row):
            words.append(f"BatchNorm {row['batchnorm']}")
        named.append({**row, "series": ", ".join(words)})
    return named


def is_merged(row: Mapping[str, Any]) -> bool:
    """Tell whether a row is of merged weights, under a BatchNorm policy."""
    return row["method"] not in WHOLE


def with_intervals(rows: Records, scores: Mapping[str, np.ndarray]) -> Records:
    """Put in place of each seed's interval of a model of several seeds that of their mean (`bootstrap.interval`), and
    say in `interval` what it is over: "seeds and examples", or "seeds" where examples have no scores.

    `scores` are those of examples by row key. Rows of one seed keep the interval of their examples.
    """
    columns: dict[tuple[str, ...], Records] = {}
    for row in rows:
        columns.setdefault((row["task"], row["split"], row["metric"]), []).append(row)
    found: dict[int, dict[str, Any]] = {}
    for column in columns.values():
        models: dict[tuple[Any, ...], Records] = {}
        for row in column:
            models.setdefault(_point(row), []).append(row)
        several = [own for own in models.values() if len({row["seed"] for row in own}) == len(own) > 1]
        draws = draws_of((row for own in several for row in own), scores)
        for own in several:
            drawn = [draws[row["key"]] for row in own if row["key"] in draws]
            table = np.stack(drawn, axis=1) if len(drawn) == len(own) else None
            bounds = interval([row["value"] for row in own], table)
            lo, hi = np.clip(bounds, 0, 1).tolist() if unit_of(column) == SHARES else bounds
            over = "seeds" if table is None else "seeds and examples"
            found |= {id(row): {**row, "lo": lo, "hi": hi, "interval": over} for row in own}
    return [found.get(id(row), row) for row in rows]


def policies_of(rows: Records) -> list[str]:
    """Name the BatchNorm policies of merged weights."""
    return names_in([row for row in rows if is_merged(row)], "batchnorm")


def one_policy(rows: Records, policy: str = "") -> Records:
    """Keep rows of one policy (default: `average`, or the first there is), and models whose statistics are their own:
    single ones and ensembles."""
    known = policies_of(rows)
    chosen = policy or (POLICY if POLICY in known or not known else known[0])
    exact = {_place(row) for row in rows if row["batchnorm"] == chosen}
    return [row for row in rows if row["batchnorm"] == chosen or not (is_merged(row) or _place(row) in exact)]


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


def _point(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return row["point"], row["experts"], method_words(row), row["batchnorm"]


def _place(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return row["point"], row["method"], row["experts"], row["task"], row["split"], row["metric"], row["seed"]


def _value(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
