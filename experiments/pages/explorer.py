"""What the sliders of a page show: the points of every pair of experts by series, with the command that makes each."""

from __future__ import annotations

import base64
import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import merge
from experiments.errors import StudyError
from experiments.grid.notes import Notes
from experiments.grid.rows import Records, mean_of, names_in
from experiments.grid.units import unit_of
from experiments.pages.tables import COLUMNS
from experiments.pages.views import (
    PRETRAINED,
    Pair,
    experts_of,
    is_single,
    main_metrics,
    pairs_of,
    policies_of,
    read_samples,
    reported_split,
    tasks_of,
    with_series,
)
from experiments.study.points import Expert, Point
from merge import METHODS, share_label

AUTO = "auto"  # the section of files that hold one set of weights


def page_data(folder: Path, study: str, rows: Records, notes: Notes | None = None) -> dict[str, Any]:
    """Collect what the page's script reads: the points of every pair by series, the units of scores, and the samples by
    row key."""
    own = with_series(main_metrics(rows))
    keys = {row["key"] for row in own}
    samples = {key: value for key, value in read_samples(folder).items() if key in keys}
    names = dict.fromkeys(one["image"] for several in samples.values() for one in several if one.get("image"))
    measures = list(dict.fromkeys((row["task"], row["metric"]) for row in own))
    units = [unit_of([row for row in own if (row["task"], row["metric"]) == one]) for one in measures]
    again = shlex.join(["unival-merge", "study", "samples", study, str(folder)])
    return {
        "split": reported_split(own),
        "units": [{"factor": unit.factor, "name": unit.name, "words": unit.words} for unit in units],
        "pairs": [_pair_data(own, pair, measures, notes or Notes()) for pair in pairs_of(own)],
        "samples": samples,
        "images": {name: data_uri(folder / "samples" / name) for name in names},
        "make_samples": f"Make them with {again}" if not notes or not notes.tasks else "",
    }


def save_command(row: Mapping[str, Any], pair: Sequence[str], notes: Notes) -> tuple[str, str]:
    """Return the command that writes a point's model between two experts, escaped for a shell, and what is to be known
    of it; the command is "" where no file can hold it.

    Where the notes of the study do not say in which files the experts lie, NAME.pt stands for them.
    """
    shares, method = {name: float(row["shares"].get(name, 0)) for name in pair}, str(row["method"])
    if method == "ensemble":
        return "", "An ensemble answers with several models: there is no one file to save."
    if row["batchnorm"].startswith("recalibrate:"):
        return "", "Its BatchNorm statistics were measured, not merged: no file has them."
    seed = str(row["seed"])
    places = {name: _place(notes, row["experts"], name, seed) for name in (*pair, PRETRAINED)}
    known = all(places[name][0] for name in pair)
    files = {name: place[0] or f"{name}.pt" for name, place in places.items()}
    unknown = "" if known else "The folder does not say where the experts lie: put their files in."
    if is_single(row):
        (name,) = experts_of(row)
        if name not in files:
            return "", ""
        return "", f"This is the expert {name} as it is{f': {files[name]}' if known else '.'}"
    experts = {name: Expert(name, "", "") for name in pair}
    base = Expert(PRETRAINED, "", PRETRAINED) if method in METHODS and METHODS[method].takes_base else None
    point = Point(experts, shares, method, row["batchnorm"], row.get("parameters") or {}, base)
    words = ["unival-merge", "interpolate"] if method == "interpolate" else ["unival-merge", "merge", method]
    words += [files[name] for name in pair]
    for name, value in point.arguments.items():
        if method == "interpolate":
            words += ["--ratio", _value(value)]
        else:
            listed = value if isinstance(value, (list, tuple)) else [value]
            words += ["-p", f"{name}={','.join(map(_value, listed))}"]
    words += ["--base", files[PRETRAINED]] if base else []
    # The base goes by the name of its file.
    taken = {name: name for name in pair} | ({PRETRAINED: Path(files[PRETRAINED]).stem} if base else {})
    sections = [f"{called}={places[name][1]}" for name, called in taken.items() if places[name][1] not in ("", AUTO)]
    renames = [f"{called}:{rule}" for name, called in taken.items() for rule in places[name][2:]]
    if sections or renames or row["batchnorm"] != "average":
        words += [word for name in pair for word in ("--name", name)]
    words += [
        word
        for option, given in (("--section", sections), ("--rename", renames))
        for one in given
        for word in (option, one)
    ]
    words += ["--batchnorm", row["batchnorm"]] if row["batchnorm"] not in ("average", "own") else []
    suffix = merge.suffix_like(Path(files[pair[0]]))
    there = {number for name, seeds in notes.files.items() if name != PRETRAINED for number in seeds}
    several = f"Of training seed {seed}. " * (len(there) > 1)
    return shlex.join([*words, "-o", f"merged{suffix}"]), f"{several}{unknown}".strip()


def _place(notes: Notes, kind: str, name: str, seed: str) -> Sequence[str]:
    """Return where an expert lies: path, section, rules of names; the path is "" where nobody says."""
    own = notes.files.get(f"{kind}/{name}") or notes.files.get(name, {})
    return own.get(seed) or ["", ""]


def _value(value: Any) -> str:
    return repr(value) if isinstance(value, float) else str(value)


def _pair_data(rows: Records, pair: Pair, measures: Sequence[tuple[str, str]], notes: Notes) -> dict[str, Any]:
    """The points of a pair by series; a series under several BatchNorm policies is one of each."""
    between = [row for row in rows if set(experts_of(row)) == set(pair)]
    ends = [row for row in rows if is_single(row) and experts_of(row)[0] in pair]
    named: dict[str, Records] = {}
    by_series = {name: [row for row in between if row["series"] == name] for name in names_in(between, "series")}
    several = {
        name
        for name, own in by_series.items()
        if len(policies_of(own)) > 1 and not all(f"BatchNorm {row['batchnorm']}" in name for row in own)
    }
    for row in between:
        policy = f", BatchNorm {row['batchnorm']}" * (row["series"] in several)
        named.setdefault(row["series"] + policy, []).append(row)
    tasks = tasks_of(between, pair)
    order = {task: place for place, task in enumerate(tasks)}
    series: list[dict[str, Any]] = []
    for name, own in named.items():
        kinds = {row["experts"] for row in own}
        points: dict[float, Records] = {}
        for row in [*(row for row in ends if row["experts"] in kinds), *own]:
            points.setdefault(float(row["shares"].get(pair[1], 0.0)), []).append(row)
        found = [_point_data(points[share], pair, share, measures, notes) for share in sorted(points)]
        for point in found:
            point["cells"].sort(key=lambda cell: order.get(cell["task"], len(order)))
        series.append({"name": name, "points": found})
    return {"first": pair[0], "second": pair[1], "tasks": tasks, "series": series}


def _point_data(
    rows: Records, pair: Pair, share: float, measures: Sequence[tuple[str, str]], notes: Notes
) -> dict[str, Any]:
    groups: dict[tuple[str, ...], Records] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in COLUMNS), []).append(row)
    cells: list[dict[str, Any]] = []
    for label, own in groups.items():
        means = {name: mean_of(own, name) for name in ("value", "lo", "hi")}
        numbers = {name: None if math.isnan(value) else float(f"{value:.6g}") for name, value in means.items()}
        unit = measures.index((own[0]["task"], own[0]["metric"]))
        keys = {"n": int(own[0]["n"]), "unit": unit, "keys": [row["key"] for row in own]}
        cells.append(dict(zip(COLUMNS, label, strict=True)) | numbers | keys)
    command, about = save_command(rows[0], pair, notes)
    label = share_label({pair[0]: 1 - share, pair[1]: share})
    return {"share": share, "label": label, "command": command, "about": about, "cells": cells}


def data_uri(file: Path) -> str:
    """Return the address that holds an image in PNG. StudyError where it is missing."""
    if not file.is_file():
        raise StudyError(f"{file}: a sample's image is missing: remove samples.jsonl and make the samples again")
    return f"data:image/png;base64,{base64.b64encode(file.read_bytes()).decode('ascii')}"
