"""The demonstration, on two rows of everything: experts, studies and pages, and nothing a second time."""

import pytest
from typer.testing import CliRunner

from experiments.commands import app
from experiments.errors import StudyError
from experiments.grid.rows import read_rows
from experiments.unival import demo
from experiments.unival.studies import Choice
from tests.experiments.made_pocket import make_pocket

SMALL = demo.Demo(
    "micro",
    {
        "interpolation": Choice(split="val", points=3, kinds=("vanilla",), only="vqa+caption"),
        "averaging": Choice(split="val", kinds=("vanilla",)),
    },
    limit=2,
)


def test_from_a_pretrained_model_to_pages(tmp_path, micro_world, monkeypatch):
    """Its own steps: what comes before them is made from nothing in test_pocket."""
    monkeypatch.setitem(demo.DEMOS, "quick", SMALL)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = make_pocket(tmp_path / "demo", micro_world, ())
    told = CliRunner().invoke(app, ["demo", str(folder), "--processes", "1"])
    assert told.exit_code == 0, told.output
    assert set(read_rows(folder / "rows.jsonl")["study"]) == {"interpolation", "averaging"}
    for name in ("interpolation/curves_vqa_caption.png", "averaging/radar.png", "averaging/tables.md"):
        assert (folder / name).stat().st_size > 500
        assert name in told.output or name.endswith("md")
    page = (folder / "interpolation" / "report.html").read_text()
    assert "unival-merge demo" in page
    assert "  - " in told.output  # a finding
    before = (folder / "rows.jsonl").read_bytes()
    assert "\n".join(demo.run_demo(folder, "quick", 1, progress=False)) == told.stdout.rstrip("\n")
    assert (folder / "rows.jsonl").read_bytes() == before


def test_demos_have_names(tmp_path):
    with pytest.raises(StudyError, match="no demo 'tiny': choose one of quick, full"):
        list(demo.run_demo(tmp_path, "tiny"))
