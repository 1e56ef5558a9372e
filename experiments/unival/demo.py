"""From nothing but a folder to accuracy-vs-ratio curves: models, two studies, figures, tables, reports, findings.

DIR/                      a pocket (experiments.unival.pocket.pipeline), rows.jsonl, samples.jsonl
DIR/<study>/              figures, tables.md, report.html
DIR/merged.safetensors    the average of all experts, and its recipe
DIR/index.html            what was found, and links to the reports
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

from experiments.atomic import write_whole
from experiments.errors import StudyError
from experiments.grid.engines import engine_named
from experiments.grid.grid import Grid, experts_of, run_cells
from experiments.pages.figures import draw, save
from experiments.pages.findings import findings
from experiments.pages.index import Entry, write_index
from experiments.pages.report import write_report
from experiments.pages.tables import written
from experiments.pages.views import open_study, read_notes
from experiments.study.points import Cell
from experiments.unival.pocket.families import families
from experiments.unival.pocket.pipeline import Pocket, make_start
from experiments.unival.samples import make_samples
from experiments.unival.setups import PocketSetup
from experiments.unival.studies import Choice, study_named
from experiments.unival.subject import UnivalSubject
from merge import Recipe, run

SEED = 0


@dataclass(frozen=True)
class Demo:
    """What is run: a preset of the pocket, of each study the choice of cells, those on tasks of some families, and the
    rows of a split."""

    preset: str
    studies: Mapping[str, Choice]
    limit: int
    families: tuple[str, ...] = ("image", "video")

    def cells(self, study: str) -> list[Cell]:
        """Return the cells of a study that are run."""
        tasks = {task for name in self.families for task in families()[name]}
        return [cell for cell in study_named(study).cells(self.studies[study]) if cell.task in tasks]


DEMOS = {
    "quick": Demo(
        "quick",
        {
            "interpolation": Choice(points=5, kinds=("vanilla",)),
            "averaging": Choice(kinds=("vanilla", "fusing")),
        },
        limit=200,
        families=("image",),
    ),
    "full": Demo("full", {"interpolation": Choice(), "averaging": Choice()}, limit=1200),
}


def run_demo(folder: Path, name: str = "quick", processes: int = 2, *, progress: bool = True) -> Iterator[str]:
    """Make whatever is missing in the folder, and tell line by line where things are and what was found.

    Stopped, it goes on where it was. StudyError for an unknown name, and at once where an extra is not installed.
    """
    if name not in DEMOS:
        raise StudyError(f"no demo {name!r}: choose one of {', '.join(DEMOS)}")
    if find_spec("sklearn") is None:
        raise StudyError("the demo's digits come with scikit-learn: pip install 'unival-merge[world]'")
    began, demo = time.monotonic(), DEMOS[name]
    pocket = Pocket(folder, demo.preset, SEED)
    with pocket.alone():
        make_start(pocket, progress=progress)
    subject = UnivalSubject(PocketSetup(folder), demo.limit)
    for study in demo.studies:
        known, cells = study_named(study), demo.cells(study)
        subject.setup.train(experts_of(cells), SEED, processes)
        files = subject.files(experts_of(cells), (SEED,))
        grid = Grid(study, subject, (SEED,), notes=replace(known.notes, files=files))
        run_cells(grid, cells, folder, engine_named("local", processes), progress=progress)
    make_samples(folder, "interpolation", subject)
    entries: list[Entry] = []
    for study in demo.studies:
        entry = yield from write_pages(folder, study, f"unival-merge demo {shlex.quote(str(folder))} --preset {name}")
        entries.append(entry)
    saved = save_average(subject, demo.studies["averaging"], folder)
    yield f"{saved}: the average of all experts, with its recipe beside it"
    index = write_index(folder / "index.html", "UnIVAL's experts, merged", entries, f"unival-merge inspect {saved}")
    minutes, seconds = divmod(round(time.monotonic() - began), 60)
    yield f"open {index} (took {minutes} min {seconds} s)"


def write_pages(folder: Path, study: str, command: str) -> Generator[str, None, Entry]:
    """Write figures, tables and the report of a study from its rows; yield where they are and what was found."""
    (rows, scores), notes = open_study(folder, study), read_notes(folder, study)
    pages = folder / study
    pages.mkdir(exist_ok=True)
    yield f"{study}: {notes.question}"
    drawn, figures = draw(rows, scores), list[Path]()
    for one in drawn[0]:
        figures.append(save(one.figure, pages / one.stem)[0])
        yield f"  {figures[-1]}"
    table = pages / "tables.md"
    write_whole(table, written(rows, scores, "markdown", beside=notes.beside))
    yield f"  {table}"
    report = write_report(folder, study, pages / "report.html", command=command, drawn=drawn)
    yield f"  {report}"
    found = findings(rows, scores, notes.contender, notes.tasks)
    for told in found:
        yield "  - " + told.replace("\n", "\n    ")
    return Entry(study, notes.question, report, figures[0] if figures else None, found)


def save_average(subject: UnivalSubject, choice: Choice, folder: Path) -> Path:
    """Write the average of all experts of the first kind with its recipe, once."""
    experts = study_named("averaging").mixtures_of(choice)[0]
    target = folder / "merged.safetensors"
    if not target.exists():
        inputs = tuple(subject.source(expert, SEED) for expert in experts.values())
        run(Recipe("average", inputs), target)
    return target
