"""`unival-merge study` on a file that defines a study: written, run, gone on with, shown by the folder alone."""

import json
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import experiments
import merge
from experiments.commands import app
from experiments.grid.rows import read_rows
from tests.experiments import made_study

FILE = """
import experiments
from tests.experiments import made_study
study = made_study.study()
second = made_study.study(name="second", points=3)
"""


def call(*arguments):
    return CliRunner().invoke(app, ["study", *map(str, arguments)])


def told(*arguments):
    """The one line of an error."""
    ran = call(*arguments)
    assert (ran.exit_code, ran.stdout, ran.stderr.count("\n")) == (2, "", 1), ran.output
    return ran.stderr


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "signs.py"
    path.write_text(FILE)
    return path


def contents(folder):
    return read_rows(folder / "rows.jsonl").drop(columns=["seconds"]).sort_values("key").reset_index(drop=True)


def test_a_file_is_run_and_gone_on_with(file, tmp_path):
    folder = tmp_path / "rows"
    dry = call("run", file, folder, "--dry-run")
    assert "30 cells to evaluate at 5 points" in dry.stdout
    assert not folder.exists()
    first = call("run", file, folder, "--split", "test", "--only", "down+up", "--points", "3")
    assert "6 cells evaluated" in first.stdout
    assert "24 cells evaluated, 0 taken from other studies, 6 there already" in call("run", folder).stdout
    assert "0 cells evaluated" in call("run", "signs", folder).stdout
    assert json.loads((folder / "study.json").read_text())["signs"]["code"] == str(file)
    assert call("report", folder).stdout == f"{folder / 'report.html'}\n"
    assert (folder / "figures").exists() is False
    assert call("plot", folder).exit_code == 0
    assert any((folder / "figures").iterdir())
    some = call("plot", folder, "--figures", "curves", "--format", "png", "-o", tmp_path / "some").stdout.split()
    assert some == [str(file) for file in (tmp_path / "some").iterdir()]
    assert all(Path(name).name.startswith("curves_") for name in some)
    assert "no figure 'curve': choose one of retention, " in told("plot", folder, "--figures", "curve")
    assert "interpolate" in call("table", folder).stdout or "0.50 up + 0.50 down" in call("table", folder).stdout


def test_one_of_several_studies_of_a_file(file, tmp_path):
    folder = tmp_path / "rows"
    assert call("run", f"{file}:second", folder, "--batchnorm", "from:up").exit_code == 0
    assert set(read_rows(folder / "rows.jsonl")["batchnorm"]) == {"average", "from:up"}
    assert set(read_rows(folder / "rows.jsonl")["study"]) == {"second"}
    assert call("run", file, folder).exit_code == 0
    assert "holds second, signs: give a study and a folder" in told("report", folder)
    assert call("report", "second", folder).exit_code == 0


def test_processes_of_the_command_line_give_the_same_rows(file, tmp_path):
    assert call("run", file, tmp_path / "one").exit_code == 0
    ran = call("run", file, tmp_path / "two", "--processes", "2")
    assert ran.exit_code == 0, ran.output
    assert "everything runs in this one" not in ran.output
    assert contents(tmp_path / "two").equals(contents(tmp_path / "one"))


def test_mistakes_are_one_line(file, tmp_path):
    folder = tmp_path / "rows"
    assert "no such file: `unival-merge study new" in told("run", tmp_path / "none.py", folder)
    assert "say also in which folder" in told("run", file)
    assert "holds no rows of a study: give a study and a folder" in told("report", folder)
    assert "--limit is for the studies of `study list`" in told("run", file, folder, "--limit", "3")
    assert "defines no study 'third': choose one of" in told("run", f"{file}:third", folder)
    assert "no split 'tset'" in told("run", file, folder, "--split", "tset")
    assert "give a study and a folder" in told("run", file, folder, "more")
    broken = tmp_path / "broken.py"
    broken.write_text("import experiments\n\nstudy = experiments.Studdy()\n")
    assert "broken.py:3: AttributeError" in told("run", broken, folder)
    broken.write_text("study = (\n")
    assert "broken.py:1: SyntaxError" in told("run", broken, folder)
    broken.write_text("import a_package_that_is_not_there\n")
    assert f"install it for {sys.executable}" in told("run", broken, folder)
    empty = tmp_path / "empty.py"
    empty.write_text("")
    assert "defines no study: write `study = experiments.Study(...)`" in told("run", empty, folder)


def test_a_new_study_is_a_file_that_runs(tmp_path):
    """That it runs is seen by test_examples."""
    file = tmp_path / "mine" / "digits_study.py"
    assert call("new", file).stdout.startswith(f"{file}: run it with unival-merge study run")
    compile(file.read_text(), str(file), "exec")
    assert "exists: name another file" in told("new", file)
    assert "call it study.txt.py" in told("new", tmp_path / "study.txt")
    assert Path(file).read_text().count("experiments.Study(") == 1


def test_the_best_is_printed_searched_and_saved(file, tmp_path):
    folder = tmp_path / "rows"
    assert "looks too good there: choose it with --split val" in told(
        "run", file, folder, "--split", "test", "--save", "best"
    )
    ran = call("run", file, folder, "--points", "3", "--save", "best")
    saved, _, label = ran.stdout.splitlines()[-1].partition(": ")
    assert saved == str(folder / "best" / "signs-up+down-expert-seed-0.safetensors")
    (line,) = call("best", folder).stdout.splitlines()
    assert line.startswith(label.partition(" on val")[0])
    assert " on test" in line
    assert call("best", folder, "--only", "down+up").stdout == f"{line}\n"
    shares = [float(word) for word in label.split() if word.startswith(("0.", "1.00"))][: label.count(" + ") + 1]
    ends = [made_study.weights(seed) for seed in (1, 2)]
    wanted = merge.interpolate(*ends, shares[1]) if len(shares) == 2 else ends["down" in label.partition(": ")[2]]
    assert all(torch.equal(value, wanted[name]) for name, value in merge.load_checkpoint(saved).items())

    found = call("search", folder, "--method", "grid", "--budget", "5")
    assert "2 of 5 evaluations, 3 points were known: nothing more to ask" in found.stdout
    assert "0.25 up + 0.75 down" in found.stderr
    assert json.loads((folder / "study.json").read_text())["signs"]["code"] == str(file)
    assert "12 cells evaluated, 0 taken from other studies, 18 there already" not in call("run", folder).stdout


def test_best_and_search_tell_what_there_is_not(file, tmp_path):
    folder = tmp_path / "rows"
    assert call("run", file, folder, "--points", "2", "--split", "test").exit_code == 0
    assert "rows.jsonl: no such file" in told("best", file, tmp_path / "none")
    assert "there are no merged points on val: evaluate split val first" in told("best", folder)
    assert "signs: no mixture 'up+left': choose of up+down" in told("search", folder, "--only", "up+left")
    assert "points chosen on split 'test' look too good there" in told("search", folder, "--split", "test")
    assert "--limit is for the studies of `study list`" in told("search", folder, "--limit", "3")


def test_a_folder_of_a_study_that_no_file_defines(tmp_path):
    """As `experiments.run` leaves it: what is read from rows is there, what evaluates asks for the file."""
    experiments.run(made_study.study(points=3), tmp_path, progress=False)
    assert call("best", tmp_path).stdout.startswith("up+down: ")
    for command in ("run", "search"):
        assert f"does not say which file defines signs: give it, as `FILE.py {tmp_path}`" in told(command, tmp_path)
