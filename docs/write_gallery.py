"""The gallery: every figure of results/ with its rows and the call that made it, from the folders as they are."""

from __future__ import annotations

import json
from pathlib import Path

from experiments.pages.figures import FIGURES

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "results"
METHODS = {"curves": "curves", "plane": "front"}  # what draws one pair in Python
HEAD = """---
hide: [navigation, toc]
---

# Gallery

Every figure that is kept in `results/`, with the rows that it was drawn from and the call that draws it again. Figures
come from rows alone: the same call on the rows of a study of your own draws yours. Each folder's own page says how its
rows were made and what they say.
"""


def folders() -> list[Path]:
    """List the folders of results that have a page."""
    return sorted(path.parent for path in RESULTS.glob("*/README.md"))


def figures(folder: Path) -> list[Path]:
    """List the figures of a folder, in the order of the table of figures, any others last."""
    order = {kind: number for number, kind in enumerate(FIGURES)}
    return sorted(folder.rglob("*.png"), key=lambda path: (order.get(_kind(path), len(order)), path.name))


def gallery() -> str:
    """Give the text of the gallery's page."""
    lines = [HEAD]
    for folder in folders():
        title = (folder / "README.md").read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")
        lines += [
            f"## {title}",
            "",
            f"Rows: `results/{folder.name}/rows.jsonl`. [How they were made, and what they say]",
        ]
        lines[-1] += f"(results/{folder.name}.md)."
        shown = figures(folder)
        if shown:
            names = _studies(folder) or ["STUDY"]
            radar = " --radar" * any(_kind(path) == "radar" for path in shown)
            calls = [f"unival-merge study plot {name} results/{folder.name} -o figures{radar}" for name in names]
            lines += ["", "```sh", *calls, "```"]
        else:
            lines[-1] += " It has no figure."
        for path in shown:
            lines += ["", *_figure(folder, path)]
        lines.append("")
    return "\n".join(lines)


def _figure(folder: Path, path: Path) -> list[str]:
    kind, *names = path.stem.split("_")
    entry = FIGURES.get(kind)
    fits = entry is not None and entry.title.count("{}") == len(names)
    title = entry.title.format(*names) if entry and fits else path.stem.replace("_", " ")
    caption = f" {entry.caption}" if entry else ""
    call = ""
    if kind in METHODS and len(names) == 2:
        pair = "+".join(names)
        call = f'<br>`experiments.open_results("results/{folder.name}").{METHODS[kind]}("{pair}")`'
    where = path.relative_to(ROOT).as_posix().replace("+", "%2B")
    return [
        '<figure markdown="span">',
        f"[![{title}]({where}){{ loading=lazy }}]({where})",
        f"<figcaption markdown>**{title}.**{caption}{call}</figcaption>",
        "</figure>",
    ]


def _studies(folder: Path) -> list[str]:
    notes = folder / "study.json"
    return list(json.loads(notes.read_text(encoding="utf-8"))) if notes.is_file() else []


def _kind(path: Path) -> str:
    return path.stem.partition("_")[0]
