"""One page of a study: findings, sliders between experts, figures, tables, and where every number comes from.

The page is one HTML file without a server or a network: figures and images are inside, the data are JSON in the page,
and its script (templates/report.html) reads nothing else.
"""

from __future__ import annotations

import base64
import json
import re
import shlex
import tempfile
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from experiments.errors import StudyError
from experiments.grid.escapes import html
from experiments.grid.rows import Records, mean_of, names_in
from experiments.pages import figures
from experiments.pages.findings import findings
from experiments.pages.tables import COLUMNS, study_tables, to_html
from experiments.pages.views import (
    Pair,
    experts_of,
    main_metrics,
    open_study,
    pairs_of,
    policies_of,
    read_notes,
    read_samples,
    reported_split,
    with_series,
)
from merge import share_label

TEMPLATE = Path(__file__).parent / "templates" / "report.html"


def write_report(
    folder: str | Path,
    study: str,
    output: str | Path,
    *,
    command: str = "",
    drawn: tuple[list[figures.Drawn], list[str]] | None = None,
) -> Path:
    """Write the page of the study in FOLDER/rows.jsonl to `output`, whole or not at all.

    `command` is what remakes it, quoted on the page. `drawn` are its figures, where they were drawn before. Samples are
    taken from FOLDER/samples.jsonl and what the study is about from FOLDER/study.json, where there are any.
    """
    folder, output = Path(folder), Path(output)
    rows, scores = open_study(folder, study)
    notes = read_notes(folder, study)
    source = f" ({notes.source})" if notes.source else ""
    parts = {
        "title": html(f"Study: {study}"),
        "question": html(f"{notes.question}{source}"),
        "findings": _findings(findings(rows, scores, notes.contender)),
        "explorer": "" if pairs_of(rows) else " hidden",
        "figures": _figures(
            *(drawn or figures.draw(rows, scores)),
            command_line("plot", study, folder, "-o", "FIGURES"),
        ),
        "tables": "\n".join(
            f"<h3>{html(title)}</h3>\n" * bool(title) + f'<div class="wide">{to_html(table)}</div>'
            for title, table in study_tables(rows, scores, notes.tables).items()
        ),
        "made": _made(rows, command),
        "rows": _provenance(rows),
        "data": as_script(page_data(folder, study, rows)),
    }
    page = re.sub(r"\{\{(\w+)\}\}", lambda name: parts[name[1]], TEMPLATE.read_text(encoding="utf-8"))
    partial = output.with_name(f"{output.name}.partial")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(page, encoding="utf-8")
        partial.replace(output)
    except OSError as error:
        with suppress(OSError):
            partial.unlink()
        raise StudyError(f"{output}: {error.strerror}: name another file with -o") from None
    return output


def command_line(*words: str | Path) -> str:
    """Write a command of studies that can be copied, whatever a name or a folder holds."""
    return shlex.join(["unival-merge", "study", *map(str, words)])


def as_script(value: Any) -> str:
    """Write JSON that can stand in a script element: no sign in it ends the element or starts a comment."""
    text = json.dumps(value, allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def page_data(folder: Path, study: str, rows: Records) -> dict[str, Any]:
    """Collect what the page's script reads: the points of every pair by series, and the samples by row key."""
    own = with_series(main_metrics(rows))
    keys = {row["key"] for row in own}
    samples = {key: value for key, value in read_samples(folder).items() if key in keys}
    names = dict.fromkeys(one["image"] for several in samples.values() for one in several if one["image"])
    return {
        "split": reported_split(own),
        "pairs": [_pair_data(own, pair) for pair in pairs_of(own)],
        "samples": samples,
        "images": {name: _data_uri(folder / "samples" / name, "image/png") for name in names},
        "make_samples": f"Make them with {command_line('samples', study, folder)}",
    }


def _pair_data(rows: Records, pair: Pair) -> dict[str, Any]:
    """The points of a pair by series; a series under several BatchNorm policies is one of each."""
    between = [row for row in rows if set(experts_of(row)) == set(pair)]
    ends = [row for row in rows if len(experts_of(row)) == 1 and experts_of(row)[0] in pair]
    named: dict[str, Records] = {}
    by_series = {name: [row for row in between if row["series"] == name] for name in names_in(between, "series")}
    several = {name for name, own in by_series.items() if len(policies_of(own)) > 1}
    for row in between:
        policy = f", BatchNorm {row['batchnorm']}" * (row["series"] in several)
        named.setdefault(row["series"] + policy, []).append(row)
    tasks = [task for task in names_in(between, "task") if task in pair] or names_in(between, "task")

    def order(task: str) -> int:
        return pair.index(task) if task in pair else len(pair)

    series: list[dict[str, Any]] = []
    for name, own in named.items():
        kinds = {row["experts"] for row in own}
        points: dict[float, Records] = {}
        for row in [*(row for row in ends if row["experts"] in kinds), *own]:
            points.setdefault(float(row["shares"].get(pair[1], 0.0)), []).append(row)
        found = [_point_data(points[share], pair, share, order) for share in sorted(points)]
        series.append({"name": name, "points": found})
    return {"first": pair[0], "second": pair[1], "tasks": sorted(tasks, key=order), "series": series}


def _point_data(rows: Records, pair: Pair, share: float, order: Callable[[str], int]) -> dict[str, Any]:
    groups: dict[tuple[str, ...], Records] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in COLUMNS), []).append(row)
    cells: list[dict[str, Any]] = []
    for label, own in groups.items():
        means = {name: mean_of(own, name) for name in ("value", "lo", "hi")}
        numbers = {name: None if value != value else value for name, value in means.items()}  # JSON has no NaN
        keys = {"n": int(own[0]["n"]), "keys": [row["key"] for row in own]}
        cells.append(dict(zip(COLUMNS, label, strict=True)) | numbers | keys)
    cells.sort(key=lambda cell: order(cell["task"]))
    return {"share": share, "label": share_label({pair[0]: 1 - share, pair[1]: share}), "cells": cells}


def _findings(texts: Iterable[str]) -> str:
    parts: list[str] = []
    for text in texts:
        first, *details = text.split("\n")
        items = "".join(f"<li>{html(line)}</li>" for line in details)
        parts.append(f"<p>{html(first)}</p>" + f"<ul>{items}</ul>" * bool(items))
    return "\n".join(parts) or "<p>None of the three findings can be stated from the rows of this study.</p>"


def _figures(drawn: Iterable[figures.Drawn], missing: Iterable[str], command: str) -> str:
    parts: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        for stem, title, caption, figure in drawn:
            image = _data_uri(figures.save(figure, Path(folder) / stem, [".svg"])[0], "image/svg+xml")
            words = f"<figcaption>{html(title)}. {html(caption)}</figcaption>"
            parts.append(f'<figure><img src="{image}" alt="{html(title)}">{words}</figure>')
    if parts:
        parts.insert(0, f'<p class="quiet">As PNG, SVG and PDF: <code>{html(command)}</code></p>')
    parts += [f'<p class="quiet">Not drawn: {html(line)}</p>' for line in missing]
    return "\n".join(parts) or "<p>Nothing in these rows can be drawn: no points between experts, no averages.</p>"


def _made(rows: Records, command: str) -> str:
    versions = dict.fromkeys(f"{name} {version}" for row in rows for name, version in sorted(row["versions"].items()))
    seconds = sum(row["seconds"] for row in rows)
    facts = f"{len(rows)} rows, seeds {', '.join(names_in(rows, 'seed'))}, {seconds:,.0f} s of evaluation; "
    facts += f"evaluated with {', '.join(versions)}."
    return f"<p>{html(facts)}</p>" + f"<pre><code>{html(command)}</code></pre>" * bool(command)


def _provenance(rows: Records) -> str:
    names = ("point", "experts", "method", "batchnorm", *COLUMNS, "n", "seed", "note")
    head = "".join(f'<th scope="col">{name}</th>' for name in ("row", "score", *names, "seconds", "made of"))
    lines: list[str] = []
    for row in rows:
        score = "" if row["value"] != row["value"] else f"{row['value']:.6g} [{row['lo']:.6g}, {row['hi']:.6g}]"
        made = ", ".join(f"{name} {version}" for name, version in row["versions"].items())
        digests = "; ".join(f"{name} {digest}" for name, digest in row["inputs"].items())
        cells = [row["key"], score, *(str(row[name]) for name in names), f"{row['seconds']:.1f}"]
        cells.append(f"{made}; experts: {digests}; data {row['data']}")
        body = "".join(f"<td>{html(cell)}</td>" for cell in cells)
        lines.append(f'<tr id="row-{html(row["key"])}">{body}</tr>')
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"
    summary = f"All {len(rows)} rows, in the metrics' own units"
    return f'<details><summary>{summary}</summary><div class="wide">{table}</div></details>'


def _data_uri(file: Path, kind: str) -> str:
    if not file.is_file():
        raise StudyError(f"{file}: a sample's image is missing: remove samples.jsonl and make the samples again")
    return f"data:{kind};base64,{base64.b64encode(file.read_bytes()).decode('ascii')}"
