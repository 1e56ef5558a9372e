"""Options that several commands of the model take. What most users never need stands in panels of its own."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from unival_core.errors import UnivalError

if TYPE_CHECKING:
    from unival_core.data.task import Task
    from unival_core.model import UnivalModel
    from unival_core.vocabulary import Tokenizer

RUNNING = "Running"
asking = partial(typer.Option, rich_help_panel="How the task is asked")
reading = partial(typer.Option, rich_help_panel="Model")
running = partial(typer.Option, rich_help_panel=RUNNING)

# The words are written out: the tables that hold them import torch, and `--help` may not. A test compares them. Tasks
# are named after their files.
TASK_NAMES = sorted(file.stem.replace("_", "-") for file in Path(__file__).parents[1].glob("tasks/[a-z]*.py"))
SETUPS = ("base", "pocket")
PRECISIONS = ("fp32", "bf16", "fp16")
REWARDS = ("small", "medium", "large", "small+medium", "medium+large", "small+large")
GROUPS = ("all", "all but embeddings", "projections")
BATCHNORMS = ("train", "freeze")


def task_names() -> list[str]:
    """List the tasks, for shells to complete."""
    return TASK_NAMES


TaskName = Annotated[
    str, typer.Option(metavar="TASK", help=f"One of {', '.join(TASK_NAMES)}.", autocompletion=task_names)
]
Checkpoint = Annotated[Path, typer.Option(help="Model file or folder.")]
Bpe = Annotated[
    Path | None, reading(metavar="DIR", help="Folder with the published encoder.json, vocab.bpe, dict.txt.")
]
Config = Annotated[
    Path | None,
    reading(metavar="FILE", help='JSON with fields of the config that replace what the model says: {"bins": 500}.'),
]
Section = Annotated[str, reading(metavar="PATH", help="Part of a training file to use, as `inspect` lists them.")]
Device = Annotated[str, running(metavar="DEVICE", help="Where to run: cpu, cuda, ...")]
Workers = Annotated[int, running(min=0, help="Threads that read and decode media ahead.")]
Overwrite = Annotated[bool, running("--overwrite", help="Replace an existing output.")]


@dataclass(frozen=True)
class Loading:
    """Options that say how the checkpoint is read, and where it runs."""

    config: Config = None
    bpe: Bpe = None
    section: Section = "auto"
    device: Device = "cpu"

    def load(self, checkpoint: Path, drawn: int | None = None) -> tuple[UnivalModel, Tokenizer]:
        """Load a model, to draw images of `drawn` pixels if not of its own size, and its tokenizer.

        Raises UnivalError for a device that is not there.
        """
        import torch

        from unival_core.answering import open_model

        try:
            torch.empty(0, device=self.device)
        except (RuntimeError, AssertionError) as error:
            raise UnivalError(f"--device {self.device}: {error}") from None
        return open_model(
            checkpoint, config=self.config, drawn=drawn, bpe=self.bpe, section=self.section, device=self.device
        )

    def sizes(self, checkpoint: Path, task: Task) -> dict[str, int]:
        """Return side and frames as the checkpoint was trained on the task, where it says so; others are told."""
        from merge import open_checkpoint
        from unival_core.settings import Settings

        said = Settings.of(open_checkpoint(checkpoint, self.section)).sizes(task.published.original, task.medium)
        if other := {name: size for name, size in said.items() if size != getattr(task, name)}:
            told = ", ".join(f"{name} {size}" for name, size in other.items())
            typer.echo(f"{task.name}: {told}, as the checkpoint was trained", err=True)
        return said


@dataclass(frozen=True)
class Asking:
    """Options that replace what a task says of its media and of the search for answers."""

    beam: Annotated[int | None, asking(min=1, help="Hypotheses to search with; default: the task's.")] = None
    side: Annotated[int | None, asking(min=1, help="Pixels along the side of an image; default: the task's.")] = None
    frames: Annotated[int | None, asking(min=1, help="Frames to look at; default: the task's.")] = None
    resample: Annotated[bool, asking("--resample", help="Resample audio of another rate.")] = False
    answers: Annotated[
        Path | None,
        asking(
            metavar="FILE",
            help="The answers allowed: .txt, .json, .pkl, or a training file .tsv; default: those stored with the "
            "weights; none: any words.",
        ),
    ] = None

    def allowed(self, task: Task, checkpoint: Path, section: str) -> tuple[list[str], str]:
        """Return the answers allowed, those given or those stored with the weights, and what is to be said of them."""
        from unival_core.data.answers import load_answers, stored_answers

        if self.answers is not None:
            return [] if str(self.answers) == "none" else load_answers(self.answers, task), ""
        stored = stored_answers(checkpoint, task.name, section) if task.takes_answers else []
        if stored is None:
            advice = "if it was trained with a list, give that: --answers FILE (--answers none: any words)"
            return [], f"{checkpoint} has no list of the answers allowed for {task.name}: {advice}"
        return stored, f"{task.name}: one of the {len(stored)} answers stored with the weights" if stored else ""

    def of(self, task: Task) -> Task:
        """Replace a task's own beam, side and frames where others were given."""
        beam = task.generation.beam if self.beam is None else self.beam
        return replace(
            task,
            side=self.side or task.side,
            frames=self.frames or task.frames,
            generation=replace(task.generation, beam=beam),
        )
