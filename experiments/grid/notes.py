"""What the rows of a folder are about, in words: FOLDER/study.json, written by the grid beside rows.jsonl.

It holds an object by study: its question and source, and tables that set models beside each other, where it has any.
Pages are made from the folder alone, whatever became of the code that defined the study.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from experiments.atomic import write_whole
from experiments.errors import StudyError

FILE = "study.json"


@dataclass(frozen=True)
class Notes:
    """A study in words. `tables` hold by title the models to compare, by name, each with its tasks; `contender` is the
    kind of experts whose average findings compare with those of other kinds on shifted data. `tasks` are by name whose
    own they are ("" for nobody's); `beside` metrics that are no scores to quote, which have tables of their own;
    `progress` by kind of experts the share of one finetuning that they have had; `chance` by task and split what
    guessing scores by the task's main metric;
    `files` where experts lie, by name (where a name has several kinds, "kind/name") and seed: path, section and rules
    of names; `code` the file that defines the study (FILE.py:NAME), if one does."""

    question: str = ""
    source: str = ""
    tables: Mapping[str, Mapping[str, Sequence[str]]] = field(default_factory=dict[str, Mapping[str, Sequence[str]]])
    contender: str = ""
    tasks: Mapping[str, str] = field(default_factory=dict[str, str])
    files: Mapping[str, Mapping[str, Sequence[str]]] = field(default_factory=dict[str, Mapping[str, Sequence[str]]])
    code: str = ""
    progress: Mapping[str, float] = field(default_factory=dict[str, float])
    beside: Sequence[str] = field(default_factory=list[str])
    chance: Mapping[str, Mapping[str, float]] = field(default_factory=dict[str, Mapping[str, float]])


def read_notes(folder: str | Path, study: str) -> Notes:
    """Read what a folder says of a study; nothing if it says nothing."""
    return Notes(**_read(Path(folder) / FILE).get(study, {}))


def studies_in(folder: str | Path) -> list[str]:
    """Name the studies that a folder says something of."""
    return list(_read(Path(folder) / FILE))


def write_notes(folder: str | Path, study: str, notes: Notes) -> None:
    """Note what a study is about, if anything, whole or not at all; what is noted of others stays, and of its own the
    files of other experts and seeds, the chance of other tasks and splits, and the code where none is named now."""
    path = Path(folder) / FILE
    known = _read(path)
    before = Notes(**known.get(study, {}))
    files, chance = _together(before.files, notes.files), _together(before.chance, notes.chance)
    notes = replace(notes, files=files, chance=chance, code=notes.code or before.code)
    if notes != Notes() and known.get(study) != json.loads(json.dumps(asdict(notes))):
        write_whole(path, json.dumps(known | {study: asdict(notes)}, indent=1) + "\n")


def _together(before: Mapping[str, Mapping[str, Any]], now: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    return {**before, **{name: {**before.get(name, {}), **own} for name, own in now.items()}}


def _read(path: Path) -> dict[str, Any]:
    try:
        known = json.loads(path.read_bytes()) if path.exists() else {}
        for own in known.values():
            notes = Notes(**own)
            words = [
                notes.question,
                notes.source,
                notes.code,
                *notes.tables,
                *notes.tasks,
                *notes.tasks.values(),
                *notes.files,
                *notes.progress,
                *list[str](notes.beside),
                *notes.chance,
                *(split for own in notes.chance.values() for split in own),
            ]
            words += [word for seeds in notes.files.values() for place in seeds.values() for word in list[str](place)]
            for models in notes.tables.values():
                words += [*models, *(task for tasks in models.values() for task in list[str](tasks))]
            if not all(0 <= share <= 1 for share in notes.progress.values()):
                raise TypeError("progress is from 0 to 1")
            if not all(math.isfinite(level) for own in notes.chance.values() for level in own.values()):
                raise TypeError("chance is a number")
            if not all(isinstance(word, str) and word.encode() is not None for word in words):
                raise TypeError("a word is none")
    except (OSError, ValueError, AttributeError, TypeError, RecursionError) as error:
        raise StudyError(f"{path} does not describe studies ({error}): remove it, the next run writes it") from None
    return known
