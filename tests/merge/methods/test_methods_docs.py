"""The page on methods says what the code does: its tables are those that the code writes."""

from __future__ import annotations

import runpy

from merge.methods import METHODS
from tests import ROOT

DOCS = ROOT / "docs"
PAGE = (DOCS / "methods.md").read_text(encoding="utf-8")


def test_the_tables_are_up_to_date() -> None:
    render = runpy.run_path(str(DOCS / "write_methods.py"))["render"]
    assert render(PAGE) == PAGE, "run python docs/write_methods.py"


def test_every_method_has_a_whole_row() -> None:
    rows = [line for line in PAGE.splitlines() if line.startswith("| `")]
    for name in METHODS:
        row = next(line for line in rows if line.startswith(f"| `{name}` |"))
        cells = [cell.strip() for cell in row.replace("\\|", "").strip("|").split("|")]
        assert len(cells) == 8
        assert all(cells), row


def test_every_method_tells_its_edges_and_source() -> None:
    for name, method in METHODS.items():
        assert method.edges, name
        assert method.source, name
        assert method.formula, name
