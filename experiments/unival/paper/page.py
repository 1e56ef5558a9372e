"""One page for a reader of the paper: its claims, what these results say of each, and what merging is good for.

A verdict is never written by hand. One rule makes all of them, from the test of each claim's number: shown, where it
is above 0 after Holm's correction for all claims of the page, over two seeds or more; contrary, where it is below 0 so;
else shown in the mean, where it is above 0, and not shown, where it is not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from experiments.atomic import write_whole
from experiments.errors import StudyError
from experiments.grid.escapes import markdown
from experiments.grid.lines import files_of
from experiments.pages.findings.words import number
from experiments.pages.views import kinds_of, read_notes
from experiments.statistics.contrasts import signs
from experiments.unival.paper.claims import CLAIMS, Claim, start
from experiments.unival.paper.evidence import (
    SHARE,
    Evidence,
    Places,
    Told,
    average,
    away,
    evidence_in,
    gain,
    home,
    named,
    own,
)

NOT_RUN = "not run"
AGAINST = {1: "better than", 0: "not told apart from", -1: "behind"}
ADVICE = (
    "It is the upper bound: merging is for experts that are there already, or whose data cannot be had together; where "
    "all data are at hand, finetune once."
)
RULE = (
    "**Verdict**, by one rule: *shown*, where the number is above 0 after Holm's correction for all claims of this "
    "page (p < 0.05, over two training seeds or more); *contrary*, where it is below 0 so; else *shown in the mean* "
    "where it is above 0, and *not shown* where it is not. Numbers are differences with 95 % intervals over seeds and "
    "examples, the mean over the tasks that are meant; of several measures the weakest is printed. With one seed an "
    "interval is evaluation noise only. The best of many points is corrected for having been chosen (max-T)."
)
HEAD = ("place", "claim", "paper", "here", "verdict", "from")


class Line(NamedTuple):
    """A claim, what its rows say of it (None: not run), and the verdict."""

    claim: Claim
    told: Told | None
    verdict: str
    evidence: Evidence | None


def judged(known: Mapping[str, Evidence]) -> list[Line]:
    """Test every claim on the rows of studies (`evidence_in`)."""
    where = [next((known[name] for name in claim.studies if name in known), None) for claim in CLAIMS]
    told = [None if one is None else claim.measure(one) for claim, one in zip(CLAIMS, where, strict=True)]
    return [
        Line(claim, own, verdict, evidence)
        for claim, own, verdict, evidence in zip(CLAIMS, told, verdicts(told), where, strict=True)
    ]


def verdicts(told: Sequence[Told | None]) -> list[str]:
    """Say of numbers whether they show what is claimed, by the rule of this page."""
    sure = iter(signs([one.contrast for one in told if one is not None and len(one.contrast.seeds) > 1]))
    found: list[str] = []
    for one in told:
        if one is None:
            found.append(NOT_RUN)
            continue
        sign = next(sure) if len(one.contrast.seeds) > 1 else 0
        in_mean = "shown in the mean" if one.contrast.value > 0 else "not shown"
        found.append({1: "shown", -1: "contrary", 0: in_mean}[sign])
    return found


def write_page(folder: Path, output: Path) -> Path:
    """Write the page of the results in a folder, whole or not at all. StudyError where there are none."""
    known = evidence_in(folder)
    if not known:
        raise StudyError(f"{folder} has no folder with rows.jsonl: give the folder of the folders of studies")
    lines = judged(known)
    counts = Counter(line.verdict for line in lines)
    parts = [
        "# The paper's claims, and what came out here",
        "Section 5 of arXiv 2307.16184 in small: the same experiments with models of 0.9 million parameters on the "
        "embedded world ([docs/world.md](../docs/world.md)), made on a laptop. Every folder holds the rows of studies, "
        "tables and figures, and the commands that made them; this page is made from the rows alone, by "
        f"`unival-merge study claims {folder.name}`.",
        ", ".join(f"{count} {verdict}" for verdict, count in counts.items()) + f", of {len(lines)} claims.",
        _table(lines),
        RULE,
        "## What merging is good for, and what not",
        "\n".join(f"- {sentence}" for sentence in summary(known)) or "The study `averaging` was not run.",
        "## What the folders hold",
        "\n".join(f"- {line}" for line in _folders(folder, known)),
    ]
    write_whole(output, "\n\n".join(parts) + "\n", "name another file with -o")
    return output


def _folders(folder: Path, known: Mapping[str, Evidence]) -> list[str]:
    """Say of every folder with rows what its own page is called, and what the studies ask that are read from it."""
    found: list[str] = []
    for place in [place for place in sorted(folder.glob("*/")) if files_of(place / "rows.jsonl")]:
        own = place / "README.md"
        title = own.read_text().partition("\n")[0].strip("# ") if own.is_file() else place.name
        asked = [one for one in known.values() if one.folder == place]
        questions = [markdown(read_notes(place, one.study).question) for one in asked]
        found.append(f"[{place.name}]({place.name}/README.md): {' '.join([f'{title}.', *questions])}".strip())
    return found


def _table(lines: Sequence[Line]) -> str:
    body = [HEAD, ("---",) * len(HEAD)]
    for claim, told, verdict, evidence in lines:
        there = "" if evidence is None else evidence.folder.name
        rows = "" if evidence is None else files_of(evidence.folder / "rows.jsonl")[0].name
        links = f"[rows]({there}/{rows}), [commands]({there}/README.md)"
        command = f"`unival-merge study run {claim.studies[0]} DIR --train`"
        cells = [claim.place, claim.says, claim.paper or "-", "" if told is None else told.text]
        body.append((*map(markdown, cells[:3]), cells[3], verdict, command if told is None else links))
    return "\n".join(f"| {' | '.join(line)} |" for line in body)


# -- what merging is good for


def summary(known: Mapping[str, Evidence]) -> list[str]:
    """Say in numbers what the average of all experts is, against what else could be done with the same data."""
    evidence = known.get("averaging")
    if evidence is None:
        return []
    made = [kind for kind in kinds_of(evidence.rows) if any(map(average(kind), evidence.rows))]
    if not made:
        return []
    first = "vanilla" if "vanilla" in made else made[0]
    found = [
        text
        for words, places in (("in distribution", home), ("on shifted data", away))
        if (text := _compared(evidence, first, made, places, f"The average of all {first} experts, {words},"))
    ]
    strongest = made[-1] if "ratatouille" not in made else "ratatouille"
    joint = gain(named("joint"), average(strongest), home, per=own(first))(evidence)
    if joint is not None:
        (sign,) = signs([joint.contrast])
        found.append(
            f"One joint finetuning on all tasks is {AGAINST[sign]} the average of {strongest} experts in "
            f"distribution, {joint.text}." + f" {ADVICE}" * (sign > 0)
        )
    return found


def _compared(evidence: Evidence, first: str, made: Sequence[str], places: Places, subject: str) -> str:
    """Compare the average of one kind of experts with other models, in a sentence; "" where there are none."""
    others = {
        "the tasks' own experts": own(first),
        "the pretrained model": start,
        "one joint finetuning": named("joint"),
        **{f"the average of {kind} experts": average(kind) for kind in made if kind != first},
    }
    measured = {name: gain(average(first), other, places, per=own(first))(evidence) for name, other in others.items()}
    told = {name: one for name, one in measured.items() if one is not None}
    clear = signs([one.contrast for one in told.values()])
    parts = [
        f"{AGAINST[sign]} {name} ({number(one.contrast, one.unit.factor)})"
        for sign, (name, one) in zip(clear, told.items(), strict=True)
    ]
    return f"{subject} is {'; '.join(parts)}; in {SHARE.name}." if parts else ""
