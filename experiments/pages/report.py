"""One page of a study: what is kept, sliders between experts, findings, figures, tables, and where numbers come from.

The page is one HTML file without a server or a network: figures and images are inside, the data are JSON in the page,
and its script reads nothing else. Its parts that never change lie in templates/.
"""

from __future__ import annotations

import json
import re
import shlex
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from experiments.atomic import write_whole
from experiments.grid.escapes import file_stem, html
from experiments.grid.notes import Notes
from experiments.grid.rows import Records, names_in
from experiments.pages import figures, overview
from experiments.pages.beside import tables_beside
from experiments.pages.explorer import page_data
from experiments.pages.findings import Finding, each_finding
from experiments.pages.glossary import GLOSSARY
from experiments.pages.overview import Chosen, lines_of
from experiments.pages.tables import COLUMNS, study_tables, to_html
from experiments.pages.views import open_study, pairs_of, read_notes
from experiments.statistics.selection import ON, is_merged

TEMPLATE = Path(__file__).parent / "templates" / "report.html"
HERO = "plane"  # the kind of figure that stands on the first screen, of the pair that keeps most
WIDEST = 6.5  # inches of another figure that can be read there
MOST_TABLES = 2  # that are shown at once


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
    made, missing = drawn or figures.draw(rows, scores)
    lines = lines_of(rows, scores, notes.tasks)
    found = each_finding(rows, scores, notes.contender, notes.tasks, lines)
    hero = _hero(made, lines, rows)
    source = f" ({notes.source})" if notes.source else ""
    parts = {
        "title": html(f"Study: {study}"),
        "question": html(f"{notes.question}{source}"),
        "style": TEMPLATE.with_suffix(".css").read_text(encoding="utf-8"),
        "script": TEMPLATE.with_suffix(".js").read_text(encoding="utf-8"),
        "summary": _summary(found, lines, hero),
        "contents": _contents(bool(pairs_of(rows))),
        "explorer": "" if pairs_of(rows) else " hidden",
        "findings": _findings(found),
        "figures": _figures(
            [one for one in made if one is not hero], missing, command_line("plot", study, folder, "-o", "FIGURES")
        ),
        "tables": _tables(folder, rows, scores, notes),
        "made": _made(rows, command),
        "rows": _provenance(rows),
        "glossary": "".join(
            f"<div><dt>{html(word)}</dt><dd>{html(text)}</dd></div>" for word, text in GLOSSARY.items()
        ),
        "data": as_script(page_data(folder, study, rows, notes)),
    }
    parts["glossary"] = f"<dl>{parts['glossary']}</dl>"
    page = re.sub(r"\{\{(\w+)\}\}", lambda name: parts[name[1]], TEMPLATE.read_text(encoding="utf-8"))
    write_whole(output, page, "name another file with -o")
    return output


def command_line(*words: str | Path) -> str:
    """Write a command of studies that can be copied, whatever a name or a folder holds."""
    return shlex.join(["unival-merge", "study", *map(str, words)])


def as_script(value: Any) -> str:
    """Write JSON that can stand in a script element: no sign in it ends the element or starts a comment."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _hero(drawn: Sequence[figures.Drawn], lines: Sequence[Chosen], rows: Records) -> figures.Drawn | None:
    """Choose the figure of the first screen: the front of the pair whose merged model keeps most on val (where val
    chose none, on the reported split); without a front the first figure that is not too wide to stand there."""

    def retained(line: Chosen) -> float:
        on_val = line.among.joint(line.model, ON) if line.chosen == ON else float("nan")
        gains = [cell.gain.value for (_, where), cell in line.cells.items() if where == overview.INSIDE]
        return on_val if on_val == on_val else sum(gains) / max(1, len(gains))

    by_stem = {one.stem: one for one in drawn}
    merged = [line for line in lines if is_merged(line.model)]
    for line in sorted(merged, key=retained, reverse=True):
        for pair in pairs_of(rows):
            front = by_stem.get(file_stem(HERO, *pair))
            if set(pair) == set(line.among.names) and front is not None:
                return front
    return next((one for one in drawn if one.figure.get_figwidth() < WIDEST), None)


def _summary(found: Sequence[Finding], lines: Sequence[Chosen], hero: figures.Drawn | None) -> str:
    """Write the first screen: sentences, what was not told apart, the heat map, the figure."""
    words = [f"<p>{html(one.text)}</p>" for one in found[:3]]
    unclear = [one.open for one in found if one.open]
    if found:
        listed = "; ".join(unclear) or "nothing of what was compared"
        words.append(f'<p class="quiet">Not told apart: {html(listed)}.</p>')
    else:
        words.append("<p>Nothing was merged, and no task is an expert's own: the scores are in the tables below.</p>")
    parts = [f'<div class="words">{"".join(words)}</div>']
    heat = overview.to_html(lines)
    if heat:
        alone = ' class="alone"' if hero is None else ""
        parts.append(f"<div{alone}>{heat}</div>")
    if hero is not None:
        parts.append(_figure(hero, hero.caption))
    return "\n".join(parts)


def _contents(has_pairs: bool) -> str:
    places = {"explore": "Between two experts"} if has_pairs else {}
    places |= {"findings": "Findings in full", "figures": "Figures", "tables": "Tables"}
    places |= {"made": "Methods and provenance", "rows": "All rows", "glossary": "Glossary"}
    return "<ul>" + "".join(f'<li><a href="#{place}">{name}</a></li>' for place, name in places.items()) + "</ul>"


def _findings(found: Iterable[Finding]) -> str:
    parts: list[str] = []
    for one in found:
        unclear = f" Not told apart: {one.open}." if one.open else ""
        parts.append(f"<p>{html(one.text + unclear)}</p>")
        if one.details:
            items = "".join(f"<li>{html(line)}</li>" for line in one.details)
            parts.append(f"<details><summary>Its numbers ({len(one.details)})</summary><ul>{items}</ul></details>")
    return "\n".join(parts) or "<p>No finding can be stated from the rows of this study.</p>"


def _figures(drawn: Sequence[figures.Drawn], missing: Iterable[str], command: str) -> str:
    """Write the figures by kind, the first kind open and the others folded."""
    groups: dict[str, list[figures.Drawn]] = {}
    for one in drawn:
        fits = [name for name in figures.FIGURES if one.stem == name or one.stem.startswith(f"{name}_")]
        groups.setdefault(max(fits, key=len, default=""), []).append(one)
    parts: list[str] = []
    for name, own in groups.items():
        title = figures.FIGURES[name].title.replace("{}", "…") if len(own) > 1 and name else own[0].title
        count = f" ({len(own)})" * (len(own) > 1)
        captions = {one.caption for one in own}
        shared = f'<p class="quiet">{html(own[0].caption)}</p>' if len(own) > len(captions) == 1 else ""
        body = "".join(_figure(one, "" if shared else one.caption) for one in own)
        opened = " open" * (not parts)
        body = f'{shared}<div class="figures">{body}</div>' if len(own) > 1 else body
        parts.append(f"<details{opened}><summary>{html(title)}{count}</summary>{body}</details>")
    if parts:
        parts.insert(0, f'<p class="quiet">As PNG, SVG and PDF: <code>{html(command)}</code></p>')
    parts += [f'<p class="quiet">Not drawn: {html(line)}</p>' for line in missing]
    return "\n".join(parts) or "<p>Nothing more in these rows can be drawn.</p>"


def _figure(one: figures.Drawn, caption: str) -> str:
    with tempfile.TemporaryDirectory() as folder:
        svg = figures.save(one.figure, Path(folder) / "figure", [".svg"])[0].read_text(encoding="utf-8")
    words = f"<figcaption>{html(f'{one.title}. {caption}'.strip())}</figcaption>"
    return f'<figure><img src="{svg_uri(svg)}" alt="{html(one.title)}">{words}</figure>'


def svg_uri(svg: str) -> str:
    """Return the address that holds a figure, smaller than in base64: coordinates of ten points and more keep two
    digits behind the point, and runs of spaces are one."""
    svg = re.sub(r"(?<![\w.])(-?\d{2,}\.\d{2})\d+", r"\1", svg)
    svg = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    return "data:image/svg+xml," + quote(re.sub(r"\s+", " ", svg), safe=" !'()*+,-./:;=?@_~$")


def _tables(folder: Path, rows: Records, scores: dict[str, Any], notes: Notes) -> str:
    parts: list[str] = []
    tables = study_tables(rows, scores, notes.tables, notes.beside)
    written = {title: to_html(table) for title, table in tables.items()}
    written |= {title: table.to_html() for title, table in tables_beside(folder, rows, scores).items()}
    for title, table in written.items():
        body = f'<div class="wide">{table}</div>'
        opened = " open" * bool(notes.tables and len(tables) <= MOST_TABLES)
        parts.append(f"<details{opened}><summary>{html(title) or 'All scores'}</summary>{body}</details>")
    return "\n".join(parts)


def _made(rows: Records, command: str) -> str:
    versions = dict.fromkeys(f"{name} {version}" for row in rows for name, version in sorted(row["versions"].items()))
    seconds, seeds = sum(row["seconds"] for row in rows), names_in(rows, "seed")
    places = dict.fromkeys(f"{row.get('device', 'cpu')} in {row.get('precision', 'fp32')}" for row in rows)
    policies = ", ".join(names_in(rows, "batchnorm"))
    facts = [
        f"{len(rows):,} rows; training seed{'s' * (len(seeds) > 1)} {', '.join(seeds)}; {seconds:,.0f} s of evaluation "
        f"on {', '.join(places)}; evaluated with {', '.join(versions)}; BatchNorm statistics: {policies}.",
        "Points are chosen on split val and reported on test and on shifted splits. Intervals are 95 %, from a "
        "bootstrap of seeds and, within these, of examples"
        + (
            "; there is one seed, so they are evaluation noise only."
            if len(seeds) == 1
            else f"; of {len(seeds)} seeds, with Student's t."
        )
        + " Intervals in the tables of scores are of the examples alone.",
        "Claims in sentences passed tests of seeds and examples, corrected for their number (Holm, 5 %); all other "
        "differences are counted as not told apart. Scores of different units are never averaged; means over tasks are "
        "of retention.",
    ]
    text = "".join(f"<p>{html(fact)}</p>" for fact in facts)
    return text + f"<pre><code>{html(command)}</code></pre>" * bool(command)


def _provenance(rows: Records) -> str:
    """Write every row, and what they were made of: digests of experts and data once each."""
    names = ("point", "experts", "method", "batchnorm", *COLUMNS, "n", "seed", "note")
    data, inputs = _numbered(row["data"] for row in rows), _numbered(_inputs(row) for row in rows)
    head = "".join(f'<th scope="col">{name}</th>' for name in ("row", "score", *names, "s", "experts' files", "data"))
    lines: list[str] = []
    for row in rows:
        score = "" if row["value"] != row["value"] else f"{row['value']:.6g}"
        score += f" [{row['lo']:.6g}, {row['hi']:.6g}]" if score and row["lo"] == row["lo"] else ""
        given = ", ".join(f"{name} {value}" for name, value in (row.get("parameters") or {}).items())
        texts = {name: str(row[name]) for name in names} | {"method": ", ".join(filter(None, [row["method"], given]))}
        cells = [row["key"], score, *texts.values(), f"{row['seconds']:.1f}"]
        cells += [f"F{inputs[_inputs(row)]}", f"D{data[row['data']]}"]
        body = "".join(f"<td>{html(cell)}</td>" for cell in cells)
        lines.append(f'<tr id="row-{html(row["key"])}">{body}</tr>')
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"
    digests = [f"F{number}: {text}" for text, number in inputs.items()]
    digests += [f"D{number}: {text}" for text, number in data.items()]
    listed = "".join(f"<li>{html(text)}</li>" for text in digests)
    made = f"<details><summary>Digests of experts' files (F) and data (D)</summary><ul>{listed}</ul></details>"
    summary = f"All {len(rows):,} rows, in the metrics' own units"
    return f'{made}<details id="rows"><summary>{summary}</summary><div class="wide">{table}</div></details>'


def _inputs(row: dict[str, Any]) -> str:
    return "; ".join(f"{name} {digest}" for name, digest in row["inputs"].items())


def _numbered(texts: Iterable[str]) -> dict[str, int]:
    return {text: number for number, text in enumerate(dict.fromkeys(texts), start=1)}
