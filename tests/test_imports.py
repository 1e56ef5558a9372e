"""The dependency rule, read from the sources without running them: wings, floors, doors, what is imported where."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import ROOT, house

FILES = list(house.modules().values())
MERGE_NEEDS = {"torch", "numpy", "safetensors", "xxhash", "tqdm"}
OPTIONAL = {  # extras, imported by the function that needs them
    "merge/checkpoint/formats/t5x.py": {"msgpack"},
    "merge/checkpoint/hub.py": {"huggingface_hub"},
    "merge/plan/tokens.py": {"tokenizers"},
    "merge/recipe/mergekit.py": {"yaml"},
    "merge/recipe/templates.py": {"jinja2"},
    "merge/tools/align/assignment.py": {"scipy"},
}
FROM_MERGE = {  # all that unival_core may use
    *("Checkpoint", "open_checkpoint", "save_checkpoint", "alone", "MergeError"),
    *("Alignment", "PermutationSpec", "align_checkpoint", "patterns", "permutation_spec"),
}
LONGEST = 400  # lines of a file


def names(path: Path) -> str:
    return str(path.relative_to(ROOT))


def tops(path: Path) -> set[str]:
    """The packages that a file imports from, in code that runs or for types only."""
    return {house.package_of(module) for module, _, _ in house.imports(path)}


def test_there_is_something_to_read() -> None:
    assert len(FILES) > 100
    assert {path.relative_to(ROOT).parts[0] for path in FILES} == set(house.WINGS)
    assert sum(len(targets) for targets in house.graph().values()) > 300


def test_files_import_from_wings_below_their_own() -> None:
    assert house.climbs() == []


def test_no_files_import_each_other() -> None:
    assert house.circles() == []


def test_other_packages_are_used_through_their_doors() -> None:
    assert house.strangers() == []


def test_the_studies_of_any_model_know_nothing_of_unival() -> None:
    """Only the built-in study and the commands import the model; intervals are written once, beside its metrics."""
    for module, path in house.modules().items():
        if house.package_of(module) == "experiments" and house.wing_of(module) not in ("", "unival", "commands"):
            taken = {source for source, _, _ in house.imports(path) if house.package_of(source) == "unival_core"}
            assert taken <= {"unival_core.metrics"}, module


def test_what_breaks_the_rules_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests above can fail: an import that climbs, a circle and a name past the door are all told."""
    graph = {**house.graph(), "merge.errors": {"merge.engine.kernel": 3}}
    monkeypatch.setattr(house, "graph", lambda: graph)
    assert house.climbs() == ["merge.errors:3 imports merge.engine.kernel"]
    assert any({"merge.errors", "merge.engine.kernel"} <= set(group) for group in house.circles())
    monkeypatch.setattr(house, "offered", lambda module: frozenset())
    assert any("merge" in line and "__all__ does not offer" in line for line in house.strangers())


@pytest.mark.parametrize("path", FILES, ids=names)
def test_files_are_short_and_named_apart(path: Path) -> None:
    """No file is long, and none lies beside a folder of its name or of its name's plural."""
    assert house.lines([path]) <= LONGEST
    assert not any((path.parent / f"{path.stem}{ending}").is_dir() for ending in ("", "s", "es"))


def test_tests_mirror_the_packages() -> None:
    for package, wings in house.WINGS.items():
        folders = {path.name for path in (ROOT / "tests" / package).iterdir() if path.is_dir()} - {"__pycache__"}
        assert folders <= set(wings), f"tests/{package} has folders that are no wings"


def test_unival_core_uses_the_reader_the_writer_and_the_aligner_of_merge_only() -> None:
    for module, path in house.modules().items():
        if house.package_of(module) != "unival_core" or house.wing_of(module) == "commands":
            continue
        nodes = [node for node in ast.walk(house.parsed(path)) if isinstance(node, ast.Attribute)]
        used = {node.attr for node in nodes if isinstance(node.value, ast.Name) and node.value.id == "merge"}
        used |= {name for source, name, _ in house.imports(path) if house.package_of(source) == "merge" and name}
        assert used <= FROM_MERGE, module


@pytest.mark.parametrize("path", FILES, ids=names)
def test_typer_is_for_command_lines_and_matplotlib_for_plots(path: Path) -> None:
    used = tops(path)
    assert not used & {"typer", "click"} or "commands" in path.parts
    assert not used & {"matplotlib", "pylab", "seaborn"} or names(path).startswith("experiments/pages/figures")
    if not names(path).startswith("experiments"):
        assert "pandas" not in used


@pytest.mark.parametrize("path", [path for path in FILES if names(path).startswith("merge/")], ids=names)
def test_merge_needs_little(path: Path) -> None:
    allowed = MERGE_NEEDS | set(sys.stdlib_module_names) | {"merge"}
    if "commands" in path.parts:
        allowed |= {"typer"}
    assert tops(path) <= allowed | OPTIONAL.get(names(path), set())


def test_optional_packages_are_imported_where_they_are_needed() -> None:
    for name, packages in OPTIONAL.items():
        at_import = [node for node in runs(house.parsed(ROOT / name)) if isinstance(node, (ast.Import, ast.ImportFrom))]
        taken = {item.name for node in at_import if isinstance(node, ast.Import) for item in node.names}
        taken |= {node.module or "" for node in at_import if isinstance(node, ast.ImportFrom)}
        assert not packages & {module.split(".")[0] for module in taken}


def runs(tree: ast.Module) -> Iterator[ast.stmt]:
    """The statements that importing a module executes, into branches but not into functions."""
    stack: list[ast.stmt] = list(tree.body)
    while stack:
        node = stack.pop()
        yield node
        for field in ("body", "orelse", "finalbody"):
            if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                stack += getattr(node, field, [])


@pytest.mark.parametrize("path", FILES, ids=names)
def test_nothing_happens_at_import(path: Path) -> None:
    """Definitions only: no call stands alone, no loop, no assertion, nothing is opened or printed."""
    if path.name == "__main__.py":
        return
    for node in runs(house.parsed(path)):
        line = f"{names(path)}:{node.lineno}"
        assert not isinstance(node, (ast.For, ast.While, ast.With, ast.Assert, ast.Delete)), line
        if isinstance(node, ast.Try):  # an import that some systems lack
            assert all(isinstance(inner, (ast.Import, ast.ImportFrom)) for inner in node.body), line
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            called = ast.unparse(node.value.func)
            assert called.endswith(".add_typer"), f"{line}: {called}() runs at import"


def python(code: str) -> str:
    ran = subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def test_importing_the_command_lines_prints_nothing_and_loads_nothing_heavy() -> None:
    heavy = ["torch", "numpy", "pandas", "matplotlib", "safetensors", "tokenizers"]
    code = "import sys, merge, merge.commands, unival_core, experiments, experiments.commands\n"
    code += "assert merge.__version__ and merge.MergeError\n"
    code += f"print([name for name in {heavy} if name in sys.modules], end='')"
    assert python(code) == "[]"


@pytest.mark.parametrize("arguments", [("--help",), ("interpolate", "--help"), ("--version",)], ids=" ".join)
def test_help_does_not_load_torch(arguments: tuple[str, ...]) -> None:
    command = [sys.executable, "-X", "importtime", "-m", "experiments", *arguments]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = {line.rpartition("|")[2].strip() for line in ran.stderr.splitlines() if line.startswith("import time:")}
    assert "typer" in loaded
    assert not loaded & {"torch", "numpy", "pandas", "matplotlib"}
    assert ran.stdout


def test_loading_a_public_name_of_merge_loads_torch_then() -> None:
    code = "import sys, merge\nassert 'torch' not in sys.modules\nmerge.interpolate\nprint('torch' in sys.modules)"
    assert python(code) == "True\n"


def test_words_that_name_a_piece_of_work_are_the_name_of_one_class_each() -> None:
    """A reader who searches for `class Cell` finds the cell; the cells of other tables are called by other words."""
    words = {"Plan", "Job", "Cell", "Row", "Setting", "Slot", "Summary", "Point"}
    found = [
        node.name
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef)
    ]
    assert sorted(word for word in words if found.count(word) > 1) == []
