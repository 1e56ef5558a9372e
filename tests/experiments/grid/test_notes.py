"""What a folder says of its studies: kept beside the rows, each study by itself."""

import pytest

from experiments.errors import StudyError
from experiments.grid.notes import Notes, read_notes, write_notes
from experiments.pages.views import with_chance
from experiments.results.grids import notes_of
from experiments.study.study import Study, Task


def test_notes_of_several_studies_stay(tmp_path):
    assert read_notes(tmp_path, "digits") == Notes()
    write_notes(tmp_path, "digits", Notes("Does it turn?", "here", {"both": {"upright": ["upright"]}}))
    write_notes(tmp_path, "other", Notes("Why?"))
    write_notes(tmp_path, "silent", Notes())
    assert read_notes(tmp_path, "digits") == Notes("Does it turn?", "here", {"both": {"upright": ["upright"]}})
    assert read_notes(tmp_path, "other") == Notes("Why?")
    assert "silent" not in (tmp_path / "study.json").read_text()


def test_files_of_other_experts_and_seeds_stay(tmp_path):
    write_notes(tmp_path, "digits", Notes(files={"up": {"0": ["a.pt", ""]}, "down": {"0": ["d.pt", ""]}}, code="d.py"))
    write_notes(tmp_path, "digits", Notes(files={"up": {"1": ["b.pt", ""], "0": ["c.pt", ""]}}))
    up = {"0": ["c.pt", ""], "1": ["b.pt", ""]}
    assert read_notes(tmp_path, "digits") == Notes(files={"up": up, "down": {"0": ["d.pt", ""]}}, code="d.py")


def test_chance_of_other_splits_stays_and_rows_of_main_metrics_have_it(tmp_path):
    write_notes(tmp_path, "digits", Notes(chance={"up": {"test": 0.1}}))
    write_notes(tmp_path, "digits", Notes(chance={"up": {"noisy": 0.2}, "down": {"test": 0.5}}))
    chance = {"up": {"test": 0.1, "noisy": 0.2}, "down": {"test": 0.5}}
    assert read_notes(tmp_path, "digits").chance == chance
    rows = [{"task": "up", "split": "test", "metric": metric} for metric in ("accuracy", "loss")]
    assert [row.get("chance") for row in with_chance(rows, chance)] == [0.1, None]
    own = {"model": len, "experts": {"up": "u.pt", "down": "d.pt"}, "splits": ("val", "test", "noisy")}
    tasks = {"up": Task(len, chance={"test": 0.1, "noisy": 0.2}), "down": Task(len, chance=0.5), "other": Task(len)}
    noted = notes_of(Study("digits", tasks=tasks, **own)).chance
    assert noted == {"up": {"test": 0.1, "noisy": 0.2}, "down": {"val": 0.5, "test": 0.5, "noisy": 0.5}}
    with pytest.raises(StudyError, match="chance='half' of a task: give a number"):
        Task(len, chance="half")


def test_a_broken_file_is_named(tmp_path):
    for text in ("[]", "{", '{"digits": {"color": 1}}', '{"digits": {"chance": {"up": {"test": "half"}}}}'):
        (tmp_path / "study.json").write_text(text)
        with pytest.raises(StudyError, match=r"study\.json does not describe studies"):
            read_notes(tmp_path, "digits")
