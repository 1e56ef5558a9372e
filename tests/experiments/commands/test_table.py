"""The table of commands: every entry is whole, its help teaches it, and every mistake is told in one way."""

from __future__ import annotations

import importlib
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping
from importlib import metadata
from typing import Any

import pytest
import typer
from typer.testing import CliRunner, Result

import merge.commands
import unival_core.commands
from experiments.commands import COMMANDS, app
from merge.commands import Command, application
from tests import ROOT

TABLE = {**merge.commands.COMMANDS, **unival_core.commands.COMMANDS, **COMMANDS}
GROUPS = {"Merge", "Look", "Study", "UnIVAL", "World"}


def run(*words: str, **extra: Any) -> Result:
    return CliRunner().invoke(app, list(words), prog_name="unival-merge", **extra)


def page(program: typer.Typer, name: str) -> Any:
    """The command of a name, as typer has it."""
    found: Any = typer.main.get_command(program)
    for word in name.split():
        found = found.get_command(typer.Context(found), word)
    return found


def examples(command: Any) -> list[list[str]]:
    """The command lines of a help text, without what starts the program."""
    lines = [line.partition(" -m experiments ") for line in (command.help or "").splitlines()]
    return [
        shlex.split(rest or line.removeprefix("unival-merge "))
        for line, _, rest in lines
        if line.startswith(("unival-merge ", "torchrun "))
    ]


def lacking(table: Mapping[str, Command]) -> list[str]:
    """What the entries of a table lack, in words."""
    program, found = application(table, "A program."), []
    for name, entry in table.items():
        module, _, attribute = entry.function.partition(":")
        if not callable(getattr(importlib.import_module(module), attribute, None)):
            found.append(f"{name}: there is no {entry.function}")
            continue
        command = page(program, name)
        if entry.group not in GROUPS:
            found.append(f"{name}: no heading {entry.group}")
        if not entry.summary.endswith(".") or not entry.summary[0].isupper() or len(entry.summary) > 59:
            found.append(f"{name}: its summary is no short sentence: {entry.summary}")
        found += [f"{name}: {param.name} has no help" for param in command.params if not param.help]
        if not examples(command):
            found.append(f"{name}: its help has no example")
        for words in examples(command):
            if words[: len(name.split())] != name.split():
                found.append(f"{name}: its example is of another command: {' '.join(words)}")
                continue
            try:
                command.make_context(name, words[len(name.split()) :])
            except Exception as error:
                found.append(f"{name}: its example is refused: {error}")
    return found


def test_every_command_is_whole() -> None:
    assert lacking(TABLE) == []


def test_what_a_command_lacks_is_named() -> None:
    module = "tests.experiments.commands.test_table"
    bad = {
        "gone": Command(f"{module}:gone", "Look", "Nothing."),
        "bare": Command(f"{module}:bare", "Elsewhere", "nothing"),
        "wrong": Command(f"{module}:wrong", "Look", "Fail."),
    }
    assert lacking(bad) == [
        f"gone: there is no {module}:gone",
        "bare: no heading Elsewhere",
        "bare: its summary is no short sentence: nothing",
        "bare: name has no help",
        "bare: its help has no example",
        "wrong: its example is refused: No such option: --nothing",
    ]


def bare(name: str) -> None:
    """Do nothing."""


def wrong() -> None:
    """Do nothing.

    \b
    unival-merge wrong --nothing
    """


@pytest.mark.parametrize("width", [80, 97, 200])
def test_the_list_has_headings_and_whole_summaries(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    shown = run("--help").stdout
    assert {line.rstrip(":") for line in shown.splitlines() if line.endswith(":")} == GROUPS | {"Options"}
    lines = [" ".join(line.split()) for line in shown.splitlines()]
    for name, entry in TABLE.items():
        assert f"{name} {entry.summary}" in lines
    assert max(map(len, shown.splitlines())) <= width


@pytest.mark.parametrize("words", [("-h",), ("--help",), ()])
def test_help_has_three_doors(words: tuple[str, ...]) -> None:
    assert run(*words).stdout == run("--help").stdout
    assert run("study", *words).stdout == run("study", "--help").stdout


def test_options_are_in_panels_and_choices_are_listed() -> None:
    shown = run("interpolate", "-h").stdout
    places = [
        shown.index(f"\n{title}:\n") for title in ("Options", "Names and sections", "Policy", "Arithmetic", "Running")
    ]
    assert places == sorted(places)
    for text in (
        "--missing error|keep-first|zero-delta|union",
        "--digest xxh3_128|sha256",
        "--keep GLOB",
        "-o, --output OUT",
    ):
        assert text in shown
    assert shown.startswith("Usage: unival-merge interpolate FIRST SECOND --ratio RATIO -o OUT [OPTIONS]\n")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("interpolat",), "No such command 'interpolat'. Did you mean 'interpolate'?; see unival-merge --help"),
        (("study", "rum"), "No such command 'rum'. Did you mean 'run'?; see unival-merge study --help"),
        (
            ("interpolate", "a.pt", "b.pt", "-o", "c.pt"),
            "Missing option '--ratio'; see unival-merge interpolate --help",
        ),
        (("diff", "a.pt", "b.pt", "--jsn"), "--json"),
        (("sweep", "a.pt", "b.pt", "-o", "c", "--points", "many"), "'--points'"),
        (("inspect", "none.pt"), "none.pt: no such file or folder"),
        (("study", "run", "nothing", "here"), "nothing"),
        (("generate", "--checkpoint", "none.pt", "--task", "nothing"), "nothing"),
    ],
)
def test_mistakes_of_every_package_are_one_line_and_exit_code_2(words: tuple[str, ...], told: str) -> None:
    ran = run(*words)
    assert (ran.exit_code, ran.stdout) == (2, "")
    assert ran.stderr.startswith("error: ")
    assert ran.stderr.count("\n") == 1
    assert told in ran.stderr


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("unival-merge interp", ["interpolate"]),
        ("unival-merge study s", ["search", "samples"]),
        ("unival-merge interpolate --miss", ["--missing", "--missing-rows"]),
        ("unival-merge interpolate --missing k", ["keep-first"]),
        ("unival-merge methods dare", ["dare-linear", "dare-ties"]),
    ],
)
def test_shells_complete(typed: str, offered: list[str]) -> None:
    words = {"COMP_WORDS": typed, "COMP_CWORD": str(len(typed.split()) - 1)}
    ran = run(env={"_UNIVAL_MERGE_COMPLETE": "complete_bash", **words})
    assert ran.stdout.split() == offered


def test_the_completion_script_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION", "1")
    ran = run("--show-completion", "bash")
    assert "complete -o default -F _unival_merge_completion unival-merge" in ran.stdout
    assert "--install-completion" in run("--help").stdout


def test_versions() -> None:
    shown = dict(line.split(" ", 1) for line in run("--version").stdout.splitlines())
    assert shown["torch"] == metadata.version("torch")
    assert {"python", "unival-merge", "numpy", "safetensors", "xxhash", "tokenizers", "typer"} <= set(shown)


def test_a_pipe_that_nobody_reads_is_no_traceback() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    ran = subprocess.run(
        [sys.executable, "-m", "merge", "--help"], cwd=ROOT, stdout=writer, stderr=subprocess.PIPE, text=True
    )
    os.close(writer)
    assert (ran.returncode, ran.stderr) == (1, "")


@pytest.mark.parametrize("package", ["merge", "unival_core"])
def test_every_package_runs_its_own_commands(package: str) -> None:
    commands = importlib.import_module(f"{package}.commands")
    shown = CliRunner().invoke(commands.app, ["--help"]).stdout
    for name in TABLE:
        assert (f"\n  {name} " in shown) == (name in commands.COMMANDS)


def test_a_command_imports_no_other() -> None:
    code = "import sys, experiments.commands as c\nfrom typer.testing import CliRunner\n"
    code += "assert CliRunner().invoke(c.app, ['diff', '--help']).exit_code == 0\n"
    code += "print(sorted(name for name in sys.modules if '.commands.' in name), 'torch' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "study" not in ran.stdout
    assert "answering" not in ran.stdout
    assert ran.stdout.endswith("False\n")
