"""The commands that look: nothing is written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from merge.commands.options import Common, Drop, Json, Keep, Missing, Section, policy_of, progress_bar


def inspect(
    checkpoint: Path,
    section: Section = "auto",
    verify: Annotated[bool, typer.Option("--verify", help="Read the file and compare it with its recipe.")] = False,
    json_: Json = False,
) -> None:
    """What a checkpoint holds: sections, tensors, dtypes, sizes, ties, metadata, recipe.

    \b
    unival-merge inspect vqa.pt
    """
    from merge.tools.diagnose import inspect_checkpoint

    _print(inspect_checkpoint(checkpoint, section, check_digest=verify), json_)


def diff(first: Path, second: Path, section: Section = "auto", json_: Json = False) -> None:
    """How two checkpoints differ: names, shapes, and ||A - B|| / ||A|| and cosine by module.

    \b
    unival-merge diff vqa.pt caption.pt
    """
    from merge.tools.diagnose import diff_checkpoints

    with progress_bar([first, second], section, "diff") as progress:
        report = diff_checkpoints(first, second, section, progress=progress)
    _print(report, json_)


def doctor(
    checkpoints: list[Path],
    base: Annotated[Path | None, typer.Option(help="The common ancestor, if you have it.")] = None,
    name: Annotated[
        list[str] | None, typer.Option(help="Name of each checkpoint in turn; default: file stems.")
    ] = None,
    section: Section = "auto",
    keep: Keep = None,
    drop: Drop = None,
    missing: Missing = "error",
    json_: Json = False,
) -> None:
    """Can these be merged, and is it likely to work? Exit code 0: yes, 1: no. Every finding says what to do.

    \b
    unival-merge doctor vqa.pt caption.pt --base pretrained.pt
    """
    from merge.tools.diagnose import doctor as examine

    policy = policy_of(Common(keep=keep, drop=drop, missing=missing))
    with progress_bar([*checkpoints, *([base] if base else [])], section, "doctor") as progress:
        report = examine(checkpoints, base, names=name, section=section, policy=policy, progress=progress)
    _print(report, json_)
    raise typer.Exit(report.exit_code)


def _print(report: Any, as_json: bool) -> None:
    typer.echo(json.dumps(report.to_json()) if as_json else report.text())
