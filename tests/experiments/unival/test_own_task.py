"""The documented task of one's own, from its file to a study: trained, merged, evaluated and plotted."""

import base64
import importlib.util
import io
import re
import shlex
import shutil

import pytest
from PIL import Image
from typer.testing import CliRunner

import experiments
from experiments.commands import app
from experiments.errors import StudyError
from experiments.unival.pocket.data import rows_file
from experiments.unival.setups import PocketSetup
from experiments.unival.studies import STUDIES, MixtureStudy
from tests import ROOT
from tests.experiments.made_pocket import copied
from unival_core import TASKS

PAGE = (ROOT / "docs" / "task-of-your-own.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture
def counting(tmp_path, monkeypatch):
    """Add the example of the page: its file, and its line in the table."""
    (tmp_path / "counting.py").write_text(BLOCKS[0])
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


def call(*arguments):
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert done.exit_code == 0, done.output
    return done.stdout


def test_a_task_of_ones_own_is_trained_merged_evaluated_and_studied(home, tmp_path, counting, monkeypatch):
    folder = copied(home, tmp_path / "home")
    for split, count in (("train", 70), ("test", 6)):
        write_rows(PocketSetup(folder).pocket().world, split, count)
    shutil.rmtree(folder / "experts")  # those are made up: the study trains its own
    added = dict(STUDIES)
    exec(BLOCKS[1], {"STUDIES": added, "MixtureStudy": MixtureStudy})
    monkeypatch.setitem(STUDIES, "counts", added["counts"])
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    few = ("--processes", "1", "--limit", "4")
    commands = [shlex.split(line)[1:] for line in PAGE.splitlines() if line.startswith("unival-merge ")]
    said = [call(*words, *(few if words[1] == "run" else ())) for words in commands]
    assert "cells evaluated" in said[0]
    rows = experiments.read_rows(folder / "rows.jsonl")
    own = rows[rows["task"] == "counting"]
    assert set(own["metric"]) == {"accuracy", "negative log-likelihood", "confidence"}
    own = own[own["metric"] == "accuracy"]
    assert set(own["point"]) >= {"1.00 counting", "1.00 vqa", "0.50 vqa + 0.50 counting"}
    assert own["value"].between(0, 1).all()
    assert "0 cells evaluated" in call("study", "run", "counts", folder, *few)
    assert list((tmp_path / "figures").rglob("*.png"))
    assert [text.count("counting on home/data/counting/test.tsv: 6 rows") for text in (said[2], said[4])] == [1, 1]


def test_where_its_rows_belong_is_said(home, tmp_path, counting):
    folder = copied(home, tmp_path / "home")
    world = PocketSetup(folder).pocket().world
    with pytest.raises(StudyError, match=r"no counting/test: write it to .*data/counting/test\.tsv"):
        rows_file(world, "counting", "test")
    with pytest.raises(StudyError, match=r"no vqa/nowhere: there are .*train"):
        rows_file(world, "vqa", "nowhere")
