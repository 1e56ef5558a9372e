"""Advice can be followed: what errors and findings tell to pass is an argument, and an option of a command."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

import pytest

import merge
from merge.commands import COMMANDS
from merge.commands.table import _page, in_options
from merge.plan.findings import FINDINGS
from tests import ROOT

# As errors write an argument: keep='GLOB', overwrite=True, rank=..., keep=['a', 'b'].
ARGUMENT = re.compile(r"(?<![\w.'(\[])([a-z_]+)=(?=True\b|\.{3}|'|\"|\[|\{)")
# Arguments of formats' own functions and of other programs, which are told where one calls them.
OTHERS = {"requires_grad", "weights_only"}
# Commands that merge by a policy; `doctor` speaks of the merge to come.
MERGING = ["merge", "interpolate", "average", "task-arithmetic", "slerp", "sweep", "run"]
MERGING += ["extract", "graft", "doctor"]


def texts() -> Iterator[tuple[str, str]]:
    """Every text of an error, and of a finding's advice, with the place that it is written at."""
    for path in sorted((ROOT / "merge").rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            raised = isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("MergeError", "Seen", "finding")
            named = isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") in ("advice", "ways", "told")
            if isinstance(node, (ast.Call, ast.Assign)) and (raised or named):
                yield f"{path.relative_to(ROOT)}:{node.lineno}", "".join(_words(node))


def _words(node: ast.AST) -> Iterator[str]:
    """The constant text below a node, in order; what is filled in is "X"."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    elif isinstance(node, ast.FormattedValue):
        yield "'X'" if node.conversion == ord("r") else "X"
    else:
        for child in ast.iter_child_nodes(node):
            yield from _words(child)


def arguments() -> set[str]:
    """The arguments that functions and data classes of the door take."""
    found: set[str] = set()
    for name in merge.__all__:
        item: Any = getattr(merge, name)
        for one in (item, *(vars(item).values() if isinstance(item, type) else ())):
            if is_dataclass(one):
                found |= {field.name for field in fields(one)}
            elif inspect.isfunction(one) or (inspect.isclass(one) and not issubclass(one, Exception)):
                found |= set(inspect.signature(one).parameters)
    for method in merge.METHODS.values():
        found |= set(method.parameters)
    return found | OTHERS


def test_every_argument_that_is_advised_is_there() -> None:
    known = arguments()
    wrong = {where: name for where, text in texts() for name in ARGUMENT.findall(text) if name not in known}
    assert wrong == {}
    assert sum(bool(ARGUMENT.search(text)) for _, text in texts()) > 25  # the net catches something


def test_the_library_speaks_pythons_words() -> None:
    wrong = {
        where: text
        for where, text in texts()
        if not where.startswith("merge/commands") and re.search(r"\s--[a-z]", text)
    }
    assert wrong == {}


def options(command: str) -> set[str]:
    return {option for param in _page(command, COMMANDS[command]).params for option in param.opts}


@pytest.mark.parametrize("command", MERGING)
def test_every_command_that_merges_has_what_a_plan_advises(command: str) -> None:
    have: set[str] = options(command)
    advised = {name for where, text in texts() if where.startswith("merge/plan") for name in ARGUMENT.findall(text)} - {
        "policy"
    }
    words = {"slices": "slice"}
    lacking = {name for name in advised if f"--{str(words.get(name, name)).replace('_', '-')}" not in have}
    assert lacking == set()


@pytest.mark.parametrize("code", FINDINGS)
def test_options_of_the_page_are_there(code: str) -> None:
    for match in re.finditer(r"`([a-z_]+)`", FINDINGS[code].advice):
        name = match[1]
        assert name in COMMANDS or f"--{name}".replace("_", "-") in options("average"), name


def test_arguments_become_options_as_a_shell_reads_them() -> None:
    page = _page("average", COMMANDS["average"])
    for text, told in (
        ("keep='head.*'", "--keep 'head.*'"),
        ("keep=['a.*', 'b']", "--keep 'a.*' --keep b"),
        ("rename='b:_orig_mod.='", "--rename b:_orig_mod.="),
        ("rename=['b:*.m.*=*.*', 'b:x.=']", "--rename 'b:*.m.*=*.*' --rename b:x.="),
        ("dequantize=True", "--dequantize"),
        ("accept='config-meaning'", "--accept config-meaning"),
        ("state['a'] = state['b']", "state['a'] = state['b']"),
    ):
        assert in_options(text, page) == told
