"""What the weights of two experts say by themselves, beside the barriers between them: a line a pair."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from experiments.grid.escapes import markdown
from experiments.grid.rows import Records
from experiments.pages.views import experts_of, losses_of, main_metrics, on_split, reported_split
from experiments.statistics.barriers import PairBarrier, barriers, rank_correlation
from experiments.statistics.bootstrap import interval

MEASURES = {
    "cosine": "cosine of the two task vectors",
    "distance": "distance between the experts (L2)",
    "agreement": "share of entries moved in one direction",
}
HEAD = ("pair", "kind", "seeds", "cosine", "distance", "agreement", "barrier in score, %", "in the middle, %")
LOSSES = ("barrier in loss, nats", "in the middle, nats")


@dataclass
class Pairing:
    """Two experts of a kind: how their weights stand to each other and their barriers, by seed."""

    pair: tuple[str, str]
    kind: str
    geometry: dict[int, dict[str, float]] = field(default_factory=dict[int, dict[str, float]])
    score: dict[int, PairBarrier] = field(default_factory=dict[int, PairBarrier])
    loss: dict[int, PairBarrier] = field(default_factory=dict[int, PairBarrier])

    @property
    def seeds(self) -> list[int]:
        """Return the seeds of which both weights and scores are known."""
        return [seed for seed in self.geometry if seed in self.score]

    def at(self, measure: str, what: str, factor: float = 1.0) -> np.ndarray:
        """Return a measure of the weights and the greatest barrier of `score` or `loss`, by seed (s, 2)."""
        own: dict[int, PairBarrier] = getattr(self, what)
        seeds = [seed for seed in self.geometry if seed in own]
        return np.array([[self.geometry[seed][measure], factor * own[seed].greatest] for seed in seeds])


def pairings(rows: Records) -> list[Pairing]:
    """Find the pairs whose weights were measured (rows with a `geometry`) and whose line was evaluated."""
    here = on_split(rows, reported_split(rows))
    main = main_metrics(here)
    owners = {row["task"]: row["owner"] for row in main}
    losses = [{**row, "owner": owners[row["task"]]} for row in losses_of(here)]
    found: dict[tuple[Any, ...], Pairing] = {}
    for row in main:
        if "geometry" in row:
            first, second = sorted(experts_of(row))
            place = (first, second), str(row["experts"])
            found.setdefault(place, Pairing(*place)).geometry[int(row["seed"])] = row["geometry"]
    for name, own in (("score", barriers(main, relative=True)), ("loss", barriers(losses, relative=False))):
        for one in own:
            if (one.pair, one.kind) in found:
                getattr(found[one.pair, one.kind], name)[one.seed] = one
    return [one for one in found.values() if one.seeds]


def mergeability_table(rows: Records) -> str:
    """Write a line a pair as markdown, and how the barriers go with the weights; "" where no weights were measured."""
    found = pairings(rows)
    if not found:
        return ""
    has_losses = all(one.loss for one in found)
    lines = [[*HEAD, *LOSSES * has_losses], ["---", "---", *["---:"] * (len(HEAD) - 2 + 2 * has_losses)]]
    for one in found:
        measured = [f"{np.mean([own[name] for own in one.geometry.values()]):.3g}" for name in MEASURES]
        numbers = [_told([100 * getattr(own, name) for own in one.score.values()]) for name in ("greatest", "midpoint")]
        if has_losses:
            numbers += [
                _told([getattr(own, name) for own in one.loss.values()], 3) for name in ("greatest", "midpoint")
            ]
        pair = " + ".join(map(markdown, one.pair))
        lines.append([pair, markdown(one.kind), str(len(one.seeds)), *measured, *numbers])
    told = [_correlations(found, what) for what in ("score", *(("loss",) if has_losses else ()))]
    body = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    text = "Barriers: how far the worst point of the line, or its middle, lies below the straight line between the two "
    text += "experts, mean over their two tasks; of scores as % of the task's own expert. Above 0 the line sags. "
    text += "Intervals are 95 %, over seeds. "
    return f"{body}\n\n{text}{' '.join(told)}\n"


def _told(values: list[float], digits: int = 1) -> str:
    bounds = interval(values)
    text = f"{np.mean(values):.{digits}f}"
    return text if bounds.lo != bounds.lo else f"{text} [{bounds.lo:.{digits}f}, {bounds.hi:.{digits}f}]"


def _correlations(found: list[Pairing], what: str) -> str:
    parts: list[str] = []
    for measure in MEASURES:
        means = np.array([one.at(measure, what).mean(axis=0) for one in found])
        value = rank_correlation(means[:, 0].tolist(), means[:, 1].tolist())
        parts += [f"{measure} {value:.2f}"] if value == value else []
    return f"Rank correlation of the greatest barrier in {what} over {len(found)} pairs: {', '.join(parts)}." * bool(
        parts
    )
