"""Answers as servers and scoring programs take them: one JSON list, `[{"question_id": 1, "answer": "red"}, ...]`."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from unival_core.data.task import Task
from unival_core.errors import UnivalError
from unival_core.evaluation import Prediction, write_whole


def submitted(predictions: Iterable[Prediction], task: Task) -> list[dict[str, Any]]:
    """Return an entry for every example, under the names that `task.submits`.

    Ids that are numbers become numbers. Where several rows have one id, as captions of one image, the first counts.
    Boxes are lists of four pixels, image codes lists.
    """
    found: dict[Any, Any] = {}
    for prediction in predictions:
        name = prediction.name.strip()
        answer = prediction.answer if isinstance(prediction.answer, str) else list(prediction.answer)
        found.setdefault(int(name) if name.isascii() and name.isdigit() else name, answer)
    id_name, answer_name = task.submits
    return [{id_name: name, answer_name: answer} for name, answer in found.items()]


def write_submission(path: Path, predictions: Iterable[Prediction], task: Task) -> None:
    """Write the entries, all or nothing. Raises UnivalError where the file cannot be written, and for boxes that are
    none, which JSON has no word for."""
    try:
        text = json.dumps(submitted(predictions, task), ensure_ascii=False, allow_nan=False)
    except ValueError:
        raise UnivalError(f"{path}: not every answer is a box: nothing is submitted") from None
    write_whole(path, [text])
