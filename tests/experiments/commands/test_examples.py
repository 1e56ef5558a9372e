"""The examples of the help texts of studies run as they stand, on made rows."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from experiments.commands import app
from tests.experiments.commands.test_table import examples, page
from tests.experiments.study_rows import write_study


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folders that the examples name, with a few rows of their studies."""
    folder = tmp_path_factory.mktemp("examples")
    few = {"only": "vqa+caption", "points": 3, "kinds": ("vanilla",)}
    for split in ("val", "test"):
        write_study(folder / "pocket-full", "interpolation", split=split, **few)
    write_study(folder / "results" / "pocket-interpolation", "interpolation", split="val", **few)
    write_study(folder / "results" / "pocket-averaging", "averaging", points=2, kinds=("vanilla",))
    return folder


@pytest.mark.parametrize("name", ["study list", "study best", "study table", "study report", "study plot"])
def test_the_example_runs(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(folder)
    shown = examples(page(app, name))
    assert shown
    for words in shown:
        ran = CliRunner().invoke(app, words)
        assert ran.exit_code == 0, ran.output
        assert ran.stdout or name == "study plot"
