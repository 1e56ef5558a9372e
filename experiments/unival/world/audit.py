"""Scores without looking at the media: the most frequent answer, and answers guessed from the text alone.

A task is only worth studying if the images are needed. `audit` scores three blind guessers on a split, all trained
on the task's `train` split: `majority` gives one answer to everything, `prior` the most frequent answer to each kind of
question (the part of the uniq_id behind the dot), `text_only` what a naive Bayes classifier on the words says.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from experiments.errors import StudyError
from experiments.unival.world.concepts import CANVAS
from experiments.unival.world.scenes import scikit_learn
from experiments.unival.world.tables import read_world, weights
from experiments.unival.world.tasks import TASKS, read_rows

__all__ = ["Audit", "audit", "audit_all", "box_overlap", "common_box"]

Box = tuple[float, ...]
Item = tuple[str, str, str, Callable[[str], float]]  # text, kind, best answer, score of an answer


@dataclass(frozen=True)
class Audit:
    """Mean scores in 0..1 of the blind guessers on `n` rows of one file."""

    task: str
    split: str
    n: int
    majority: float
    prior: float
    text_only: float


def audit_all(folder: Path | str, split: str = "test") -> list[Audit]:
    """Return the audit of every task that has this split and answers to guess."""
    files = read_world(folder).files
    return [audit(folder, task, split) for task in TASKS if f"{task}/{split}" in files and task != "backbone"]


def audit(folder: Path | str, task: str, split: str = "test") -> Audit:
    """Score one file blindly.

    Questions count their weighted answers, hypotheses the label, captions one where the guess is a reference. Regions
    count an overlap of at least half with the guess, which is the mean box of one of 3 x 3 places.
    """
    if task == "backbone":
        raise StudyError("the backbone's labels are no answers to guess: audit another task")
    trained, asked = ([_item(task, row) for row in read_rows(folder, task, s)] for s in ("train", split))
    boxes = _mean_boxes(trained) if task == "grounding" else None
    answers = [_nearest_place(best) if boxes else best for _, _, best, _ in trained]
    kinds = [kind for _, kind, _, _ in trained]
    majority, by_kind = _most_frequent(answers), _by_kind(kinds, answers)
    guesses = {
        "majority": [majority] * len(asked),
        "prior": [by_kind.get(kind, majority) for _, kind, _, _ in asked],
        "text_only": _classified([text for text, *_ in trained], answers, [text for text, *_ in asked]),
    }
    scores = {
        name: float(
            np.mean([score(boxes[guess] if boxes else guess) for guess, (*_, score) in zip(given, asked, strict=True)])
        )
        for name, given in guesses.items()
    }
    return Audit(task, split, len(asked), **scores)


def common_box(folder: Path | str) -> Box:
    """Return the one box to guess for every region: the mean of those in the most frequent of 3 x 3 places."""
    trained = [_item("grounding", row) for row in read_rows(folder, "grounding", "train")]
    places = [_nearest_place(best) for _, _, best, _ in trained]
    return _box(_mean_boxes(trained)[_most_frequent(places)])


def _item(task: str, row: dict[str, str]) -> Item:
    kind = row["uniq_id"].partition(".")[2]
    if "answers" in row:
        answers = weights(row["answers"])
        return (
            row["question"] or row["caption"],
            kind,
            max(answers, key=answers.__getitem__),
            lambda a: answers.get(a, 0.0),
        )
    if "label" in row:
        return row["hypothesis"], kind, row["label"], lambda a: float(a == row["label"])
    if task == "grounding":
        return row["text"], kind, row["box"], lambda a: float(box_overlap(_box(a), _box(row["box"])) >= 0.5)
    captions = (row.get("caption") or row["text"]).split("&&")
    return "", "", captions[0], lambda a: float(a in captions)


def _box(cell: str) -> Box:
    return tuple(float(value) for value in cell.split(","))


def box_overlap(a: Box, b: Box) -> float:
    """Return the intersection over union of two boxes x0, y0, x1, y1."""
    width, height = (min(a[i + 2], b[i + 2]) - max(a[i], b[i]) for i in (0, 1))
    shared = max(0.0, width) * max(0.0, height)
    area = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))
    return shared / (area - shared)


def _nearest_place(cell: str) -> str:
    x0, y0, x1, y1 = _box(cell)
    column, row = (min(2, int(3 * (low + high) / 2 / CANVAS)) for low, high in ((x0, x1), (y0, y1)))
    return f"{column},{row}"


def _mean_boxes(items: Sequence[Item]) -> dict[str, str]:
    """The mean box of each place where there is one, as the cell of a row."""
    by_place = defaultdict(list)
    for _, _, cell, _ in items:
        by_place[_nearest_place(cell)].append(_box(cell))
    return {place: ",".join(f"{v:.2f}" for v in np.mean(boxes, axis=0)) for place, boxes in by_place.items()}


def _most_frequent(answers: Sequence[str]) -> str:
    values, counts = np.unique(answers, return_counts=True)
    return str(values[counts.argmax()])


def _by_kind(kinds: Sequence[str], answers: Sequence[str]) -> dict[str, str]:
    grouped = defaultdict(list)
    for kind, answer in zip(kinds, answers, strict=True):
        grouped[kind].append(answer)
    return {kind: _most_frequent(group) for kind, group in grouped.items()}


def _classified(texts: Sequence[str], answers: Sequence[str], asked: Sequence[str]) -> list[str]:
    """What naive Bayes on runs of one to three words says; the most frequent answer where there are no texts."""
    if not any(texts):
        return [_most_frequent(answers)] * len(asked)
    count = scikit_learn("feature_extraction.text").CountVectorizer
    vectors = count(ngram_range=(1, 3), token_pattern=r"\w+", binary=True)
    model = scikit_learn("naive_bayes").MultinomialNB(alpha=0.1).fit(vectors.fit_transform(texts), answers)
    return [str(answer) for answer in model.predict(vectors.transform(asked))]
