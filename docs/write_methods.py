"""Writes the tables of docs/methods.md from `METHODS`, the recordings' distances and the last benchmark.

python docs/write_methods.py
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "methods.md"
BENCHMARK = ROOT / "benchmarks" / "results" / "methods.json"


def tables() -> dict[str, str]:
    """The generated parts of the page by name."""
    sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "merge")]
    import goldens

    from merge.methods import METHODS
    from merge.methods.describe import method_table, parameter_table
    from merge.recipe.mergekit import named

    measured = json.loads(BENCHMARK.read_text())["methods"]
    costs = {
        name: f"{measured[name]['files_ns_per_byte']:.1f} ({measured[name]['files_over_average']:.1f})"
        for name in METHODS
    }
    near: dict[str, list[str]] = {name: [] for name in METHODS}
    for recipe, entry in goldens.recipes().items():
        near[named(entry["merge_method"], with_base=recipe.endswith("_base"))].append(recipe)
    parity = {name: goldens.summary(recipes) for name, recipes in near.items()}
    return {
        "methods": method_table({"mergekit": parity, "ns per byte (of average)": costs}),
        "parameters": parameter_table(),
        "recordings": goldens.table(),
        "reasons": "".join(f"* {name}: {text}.\n" for name, text in goldens.REASONS.items()),
    }


def render(page: str) -> str:
    """The page with its generated parts renewed."""
    for name, text in tables().items():
        begin, end = f"<!-- {name}: written by docs/write_methods.py -->\n", f"<!-- end of {name} -->"
        start, stop = page.index(begin) + len(begin), page.index(end)
        page = page[:start] + text + page[stop:]
    return page


if __name__ == "__main__":
    PAGE.write_text(render(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
