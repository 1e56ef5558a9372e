"""Writes the tables of docs/methods.md from `METHODS`, the recordings' distances and the last benchmark.

python docs/write_methods.py
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "methods.md"
BENCHMARK = ROOT / "benchmarks" / "results" / "methods.json"
sys.path.insert(0, str(ROOT))

from merge.methods import METHODS, Parameter  # noqa: E402
from merge.recipe.mergekit import named  # noqa: E402
from tests.merge import goldens  # noqa: E402


def render(page: str) -> str:
    """The page with its generated parts renewed; a method without a timing gets "-"."""
    measured = json.loads(BENCHMARK.read_text())["methods"]
    tables = {
        "methods": method_table(measured),
        "parameters": parameter_table(),
        "grids": grid_table(),
        "recordings": markdown(["recipe", "distance", "but for", "remarks"], goldens.rows()),
        "reasons": "".join(f"* {name}: {text}.\n" for name, text in goldens.REASONS.items()),
    }
    for name, text in tables.items():
        begin, end = f"<!-- {name}: written by docs/write_methods.py -->\n", f"<!-- end of {name} -->"
        start, stop = page.index(begin) + len(begin), page.index(end)
        page = page[:start] + text + page[stop:]
    return page


def method_table(measured: Mapping[str, Mapping[str, Any]]) -> str:
    """Every method: formula, inputs, parameters, edge cases, nearness to mergekit, cost, source."""
    near: dict[str, list[str]] = {name: [] for name in METHODS}
    for recipe, entry in goldens.recipes().items():
        near[named(entry["merge_method"], with_base=recipe.endswith("_base"))].append(recipe)
    rows: list[list[str]] = []
    for name, method in METHODS.items():
        cost = measured.get(name)
        told = "-" if cost is None else f"{cost['files_ns_per_byte']:.1f} ({cost['files_over_average']:.1f})"
        parameters = ", ".join(f"`{key}`" for key in method.parameters) or "-"
        row = [f"`{name}`", f"`{method.formula}`", method.needs, parameters, method.edges or "-"]
        rows.append([*row, goldens.summary(near[name]), told, method.source])
    header = ["method", "formula", "inputs", "parameters", "at the edges", "mergekit", "ns per byte (of average)"]
    return markdown([*header, "source"], rows)


def parameter_table() -> str:
    """Every parameter: what it is, its default and range, the methods that have it."""
    found: dict[tuple[str, Parameter], list[str]] = {}
    for name, method in METHODS.items():
        for key, parameter in method.parameters.items():
            found.setdefault((key, parameter), []).append(f"`{name}`")
    rows = [
        [f"`{key}`" + " of each" * item.each, item.help, item.usual, item.range, ", ".join(methods)]
        for (key, item), methods in found.items()
    ]
    return markdown(["parameter", "what it is", "default", "range", "of"], rows)


def grid_table() -> str:
    """The values worth trying of methods that have such."""
    rows = [
        [f"`{name}`", "; ".join(f"`{key}` {', '.join(map(str, values))}" for key, values in method.grid.items())]
        for name, method in METHODS.items()
        if method.grid
    ]
    return markdown(["method", "values worth trying"], rows)


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown; bars in cells are escaped."""
    lines = [header, ["---"] * len(header), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


if __name__ == "__main__":
    PAGE.write_text(render(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
