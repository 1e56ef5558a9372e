"""The demonstration, on a dozen rows of everything: from nothing to pages, and nothing a second time."""

import pytest
from typer.testing import CliRunner

from experiments.commands import app
from experiments.errors import StudyError
from experiments.grid.rows import read_rows
from experiments.unival import demo
from experiments.unival.studies import Choice

SMALL = demo.Demo(
    "micro",
    {
        "interpolation": Choice(points=3, kinds=("vanilla",), only="vqa+caption"),
        "averaging": Choice(kinds=("vanilla",)),
    },
    limit=6,
)


def test_from_nothing_to_pages(tmp_path, monkeypatch):
    monkeypatch.setitem(demo.DEMOS, "small", SMALL)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "demo"
    told = CliRunner().invoke(app, ["demo", str(folder), "--preset", "small", "--processes", "1"])
    assert told.exit_code == 0, told.output
    assert set(read_rows(folder / "rows.jsonl")["study"]) == {"interpolation", "averaging"}
    for name in ("interpolation/curves_vqa_caption.png", "averaging/radar.png", "averaging/tables.md"):
        assert (folder / name).stat().st_size > 500
        assert name in told.output or name.endswith("md")
    page = (folder / "interpolation" / "report.html").read_text()
    assert "unival-merge demo" in page
    assert "  - " in told.output  # a finding
    before = (folder / "rows.jsonl").read_bytes()
    assert "\n".join(demo.run_demo(folder, "small", 1, progress=False)) == told.stdout.rstrip("\n")
    assert (folder / "rows.jsonl").read_bytes() == before


def test_demos_have_names(tmp_path):
    with pytest.raises(StudyError, match="no demo 'tiny': choose one of quick, full"):
        list(demo.run_demo(tmp_path, "tiny"))
