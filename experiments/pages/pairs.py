"""Pairs of experts beside each other: the barriers between them, how far they disagree, what their weights say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from experiments.grid.rows import Records
from experiments.pages.plain import Plain, with_interval
from experiments.pages.views import experts_of, is_single, losses_of, main_metrics, on_split, reported_split
from experiments.statistics.barriers import PairBarrier, barriers, rank_correlation
from experiments.statistics.calibration import disagreement, is_share
from experiments.statistics.contrasts import draws_of
from experiments.statistics.tests import Examples

MEASURES = {
    "cosine": "cosine of the two task vectors",
    "distance": "distance between the experts (L2)",
    "agreement": "share of entries moved in one direction",
}
KINDS = {"score": ("barrier in score, %", 100.0, 1), "loss": ("barrier in loss, nats", 1.0, 3)}  # factor, digits


@dataclass
class Pairing:
    """Two experts of a kind: how their weights stand to each other, their barriers, and on what share of the examples
    of their tasks one is right and the other wrong, by seed."""

    pair: tuple[str, str]
    kind: str
    geometry: dict[int, dict[str, float]] = field(default_factory=dict[int, dict[str, float]])
    score: dict[int, PairBarrier] = field(default_factory=dict[int, PairBarrier])
    loss: dict[int, PairBarrier] = field(default_factory=dict[int, PairBarrier])
    apart: dict[int, float] = field(default_factory=dict[int, float])

    @property
    def seeds(self) -> list[int]:
        """Return the seeds of which barriers are known."""
        return sorted({*self.score, *self.loss})

    @property
    def is_measured(self) -> bool:
        """Tell whether both the weights and the scores of a seed are known."""
        return bool(self.geometry.keys() & self.score.keys())

    def at(self, measure: str, what: str, factor: float = 1.0) -> np.ndarray:
        """Return a measure of the weights and the greatest barrier of `score` or `loss`, by seed (s, 2)."""
        own: dict[int, PairBarrier] = getattr(self, what)
        seeds = [seed for seed in self.geometry if seed in own]
        return np.array([[self.geometry[seed][measure], factor * own[seed].greatest] for seed in seeds])


def pairings(rows: Records, scores: Examples | None = None) -> list[Pairing]:
    """Find the pairs between which a line was evaluated, with all that is known of them."""
    here, known = on_split(rows, reported_split(rows)), scores or {}
    main = main_metrics(here)
    owners = {row["task"]: row["owner"] for row in main}
    losses = [{**row, "owner": owners[row["task"]]} for row in losses_of(here)]
    found: dict[tuple[Any, ...], Pairing] = {}
    for name, own in (("score", main), ("loss", losses)):
        for one in barriers(own, relative=name == "score", draws=draws_of(own, known) if known else None):
            place = one.pair, one.kind
            getattr(found.setdefault(place, Pairing(*place)), name)[one.seed] = one
    for row in main:
        first, *others = sorted(experts_of(row))
        if "geometry" in row and ((first, *others), row["experts"]) in found:
            found[(first, *others), row["experts"]].geometry[int(row["seed"])] = row["geometry"]
    for one in found.values():
        one.apart |= _disagreements(main, one, owners, known)
    return [*found.values()]


def _disagreements(rows: Records, pairing: Pairing, owners: dict[str, str], scores: Examples) -> dict[int, float]:
    """Return by seed how often the experts of a pair disagree, the mean over those of their tasks whose scores are
    shares."""
    answers: dict[tuple[int, str], dict[str, np.ndarray]] = {}
    for row in rows:
        own = scores.get(str(row["key"])) if "key" in row else None
        if own is None or not is_single(row) or row["experts"] != pairing.kind:
            continue
        if {owners[row["task"]], experts_of(row)[0]} <= {*pairing.pair} and is_share(own):
            answers.setdefault((int(row["seed"]), row["task"]), {})[experts_of(row)[0]] = own
    found: dict[int, list[float]] = {}
    for (seed, _), own in answers.items():
        if len(own) == 2 and len({len(one) for one in own.values()}) == 1:
            found.setdefault(seed, []).append(disagreement(*own.values()))
    return {seed: float(np.mean(own)) for seed, own in found.items()}


def pair_table(rows: Records, scores: Examples | None = None) -> Plain | None:
    """Set the pairs of experts beside each other, and tell how barriers go with weights that were measured; None where
    no line was evaluated."""
    found = pairings(rows, scores)
    if not found:
        return None
    measured = all(one.is_measured for one in found)
    kinds = [name for name in KINDS if all(getattr(one, name) for one in found)]
    apart = any(one.apart for one in found)
    head = ["pair", "kind", "seeds", *(MEASURES if measured else ())]
    head += [column for name in kinds for column in (KINDS[name][0], f"in the middle, {KINDS[name][0].split()[-1]}")]
    head += ["disagree, %"] * apart
    lines: list[list[str]] = []
    for one in found:
        line = [" + ".join(one.pair), one.kind, str(len(one.seeds))]
        if measured:
            line += [f"{np.mean([own[name] for own in one.geometry.values()]):.3g}" for name in MEASURES]
        for name in kinds:
            line += [_barrier([*getattr(one, name).values()], place, *KINDS[name][1:]) for place in (0, 1)]
        line += [with_interval([100 * value for value in one.apart.values()]) if one.apart else ""] * apart
        lines.append(line)
    text = (
        "Barriers: how far the worst point of the line, or its middle, lies below the straight line between the two "
        "experts (a loss above it), mean over their two tasks; of scores as % of the task's own expert. Above 0 the "
        "line sags. The worst point was picked on these scores. "
    )
    text += "Disagree: on so many examples of their tasks one is right and the other not. " * apart
    several = max(len(one.seeds) for one in found) > 1
    text += "Intervals are 95 %, over seeds" + " (of barriers also over examples)" * bool(scores) + ". "
    text = text if several else text.replace("over seeds (of barriers also over", "of barriers over the").strip()
    correlations = [_correlations(found, name) for name in kinds] if measured else []
    return Plain(head, lines, 2, " ".join([text.strip(), *filter(None, correlations)]))


def _barrier(own: Sequence[PairBarrier], place: int, factor: float, digits: int) -> str:
    """Write the greatest barrier (place 0) or that in the middle, over seeds and examples."""
    values = factor * np.array([[one.greatest, one.midpoint][place] for one in own])
    draws = [one.draws[:, place] for one in own if one.draws is not None]
    return with_interval(values, digits, factor * np.stack(draws, axis=1) if len(draws) == len(own) else None)


def _correlations(found: list[Pairing], what: str) -> str:
    parts: list[str] = []
    for measure in MEASURES:
        means = np.array([one.at(measure, what).mean(axis=0) for one in found])
        value = rank_correlation(means[:, 0].tolist(), means[:, 1].tolist())
        parts += [f"{measure} {value:.2f}"] if value == value else []
    if not parts:
        return ""
    return f"Rank correlation of the greatest barrier in {what} over {len(found)} pairs: {', '.join(parts)}."
