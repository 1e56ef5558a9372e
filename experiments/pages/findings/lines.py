"""What lies on the lines between two experts: whether a point beats the expert, and all of them the straight line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from experiments.grid.rows import Records
from experiments.grid.units import Unit, scale_of
from experiments.pages.findings.words import Finding, counted, listed, number, seeds_words, unit_words
from experiments.pages.views import (
    Pair,
    experts_of,
    kinds_of,
    on_split,
    pairs_of,
    reported_split,
)
from experiments.statistics.contrasts import (
    SIGNIFICANT,
    BySeed,
    Contrast,
    contrast,
    draws_of,
    measured,
    signs,
    survived,
)
from experiments.statistics.curves import Barrier, barrier
from experiments.statistics.summary import CHOOSING
from experiments.statistics.tests import Examples, max_t
from merge import share_label


class Between(NamedTuple):
    """The points of a pair of experts of a kind on one task, which is the `owner`'s: shares of the second (k,), scores
    (k, s), draws of them (k, samples, s), mean scores on val by share, where that was evaluated, and the seeds (s,)."""

    pair: Pair
    kind: str
    task: str
    metric: str
    owner: str
    scale: Unit
    shares: np.ndarray
    values: np.ndarray
    draws: np.ndarray | None
    val: dict[float, float]
    seeds: tuple[int, ...]

    @property
    def name(self) -> str:
        """Name the line and what it is scored on."""
        return f"{' + '.join(self.pair)}{f' ({self.kind})' if self.kind != 'expert' else ''} on {self.task}"

    @property
    def inner(self) -> range:
        """Return the places of the points between the ends."""
        return range(1, len(self.shares) - 1)

    def point(self, place: int) -> str:
        """Name a point by its shares."""
        share = float(self.shares[place])
        return share_label({self.pair[0]: 1 - share, self.pair[1]: share})

    def against(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """Return combinations (m, k) of the points' scores, more is better, with their draws."""
        weights = weights if self.scale.rises else -weights
        drawn = None if self.draws is None else np.tensordot(weights, self.draws, axes=1)
        return np.tensordot(weights, self.values, axes=1), drawn

    def above_line(self) -> list[Contrast]:
        """Test of every inner point by how much it lies above the straight line between the ends."""
        values, draws = self.against(chords(self.shares))
        return [contrast(one, None if draws is None else draws[k]) for k, one in enumerate(values)]


class Best(NamedTuple):
    """The best point of a line against the task's own expert; p for other seeds, and for these seeds alone."""

    line: Between
    place: int
    gap: Contrast
    lowest: float
    chosen: str
    p: float
    p_here: float


def lines_in(rows: Records, scores: Examples, *, own: bool = True) -> list[Between]:
    """Measure every line between two experts that has both ends and a point between them, on each task (with `own`, of
    the tasks of its experts) by each metric, on the reported split."""
    here = on_split(rows, reported_split(rows))
    draws = draws_of(here, scores)
    found: list[Between] = []
    for kind in kinds_of(rows):
        of_kind = [row for row in here if row["experts"] == kind]
        for pair in pairs_of(of_kind):
            known = [row for row in of_kind if set(experts_of(row)) <= set(pair)]
            for task, metric in dict.fromkeys((row["task"], row["metric"]) for row in known):
                cells = [row for row in known if (row["task"], row["metric"]) == (task, metric)]
                if own and cells[0].get("owner") not in pair:
                    continue
                points = _by_share(cells, pair)
                if not {0.0, 1.0} < set(points):
                    continue
                shares = sorted(points)
                of_all = measured([points[share] for share in shares], scores, draws)
                if not of_all.seeds:
                    continue
                val = [row for row in rows if row["split"] == CHOOSING[0] and row["experts"] == kind]
                val = [row for row in val if (row["task"], row["metric"]) == (task, metric)]
                means = _on_val(
                    _by_share([row for row in val if set(experts_of(row)) <= set(pair)], pair), shares[1:-1]
                )
                scale = scale_of(cells)
                owner = str(cells[0].get("owner", ""))
                about = pair, kind, task, metric, owner, scale, np.array(shares)
                found.append(Between(*about, of_all.values, of_all.draws, means, of_all.seeds))
    return found


def beat_experts(lines: Sequence[Between]) -> Finding | None:
    """Say on how many lines a point beats the task's own expert: that which was best on val, else the best of all,
    corrected for there being many (max-T)."""
    found = [best for line in lines if (best := best_of(line)) is not None]
    if not found:
        return None
    several = any(line.values.shape[1] > 1 for line in lines)
    clear, here = survived([one.p for one in found]), survived([one.p_here for one in found])
    won = [one for one, sure in zip(found, clear, strict=True) if sure]
    these = [one for one, sure in zip(found, here, strict=True) if sure]
    how = listed(list(dict.fromkeys(one.chosen for one in found)))
    of = f"of {len(found)} lines and tasks"
    alone = sum(one.p < SIGNIFICANT for one in found)
    others = f"on {len(won)} for other seeds too" + f", {alone} before Holm" * (alone > len(won))
    if won or these:
        text = "Between two experts lie weights that beat the expert on its own task: "
        text += listed([f"{one.line.task} between {' and '.join(one.line.pair)}" for one in _distinct(these or won)])
        counts = (
            [f"on {len(these)} {of} at these seeds, for other examples", others] if several else [f"on {len(won)} {of}"]
        )
        text += f" ({', '.join(counts)}; {how}; Holm over lines)."
    else:
        text = f"No point between two experts is clearly better than the task's own expert, on any {of} ({how})."
    order = sorted(found, key=lambda one: (one.p_here, one.p, -one.gap.value))
    details = tuple(_told(one) for one in order)
    unclear = len(found) - len(won)
    return Finding(text, details, f"{unclear} {of} (best point and expert, for other seeds)" * bool(unclear))


def above_lines(lines: Sequence[Between]) -> Finding | None:
    """Count the points between two experts that lie above the straight line between these, each on its tasks."""
    gaps = [(line, gap) for line in lines for gap in line.above_line()]
    if not gaps:
        return None
    every = [gap for _, gap in gaps]
    clear = signs(every)
    what = "scores between two experts lie above the straight line between their ends"
    details: list[str] = []
    for line in lines:
        own = [i for i, (other, _) in enumerate(gaps) if other is line]
        means, told = (sum(test(i) for i in own) for test in (lambda i: every[i].value > 0, lambda i: clear[i] > 0))
        details.append(f"{line.name}: {means} of {len(own)} above in the mean, {told} told apart")
    unclear = clear.count(0)
    return Finding(
        f"{counted(every, what)}.", tuple(details), f"{unclear} of {len(every)} from the line" * bool(unclear)
    )


def barriers(lines: Sequence[Between]) -> Finding | None:
    """Tell the barrier of every pair, in every metric there is."""
    found = [(line, barrier(line.shares, line.values, line.draws, rises=line.scale.rises)) for line in lines]
    if not found:
        return None
    clear = survived([one.p for _, one in found])
    seen = sum(sure and one.highest > 0 for sure, (_, one) in zip(clear, found, strict=True))
    text = (
        f"A barrier between two experts is seen on {seen} of {len(found)} lines and metrics: how far scores fall below "
    )
    text += "the straight line between the ends, or a loss rises above it (max-T over the points, Holm over lines)."
    return Finding(text, tuple(f"{line.name}, {line.metric}: {_barrier(line, one)}" for line, one in found))


def _barrier(line: Between, one: Barrier) -> str:
    factor, words = line.scale.factor, unit_words(line.scale)
    highest = Contrast(one.highest, one.lo, one.hi, one.p)
    middle = f"midpoint {number(one.midpoint, factor)}, " if one.midpoint is not None else ""
    return f"{middle}maximum {number(highest, factor)} {words} at {line.point(one.place)}"


def best_of(line: Between) -> Best | None:
    """Compare the best inner point of a line with the end that is the task's own expert."""
    expert = {line.pair[0]: 0, line.pair[1]: len(line.shares) - 1}.get(line.owner)
    inner = list(line.inner)
    if expert is None or not inner:
        return None
    weights = np.zeros((len(inner), len(line.shares)))
    weights[range(len(inner)), inner] = 1
    weights[:, expert] -= 1
    values, draws = line.against(weights)
    if line.val:
        on_val = [line.val[float(line.shares[place])] for place in inner]
        k = int(np.argmax(on_val) if line.scale.rises else np.argmin(on_val))
        gap = contrast(values[k], None if draws is None else draws[k])
        p, here = (_one_sided(gap.value, p) for p in (gap.p, gap.p_here))
        return Best(line, inner[k], gap, gap.lo, "point chosen on val", p, here)
    k = int(values.mean(axis=1).argmax())
    gap = contrast(values[k], None if draws is None else draws[k])
    every = max_t(values, draws, above=True)
    here = np.nan
    if draws is not None:
        here = max_t(values.mean(axis=1, keepdims=True), draws.mean(axis=2, keepdims=True), above=True).p[k]
    return Best(
        line, inner[k], gap, float(every.lo[k]), "best point of a line by max-T", float(every.p[k]), float(here)
    )


def _one_sided(value: float, p: float) -> float:
    return p / 2 if value > 0 else 1 - p / 2


def _told(one: Best) -> str:
    line, factor = one.line, one.line.scale.factor
    text = f"{line.name}: {number(one.gap, factor)} {unit_words(line.scale)} at {line.point(one.place)}"
    if one.chosen.startswith("best"):
        text += f", at least {factor * one.lowest:+.1f} as the best of {len(line.inner)}"
    text += f"; p {one.p:.4f}"
    if len(one.gap.seeds) > 1 and one.p_here == one.p_here:
        text += f" for other seeds, {one.p_here:.4f} at these"
    return text + seeds_words(one.gap, factor)


def _distinct(found: Sequence[Best]) -> list[Best]:
    """Keep one of those that differ in the kind of experts alone."""
    return list({(one.line.pair, one.line.task): one for one in found}.values())


def _by_share(rows: Records, pair: Pair) -> dict[float, BySeed]:
    points: dict[float, dict[int, dict]] = {}
    for row in rows:
        points.setdefault(float(row["shares"].get(pair[1], 0)), {})[row["seed"]] = row
    return dict(points)


def _on_val(points: Mapping[float, BySeed], inner: Sequence[float]) -> dict[float, float]:
    """Return the mean scores on val of the points between the ends; nothing unless all have them, of the same seeds."""
    own = {share: points.get(share, {}) for share in inner}
    if not all(own.values()) or len({frozenset(by_seed) for by_seed in own.values()}) > 1:
        return {}
    return {share: float(np.mean([row["value"] for row in by_seed.values()])) for share, by_seed in own.items()}


def chords(shares: np.ndarray) -> np.ndarray:
    """Return for every inner point the combination of points that is its height above the straight line."""
    weights = np.eye(len(shares))[1:-1]
    weights[:, 0] -= 1 - shares[1:-1]
    weights[:, -1] -= shares[1:-1]
    return weights
