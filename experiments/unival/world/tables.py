"""The tab-separated files: which columns each layout has, writing them, and reading them back by column name."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from experiments.errors import StudyError

__all__ = [
    "LAYOUTS",
    "TASKS",
    "FileRecord",
    "World",
    "read_rows",
    "read_world",
    "weighted",
    "weights",
    "words",
    "write_rows",
]

# Every column of the published files in their order (arXiv 2202.03052 and 2307.16184), so that the published selections
# of columns (for instance 0,4,2) pick the same things here. `backbone` is our own.
LAYOUTS: dict[str, tuple[str, ...]] = {
    "caption": ("uniq_id", "image_id", "caption", "objects", "media"),
    "vqa": ("uniq_id", "image_id", "question", "answers", "objects", "media"),
    "grounding": ("uniq_id", "image_id", "text", "box", "media"),
    "entailment": ("uniq_id", "image_id", "media", "hypothesis", "caption", "label"),
    "pretraining": ("uniq_id", "media", "caption", "question", "answers", "objects", "dataset", "type"),
    "backbone": ("uniq_id", "image_id", "digits", "colours", "media"),
}
TASKS: dict[str, tuple[str, str]] = {  # task: layout and medium
    "caption": ("caption", "image"),
    "vqa": ("vqa", "image"),
    "grounding": ("grounding", "image"),
    "entailment": ("entailment", "image"),
    "grounded-caption": ("grounding", "image"),
    "image-text-matching": ("pretraining", "image"),
    "video-caption": ("caption", "video"),
    "video-qa": ("vqa", "video"),
    "video-text-matching": ("pretraining", "video"),
    "audio-caption": ("caption", "audio"),
    "backbone": ("backbone", "image"),
}
SHEET = "contact-sheet.png"  # where `world show` draws unless told otherwise
_TEXTS = ("caption", "question", "text", "hypothesis")
Row = Mapping[str, str]


@dataclass(frozen=True)
class FileRecord:
    """One file of a world: where its pictures come from and what it holds."""

    pool: str
    domain: str
    rows: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class World:
    """What `world.json` says. `files` is keyed by '<task>/<split>', `answers` (every answer there is) by task.

    `vocabulary` and `answers` are the same for every seed and size.
    `small_below` and `large_above` are the terciles of the box areas in grounding/train, in square pixels.
    """

    generator: int
    seed: int
    size: str
    domains: str
    files: dict[str, FileRecord]
    vocabulary: list[str]
    answers: dict[str, list[str]]
    small_below: float
    large_above: float
    held_out_pairs: list[str]
    scans: str
    made_with: dict[str, str]

    def to_json(self) -> str:
        """Readable JSON, the same text for the same world."""
        return json.dumps(asdict(self), indent=1) + "\n"


def read_world(folder: Path | str) -> World:
    """The record of a finished world; StudyError where there is none."""
    path = Path(folder) / "world.json"
    if not path.is_file():
        raise StudyError(f"{folder} is not a world: it has no world.json (make one: unival-merge world make {folder})")
    try:
        values = json.loads(path.read_text())
        return World(**values | {"files": {name: FileRecord(**file) for name, file in values["files"].items()}})
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise StudyError(f"{path} is not the record of a world ({error}): make the world anew") from None


def write_rows(path: Path, layout: str, rows: Iterable[Row]) -> tuple[int, int, str]:
    """Write rows as tab-separated lines; returns their number, the bytes and the sha256 of the file."""
    columns, digest, count, size = LAYOUTS[layout], hashlib.sha256(), 0, 0
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        for row in rows:
            line = ("\t".join(row[column] for column in columns) + "\n").encode("ascii")
            file.write(line)
            digest.update(line)
            count, size = count + 1, size + len(line)
    return count, size, digest.hexdigest()


def read_rows(folder: Path | str, task: str, split: str) -> Iterator[dict[str, str]]:
    """The rows of `<folder>/<task>/<split>.tsv` by column name."""
    path = Path(folder) / task / f"{split}.tsv"
    if task not in TASKS or not path.is_file():
        names = [name.split("/") for name in read_world(folder).files]
        known = [s for t, s in names if t == task] or sorted({t for t, _ in names})
        raise StudyError(f"{folder} has no {task}/{split}.tsv: choose one of {', '.join(known)}")
    columns = LAYOUTS[TASKS[task][0]]
    with path.open(encoding="ascii") as file:
        for number, line in enumerate(file, 1):
            cells = line.rstrip("\n").split("\t")
            if len(cells) != len(columns):
                raise StudyError(f"{path} line {number} has {len(cells)} columns instead of {len(columns)}")
            yield dict(zip(columns, cells, strict=True))


def weighted(answers: Mapping[str, float]) -> str:
    """Answers as published: '1.0|!+top left&&0.3|!+top'."""
    return "&&".join(f"{weight:.1f}|!+{answer}" for answer, weight in answers.items())


def weights(cell: str) -> dict[str, float]:
    """The inverse of `weighted`."""
    pairs = (answer.split("|!+") for answer in cell.split("&&"))
    return {answer: float(weight) for weight, answer in pairs}


def words(row: Row) -> set[str]:
    """Every word of a row that a model reads or writes."""
    texts = [row[column].replace("&&", " ").replace("?", " ") for column in _TEXTS if column in row]
    texts += list(weights(row["answers"])) if row.get("answers") else []
    return {word for text in texts for word in text.split()}
