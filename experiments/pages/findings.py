"""What a study's rows say, in sentences with their numbers: good or bad, as it came out.

Differences are in points (scores times 100). Their 95 % intervals are normal, from differences on the same examples;
several seeds are averaged example by example first. Without scores of single examples there is no interval, and then
nothing is claimed beyond the numbers. Retention is merged / expert: the share of an expert's score that is kept.
"""

import math
from collections.abc import Sequence

import numpy as np

from experiments.errors import StudyError
from experiments.grid.rows import Records, Rows, is_made_of, mean_of, names_in
from experiments.pages.views import (
    PRETRAINED,
    Pair,
    experts_of,
    is_average,
    kinds_of,
    main_metrics,
    on_split,
    one_policy,
    pairs_of,
    reported_split,
    shifted_splits,
    weights_only,
)
from experiments.statistics.curves import chord, joint_score, lines_between
from experiments.statistics.fronts import relative_hypervolume
from experiments.statistics.tests import (
    Examples,
    Gap,
    gap,
    holm,
    mean_gap,
    paired_examples,
    paired_test,
    standard_error,
)
from merge import share_label

SIGNIFICANT = 0.05
LINE = "the straight line between their scores"


def findings(rows: Rows, scores: Examples | None = None, contender: str = "") -> list[str]:
    """State the findings that the rows allow, of three.

    Experts against the pretrained model; what is kept between two experts; averages against the pretrained model, and
    that of the `contender`, a kind of experts, against the others on shifted data. The first line of a finding is the
    sentence, further lines are details. `scores` are per example by row key (`read_scores`), for intervals and tests.
    """
    known = weights_only(one_policy(main_metrics(rows)))
    found = [tension(known, scores or {}), fronts(known, scores or {}), averages(known, scores or {}, contender)]
    return [text for text in found if text]


def tension(rows: Records, scores: Examples) -> str:
    """Compare every expert with the pretrained model, on its own task and on the others; tests are Holm-corrected."""
    here = on_split(rows, reported_split(rows))
    kind = _kind(here)
    cells = {(experts_of(row)[0], row["task"]) for row in here if row["experts"] == kind}
    gaps: dict[tuple[str, str], Gap] = {}
    p_values: list[float] = []
    for name, task in sorted(cells):
        one, start = _rows(here, task, (name,), kind), _rows(here, task, (PRETRAINED,))
        if one and start:
            gaps[name, task] = gap(one, start, scores)
            examples = paired_examples([start, one], scores)
            p_values.append(math.nan if examples is None else paired_test(*examples).p)
    own = {name: value for (name, task), value in gaps.items() if task == name}
    others = {place: value for place, value in gaps.items() if place[0] != place[1]}
    if not own:
        return ""
    tested = not any(math.isnan(p) for p in p_values)
    clear = dict(zip(gaps, holm(p_values) < SIGNIFICANT if tested else [True] * len(gaps), strict=True))
    won = [name for name, value in own.items() if value.value > 0 and clear[name, name]]
    lost = [place for place, value in others.items() if value.value < 0 and clear[place]]
    if len(won) == len(own) and 2 * len(lost) >= max(1, len(others)):
        verdict = "The experts are in tension"
    elif won and lost:
        verdict = "The experts are partly in tension"
    else:
        verdict = "The experts are not in tension" if others else "Experts against the pretrained model"
    listed = ", ".join(f"{name} {value}" for name, value in own.items())
    text = f"{verdict}: {len(won)} of {len(own)} beat the pretrained model on their own task ({listed})"
    if others:
        mean = 100 * float(np.mean([value.value for value in others.values()]))
        text += f", and on other tasks {len(lost)} of {len(others)} scores are lower ({mean:+.1f} points on average)"
    how = "paired tests, Holm-corrected, p < 0.05" if tested else "by the means alone: single examples have no scores"
    return f"{text}; {how}."


def fronts(rows: Records, scores: Examples) -> str:
    """Compare every pair's merged models with the straight line between its experts."""
    details: list[str] = []
    signs: list[int] = []
    for pair in pairs_of(rows):
        for kind in names_in([row for row in rows if experts_of(row) == list(pair)], "experts"):
            front = front_of(rows, pair, kind, scores)
            if front is not None:
                details.append(f"{pair[0]} and {pair[1]}, {kind}: {front[0]}")
                signs.append(front[1])
    if not details:
        return ""
    above, below, of = signs.count(1), signs.count(-1), f"of {len(signs)} lines"
    if above == len(signs):
        verdict = f"keep more of both skills than {LINE}"
    elif above > below:
        verdict = f"lie above {LINE} on {above} {of}, below it on {below}"
    elif above + below == 0:
        verdict = f"cannot be told apart from {LINE}"
    else:
        verdict = f"lie below {LINE} on {below} {of}, above it on {above}"
    return "\n".join([f"Weights between two experts {verdict}.", *details])


def front_of(rows: Records, pair: Pair, kind: str, scores: Examples) -> tuple[str, int] | None:
    """Describe a line at its best point, and say whether that lies above (1) or below (-1) the chord, or neither (0).

    The best retention is looked for on val where it has the same points. None without the ends of the line, and where
    an expert scores nothing on its own task.
    """
    split = reported_split(rows)
    there = sweep(rows, pair, kind, split)
    if there is None or (np.diag(there[1][:, [0, -1]].T) <= 0).any():
        return None
    shares, table = there
    experts = table[:, [0, -1]].T
    retention = picked = joint_score(table, experts)
    how = f"chosen on {split} itself, so its scores are likely too high"
    chosen = sweep(rows, pair, kind, "val") if split != "val" else None
    if chosen is not None and np.array_equal(chosen[0], shares):
        picked, how = joint_score(chosen[1], chosen[1][:, [0, -1]].T), "chosen on val"
    best = 1 + int(picked[1:-1].argmax())
    share = float(shares[best])
    kept = table[:, best] / np.diag(experts)
    above = above_chord(on_split(rows, split), pair, kind, share, scores)
    text = f"{share_label({pair[0]: 1 - share, pair[1]: share})} ({how}) keeps {100 * kept[0]:.0f} % of {pair[0]} and "
    text += f"{100 * kept[1]:.0f} % of {pair[1]}, mean retention {above} points above the line; "
    text += f"the lowest mean retention between the ends is {100 * retention[1:-1].min():.0f} %; {_area(shares, table)}"
    return text, above.sign


def averages(rows: Records, scores: Examples, contender: str = "") -> str:
    """Compare averages of three experts or more with the pretrained model, and the contender's with the others'."""
    merged = [row for row in rows if is_average(row)]
    start = [row for row in rows if experts_of(row) == [PRETRAINED]]
    if not merged or not start:
        return ""
    outside = shifted_splits(rows)
    details: list[str] = []
    signs: list[int] = []
    for kind in names_in(merged, "experts"):
        own = [row for row in merged if row["experts"] == kind]
        for words, splits in (("", [reported_split(rows)]), (" on shifted data", outside)):
            value = mean_gap(own, start, splits, scores)
            if value is not None:
                details.append(f"{kind} {value}{words}")
                signs.append(value.sign)
    better, worse = signs.count(1), signs.count(-1)
    if better == len(signs):
        verdict = "Averages of all experts beat the pretrained model" + ", on shifted data too" * bool(outside)
    elif worse == len(signs):
        verdict = "Averages of all experts are worse than the pretrained model"
    else:
        verdict = f"Averages of all experts against the pretrained model: better in {better}, worse in {worse} and not "
        verdict += f"told apart in {len(signs) - better - worse} of {len(signs)} comparisons"
    return f"{verdict} (mean over tasks: {', '.join(details)}).{_contest(merged, contender, outside, scores)}"


def sweep(rows: Records, pair: Pair, kind: str, split: str) -> tuple[np.ndarray, np.ndarray] | None:
    """Read rising shares (m,) of a pair's second expert and the scores (2, m) on both tasks; None without the ends."""
    here = [row for row in on_split(rows, split) if row["experts"] == kind and is_made_of(row, pair)]
    tasks = [[row for row in here if row["task"] == task] for task in pair]
    if not all(tasks):
        return None
    lines = [lines_between(own, pair)[kind] for own in tasks]
    shares = np.intersect1d(lines[0].share, lines[1].share)
    if len(shares) < 3 or (shares[0], shares[-1]) != (0, 1):
        return None
    return shares, np.array([line.value[np.isin(line.share, shares)] for line in lines])


def above_chord(rows: Records, pair: Pair, kind: str, share: float, scores: Examples) -> Gap:
    """Measure how far a point's mean retention over both tasks lies above the straight line between the experts'."""
    value = variance = 0.0
    for task in pair:
        ends = [_rows(rows, task, (name,), kind) for name in pair]
        point = [row for row in _rows(rows, task, pair, kind) if row["shares"][pair[1]] == share]
        own = mean_of(ends[pair.index(task)], "value")
        means = [mean_of(each, "value") for each in (point, *ends)]
        value += (means[0] - (1 - share) * means[1] - share * means[2]) / own / 2
        parts = paired_examples([point, *ends], scores)
        above = None if parts is None else parts[0] - (1 - share) * parts[1] - share * parts[2]
        variance += ((math.nan if above is None else standard_error(above)) / own / 2) ** 2
    return Gap(value, math.sqrt(variance))


def _contest(merged: Records, contender: str, splits: Sequence[str], scores: Examples) -> str:
    """Compare the contender's average with the others' on shifted data, in a sentence; "" without a contender."""
    details: list[str] = []
    own = [row for row in merged if row["experts"] == contender]
    for kind in names_in([row for row in merged if row["experts"] != contender], "experts"):
        value = mean_gap(own, [row for row in merged if row["experts"] == kind], splits, scores) if own else None
        if value is not None:
            words = {1: "better than", -1: "worse than", 0: "not told apart from"}[value.sign]
            details.append(f"{words} {kind} ({value})")
    return f" On shifted data the average of {contender} experts is {', '.join(details)}." if details else ""


def _area(shares: np.ndarray, table: np.ndarray) -> str:
    """Compare the area under the points with the rectangle between the experts' scores, and that under the line."""
    experts = table[:, [0, -1]].T
    try:
        front, line = (relative_hypervolume(points.T, experts) for points in (table, chord(shares, table)))
    except StudyError:
        return "the experts do not beat each other on their own tasks, so no area is compared"
    area = f"the area under the points is {100 * front:.0f} % of the rectangle between the experts' scores"
    return f"{area}, that under points of the line {100 * line:.0f} %"


def _kind(rows: Records) -> str:
    """Choose the kind of single experts to speak of, the first there is."""
    there = [
        kind for kind in kinds_of(rows) if any(row["experts"] == kind and len(experts_of(row)) == 1 for row in rows)
    ]
    return next(iter(there), "")


def _rows(rows: Records, task: str, names: Sequence[str], kind: str | None = None) -> Records:
    """Keep the rows on a task of the points that have exactly these experts, of a kind."""
    own = [row for row in rows if row["task"] == task and set(experts_of(row)) == set(names)]
    return [row for row in own if kind in (None, row["experts"])]
