"""The page of the command line, from the commands themselves; the site's hook makes it at every build."""

from __future__ import annotations

import re
from typing import Any

import typer

from experiments.commands import app
from merge.commands.process import EXIT_CODES

HEAD = """# Command line

`unival-merge --help` lists the commands, `unival-merge COMMAND -h` shows one; this page is made of the same words.
`python -m merge`, `python -m unival_core` and `python -m experiments` run the commands of one package.
`unival-merge --install-completion` completes commands, options and names of methods.

What is printed on standard output is the result, or where it lies; warnings, notes and progress go to standard error.
`--quiet` prints nothing but what was asked for, warnings and errors; `--verbose` tells what the libraries do as well
(Python's `logging`, from level INFO).

## Exit codes
"""


def page() -> str:
    """Give the page's text."""
    group: Any = typer.main.get_command(app)
    codes = [f"| {code} | {text} |" for code, text in EXIT_CODES.items()]
    lines = [HEAD, "| code | means |", "|---|---|", *codes, ""]
    headings: dict[str, list[str]] = {}
    for name, entry in group.entries.items():
        headings.setdefault(entry.group, []).append(name)
    for heading, names in headings.items():
        lines += [f"## {heading}", ""]
        for name in names:
            lines += [f"### {name}", "", *_command(group, name), ""]
    return "\n".join(lines)


def found(group: Any, name: str) -> tuple[Any, Any]:
    """Give a command by its name, as "study run", and a context to ask it in."""
    context = group.context_class(group, info_name="unival-merge")
    for word in name.split():
        group = group.get_command(context, word)
        context = group.context_class(group, info_name=word, parent=context)
    return group, context


def _command(group: Any, name: str) -> list[str]:
    command, context = found(group, name)
    text, *examples = re.split(r"(?m)^[\b\s]*(?=unival-merge )", command.help, maxsplit=1)
    pieces = " ".join(command.collect_usage_pieces(context))
    lines = [text.replace("\b", "").strip(), "", "```text", f"unival-merge {name} {pieces}", "```", ""]
    if examples:
        lines += ["```sh", *(line.strip() for line in examples[0].splitlines() if line.strip()), "```", ""]
    panels: dict[str, list[tuple[str, str]]] = {}
    for param in command.get_params(context):
        if param.param_type_name == "argument":
            shown = param.metavar or param.name.rstrip("_").upper()
            panels.setdefault("", []).append((shown, getattr(param, "help", None) or ""))
        elif param.name != "help" and (record := param.get_help_record(context)):
            panels.setdefault(getattr(param, "rich_help_panel", None) or "", []).append(record)
    for title, rows in panels.items():
        table = ["| option | does |", "|---|---|", *(f"| `{_cell(key)}` | {_shown(told)} |" for key, told in rows)]
        lines += [f'??? note "{title}"', "", *(f"    {line}" for line in table), ""] if title else [*table, ""]
    return lines


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _shown(text: str) -> str:
    """Text of a cell outside of code, where stars and the like are signs and no marks."""
    parts = _cell(text).split("`")
    return "`".join(
        re.sub(r"([*_<\[\]])", r"\\\1", part) if number % 2 == 0 else part for number, part in enumerate(parts)
    )
