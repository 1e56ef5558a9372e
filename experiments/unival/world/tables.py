"""The tab-separated files: which columns each layout has, how they are written, and the record of a world."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from experiments.errors import StudyError

__all__ = [
    "LAYOUTS",
    "FileRecord",
    "World",
    "read_world",
    "weighted",
    "weights",
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
SHEET = "contact-sheet.png"  # where `world show` draws unless told otherwise
Row = Mapping[str, str]


@dataclass(frozen=True)
class FileRecord:
    """One file of a world: where its images come from and what it holds."""

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
        """Return readable JSON, the same text for the same world."""
        return json.dumps(asdict(self), indent=1) + "\n"


def read_world(folder: Path | str) -> World:
    """Return the record of a finished world; StudyError where there is none."""
    path = Path(folder) / "world.json"
    if not path.is_file():
        raise StudyError(f"{folder} is not a world: it has no world.json (make one: unival-merge world make {folder})")
    try:
        values = json.loads(path.read_text())
        return World(**values | {"files": {name: FileRecord(**file) for name, file in values["files"].items()}})
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise StudyError(f"{path} is not the record of a world ({error}): make the world anew") from None


def write_rows(path: Path, columns: Sequence[str], rows: Iterable[Row]) -> tuple[int, int, str]:
    """Write rows as tab-separated lines; returns their number, the bytes and the sha256 of the file."""
    digest, count, size = hashlib.sha256(), 0, 0
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        for row in rows:
            line = ("\t".join(row[column] for column in columns) + "\n").encode("ascii")
            file.write(line)
            digest.update(line)
            count, size = count + 1, size + len(line)
    return count, size, digest.hexdigest()


def weighted(answers: Mapping[str, float]) -> str:
    """Answer as published: '1.0|!+top left&&0.3|!+top'."""
    return "&&".join(f"{weight:.1f}|!+{answer}" for answer, weight in answers.items())


def weights(cell: str) -> dict[str, float]:
    """Return the inverse of `weighted`."""
    pairs = (answer.split("|!+") for answer in cell.split("&&"))
    return {answer: float(weight) for weight, answer in pairs}
