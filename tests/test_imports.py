"""Which package may import what (the dependency rule), read from the sources without running them."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import ROOT

PACKAGES = ("merge", "unival_core", "experiments")
BELOW = {"merge": set(), "unival_core": {"merge"}, "experiments": {"merge", "unival_core"}}
MERGE_NEEDS = {"torch", "numpy", "safetensors", "xxhash", "tqdm"}
OPTIONAL = {  # extras, imported by the function that needs them
    "merge/checkpoint/formats/t5x.py": {"msgpack"},
    "merge/recipe/mergekit.py": {"yaml"},
    "merge/tools/align/assignment.py": {"scipy"},
}
FROM_MERGE = {  # all that unival_core may use
    *("Checkpoint", "open_checkpoint", "save_checkpoint", "MergeError"),
    *("PermutationSpec", "apply_permutation", "patterns", "permutation_spec", "weight_matching"),
}
FILES = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]


def names(path: Path) -> str:
    return str(path.relative_to(ROOT))


def imports(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """Every import of a file, wherever it stands: the module, and the name taken from it ("" for the module itself)."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for item in node.names:
                yield item.name, ""
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative imports hide where a name comes from"
            for item in node.names:
                yield node.module or "", item.name


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def tops(path: Path) -> set[str]:
    """The packages that a file imports from, in code that runs or for types only."""
    return {module.split(".")[0] for module, _ in imports(parsed(path))}


def exported(package: str) -> set[str]:
    """What a package's `__all__` offers."""
    return set(importlib.import_module(package).__all__)


def is_module(dotted: str) -> bool:
    path = ROOT.joinpath(*dotted.split("."))
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def test_there_is_something_to_read() -> None:
    assert len(FILES) > 50
    assert {path.relative_to(ROOT).parts[0] for path in FILES} == set(PACKAGES)


@pytest.mark.parametrize("path", FILES, ids=names)
def test_packages_import_downwards_only(path: Path) -> None:
    package = path.relative_to(ROOT).parts[0]
    assert tops(path) & set(PACKAGES) - {package} <= BELOW[package]


@pytest.mark.parametrize("path", FILES, ids=names)
def test_other_packages_are_used_through_public_names(path: Path) -> None:
    package = path.relative_to(ROOT).parts[0]
    for module, name in imports(parsed(path)):
        top = module.split(".")[0]
        if top == package or top not in PACKAGES:
            continue
        parts = module.split(".") + [name] * bool(name)
        assert not [part for part in parts if part.startswith("_") and part != "__version__"], f"{module}: {name}"
        if module == top and name:
            assert name in exported(top) or is_module(f"{top}.{name}"), f"{top} offers no {name}"


@pytest.mark.parametrize("path", [path for path in FILES if names(path).startswith("unival_core")], ids=names)
def test_unival_core_uses_the_reader_the_writer_and_the_aligner_of_merge_only(path: Path) -> None:
    taken = [(module, name) for module, name in imports(parsed(path)) if module.split(".")[0] == "merge"]
    if names(path) == "unival_core/commands/__init__.py":
        return  # runs its commands through merge.commands.main
    for module, name in taken:
        assert module in ("merge", "merge.errors"), f"from {module} import {name}"
        if name:
            assert name in FROM_MERGE, f"from {module} import {name}"
    attributes = {
        node.attr
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "merge"
    }
    if ("merge", "") in taken:
        assert attributes <= FROM_MERGE


@pytest.mark.parametrize("path", FILES, ids=names)
def test_typer_is_for_command_lines_and_matplotlib_for_plots(path: Path) -> None:
    used = tops(path)
    assert not used & {"typer", "click"} or "commands" in path.parts
    assert not used & {"matplotlib", "pylab", "seaborn"} or {"figures", "world"} & set(path.parts)
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
        at_import = [node for node in runs(parsed(ROOT / name)) if isinstance(node, (ast.Import, ast.ImportFrom))]
        assert not packages & {module.split(".")[0] for node in at_import for module, _ in imports(node)}


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
    for node in runs(parsed(path)):
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
