"""What `import experiments` offers, and what the generic wings know."""

import ast
import re
import subprocess
import sys

import pytest

import experiments
from tests import ROOT

WORDS = r"vqa|grounding|caption|entailment|pocket|vanilla|ratatouille|fusing|UnivalModel"
WINGS = ("study", "grid", "search", "statistics", "pages")
GENERIC = [path for wing in WINGS for path in sorted((ROOT / "experiments" / wing).rglob("*.py"))]


def test_the_door_shows_every_name_and_opens_it():
    assert dir(experiments) == sorted(experiments.__all__)
    for name in experiments.__all__:
        assert getattr(experiments, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'rows'"):
        experiments.rows  # noqa: B018


def test_the_door_is_light():
    code = "import sys, experiments; dir(experiments); print({'torch', 'pandas', 'numpy'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True).stdout == "set()\n"


@pytest.mark.parametrize("path", GENERIC, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_generic_code_knows_no_task_no_kind_and_no_model(path):
    text = path.read_text(encoding="utf-8")
    found = re.findall(WORDS, text, re.IGNORECASE)
    assert not found or ("pages" in path.parts and set(found) == {"caption"})  # of a figure or a table
    modules = [node.module or "" for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ImportFrom)]
    known = [module for module in modules if module.startswith(("unival_core", "experiments.unival"))]
    assert set(known) <= {"unival_core.metrics"}  # its intervals
