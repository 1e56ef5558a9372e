"""The one console script, `unival-merge`: the commands of all three packages."""

from __future__ import annotations

import merge.commands
import unival_core.commands
from experiments.errors import StudyError
from merge import MergeError
from merge.commands import Command, application, run
from unival_core import UnivalError

COMMANDS = {
    "study list": Command("experiments.commands.study:list_studies", "Study", "List the studies.", prints=True),
    "study run": Command("experiments.commands.study:run", "Study", "Evaluate merged models at every point."),
    "study new": Command("experiments.commands.study:new", "Study", "Write a study of your own to start from."),
    "study best": Command(
        "experiments.commands.study:best", "Study", "Print the best ratio, chosen on split val.", prints=True
    ),
    "study search": Command(
        "experiments.commands.search:search", "Study", "Search the best ratio with a budget.", prints=True
    ),
    "study measure": Command(
        "experiments.commands.measure:measure", "Study", "Measure weights pair by pair, and merges."
    ),
    "study plot": Command("experiments.commands.pages:plot", "Study", "Draw every figure of a study."),
    "study table": Command("experiments.commands.pages:table", "Study", "Print the scores of a study.", prints=True),
    "study findings": Command("experiments.commands.pages:findings", "Study", "Print what rows say.", prints=True),
    "study report": Command("experiments.commands.pages:report", "Study", "Write one HTML page of a study."),
    "study claims": Command("experiments.commands.pages:claims", "Study", "Set the paper's claims beside results."),
    "study export": Command("experiments.commands.pages:export", "Study", "Write one study's rows small, to publish."),
    "study samples": Command("experiments.commands.pages:samples", "Study", "Let merged models answer a few examples."),
    "world make": Command("experiments.commands.world:make", "World", "Write the embedded data."),
    "world show": Command("experiments.commands.world:show", "World", "Draw rows of the embedded data.", prints=True),
    "pocket": Command("experiments.commands.pocket:pocket", "World", "Make the study's models from nothing."),
    "demo": Command("experiments.commands.pocket:demo", "World", "Make data and experts, merge them, report."),
}

app = application(
    {**merge.commands.COMMANDS, **unival_core.commands.COMMANDS, **COMMANDS},
    "Merge models finetuned from one ancestor, and study what happens between them.",
    (MergeError, UnivalError, StudyError),
)


def main() -> None:
    """Run the command line of all three packages."""
    run(app)


__all__ = ["COMMANDS", "app", "main"]
