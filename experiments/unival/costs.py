"""What the trainings of a study took, as a table of its own: seconds and megabytes are no scores."""

import csv
from collections.abc import Collection, Mapping
from pathlib import Path

from experiments.errors import StudyError
from experiments.unival.pocket.pretrainings import BACKBONE

FILE = "costs.csv"
Costs = Mapping[tuple[str, str], Mapping[str, str]]
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
    costs = read_costs(folder)
    if not {name for _, name in costs} & set(names):
        return ""
    try:
        body = [_line(place, costs) for place in costs]
    except (KeyError, TypeError, ValueError) as error:
        raise StudyError(
            f"{folder / FILE} is not whole ({error}): remove it, and the trainings to be measured again"
        ) from None
    seeds = {seed for seed, _ in costs}
    labels = [f"{name} (seed {seed})" if len(seeds) > 1 else name for seed, name in costs]
    table = [HEAD, ["---", "---", *["---:"] * 5], *([label, *line] for label, line in zip(labels, body, strict=True))]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in table) + f"\n\n{LEGEND}\n"


def read_costs(folder: Path) -> Costs:
    """Return the lines of FOLDER/costs.csv by seed and training; none where there is no such file."""
    if not (folder / FILE).exists():
        return {}
    with (folder / FILE).open(newline="") as lines:
        return {(line["seed"], line["training"]): line for line in csv.DictReader(lines)}


def whole_seconds(costs: Costs, place: tuple[str, str]) -> float:
    """Return the CPU seconds of a training of a seed with all before it, from the backbone on."""
    own = costs[place]
    before = own["start"]
    return seconds(own) + (0.0 if before == BACKBONE else whole_seconds(costs, (place[0], before)))


def _line(place: tuple[str, str], costs: Costs) -> list[str]:
    """The cells of a training, behind its name."""
    own, total = costs[place], whole_seconds(costs, place)
    return [own["start"], own["updates"], own["examples"], f"{seconds(own):.0f}", f"{total:.0f}", own["peak_mb"]]


def seconds(line: Mapping[str, str]) -> float:
    """Reckon the CPU seconds of a whole training, of which a part may have been measured."""
    return float(line["cpu_seconds"]) * int(line["updates"]) / int(line["measured"])
