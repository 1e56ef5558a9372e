"""Options that several commands of studies take. What most users never need stands in panels of its own."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from merge.commands import one_of

if TYPE_CHECKING:
    from experiments.study.methods import Sweep
    from experiments.unival.setups import Setup
    from experiments.unival.studies import Choice

RUNNING = "Running"
which = partial(typer.Option, rich_help_panel="Which cells")
base = partial(typer.Option, rich_help_panel="At setup base")
running = partial(typer.Option, rich_help_panel=RUNNING)

# The words are written out: the tables that hold them import torch, and `--help` may not. A test compares them.
SETUPS = ("pocket", "base")
SPLITS = ("test", "val")
ENGINES = ("local", "ray")
PRECISIONS = ("fp32", "bf16", "fp16")
SEARCHES = ("grid", "random", "coordinate", "adaptive", "cma", "greedy-soup")
OBJECTIVES = ("joint", "hypervolume")
FORMATS = ("markdown", "csv", "latex")
SCORES = ("quoted", "all", "none")
PRESETS = ("full", "quick", "micro")
DEMOS = ("quick", "full")
SIZES = ("full", "quick", "micro")
DOMAINS = ("shared", "split")

Only = Annotated[str | None, which(metavar="NAME+NAME", help="One mixture, as vqa+caption.")]
Kinds = Annotated[
    str | None, which(metavar="KIND,...", help="Kinds of experts, as vanilla,ratatouille; default: the study's.")
]
Limit = Annotated[int | None, typer.Option(min=1, help="Rows of every split to stop after.")]
Device = Annotated[str, running(metavar="DEVICE", help="Where to run: cpu, cuda, ...")]


@dataclass(frozen=True)
class Place:
    """Options that say where models and data are."""

    setup: Annotated[str, one_of(SETUPS, "--setup", "The embedded world, or published checkpoints and data.")] = (
        "pocket"
    )
    checkpoints: Annotated[Path | None, base(metavar="DIR", help="Folder of the published checkpoints.")] = None
    data: Annotated[Path | None, base(metavar="DIR", help="Folder of the published data.")] = None

    def at(self, folder: Path) -> Setup:
        """Open the setup of a study in a folder. Raises StudyError where a folder of setup base was not given."""
        from experiments.unival.setups import setup_named

        return setup_named(self.setup, folder, checkpoints=self.checkpoints, data=self.data)


@dataclass(frozen=True)
class Cells:
    """Options that choose of a study's cells."""

    split: Annotated[
        str | None, typer.Option(metavar="SPLIT", help="test, or val to choose a ratio; default: what the study says.")
    ] = None
    points: Annotated[int | None, typer.Option(min=2, help="Points on every line, its ends included.")] = None
    only: Only = None
    kinds: Kinds = None
    method: Annotated[
        list[str] | None,
        which(
            metavar="METHOD",
            help="How experts are merged, as ties or ties:density=0.1,0.3 (`methods` lists all); may be repeated; "
            "default: what the study says.",
        ),
    ] = None
    batchnorm: Annotated[
        list[str] | None,
        which(
            metavar="POLICY", help="average, from:NAME, recalibrate:mixture, recalibrate:task, or all; may be repeated."
        ),
    ] = None

    @property
    def policies(self) -> tuple[str, ...]:
        """Return the BatchNorm policies that were given."""
        return tuple(one for text in self.batchnorm or ["average"] for one in text.split(","))

    @property
    def methods(self) -> tuple[str | Sweep, ...] | None:
        """Return the methods that were given, with the values to try of their parameters. StudyError for no words of
        one."""
        from experiments.study.methods import sweep_in

        return tuple(map(sweep_in, self.method)) if self.method else None

    def at(self, setup: str) -> Choice:
        """Make the choice at a setup. Raises StudyError for what there is not."""
        from experiments.unival.studies import Choice

        kinds = None if self.kinds is None else tuple(self.kinds.split(","))
        return Choice(setup, self.split or "test", self.points, kinds, self.only, self.policies, self.methods)
