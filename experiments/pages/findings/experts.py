"""What finetuning gave and cost: experts against the pretrained model, or against each other."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

from experiments.grid.rows import Records, names_in
from experiments.pages.findings.words import Finding, gap_words, gaps_of, versus
from experiments.pages.views import PRETRAINED, experts_of, is_single, kinds_of, on_split, reported_split
from experiments.statistics.contrasts import signs
from experiments.statistics.tests import Examples


def specialists(rows: Records, scores: Examples) -> Finding | None:
    """Compare experts with the pretrained model, on their own task and on the others; without one, every task's own
    expert with the others."""
    here = [row for row in on_split(rows, reported_split(rows)) if is_single(row)]
    kind = next(iter(kind for kind in kinds_of(rows) if kind in names_in(here, "experts")), "")
    models: dict[tuple[str, str], dict[int, dict]] = defaultdict(dict)
    for row in here:
        if row["experts"] in (kind, PRETRAINED):
            models[experts_of(row)[0], row["task"]][row["seed"]] = row
    owners = {row["task"]: row["owner"] for row in here}
    if any(name == PRETRAINED for name, _ in models):
        places = [place for place in models if place[0] != PRETRAINED and (PRETRAINED, place[1]) in models]
        compared = {place: (models[place], models[PRETRAINED, place[1]]) for place in places}
        return _against_start(compared, owners, here, scores)
    compared = {
        (name, task): (models[owners[task], task], own)
        for (name, task), own in models.items()
        if name != owners[task] and (owners[task], task) in models
    }
    gaps = gaps_of(compared, scores)
    if not gaps:
        return None
    found = signs([*gaps.values()])
    text = f"On its own task an expert is {versus(found.count(1), found.count(-1), len(found), 'another expert')}."
    details = tuple(f"{task}: {gap_words(gap, here, task)} better than {name}" for (name, task), gap in gaps.items())
    unclear = found.count(0)
    return Finding(text, details, f"{unclear} of {len(found)} experts from the task's own" * bool(unclear))


def _against_start(
    compared: Mapping[tuple[str, str], tuple], owners: Mapping[str, str], rows: Records, scores: Examples
) -> Finding | None:
    gaps = gaps_of(compared, scores)
    own = [place for place in gaps if owners[place[1]] == place[0]]
    others = [place for place in gaps if place not in own]
    if not own:
        return None
    clear = dict(zip(gaps, signs([*gaps.values()]), strict=True))
    won = sum(clear[place] > 0 for place in own)
    text = f"{won} of {len(own)} experts beat the pretrained model on their own task"
    details = [f"{name} on its own {task}: {gap_words(gaps[name, task], rows, task)}" for name, task in own]
    if others:
        lost, gained = (sum(clear[place] == sign for place in others) for sign in (-1, 1))
        text += f"; on the tasks of others they are {versus(gained, lost, len(others), 'it')}"
        details += [f"{name} on {task}: {gap_words(gaps[name, task], rows, task)}" for name, task in others]
    unclear = list(clear.values()).count(0)
    words = f"{unclear} of {len(gaps)} experts' scores from the pretrained model's" * bool(unclear)
    return Finding(f"{text}.", tuple(details), words)
