"""The demonstration, on two rows of everything: experts, studies and pages, and nothing a second time."""

import re
from urllib.parse import unquote

import pytest
from typer.testing import CliRunner

import merge
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
    for name in ("interpolation/curves_vqa_caption.png", "averaging/tables.md"):
        assert (folder / name).stat().st_size > 500
        assert name in told.output or name.endswith("md")
    page = (folder / "interpolation" / "report.html").read_text()
    assert "unival-merge demo" in page
    assert "put their files in" not in page
    assert "vanilla/vqa/last.safetensors" in page  # in the commands that save models
    assert "  - " in told.output  # a finding
    before = (folder / "rows.jsonl").read_bytes()
    again = list(demo.run_demo(folder, "quick", 1, progress=False))
    *lines, last = told.stdout.splitlines()
    assert "\n".join(again[:-1]).splitlines() == lines
    assert last.startswith(f"open {folder / 'index.html'} (took ")
    page = (folder / "index.html").read_text()
    links = re.findall(r'(?:href|src)="([^"]+)"', page)
    assert {"interpolation/report.html", "averaging/report.html"} <= set(links)
    assert all((folder / unquote(link)).is_file() for link in links), links
    recipe = merge.read_recipe(folder / "merged.safetensors.recipe.json")
    assert (recipe.method, len(recipe.inputs)) == ("average", 4)
    assert "\r" not in told.stderr  # no bars off a terminal
    assert (folder / "rows.jsonl").read_bytes() == before


def test_demos_have_names(tmp_path):
    with pytest.raises(StudyError, match="no demo 'tiny': choose one of quick, full"):
        list(demo.run_demo(tmp_path, "tiny"))


def test_what_a_demo_needs_is_asked_before_anything_starts(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "find_spec", lambda name: None)
    with pytest.raises(StudyError, match=r"pip install 'unival-merge\[world\]'"):
        list(demo.run_demo(tmp_path / "demo"))
    assert not (tmp_path / "demo").exists()
