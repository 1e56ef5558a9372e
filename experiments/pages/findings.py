"""What a study's rows say, in sentences with their numbers: good or bad, as it came out.

Differences are in points (scores times 100). Their 95 % intervals are normal, from differences on the same examples;
several seeds are averaged example by example first. What depends on no per-example scores has no interval, and then
nothing is claimed of it beyond the numbers.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from experiments.errors import StudyError
from experiments.grid.rows import Records, Rows, names_in, share_label
from experiments.pages.views import (
    PRETRAINED,
    Pair,
    experts_of,
    main_metrics,
    on_split,
    one_policy,
    pairs_of,
    reported_split,
    shifted_splits,
    weights_only,
)
from experiments.statistics.curves import holm, joint_score, paired_test, relative_hypervolume

Z = 1.959964  # half-width of a normal 95 % interval, in standard errors
SIGNIFICANT = 0.05
Examples = Mapping[str, np.ndarray]


class Gap(NamedTuple):
    """A difference between two models and the standard error of it; NaN where there are no per-example scores."""

    value: float
    error: float

    @property
    def sign(self) -> int:
        """1 or -1 where the interval leaves out zero, else 0."""
        return int(np.sign(self.value)) if abs(self.value) > Z * self.error else 0

    def __str__(self) -> str:
        if math.isnan(self.error):
            return f"{100 * self.value:+.1f}"
        lo, hi = (100 * (self.value + side * Z * self.error) for side in (-1, 1))
        return f"{100 * self.value:+.1f} [{lo:+.1f}, {hi:+.1f}]"


def findings(rows: Rows, scores: Examples | None = None) -> list[str]:
    """The three findings of the study, those that the rows tell of.

    Experts against the pretrained model; what is kept between two experts; averages against the pretrained model, and
    against each other on shifted data. The first line of a finding is the sentence, further lines are details. `scores`
    are per example by row key (`read_scores`), for intervals and tests.
    """
    known = weights_only(one_policy(main_metrics(rows)))
    told = [tension(known, scores or {}), fronts(known, scores or {}), averages(known, scores or {})]
    return [text for text in told if text]


def tension(rows: Records, scores: Examples) -> str:
    """Every expert against the pretrained model, on its own task and on the others; paired tests, Holm-corrected."""
    here = on_split(rows, reported_split(rows)) if rows else []
    cells = {(experts_of(row)[0], row["task"]) for row in here if row["experts"] == _kind(here)}
    cells &= {(name, row["task"]) for name, _ in cells for row in here if experts_of(row) == [name]}
    gaps: dict[tuple[str, str], Gap] = {}
    p_values: list[float] = []
    for name, task in sorted(cells):
        one = _rows(here, task, (name,), _kind(here))
        start = _rows(here, task, (PRETRAINED,))
        if one and start:
            gaps[name, task] = gap(one, start, scores)
            p_values.append(p_of(one, start, scores))
    own = {name: value for (name, task), value in gaps.items() if task == name}
    others = {place: value for place, value in gaps.items() if place[0] != place[1]}
    if not own:
        return ""
    tested = not any(math.isnan(p) for p in p_values)
    sure = dict(zip(gaps, holm(p_values) < SIGNIFICANT, strict=True)) if tested else {}
    won = [name for name, value in own.items() if value.value > 0 and sure.get((name, name), not tested)]
    lost = [place for place, value in others.items() if value.value < 0 and sure.get(place, not tested)]
    if len(won) == len(own) and 2 * len(lost) >= max(1, len(others)):
        verdict = "The experts are in tension"
    elif won and lost:
        verdict = "The experts are partly in tension"
    else:
        verdict = "The experts are not in tension" if others else "Experts against the pretrained model"
    text = f"{verdict}: {len(won)} of {len(own)} beat the pretrained model on their own task ({_listed(own)})"
    if others:
        mean = 100 * float(np.mean([value.value for value in others.values()]))
        text += f", and on other tasks {len(lost)} of {len(others)} scores are lower ({mean:+.1f} points on average)"
    how = "paired tests, Holm-corrected, p < 0.05" if tested else "by the numbers alone, for want of per-example scores"
    return f"{text}; {how}."


def fronts(rows: Records, scores: Examples) -> str:
    """Every pair's curve of weights against the straight line between its experts."""
    told: list[str] = []
    signs: list[int] = []
    for pair in pairs_of(rows):
        for kind in names_in([row for row in rows if experts_of(row) == list(pair)], "experts"):
            front = front_of(rows, pair, kind, scores)
            if front is not None:
                told.append(f"{pair[0]} and {pair[1]}, {kind}: {front[0]}")
                signs.append(front[1])
    if not told:
        return ""
    above, below = signs.count(1), signs.count(-1)
    if above == len(signs):
        verdict = "Weights between two experts keep more of both skills than the straight line between their scores"
    elif above > below:
        verdict = f"Weights between two experts lie above the straight line between their scores on {above} of "
        verdict += f"{len(signs)} lines, below it on {below}"
    elif above + below == 0:
        verdict = "Weights between two experts cannot be told from the straight line between their scores"
    else:
        verdict = f"Weights between two experts lie below the straight line between their scores on {below} of "
        verdict += f"{len(signs)} lines, above it on {above}"
    return f"{verdict}.\n" + "\n".join(told)


def front_of(rows: Records, pair: Pair, kind: str, scores: Examples) -> tuple[str, int] | None:
    """What a line keeps, and whether its chosen point lies above (1) or below (-1) the chord.

    None without its ends, and where an expert scores nothing on its own task.
    """
    split = reported_split(rows)
    there = sweep(rows, pair, kind, split)
    if there is None:
        return None
    shares, table = there
    experts = table[:, [0, -1]].T
    if (np.diag(experts) <= 0).any():
        return None
    chosen = sweep(rows, pair, kind, "val") if split != "val" else None
    picked_on = split
    pick = joint_score(table, experts)
    if chosen is not None and np.array_equal(chosen[0], shares):
        pick, picked_on = joint_score(chosen[1], chosen[1][:, [0, -1]].T), "val"
    best = 1 + int(pick[1:-1].argmax())
    share = float(shares[best])
    kept = table[:, best] / np.diag(experts)
    above = above_chord(on_split(rows, split), pair, kind, share, scores)
    joint = joint_score(table, experts)[1:-1]
    label = share_label({pair[0]: 1 - share, pair[1]: share})
    text = f"{label}, the best on {picked_on}{'' if picked_on == 'val' else ' itself and so flattered'}, keeps "
    text += f"{100 * kept[0]:.0f} % of {pair[0]} and {100 * kept[1]:.0f} % of {pair[1]} ({above} points of joint score "
    text += f"above the line; lowest joint score between the ends {100 * joint.min():.0f} %); {_area(shares, table)}"
    sign = int(np.sign(above.value)) if math.isnan(above.error) else above.sign
    return text, sign


def averages(rows: Records, scores: Examples) -> str:
    """Averages of three experts or more against the pretrained model, and ratatouille's against the other kinds'."""
    merged = [row for row in rows if len(experts_of(row)) > 2 and len(set(row["shares"].values())) == 1]
    if not merged or not [row for row in rows if experts_of(row) == [PRETRAINED]]:
        return ""
    inside, outside = [reported_split(rows)], shifted_splits(rows)
    start = [row for row in rows if experts_of(row) == [PRETRAINED]]
    told: list[str] = []
    gains: list[Gap] = []
    for kind in names_in(merged, "experts"):
        own = [row for row in merged if row["experts"] == kind]
        for words, splits in (("", inside), (" on shifted data", outside)):
            value = mean_gap(own, start, splits, scores)
            if value is not None:
                told.append(f"{kind} {value}{words}")
                gains.append(value)
    better, worse = (sum(_claimed(value) == sign for value in gains) for sign in (1, -1))
    if better == len(gains):
        verdict = "Averages of all experts beat the pretrained model, on shifted data too" if outside else ""
        verdict = verdict or "Averages of all experts beat the pretrained model"
    elif worse == len(gains):
        verdict = "Averages of all experts are worse than the pretrained model"
    else:
        verdict = f"Averages of all experts against the pretrained model: better in {better}, worse in {worse} and not "
        verdict += f"to be told apart in {len(gains) - better - worse} of {len(gains)} comparisons"
    return f"{verdict} (mean over tasks: {', '.join(told)}).{_kinds_on(merged, outside, scores)}"


def gap(first: Records, second: Records, scores: Examples) -> Gap:
    """Mean score of the first model's rows (one a seed) minus the second's, which are of the same examples."""
    value = float(np.mean([row["value"] for row in first]) - np.mean([row["value"] for row in second]))
    a, b = per_example(first, scores), per_example(second, scores)
    if a is None or b is None or len(a) != len(b):
        return Gap(value, math.nan)
    return Gap(value, _error(a - b))


def p_of(first: Records, second: Records, scores: Examples) -> float:
    """The p value of no difference by a paired test; NaN without per-example scores."""
    a, b = per_example(first, scores), per_example(second, scores)
    return math.nan if a is None or b is None or len(a) != len(b) else paired_test(b, a).p


def mean_gap(first: Records, second: Records, splits: Sequence[str], scores: Examples) -> Gap | None:
    """The mean difference over every task and split that both models were evaluated on, taken as independent."""
    found: list[Gap] = []
    for task, split in dict.fromkeys((row["task"], row["split"]) for row in first if row["split"] in splits):
        ours, theirs = (
            [row for row in rows if (row["task"], row["split"]) == (task, split)] for rows in (first, second)
        )
        if theirs:
            found.append(gap(ours, theirs, scores))
    if not found:
        return None
    error = math.sqrt(sum(one.error**2 for one in found)) / len(found)
    return Gap(float(np.mean([one.value for one in found])), error)


def sweep(rows: Records, pair: Pair, kind: str, split: str) -> tuple[np.ndarray, np.ndarray] | None:
    """Rising shares (m,) of a pair's second expert and the scores (2, m) on both tasks; None if an end is missing."""
    here = [row for row in on_split(rows, split) if row["experts"] == kind and set(experts_of(row)) <= set(pair)]
    columns: list[dict[float, list[float]]] = [{}, {}]
    for row in here:
        if row["task"] in pair:
            by_share = columns[pair.index(row["task"])]
            by_share.setdefault(float(row["shares"].get(pair[1], 0.0)), []).append(row["value"])
    shares = sorted(set(columns[0]) & set(columns[1]))
    if len(shares) < 3 or shares[0] != 0 or shares[-1] != 1:
        return None
    return np.array(shares), np.array([[np.mean(by_share[share]) for share in shares] for by_share in columns])


def above_chord(rows: Records, pair: Pair, kind: str, share: float, scores: Examples) -> Gap:
    """How far a point's joint score (mean over both tasks of merged over expert) lies above the straight line."""
    value = variance = 0.0
    for task in pair:
        first, second = (_rows(rows, task, (name,), kind) for name in pair)
        point = [row for row in _rows(rows, task, pair, kind) if row["shares"][pair[1]] == share]
        whole = float(np.mean([row["value"] for row in (first if task == pair[0] else second)]))
        means = [float(np.mean([row["value"] for row in own])) for own in (point, first, second)]
        value += (means[0] - (1 - share) * means[1] - share * means[2]) / whole / 2
        parts = [per_example(own, scores) for own in (point, first, second)]
        known = [part for part in parts if part is not None]
        same = len(known) == 3 and len({len(part) for part in known}) == 1
        error = _error(known[0] - (1 - share) * known[1] - share * known[2]) if same else math.nan
        variance += (error / whole / 2) ** 2
    return Gap(value, math.sqrt(variance))


def per_example(rows: Records, scores: Examples) -> np.ndarray | None:
    """Scores of the same examples (n,), averaged over the rows of several seeds; None where a row has none."""
    found = [scores[row["key"]] for row in rows if row["key"] in scores]
    if not rows or len(found) < len(rows) or len({len(one) for one in found}) > 1 or not len(found[0]):
        return None
    return np.mean(found, axis=0)


def _kinds_on(merged: Records, splits: Sequence[str], scores: Examples) -> str:
    """Ratatouille's average against the others' on shifted data, in a sentence."""
    best, told = "ratatouille", list[str]()
    own = [row for row in merged if row["experts"] == best]
    for kind in names_in([row for row in merged if row["experts"] != best], "experts"):
        value = mean_gap(own, [row for row in merged if row["experts"] == kind], splits, scores) if own else None
        if value is not None:
            words = {1: "better than", -1: "worse than", 0: "not to be told from"}[_claimed(value)]
            told.append(f"{words} {kind} ({value})")
    return f" On shifted data the average of {best} experts is {', '.join(told)}." if told else ""


def _claimed(value: Gap) -> int:
    """The sign that may be claimed: of the number alone where there is no interval."""
    return int(np.sign(value.value)) if math.isnan(value.error) else value.sign


def _area(shares: np.ndarray, table: np.ndarray) -> str:
    """Relative hypervolume of a front, and that of the same shares on the chord."""
    experts = table[:, [0, -1]].T
    line = table[:, :1] * (1 - shares) + table[:, -1:] * shares
    try:
        front, straight = (relative_hypervolume(points.T, experts) for points in (table, line))
    except StudyError:
        return "no area under the front, since the experts do not beat each other on their own tasks"
    return f"area under the front {front:.2f} of the box, {straight:.2f} on the line"


def _kind(rows: Records) -> str:
    """The kind of single experts that is told of: vanilla, or the first there is."""
    kinds = names_in([row for row in rows if len(experts_of(row)) == 1], "experts")
    kinds = [kind for kind in kinds if kind not in (PRETRAINED, "joint")]
    return "vanilla" if "vanilla" in kinds or not kinds else kinds[0]


def _rows(rows: Records, task: str, names: Sequence[str], kind: str | None = None) -> Records:
    """Rows on a task of the points that have exactly these experts, of a kind."""
    own = [row for row in rows if row["task"] == task and set(experts_of(row)) == set(names)]
    return [row for row in own if kind in (None, row["experts"])]


def _listed(gaps: Mapping[str, Gap]) -> str:
    return ", ".join(f"{name} {value}" for name, value in gaps.items())


def _error(differences: np.ndarray) -> float:
    """Standard error of a mean."""
    return float(differences.std(ddof=1) / math.sqrt(len(differences))) if len(differences) > 1 else math.nan
