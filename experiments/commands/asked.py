"""Which study a command line means: a built-in one by name, a file that defines one, or the only one of a folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from experiments.errors import StudyError

if TYPE_CHECKING:
    from experiments.study.study import Study

Words = Annotated[
    list[str],
    typer.Argument(
        metavar="[STUDY] DIR",
        show_default=False,
        help="A study, as `study list` names it or FILE.py[:NAME] defines it, and the folder of its rows; a folder "
        "that holds one study needs no name.",
    ),
]


@dataclass(frozen=True)
class Asked:
    """A study by its name in rows, the folder of its rows, and the file that defines it, if one does."""

    name: str
    folder: Path
    file: str = ""

    def defined(self) -> Study | None:
        """Return the study that the file defines; None of a built-in one. StudyError for one that nobody knows."""
        from experiments.results.files import load_study

        return load_study(self.file) if self.file else None


def asked(words: list[str]) -> Asked:
    """Find the study and the folder that are meant. StudyError where that is not plain."""
    from experiments.grid.grid import ROWS
    from experiments.grid.notes import read_notes, studies_in
    from experiments.grid.rows import names_in, read_rows, records
    from experiments.results.files import absolute, is_file_of_study, load_study

    if len(words) > 2:
        raise StudyError(f"{' '.join(words)}: give a study and a folder, as `digits.py DIR`")
    folder = Path(words[-1])
    if len(words) == 2:
        if is_file_of_study(words[0]):
            file = absolute(words[0])
            return Asked(load_study(file).name, folder, file)
        return Asked(words[0], folder, read_notes(folder, words[0]).code)
    if is_file_of_study(words[0]):
        raise StudyError(f"{words[0]}: say also in which folder rows are kept, as `{words[0]} DIR`")
    names = studies_in(folder)
    if (folder / ROWS).is_file():
        names += [name for name in names_in(records(read_rows(folder / ROWS)), "study") if name not in names]
    if len(names) != 1:
        held = f"holds {', '.join(names)}" if names else "holds no rows of a study"
        raise StudyError(f"{folder} {held}: give a study and a folder, as `digits.py {folder}`")
    return Asked(names[0], folder, read_notes(folder, names[0]).code)
