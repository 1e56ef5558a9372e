"""What a folder says of its studies: kept beside the rows, each study by itself."""

import pytest

from experiments.errors import StudyError
from experiments.grid.notes import Notes, read_notes, write_notes


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


def test_a_broken_file_is_named(tmp_path):
    for text in ("[]", "{", '{"digits": {"color": 1}}'):
        (tmp_path / "study.json").write_text(text)
        with pytest.raises(StudyError, match=r"study\.json does not describe studies"):
            read_notes(tmp_path, "digits")
