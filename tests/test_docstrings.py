"""Docstrings of functions say what to expect of a call: they begin with a verb, as "Return the rows of a file"."""

from __future__ import annotations

import ast

import pytest

from tests import house

PACKAGES = ("unival_core", "experiments")
# Read as verbs at the start of a sentence. Words that are nouns at least as often (count, sum, mean, number, name, ...)
# have to stand before an article or such, so that "Count of rows" and "Mean score" fail, and "Count the rows" does not.
_VERBS = """
    Add Answer Append Ask Attend Average Bisect Break Call Choose Claim Clean Clip Close Collect Compare Compute
    Concatenate Copy Correct Cut Decode Descend Describe Do Draw Embed Evaluate Find Finetune Fit Gather Give Go Guess
    Hand Join Keep Leave Let List Load Look Lower Make Measure Merge Move Open Pack Pair Pick Prepare Pretrain Print
    Put Quote Raise Rank Read Reckon Refer Remove Replace Reshape Return Round Run Sample Save Say Scale Search Set
    Show Split Start Subtract Summarise Tabulate Take Teach Tell Test Tokenise Train Turn Undo Wait Weigh Write
    Yield
"""
_BEHIND = """
    a all an as at by each every everything files how in it its one so that the these this those what where which
    whether
"""
VERBS, BEHIND = frozenset(_VERBS.split()), frozenset(_BEHIND.split())
EITHER = frozenset(("Count", "Mean", "Name", "Note", "Number", "Reward", "Score", "Seed", "State", "Sum"))


def starts_with_a_verb(text: str) -> bool:
    """Tell whether a docstring begins as an instruction does."""
    first, second = [*(word.strip("`,.:;()\"'") for word in text.split()[:2]), ""][:2]
    return first in VERBS or (first in EITHER and (second in BEHIND or second.isdecimal()))


def without_a_verb(tree: ast.Module) -> list[str]:
    """List the public functions whose docstring begins otherwise, with that beginning."""
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    told = {node: ast.get_docstring(node) for node in functions if not node.name.startswith("_")}
    return [
        f"{node.lineno} {node.name}: {text[:40]}"
        for node, text in told.items()
        if text and not starts_with_a_verb(text)
    ]


@pytest.mark.parametrize("package", PACKAGES)
def test_functions_are_described_by_what_they_do(package: str) -> None:
    files = [path for path in house.modules().values() if path.is_relative_to(house.ROOT / package)]
    assert len(files) > 50
    assert [f"{path}:{line}" for path in files for line in without_a_verb(house.parsed(path))] == []


@pytest.mark.parametrize(
    ("text", "good"),
    [
        ("Return the rows.", True),
        ("Count the rows.", True),
        ("Count of the rows.", False),
        ("Mean score of a model.", False),
        ("The rows of a file.", False),
        ("Whether there are rows.", False),
        ("Counts the rows.", False),
        ("Rows as plain dicts.", False),
    ],
)
def test_a_noun_at_the_start_is_found(text: str, good: bool) -> None:
    tree = ast.parse(f'def rows():\n    """{text}"""\n')
    assert without_a_verb(tree) == ([] if good else [f"1 rows: {text[:40]}"])
