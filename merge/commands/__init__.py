"""The command line of the merging engine: the table of its commands."""

from __future__ import annotations

from merge.commands.files import aligning
from merge.commands.options import one_of
from merge.commands.table import Command, application, printable, run
from merge.errors import MergeError

COMMANDS = {
    "merge": Command("merge.commands.merging:merge", "Merge", "Merge checkpoints by any method."),
    "methods": Command(
        "merge.commands.looking:methods", "Merge", "List the methods, or show one in full.", prints=True
    ),
    "interpolate": Command("merge.commands.merging:interpolate", "Merge", "Mix two along the straight line."),
    "average": Command("merge.commands.merging:average", "Merge", "Average any number, each with its weight."),
    "task-arithmetic": Command(
        "merge.commands.merging:task_arithmetic", "Merge", "Add what experts have learned to their base."
    ),
    "slerp": Command("merge.commands.merging:slerp", "Merge", "Mix two along the great circle."),
    "series": Command("merge.commands.series:series", "Merge", "Average checkpoints along a training run."),
    "add-difference": Command(
        "merge.commands.series:add_difference", "Merge", "Add to one what another has and a third has not."
    ),
    "sweep": Command("merge.commands.merging:sweep", "Merge", "Write many ratios of two from one read."),
    "run": Command("merge.commands.merging:run", "Merge", "Make a merge again from its recipe."),
    "extract": Command("merge.commands.merging:extract", "Merge", "Take some tensors out of a checkpoint."),
    "graft": Command("merge.commands.merging:graft", "Merge", "Put tensors of one checkpoint into another."),
    "layers": Command("merge.commands.merging:layers", "Merge", "Repeat, drop or stack layers of checkpoints."),
    "adapters": Command("merge.commands.files:adapters", "Merge", "Merge LoRA adapters, alone or into their base."),
    "extract-lora": Command(
        "merge.commands.files:extract_lora", "Merge", "Write what finetuning changed as a LoRA adapter."
    ),
    "align": Command("merge.commands.files:align", "Merge", "Put a model's units in the order of another's."),
    "convert": Command("merge.commands.files:convert", "Merge", "Write a checkpoint in another format, bit for bit."),
    "inspect": Command("merge.commands.looking:inspect", "Look", "Show what a checkpoint holds.", prints=True),
    "diff": Command("merge.commands.looking:diff", "Look", "Show how two checkpoints differ.", prints=True),
    "doctor": Command("merge.commands.looking:doctor", "Look", "Say whether a merge is likely to work.", prints=True),
}

app = application(COMMANDS, "Merge checkpoints, and see whether they can be merged.", (MergeError,))


def main() -> None:
    """Run the commands of this package."""
    run(app)


__all__ = ["COMMANDS", "Command", "aligning", "app", "application", "main", "one_of", "printable", "run"]
