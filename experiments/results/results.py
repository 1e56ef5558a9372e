"""What came out of a study: its rows, and all that is read from them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from experiments.errors import StudyError
from experiments.grid.grid import ROWS, Summary
from experiments.grid.notes import Notes, read_notes
from experiments.grid.rows import names_in, read_rows, read_scores, records

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping


@dataclass(frozen=True)
class Results:
    """The results of a study in a folder; nothing of the study's code is needed.

    Attributes:
        folder: where `rows.jsonl` lies.
        study: the study's name.
        ran: what the run that returned this did; None where the folder was opened only.
    """

    folder: Path
    study: str
    ran: Summary | None = None

    @cached_property
    def rows(self) -> pd.DataFrame:
        """Return the rows (`experiments.grid.rows.Row`) as a frame, `shares` a mapping, `point` in words."""
        found = read_rows(self.folder / ROWS)
        return found.loc[found["study"] == self.study].reset_index(drop=True)

    def scores(self, row: Mapping[Hashable, object] | pd.Series | str) -> np.ndarray:
        """Return the scores of the examples (n,) of a row, or of its key; empty where the task gave one number."""
        key = row if isinstance(row, str) else str(row["key"])
        return read_scores(self.folder / ROWS, [key])[key]

    @cached_property
    def notes(self) -> Notes:
        """Return what the folder says of the study besides its rows."""
        return read_notes(self.folder, self.study)


def open_results(folder: str | Path, study: str | None = None, *, ran: Summary | None = None) -> Results:
    """Open what a folder holds of a study; its name is needed only where the folder holds several.

    Raises StudyError where there are no rows.
    """
    folder = Path(folder)
    names = names_in(records(read_rows(folder / ROWS)), "study")
    if study is None and len(names) != 1:
        raise StudyError(f"{folder} holds rows of {', '.join(names) or 'nothing'}: name one study")
    name = names[0] if study is None else study
    if name not in names:
        raise StudyError(f"{folder / ROWS} holds rows of {', '.join(names) or 'nothing'}, none of {name}")
    return Results(folder, name, ran)
