"""What the trainings of a study took, as a table of its own: seconds and megabytes are no scores."""

import csv
from collections.abc import Collection, Mapping
from pathlib import Path

from experiments.errors import StudyError
from experiments.unival.pocket.pretrainings import BACKBONE

HEAD = ("training", "goes on from", "updates", "examples", "CPU s", "with all before it", "peak MB")
LEGEND = (
    "Costs of training, without evaluation. CPU s: processor time of one thread, of a training that was stopped and "
    "went on reckoned from the part measured; with all before it: from the backbone on. Peak MB: the highest resident "
    "set of the process in the training, decoded media and the libraries included."
)


def costs_table(folder: Path, names: Collection[str]) -> str:
    """Write the costs in FOLDER/costs.csv as a pipe table with a legend; "" if none of the trainings named is there.

    Of one training measured more than once the last counts; seeds have lines of their own.
    """
    file = folder / "costs.csv"
    if not file.exists():
        return ""
    with file.open(newline="") as lines:
        costs = {(line["seed"], line["training"]): line for line in csv.DictReader(lines)}
    if not {name for _, name in costs} & set(names):
        return ""
    try:
        body = [_line(place, costs) for place in costs]
    except (KeyError, TypeError, ValueError) as error:
        raise StudyError(f"{file} is not whole ({error}): remove it, and the trainings to be measured again") from None
    seeds = {seed for seed, _ in costs}
    labels = [f"{name} (seed {seed})" if len(seeds) > 1 else name for seed, name in costs]
    table = [HEAD, ["---", "---", *["---:"] * 5], *([label, *line] for label, line in zip(labels, body, strict=True))]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in table) + f"\n\n{LEGEND}\n"


def _line(place: tuple[str, str], costs: Mapping[tuple[str, str], Mapping[str, str]]) -> list[str]:
    """The cells of a training, behind its name."""
    own = costs[place]
    total, start = seconds(own), own["start"]
    while start != BACKBONE:
        before = costs[place[0], start]
        total, start = total + seconds(before), before["start"]
    return [own["start"], own["updates"], own["examples"], f"{seconds(own):.0f}", f"{total:.0f}", own["peak_mb"]]


def seconds(line: Mapping[str, str]) -> float:
    """Reckon the CPU seconds of a whole training, of which a part may have been measured."""
    return float(line["cpu_seconds"]) * int(line["updates"]) / int(line["measured"])
