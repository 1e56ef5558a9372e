"""The commands that look and write nothing: methods, inspect, diff, doctor."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from merge.commands.coefficients import by_name
from merge.commands.merging import known_methods
from merge.commands.options import (
    Choices,
    Json,
    Rename,
    Section,
    Sections,
    inputs_of,
    policy_of,
)
from merge.commands.progress import progress_bar
from merge.commands.table import in_options

if TYPE_CHECKING:
    from merge.methods import Method


def methods(
    name: Annotated[
        str | None, typer.Argument(help="One method, in full; default: all.", autocompletion=known_methods)
    ] = None,
    json_: Json = False,
) -> None:
    """List the methods of merging, or show one: its formula, parameters, source, edge cases and an example.

    \b
    unival-merge methods ties
    """
    from merge.methods import METHODS
    from merge.recipe.parameters import method_named

    found = METHODS if name is None else {name: method_named(name)}
    if json_:
        typer.echo(json.dumps({key: _data(key, method) for key, method in found.items()}))
    elif name is not None:
        typer.echo(_full(_data(name, found[name])))
    else:
        groups: dict[str, list[str]] = {}
        for key, method in METHODS.items():
            groups.setdefault(method.group, []).append(f"  {key:17} {method.summary}")
        typer.echo("\n\n".join("\n".join([f"{group}:", *lines]) for group, lines in groups.items()))


def _data(name: str, method: Method) -> dict[str, Any]:
    """All that there is to say of a method, as plain data."""
    needed = {key: parameter.example for key, parameter in method.parameters.items() if parameter.required}
    inputs = ["vqa.pt", "caption.pt", "grounding.pt"][: method.inputs[1] or 2]
    collected = ["--statistics vqa=vqa-fisher.pt", "--statistics caption=caption-fisher.pt"] * method.statistics
    base = ["--base", "pretrained.pt"] * method.takes_base
    words = [
        "unival-merge merge",
        name,
        *inputs,
        *collected,
        *base,
        *([by_name(needed)] if needed else []),
        "-o merged.safetensors",
    ]
    return {
        "name": name,
        "summary": method.summary,
        "formula": method.formula,
        "inputs": method.needs,
        "source": method.source,
        "edges": method.edges,
        "parameters": {
            key: {"help": item.help, "range": item.range, "default": item.usual, "each": item.each}
            for key, item in method.parameters.items()
        },
        "example": " ".join(words),
    }


def _full(data: Mapping[str, Any]) -> str:
    """A method in lines of text."""
    lines = [f"{data['name']}: {data['summary']}", ""]
    lines += [f"  {key:9} {data[key]}" for key in ("formula", "inputs", "source", "edges") if data[key]]
    lines += ["", "parameters:"] if data["parameters"] else []
    width = max(map(len, data["parameters"]), default=0)
    for key, item in data["parameters"].items():
        each = ", for each input" if item["each"] else ""
        lines.append(f"  {key:{width}}  {item['help']}{each} ({item['range']}; {item['default']})")
    return "\n".join([*lines, "", "example:", f"  {data['example']}"])


def inspect(
    checkpoint: Annotated[Path, typer.Argument(help="File or folder.")],
    section: Section = "auto",
    verify: Annotated[bool, typer.Option("--verify", help="Read the file and compare it with its recipe.")] = False,
    json_: Json = False,
) -> None:
    """Show what a checkpoint holds: sections, tensors, dtypes, sizes, ties, metadata, recipe.

    \b
    unival-merge inspect vqa.pt
    """
    from merge.tools.diagnose.inspection import inspect

    _print(inspect(checkpoint, section, check_digest=verify), json_)


def diff(
    first: Annotated[Path, typer.Argument(help="File or folder.")],
    second: Annotated[Path, typer.Argument(help="File or folder to compare with it.")],
    section: Sections = None,
    rename: Rename = None,
    json_: Json = False,
) -> None:
    """Show how two checkpoints differ: names, shapes, and ||A - B|| / ||A|| and cosine by module.

    \b
    unival-merge diff vqa.pt caption.pt
    """
    from merge.recipe.inputs import open_inputs

    inputs, _ = inputs_of([first, second], None, section, None, rename)
    a, b = open_inputs(inputs)  # before torch is there: mistakes come fast
    from merge.tools.diagnose.difference import diff

    with progress_bar(inputs, "diff") as progress:
        report = diff(a, b, progress=progress)
    _print(report, json_)


def doctor(
    ctx: typer.Context,
    checkpoints: Annotated[list[Path], typer.Argument(metavar="CHECKPOINT", help="Files or folders to merge.")],
    choices: Choices,
    base: Annotated[Path | None, typer.Option(help="The common ancestor, if you have it.")] = None,
    json_: Json = False,
) -> None:
    """Say whether checkpoints can be merged and whether it is likely to work. Exit code 0: yes, 1: no.

    Every finding says what to do; the options are those of the merge to come. Of each pair: cosine and distance
    (of the first's norm) of the weights, scale the second's norm by the first's; with a base, the cosine of what the
    two learned, and the share of what both moved that went opposite ways.

    \b
    unival-merge doctor vqa.pt caption.pt --base pretrained.pt
    """
    from merge.recipe.inputs import open_inputs

    inputs, ancestor = inputs_of(checkpoints, choices.name, choices.section, base, choices.rename)
    policy = policy_of(choices)
    sources = [*inputs, *([ancestor] if ancestor else [])]
    opened = open_inputs(sources)
    first = opened.pop() if ancestor else None
    from merge.tools.diagnose.report import doctor as examine

    with progress_bar(sources, "doctor") as progress:
        report = examine(opened, first, names=[item.name for item in inputs], policy=policy, progress=progress)
    told = [replace(item, advice=in_options(item.advice, ctx.command)) for item in report.findings]
    _print(replace(report, findings=tuple(told)), json_)
    raise typer.Exit(report.exit_code)


def _print(report: Any, as_json: bool) -> None:
    typer.echo(json.dumps(report.to_json()) if as_json else report.text())
