"""The files of a world, task by task: one entry holds all that makes, sizes and reads the files of its task."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from experiments.errors import StudyError
from experiments.unival.world import rows
from experiments.unival.world.concepts import COLOURS, DIGITS, MOTIONS, PLACES
from experiments.unival.world.tables import LAYOUTS, Row, read_world

__all__ = ["SIZES", "TASKS", "Size", "WorldTask", "at_most", "finetuning", "read_rows"]


@dataclass(frozen=True)
class WorldTask:
    """What the world has of a task.

    Attributes:
        layout: the columns of its files, a key of LAYOUTS.
        medium: image, video or audio.
        rows: writes the rows of one split from a `rows.Order`.
        splits: rows of every split in a full world.
        answers: every answer there is, whatever the size of a world; () where answers are free.
        split_domain: the domain of its train, val and test images in a world of `--domains split`.
    """

    layout: str
    medium: str
    rows: Callable[[rows.Order], Iterator[Row]]
    splits: Mapping[str, int]
    answers: tuple[str, ...] = ()
    split_domain: str = "clean"

    @property
    def shifts(self) -> tuple[str, ...]:
        """Return the splits that only test: other images, or other questions, than any in training."""
        return tuple(name for name in self.splits if name not in ("train", "val", "test") and "pretrain" not in name)

    @property
    def columns(self) -> tuple[str, ...]:
        """Return the columns of its files, in their order."""
        return LAYOUTS[self.layout]


_SHIFTS = {"novel": 600, "lowquality": 600, "printed": 600}
_MAIN = {"pretrain": 12000, "train": 6000, "val": 1200, "test": 2000} | _SHIFTS
_SIDE = {"pretrain": 3000, "train": 2000, "val": 600, "test": 600}
_VIDEO = {"pretrain": 1200, "train": 1500, "val": 600, "test": 1200, "novel": 600, "lowquality": 600}
_YES_NO = ("yes", "no")
_SEEN = (*DIGITS, *COLOURS, *PLACES, "odd", "even", *_YES_NO)
_FEW = {"pretrain": 600, "train": 400, "val": 300, "test": 300}

# The order is that of the files in world.json and of the rows of a contact sheet.
TASKS: dict[str, WorldTask] = {
    "caption": WorldTask("caption", "image", rows.captions_of, _MAIN | {"pretrain-late": 3000, "train": 4000}),
    "vqa": WorldTask("vqa", "image", rows.questions_of, _MAIN | {"knowledge": 600}, _SEEN),
    "grounding": WorldTask("grounding", "image", rows.regions_of, _MAIN, split_domain="lowquality"),
    "entailment": WorldTask("entailment", "image", rows.hypotheses_of, _MAIN, (*_YES_NO, "maybe"), "printed"),
    "grounded-caption": WorldTask("grounding", "image", rows.described_regions_of, _SIDE),
    "image-text-matching": WorldTask("pretraining", "image", rows.matches_of, _SIDE, _YES_NO),
    "video-caption": WorldTask("caption", "video", rows.captions_of, _VIDEO),
    "video-qa": WorldTask("vqa", "video", rows.questions_of, _VIDEO, (*DIGITS, *COLOURS, *MOTIONS, *_YES_NO)),
    "video-text-matching": WorldTask("pretraining", "video", rows.matches_of, _FEW, _YES_NO),
    "audio-caption": WorldTask(
        "caption", "audio", rows.dialled_numbers_of, {"train": 600, "val": 300, "test": 1200, "snr": 600}
    ),
    "backbone": WorldTask("backbone", "image", rows.labelled_cells_of, {"pretrain": 10000, "val": 600}),
}


@dataclass(frozen=True)
class Size:
    """Scenes by medium and pool (audio needs none), rows by task and split."""

    scenes: Mapping[str, Mapping[str, int]]
    rows: Mapping[str, Mapping[str, int]]


_FULL = Size(
    {
        "image": {"pretrain": 12000, "train": 5000, "val": 1500, "test": 2400}
        | dict.fromkeys(("novel", "lowquality", "printed", "knowledge"), 900),
        "video": {"pretrain": 1200, "train": 1200, "val": 600, "test": 1200, "novel": 600, "lowquality": 600},
        "audio": {},
    },
    {name: task.splits for name, task in TASKS.items()},
)


def finetuning(size: Size) -> Size:
    """Leave out what only pretraining reads. The files that stay keep every byte."""
    kept = {task: {s: n for s, n in splits.items() if "pretrain" not in s} for task, splits in size.rows.items()}
    return Size(size.scenes, {task: splits for task, splits in kept.items() if task != "backbone"})


def at_most(size: Size, rows: int, scenes: int) -> Size:
    """Cut files to so many rows each, and their pools to so many scenes."""
    return Size(
        {medium: {name: min(n, scenes) for name, n in pools.items()} for medium, pools in size.scenes.items()},
        {task: {split: min(n, rows) for split, n in splits.items()} for task, splits in size.rows.items()},
    )


SIZES = {"full": _FULL, "quick": finetuning(_FULL), "micro": at_most(_FULL, rows=12, scenes=60)}


def read_rows(folder: Path | str, task: str, split: str) -> Iterator[dict[str, str]]:
    """Read the rows of `<folder>/<task>/<split>.tsv` by column name; StudyError where there is no such file."""
    path = Path(folder) / task / f"{split}.tsv"
    if task not in TASKS or not path.is_file():
        names = [name.split("/") for name in read_world(folder).files]
        known = [s for t, s in names if t == task] or sorted({t for t, _ in names})
        raise StudyError(f"{folder} has no {task}/{split}.tsv: choose one of {', '.join(known)}")
    columns = TASKS[task].columns
    with path.open(encoding="ascii") as file:
        for number, line in enumerate(file, 1):
            cells = line.rstrip("\n").split("\t")
            if len(cells) != len(columns):
                raise StudyError(f"{path} line {number} has {len(cells)} columns instead of {len(columns)}")
            yield dict(zip(columns, cells, strict=True))
