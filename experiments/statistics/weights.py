"""What the weights of a study say by themselves: how task vectors stand to each other, and what merging costs.

FOLDER/weights.csv has a line for every two experts of a kind that were merged, by seed, FOLDER/merges.csv one for every
point of merged experts that was chosen (`experiments.results.measuring` writes them).
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from experiments.atomic import write_whole
from experiments.errors import StudyError

WEIGHTS, MERGES = "weights.csv", "merges.csv"


@dataclass(frozen=True)
class Geometry:
    """How the task vectors of two experts stand to each other, without BatchNorm statistics.

    `first` and `second` are the experts; `first_length` and `second_length` the lengths of their task vectors, and
    `distance` what lies between the two (L2); `cosine` that of the angle. `agreement` is the share of entries moved by
    both that were moved in one direction. NaN where nothing was moved.
    """

    kind: str
    seed: int
    first: str
    second: str
    first_length: float
    second_length: float
    distance: float
    cosine: float
    agreement: float


@dataclass(frozen=True)
class MergeCost:
    """What merging files into a file takes: the median of several seconds on one thread, megabytes read and written,
    and the highest memory beyond what the process had before, where the system tells it. `parameters` are as JSON."""

    kind: str
    experts: str
    method: str
    parameters: str
    seconds: float
    read_mb: float
    written_mb: float
    peak_mb: str


def write_lines(file: Path, lines: Iterable[Any], kind: type[Any]) -> None:
    """Write lines as CSV, whole or not at all."""
    out = io.StringIO()
    writer = csv.DictWriter(out, [one.name for one in fields(kind)], lineterminator="\n")
    writer.writeheader()
    for line in lines:
        values = asdict(line)
        writer.writerow({name: f"{v:.6g}" if isinstance(v, float) else v for name, v in values.items()})
    write_whole(file, out.getvalue())


def read_pairs(folder: str | Path) -> list[Geometry]:
    """Read weights.csv; nothing where there is none."""
    return _read(Path(folder) / WEIGHTS, Geometry)


def read_merges(folder: str | Path) -> list[MergeCost]:
    """Read merges.csv; nothing where there is none."""
    return _read(Path(folder) / MERGES, MergeCost)


def _read(file: Path, kind: type[Any]) -> list[Any]:
    if not file.exists():
        return []
    kinds = {"str": str, "int": int, "float": float}
    try:
        with file.open(newline="", encoding="utf-8") as lines:
            return [
                kind(**{one.name: kinds[str(one.type)](line[one.name]) for one in fields(kind)})
                for line in csv.DictReader(lines)
            ]
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        raise StudyError(f"{file} is not whole ({error}): remove it, `study measure` writes it") from None
