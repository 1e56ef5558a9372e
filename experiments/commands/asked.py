"""Which study a command line means: a built-in one by name, a file that defines one, or the only one of a folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from experiments.errors import StudyError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from experiments.study.study import Study
    from experiments.unival.studies import UnivalStudy

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

    def defined(self) -> Study:
        """Return the study that the file defines. StudyError where no file does."""
        from experiments.results.files import load_study

        if not self.file:
            raise self._unknown()
        return load_study(self.file)

    def built_in(self) -> UnivalStudy:
        """Return one of UnIVAL's studies. StudyError for one that nobody knows."""
        from experiments.grid.notes import studies_in
        from experiments.unival.studies import STUDIES, study_named

        if self.name not in STUDIES and self.name in studies_in(self.folder):
            raise self._unknown()
        return study_named(self.name)

    def refuse(self, options: Mapping[str, object]) -> None:
        """Raise StudyError for options of the built-in studies that were given with one of a file."""
        if given := [name for name, value in options.items() if value]:
            raise StudyError(f"{given[0]} is for the studies of `study list`: {self.name} is defined in {self.file}")

    def _unknown(self) -> StudyError:
        return StudyError(
            f"{self.folder} does not say which file defines {self.name}: give it, as `FILE.py {self.folder}`"
        )


def asked(words: list[str]) -> Asked:
    """Find the study and the folder that are meant. StudyError where that is not plain."""
    from experiments.grid.grid import ROWS
    from experiments.grid.lines import files_of
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
    if files_of(folder / ROWS):
        names += [name for name in names_in(records(read_rows(folder / ROWS)), "study") if name not in names]
    if len(names) != 1:
        held = f"holds {', '.join(names)}" if names else "holds no rows of a study"
        raise StudyError(f"{folder} {held}: give a study and a folder, as `digits.py {folder}`")
    return Asked(names[0], folder, read_notes(folder, names[0]).code)
