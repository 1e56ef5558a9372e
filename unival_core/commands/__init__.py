"""The command line of the model: the table of its commands."""

from __future__ import annotations

from merge import MergeError
from merge.commands import Command, application, run
from unival_core.errors import UnivalError

COMMANDS = {
    "generate": Command(
        "unival_core.commands.answering:generate", "UnIVAL", "Ask a model about one image, video, audio.", prints=True
    ),
    "evaluate": Command(
        "unival_core.commands.answering:evaluate", "UnIVAL", "Score a model on the rows of a file.", prints=True
    ),
    "train": Command("unival_core.commands.training:train", "UnIVAL", "Finetune a model on one task, by its recipe."),
    "pretrain": Command("unival_core.commands.training:pretrain", "UnIVAL", "Pretrain a model on several tasks."),
    "align": Command("unival_core.commands.answering:align", "Merge", "Put a model's units in the order of another's."),
}

app = application(COMMANDS, "Run and train a UnIVAL model.", (MergeError, UnivalError))


def main() -> None:
    """Run the commands of this package."""
    run(app)


__all__ = ["COMMANDS", "app", "main"]
