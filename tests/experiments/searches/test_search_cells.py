"""A search on the grid of two made experts: its points are ordinary rows, and rows are its cache."""

import pytest
from typer.testing import CliRunner

from experiments.commands import app
from experiments.commands.search import report, trial_line
from experiments.errors import StudyError
from experiments.grid.engines.local import evaluate
from experiments.grid.grid import Grid, run_cells
from experiments.grid.notes import Notes, read_notes, write_notes
from experiments.grid.rows import read_rows
from experiments.searches.cells import Mixture
from experiments.searches.driver import search
from experiments.searches.methods import SEARCHES
from experiments.searches.space import Space
from experiments.unival.setups import PocketSetup
from experiments.unival.studies import STUDIES, Choice
from experiments.unival.subject import UnivalSubject
from tests.experiments.made_pocket import TINY, copied


def mixture_of(home, folder, choice, study=TINY):
    (experts,) = study.mixtures_of(choice)
    return Mixture(Grid("tiny", UnivalSubject(PocketSetup(home), 2)), experts, folder, split=choice.split)


def test_points_are_rows_of_the_study_and_known_rows_cost_nothing(home, tmp_path):
    choice = Choice(split="val")
    mixture = mixture_of(home, tmp_path, choice)
    run_cells(mixture.grid, TINY.cells(choice), tmp_path, evaluate, progress=False)
    before = read_rows(tmp_path / "rows.jsonl")
    assert len(mixture.known()) == 3  # both ends and the middle
    asked = []

    def scores(shares):
        asked.append(shares["vqa"])
        # Made experts know nothing: the ends get something to be measured by.
        return {task: score + 0.5 for task, score in mixture.evaluate(shares).items()}

    known = [(shares, {task: score + 0.5 for task, score in found.items()}) for shares, found in mixture.known()]
    history = search(mixture.space, "grid", scores, 5, known=known)
    assert (history.evaluations, history.cached, sorted(asked)) == (2, 3, [0.25, 0.75])
    after = read_rows(tmp_path / "rows.jsonl")
    added = after[~after["key"].isin(before["key"])]
    assert sorted(added["point"]) == 6 * ["0.25 vqa + 0.75 entailment"] + 6 * ["0.75 vqa + 0.25 entailment"]
    assert sorted(added["task"]) == sorted(3 * (2 * ["entailment"] + 2 * ["vqa"]))
    assert set(added["study"]) == {"tiny"}
    assert set(added["split"]) == {"val"}
    finer = TINY.cells(Choice(split="val", points=5))
    whole = run_cells(mixture.grid, finer, tmp_path, evaluate, progress=False)
    assert whole.evaluated == 0  # what the search has evaluated, the grid takes over
    assert len(mixture_of(home, tmp_path, choice).known()) == 5
    told = report(history, mixture.space)
    assert "2 of 5 evaluations, 3 points were known: nothing more to ask" in told
    assert told.count("known") == 4


def test_names_are_printed_as_they_can_be_seen():
    space = Space({"a\x1b[31m": "t\n", "b": "b"})
    history = search(space, "grid", lambda shares: dict.fromkeys(space.tasks, 0.5), 2)
    lines = [*report(history, space).split("\n"), trial_line({"a\x1b[31m": 1.0}, {"t\n": 0.5})]
    assert len(lines) == len(history.trials) + 3
    assert all(line.isprintable() for line in lines)


def test_the_command_searches_validation_splits_only(home, tmp_path):
    folder = copied(home, tmp_path / "home")  # the expert that is there gets its row
    arguments = ["study", "search", "interpolation", str(folder), "--only", "vqa+caption", "--split"]
    outcome = CliRunner().invoke(app, [*arguments, "test"])
    assert outcome.exit_code == 2
    assert "points chosen on split 'test' look too good there" in outcome.stderr
    outcome = CliRunner().invoke(app, [*arguments, "val"])
    assert "vanilla/caption of seed 0: add --train" in outcome.stderr


def test_what_cannot_be_searched_is_told(home, tmp_path):
    search = ["study", "search", "interpolation", str(home)]
    for more, message in (
        ([], "has 5 mixtures of vanilla: choose one with --only of vqa+caption"),
        (["--kind", "joint", "--only", "vqa+caption"], "has 0 mixtures of joint"),
        (["--kind", "fusing"], "has no experts 'fusing'"),
    ):
        told = CliRunner().invoke(app, [*search, *more])
        assert told.exit_code == 2
        assert message in told.stderr
    with pytest.raises(StudyError, match="'test' look too good"):
        mixture_of(home, tmp_path, Choice())
    with pytest.raises(StudyError, match="each for a task of its own"):
        mixture_of(home, tmp_path, Choice(split="val"), STUDIES["rewarded-soups"])
    with pytest.raises(StudyError, match="study pretraining mixes nothing"):
        STUDIES["pretraining"].mixtures_of(Choice())


def test_every_search_is_whole_and_in_the_help():
    lacking = [name for name, entry in SEARCHES.items() if not (entry.help and entry.function.__doc__)]
    assert lacking == []
    told = " ".join(CliRunner().invoke(app, ["study", "search", "--help"], env={"COLUMNS": "300"}).output.split())
    assert [name for name in SEARCHES if name not in told] == []


def test_a_search_leaves_what_the_folder_says_of_the_study(home, tmp_path):
    notes = Notes("Why?", "here")
    write_notes(tmp_path, "tiny", notes)
    mixture_of(home, tmp_path, Choice(split="val")).evaluate({"vqa": 1.0})
    assert read_notes(tmp_path, "tiny") == notes
