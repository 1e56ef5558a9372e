"""Answers as servers take them."""

import json
from pathlib import Path
from typing import Any

import pytest

from unival_core.errors import UnivalError
from unival_core.evaluation import NO_BOX, Prediction
from unival_core.submission import write_submission
from unival_core.tasks import TASKS


def said(name: str, answer: Any) -> Prediction:
    return Prediction(name, "a.tsv:1", answer, 0.0, None, 1.0)


def test_entries_have_the_names_that_their_servers_read(tmp_path: Path) -> None:
    answers = [said("262148000", "red"), said(" 7 ", "two")]
    file = tmp_path / "vqa.json"
    write_submission(file, answers, TASKS["vqa"])
    assert json.loads(file.read_text()) == [
        {"question_id": 262148000, "answer": "red"},
        {"question_id": 7, "answer": "two"},
    ]
    captions = [said("9", "a dog"), said("9", "a cat"), said("im-1", "a café")]  # the first of an image counts
    write_submission(file, captions, TASKS["caption"])
    assert json.loads(file.read_text()) == [
        {"image_id": 9, "caption": "a dog"},
        {"image_id": "im-1", "caption": "a café"},
    ]
    write_submission(file, [said("3", (1.0, 2.0, 3.5, 4.0))], TASKS["grounding-refcocog"])
    assert json.loads(file.read_text()) == [{"uniq_id": 3, "box": [1.0, 2.0, 3.5, 4.0]}]


def test_no_half_of_a_file_is_left(tmp_path: Path) -> None:
    with pytest.raises(UnivalError, match="not every answer is a box"):
        write_submission(tmp_path / "boxes.json", [said("3", NO_BOX)], TASKS["grounding"])
    with pytest.raises(UnivalError, match=r"nowhere/a\.json: No such file"):
        write_submission(tmp_path / "nowhere" / "a.json", [said("3", "red")], TASKS["vqa"])
    assert list(tmp_path.iterdir()) == []
