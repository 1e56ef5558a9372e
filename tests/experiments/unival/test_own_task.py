"""The documented task of one's own, from its file to a study: trained, merged, evaluated and plotted."""

import base64
import importlib.util
import io
import re
import shutil
from dataclasses import replace

import pytest
from PIL import Image
from typer.testing import CliRunner

import experiments
from experiments.commands import app
from experiments.errors import StudyError
from experiments.unival.pocket.data import rows_file
from experiments.unival.setups import PocketSetup
from experiments.unival.studies import STUDIES
from tests import ROOT
from tests.experiments.made_pocket import TINY, copied
from unival_core import TASKS


@pytest.fixture
def counting(tmp_path, monkeypatch):
    """Add the example of docs/tasks.md: its file, and its line in the table."""
    code = re.search(r"```python\n(.*?)```", (ROOT / "docs" / "tasks.md").read_text(), re.DOTALL)
    (tmp_path / "counting.py").write_text(code[1])
    spec = importlib.util.spec_from_file_location("counting", tmp_path / "counting.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setitem(TASKS, "counting", module.TASK)
    return module.TASK


def write_rows(world, split, count):
    """Rows of the task in the folder where the pocket setup looks for tasks that the world does not have."""
    folder = world.parent / "data" / "counting"
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for row in range(count):
        image = io.BytesIO()
        Image.new("RGB", (48, 48), (row * 20, 0, 90)).save(image, "PNG")
        lines.append(f"{row}\t{base64.urlsafe_b64encode(image.getvalue()).decode()}\tdigit\t{row % 4}\n")
    (folder / f"{split}.tsv").write_text("".join(lines))


def study_of(name, **fields):
    return replace(
        TINY, name=name, experts={"vqa": "vqa", "counting": "counting"}, mixtures=(("vqa", "counting"),), **fields
    )


def call(*arguments):
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert done.exit_code == 0, done.output
    return done.stdout


def test_a_study_of_a_task_of_ones_own(home, tmp_path, counting, monkeypatch):
    folder = copied(home, tmp_path / "home")
    for split, count in (("train", 70), ("test", 6)):
        write_rows(PocketSetup(folder).pocket().world, split, count)
    shutil.rmtree(folder / "experts")  # those are made up: the study trains its own
    pair = {"vqa": "vqa", "counting": "counting"}
    monkeypatch.setitem(STUDIES, "counts", replace(TINY, name="counts", experts=pair, mixtures=(tuple(pair),)))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    said = call("study", "run", "counts", folder, "--train", "--processes", "1", "--limit", "4")
    assert "cells evaluated" in said
    rows = experiments.read_rows(folder / "rows.jsonl")
    own = rows[rows["task"] == "counting"]
    assert set(own["metric"]) == {"accuracy", "negative log-likelihood", "confidence"}
    own = own[own["metric"] == "accuracy"]
    assert set(own["point"]) >= {"1.00 counting", "1.00 vqa", "0.50 vqa + 0.50 counting"}
    assert own["value"].between(0, 1).all()
    assert "0 cells evaluated" in call("study", "run", "counts", folder, "--processes", "1", "--limit", "4")
    call("study", "plot", "counts", folder, "-o", tmp_path / "figures")
    assert list((tmp_path / "figures").rglob("*.png"))


def test_where_its_rows_belong_is_said(home, tmp_path, counting):
    folder = copied(home, tmp_path / "home")
    world = PocketSetup(folder).pocket().world
    with pytest.raises(StudyError, match=r"no counting/test: write it to .*data/counting/test\.tsv"):
        rows_file(world, "counting", "test")
    with pytest.raises(StudyError, match=r"no vqa/nowhere: there are .*train"):
        rows_file(world, "vqa", "nowhere")
