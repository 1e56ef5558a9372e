"""From nothing but a folder to accuracy-vs-ratio curves: models, two studies, figures, tables, reports, findings.

DIR/                      a pocket (experiments.unival.pocket.pipeline), rows.jsonl, samples.jsonl
DIR/<study>/              figures, tables.md, report.html
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from experiments.errors import StudyError
from experiments.grid.engines import engine_named
from experiments.grid.grid import Grid, experts_of, run_cells
from experiments.pages.figures import draw, save
from experiments.pages.findings import findings
from experiments.pages.report import write_report
from experiments.pages.tables import written
from experiments.pages.views import open_study, read_notes
from experiments.unival.pocket.pipeline import Pocket, make_start
from experiments.unival.samples import make_samples
from experiments.unival.setups import PocketSetup
from experiments.unival.studies import Choice, study_named
from experiments.unival.subject import UnivalSubject

SEED = 0


@dataclass(frozen=True)
class Demo:
    """What is run: a preset of the pocket, and of each study the choice of cells and the rows of a split."""

    preset: str
    studies: Mapping[str, Choice]
    limit: int


DEMOS = {
    "quick": Demo(
        "quick",
        {
            "interpolation": Choice(points=6, kinds=("vanilla",)),
            "averaging": Choice(kinds=("vanilla", "fusing")),
        },
        limit=400,
    ),
    "full": Demo("full", {"interpolation": Choice(), "averaging": Choice()}, limit=1200),
}


def run_demo(folder: Path, name: str = "quick", processes: int = 2, *, progress: bool = True) -> Iterator[str]:
    """Make whatever is missing in the folder, and tell line by line where things are and what was found.

    Stopped, it goes on where it was. StudyError for an unknown name.
    """
    if name not in DEMOS:
        raise StudyError(f"no demo {name!r}: choose one of {', '.join(DEMOS)}")
    demo = DEMOS[name]
    pocket = Pocket(folder, demo.preset, SEED)
    with pocket.alone():
        make_start(pocket, progress=progress)
    subject = UnivalSubject(PocketSetup(folder), demo.limit)
    for study, choice in demo.studies.items():
        known = study_named(study)
        cells = known.cells(choice)
        subject.setup.train(experts_of(cells), SEED, processes)
        grid = Grid(study, subject, (SEED,), notes=known.notes)
        run_cells(grid, cells, folder, engine_named("local", processes), progress=progress)
    make_samples(folder, "interpolation", subject)
    for study in demo.studies:
        yield from write_pages(folder, study, f"unival-merge demo {shlex.quote(str(folder))} --preset {name}")


def write_pages(folder: Path, study: str, command: str) -> Iterator[str]:
    """Write figures, tables and the report of a study from its rows; yield where they are and what was found."""
    (rows, scores), notes = open_study(folder, study), read_notes(folder, study)
    pages = folder / study
    pages.mkdir(exist_ok=True)
    yield f"{study}: {notes.question}"
    drawn = draw(rows, scores)
    for one in drawn[0]:
        yield f"  {save(one.figure, pages / one.stem)[0]}"
    table = pages / "tables.md"
    table.write_text(written(rows, scores, "markdown"), encoding="utf-8")
    yield f"  {table}"
    yield f"  {write_report(folder, study, pages / 'report.html', command=command, drawn=drawn)}"
    for told in findings(rows, scores, notes.contender, notes.tasks):
        yield "  - " + told.replace("\n", "\n    ")
