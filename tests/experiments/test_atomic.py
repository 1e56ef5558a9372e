"""A file is written whole, or stays what it was."""

import resource
from pathlib import Path

import pytest

from experiments.atomic import write_whole
from experiments.errors import StudyError


def test_a_file_has_its_name_only_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "study.json"
    write_whole(path, "é")
    assert path.read_bytes() == "é".encode()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, hard))
    try:
        with pytest.raises(StudyError, match=r"study\.json cannot be written: File too large: the same command"):
            write_whole(path, b"x" * 100)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == "é".encode()
    assert list(path.parent.iterdir()) == [path]
    with pytest.raises(StudyError, match="name another"):
        write_whole(tmp_path / "new", "a folder", "name another")


def test_what_a_killed_run_left_is_written_over(tmp_path: Path) -> None:
    (tmp_path / "a.json.partial").write_text("half")
    write_whole(tmp_path / "a.json", "whole")
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
