"""Rows that say anything: names with formulas, markup, commands, paths and marks are shown and do nothing."""

from __future__ import annotations

import csv
import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from experiments.grid.escapes import csv_cell, figure, file_stem, html, latex, markdown, one_line
from experiments.grid.notes import Notes, write_notes
from experiments.grid.rows import Row, append_row
from experiments.pages.figures import draw, save
from experiments.pages.report import write_report
from experiments.pages.tables import written
from experiments.pages.views import open_study
from tests.experiments.study_rows import in_memory

HOSTILE = [
    *("$x^2$", "$$", "$", "\\$5", "_a_", "__", "../../etc/passwd", "..", "/", "=1+1", "+1", "-1", "@SUM(A1)", "\t=1"),
    *("\\input{/etc/passwd}", "\\", "}{", "~^", "100%", "#1", "a&b", "&lt;", "<script>alert(1)</script>", "</td>"),
    *("\"'><img src=x onerror=alert(1)>", "</script>", "<!--", "a|b", "\\|", "`code`", "**bold**", "[a](b)", "![a](b)"),
    *(
        "a\u2028b",
        "a\nb",
        "a\r\n| b",
        "\x1b[2J",
        "\x00",
        "\u202eabc",
        "😀",
        "名前",
        "é",
        "a" * 5000,
        "😀" * 300,
        "",
        " ",
    ),
    *("{}", "{0}", "%s", "{{rows}}", "*", "[x]", "con", "a:b", "nan", "constructor", "__proto__"),
]


@pytest.mark.parametrize("name", HOSTILE, ids=lambda name: ascii(name)[1:20])
def test_every_form_holds_it(name: str) -> None:
    for escaped in (html(name), markdown(name), latex(name), csv_cell(name), figure(name), file_stem(name)):
        assert escaped == one_line(escaped) or escaped.startswith(" ")
    assert not re.search(r"[<>\"']", html(name))
    assert not re.search(r"(?<!\\)(?:\\\\)*[|`*\[\]$~]", re.sub(r"\\.", "", markdown(name)))
    assert not re.search(r"<[\w/!?]", re.sub(r"\\.", "", markdown(name)))
    bare = re.sub(r"\\text\w+\{\}|\\[&%#_${}]|\{[\[\]*]\}", "", latex(name))
    assert not re.search(r"[\\{}~^&%#_$<>|\[\]]", bare)
    assert not latex(name).startswith(("*", "["))
    assert not csv_cell(name).startswith(("=", "+", "-", "@"))
    stem = file_stem("curves", name)
    assert Path(stem).name == stem
    assert len(stem.encode()) < 255
    assert not stem.startswith(".")
    assert figure(name)[:1] not in ("", "_")
    assert figure(name).count("$") == figure(name).count("\\$")


def test_other_words_are_other_files() -> None:
    assert len({file_stem("curves", name) for name in HOSTILE}) == len(HOSTILE)
    assert file_stem("curves", "vqa", "caption+x") == "curves_vqa_caption+x"


@pytest.mark.parametrize("name", ["vqa", "0.50 vqa + 0.50 caption", "Acc@0.5 small", "recalibrate:task", "R&D", "a_b"])
def test_plain_names_stay_as_they_are(name: str) -> None:
    assert (markdown(name), csv_cell(name), figure(name)) == (name, name, name)
    assert latex(name) == name.replace("&", r"\&").replace("_", r"\_")


def rows_with(names: list[str]) -> list[tuple[Row, np.ndarray]]:
    """A line between two experts under two policies on two splits, with these names in all fields of text."""
    first, second, *others = names
    more = iter(others * 20)
    metric, kind, note, shifted = next(more), next(more), next(more), next(more)
    policies = [next(more) or "p", "average"]
    digests = {name: next(more) for name in (first, second)}
    found: list[tuple[Row, np.ndarray]] = []
    for share, task, split in product((0.0, 0.5, 1.0), (first, second), ("test", shifted)):
        for policy in policies if share == 0.5 else policies[:1]:
            value = 0.8 if share == 0.5 else 0.6
            shares = {name: part for name, part in ((first, 1 - share), (second, share)) if part}
            row = Row(
                study="hostile",
                shares=shares,
                experts=kind,
                method="interpolate" if share == 0.5 else "single",
                batchnorm=policy,
                task=task,
                split=split,
                metric=metric,
                value=value,
                lo=value - 0.1,
                hi=value + 0.1,
                n=8,
                seconds=1.0,
                seed=0,
                versions={next(more): next(more)},
                inputs={name: digests[name] for name in shares},
                data=next(more),
                key=f"{next(more)} {len(found)}",
                note=note,
            )
            found.append((row, np.tile([value, 1.0], 4)))
    row, scores = found[0]
    lost = replace(
        row, metric=f"{metric} 2", value=float("nan"), lo=float("nan"), hi=float("nan"), key=f"lost {row.key}"
    )
    return [*found, (lost, scores[:0])]


class Elements(HTMLParser):
    """The elements of a page by name and the names of their attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[tuple[str, str]] = set()
        self.opened: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.opened.append(tag)
        self.found |= {(tag, name) for name, _ in attrs} | {(tag, "")}


def elements(path: Path) -> Elements:
    parser = Elements()
    parser.feed(path.read_text())
    return parser


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Elements:
    """What a page of ordinary names is made of."""
    folder = tmp_path_factory.mktemp("plain")
    for row, scores in rows_with(["vqa", "caption", "accuracy", "vanilla", "a note", "shifted", "from:vqa", "x"]):
        append_row(folder / "rows.jsonl", row, scores)
    return elements(write_report(folder, "hostile", folder / "report.html"))


@pytest.mark.parametrize("start", [0, 28])
def test_pages_of_hostile_rows_are_whole(tmp_path: Path, plain: Elements, start: int) -> None:
    pool = [name for name in (HOSTILE * 2)[start : start + 16] if "\x00" not in name]
    names = list(dict.fromkeys(pool))
    folder = tmp_path / "rows"
    folder.mkdir()
    for row, scores in rows_with(names):
        append_row(folder / "rows.jsonl", row, scores)
    write_notes(folder, "hostile", Notes(names[2], names[3]))
    rows, scores = open_study(folder, "hostile")

    drawn, missing = draw(rows)
    assert drawn, missing
    (tmp_path / "figures").mkdir()
    for one in drawn:
        for file in save(one.figure, tmp_path / "figures" / one.stem, (".svg",) if start else (".png", ".pdf")):
            assert file.parent == tmp_path / "figures"
            assert file.stat().st_size > 1000
    assert {path.name for path in tmp_path.iterdir()} == {"rows", "figures"}

    table = [line for line in written(rows, scores, "markdown").split("\n") if line.startswith("|")]
    assert len({len(re.findall(r"(?<!\\)(?:\\\\)*\|", re.sub(r"\\\\", "", line))) for line in table}) == 1
    body = written(rows, scores, "latex").split("\n")
    assert len({len(re.findall(r"(?<!\\)&", line)) for line in body if line.endswith(r"\\")}) == 1
    assert not re.search(r"\\(input|def|write|include)\b", "\n".join(line for line in body if not line.startswith("%")))
    cells = list(csv.reader(io.StringIO(written(rows, scores, "csv"))))
    assert len({len(line) for line in cells}) == 1
    assert not [cell for line in cells for cell in line if re.match(r"[=+@\t\r-](?![\d.]+(e-?\d+)?$)", cell)]

    page = elements(write_report(folder, "hostile", tmp_path / "report.html"))
    assert page.found <= plain.found | {("p", "class"), ("li", ""), ("ul", "")}
    assert page.opened.count("script") == plain.opened.count("script")
    text = (tmp_path / "report.html").read_text()
    data = json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)[1])  # type: ignore[index]
    assert {pair["first"] for pair in data["pairs"]} == {names[0]}


def test_signs_of_formulas_are_drawn_as_they_are() -> None:
    rows, _ = in_memory("interpolation", only="vqa+caption", points=3, kinds=("vanilla",))
    for row in rows:
        row["metric"], row["series"] = "$m$", "_s$"
    (curves,) = [one for one in draw(rows)[0] if one.stem.startswith("curves")]
    axis = curves.figure.axes[0]
    assert axis.get_ylabel().count(r"\$m\$") == 1
    assert axis.get_legend() is not None


def test_long_names_keep_both_ends_and_leave_room(tmp_path: Path) -> None:
    """The middle is left out; where names still leave the axes no room, the figure is larger."""
    assert figure("checkpoints/model-of-vqa-after-9-epochs") == "checkpoints/mo…fter-9-epochs"
    assert figure("one two three four", width=9) == "one two\nthree\nfour"
    assert figure("$" * 20, 20, 9).replace("\n", "") == r"\$" * 20  # no escape is cut in two
    long = [f"{sign} {'WORD ' * 20}" for sign in "abcdefghijklmnop"]
    for row, scores in rows_with(long):
        append_row(tmp_path / "rows.jsonl", row, scores)
    for one in draw(open_study(tmp_path, "hostile")[0])[0]:
        width = one.figure.get_size_inches()[0]
        save(one.figure, tmp_path / "one", (".png",))
        assert width <= one.figure.get_size_inches()[0] <= 2 * width
        axis = one.figure.axes[0].get_position()
        assert axis.width > 0.1
        assert axis.height > 0.2
