"""One page over several studies: their questions, what was found, and where their reports lie."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from experiments.atomic import write_whole
from experiments.grid.escapes import html

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark }}
body {{ font: 1rem/1.5 system-ui, sans-serif; max-width: 44rem; margin: 2rem auto; padding: 0 1rem }}
h2 {{ margin-top: 2.5rem }} img {{ max-width: 100%; background: #fff; border-radius: .3rem }}
code {{ overflow-wrap: anywhere }}
</style></head>
<body><main>
<h1>{title}</h1>
{body}
</main></body></html>
"""


@dataclass(frozen=True)
class Entry:
    """A study on the page: its name and question, its report and a figure by their paths, and what was found."""

    name: str
    question: str
    report: Path
    figure: Path | None
    findings: Sequence[str]


def write_index(output: Path, title: str, entries: Sequence[Entry], saved: str = "") -> Path:
    """Write the page, whole or not at all; links are relative to it. `saved` tells of a merged checkpoint."""
    parts = [_section(entry, output.parent) for entry in entries]
    parts += [f"<h2>A merged model</h2><p><code>{html(saved)}</code></p>"] if saved else []
    write_whole(output, PAGE.format(title=html(title), body="\n".join(parts)))
    return output


def _section(entry: Entry, folder: Path) -> str:
    found = "".join(f"<li>{html(text.partition(chr(10))[0])}</li>" for text in entry.findings)
    report = _link(entry.report, folder)
    figure = f'<p><a href="{report}"><img src="{_link(entry.figure, folder)}" alt="{html(entry.name)}"></a></p>' * bool(
        entry.figure
    )
    return f'<h2><a href="{report}">{html(entry.name)}</a></h2><p>{html(entry.question)}</p>{figure}<ul>{found}</ul>'


def _link(path: Path | None, folder: Path) -> str:
    return "" if path is None else html(quote(path.relative_to(folder).as_posix()))
