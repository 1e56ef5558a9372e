"""What `import experiments` offers, and what the generic wings know."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import experiments
import experiments.unival
from experiments.statistics.selection import Best
from tests import ROOT

WORDS = r"vqa|grounding|caption|entailment|pocket|vanilla|ratatouille|fusing|UnivalModel"
WINGS = ("study", "grid", "tasks", "searches", "results", "statistics", "pages")
GENERIC = [path for wing in WINGS for path in sorted((ROOT / "experiments" / wing).rglob("*.py"))]


def test_the_door_shows_every_name_and_opens_it():
    assert dir(experiments) == sorted(experiments.__all__)
    for name in experiments.__all__:
        assert getattr(experiments, name).__name__.rpartition(".")[2] == name
    with pytest.raises(AttributeError, match="no attribute 'rows'"):
        experiments.rows  # noqa: B018


@pytest.mark.parametrize("door", [experiments, experiments.unival], ids=["experiments", "unival"])
def test_the_table_of_a_door_is_what_type_checkers_see(door):
    source = ast.parse(Path(door.__file__).read_text(encoding="utf-8"))
    taken = [node for node in ast.walk(source) if isinstance(node, ast.ImportFrom) and node.module != "__future__"]
    typed = {name.name: node.module for node in taken for name in node.names if name.name in door._HOME}
    assert typed == {name: f"experiments.{home}" for name, home in door._HOME.items()}
    assert set(door.__all__) - {"StudyError", "tasks"} == set(door._HOME)  # an error, and a wing
    assert dir(door) == sorted(door.__all__)
    for name in door.__all__:
        assert getattr(door, name) is not None


def test_a_best_point_is_a_table_in_notebooks():
    tasks = {("a<b", "accuracy"): (0.5, 0.4, 0.6)}
    best = Best(("a<b", "c"), "plain", "average", {"a<b": 0.5, "c": 0.5}, 0.9, 0.8, tasks)
    assert best._repr_html_() == (
        "<table><caption>a&lt;b+c, plain: 0.50 a&lt;b + 0.50 c</caption>"
        "<tr><th>a&lt;b accuracy</th><td>50.00 [40.00, 60.00]</td></tr></table>"
    )


def test_the_door_is_light():
    code = "import sys, experiments; dir(experiments); print({'torch', 'pandas', 'numpy'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True).stdout == "set()\n"


@pytest.mark.parametrize("path", GENERIC, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_generic_code_knows_no_task_no_kind_and_no_model(path):
    text = path.read_text(encoding="utf-8")
    found = re.findall(WORDS, text, re.IGNORECASE)
    of_figures = path.parent.parent.name == "pages" or path.parent.name == "pages" or "<caption>" in text
    assert not found or (of_figures and set(found) == {"caption"})
    modules = [node.module or "" for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ImportFrom)]
    known = [module for module in modules if module.startswith(("unival_core", "experiments.unival"))]
    assert set(known) <= {"unival_core.metrics"}  # its intervals
