"""The figures of a study, from its rows alone: which there are follows from the shape of the rows.

>>> from experiments.pages.figures import accuracy_curves, save
>>> save(accuracy_curves(experiments.read_rows("DIR/rows.jsonl"), ("upright", "turned")), "curves")  # doctest: +SKIP

Every function that draws takes a frame of `read_rows`, filtered as you like, or a list of such rows. Scores are drawn
times 100. Lines of several training seeds are their mean: small dots show the seeds, and the band is the mean 95 %
interval, which is evaluation noise only. `by` names the column whose values are the series; a column of your own
(`rows.assign(series=...)`) does too. Single models that lie on no line (`levels`: pretrained, joint) are found by name.
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from matplotlib.figure import Figure

from experiments.errors import StudyError
from experiments.grid.escapes import file_stem
from experiments.grid.rows import Records, Rows, is_made_of, names_in
from experiments.pages.figures.charts import ood_scatter, radar, ternary
from experiments.pages.figures.lines import accuracy_curves, batchnorm_panels, tradeoff_plane
from experiments.pages.figures.style import Styles, study_styles
from experiments.pages.figures.style import save as save
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
    policies_of,
    references_of,
    reported_split,
    shifted_splits,
    weights_only,
    with_series,
)

Subject = tuple[str, ...]  # the names of what one figure is of: experts, a task, or nothing
Found = Iterator[tuple[Subject, Callable[[], Figure]]]


@dataclass(frozen=True)
class Kind:
    """A kind of figure, and all that is known of it.

    `figures` finds what there is in the rows that it can be drawn of, a figure each, and how to draw it; nothing where
    the rows have another shape. `title` holds the names of the subject, `caption` says how the figure is to be read.
    """

    title: str
    caption: str
    figures: Callable[[Records, Styles], Found]


class Drawn(NamedTuple):
    """A figure, the stem of its file, its title, and how it is to be read."""

    stem: str
    title: str
    caption: str
    figure: Figure


def draw(rows: Rows) -> tuple[list[Drawn], list[str]]:
    """Draw every figure that the shape of a study's rows allows; one line for each that lacks rows."""
    found = with_series(main_metrics(rows), policies=False)
    kinds = kinds_of(found)
    beside = dict.fromkeys([PRETRAINED, *names_in(found, "experts"), *references_of(found)])
    styles = study_styles(names_in(found, "series"), kinds, [name for name in beside if name not in kinds])
    wanted = [(name, *one) for name, kind in FIGURES.items() for one in kind.figures(found, styles)]
    order = list(dict.fromkeys(subject for _, subject, _ in wanted))  # the figures of one subject stand together
    drawn: list[Drawn] = []
    missing: list[str] = []
    for name, subject, make in sorted(wanted, key=lambda one: order.index(one[1])):
        kind, stem = FIGURES[name], file_stem(name, *subject)
        try:
            drawn.append(Drawn(stem, kind.title.format(*subject), kind.caption, make()))
        except StudyError as error:
            missing.append(f"{stem}: {error}")
    return drawn, missing


def _ternaries(rows: Records, styles: Styles) -> Found:
    """Draw the sets of three experts whose shares form a whole grid of steps 1 / n over the triangle."""
    own = weights_only(_shown(rows))
    merged = [row for row in own if len(experts_of(row)) > 1]
    for corners in itertools.combinations(dict.fromkeys(name for row in merged for name in experts_of(row)), 3):
        inside = [row for row in merged if is_made_of(row, corners)]
        points = {tuple(float(row["shares"].get(name, 0)) for name in corners) for row in inside}
        steps = round(1 / min((share for point in points for share in point if share), default=1))
        if points and len(points) + len(corners) == (steps + 1) * (steps + 2) // 2:
            yield corners, partial(ternary, own, corners, tasks=names_in(inside, "task"))


def _curves(rows: Records, styles: Styles) -> Found:
    for pair in pairs_of(rows):
        own, levels = _of_pair(rows, pair)
        tasks = _tasks(own, pair)
        yield pair, partial(accuracy_curves, own, pair, tasks=tasks, by="series", levels=levels, styles=styles)


def _planes(rows: Records, styles: Styles) -> Found:
    """Draw the pairs of experts that each have a task of their own name."""
    for first, second in pairs_of(rows):
        own, levels = _of_pair(rows, (first, second))
        if set(_tasks(own, (first, second))) == {first, second}:
            draw_plane = partial(tradeoff_plane, own, second, first, by="series", levels=levels, styles=styles)
            yield (first, second), draw_plane


def _policies(rows: Records, styles: Styles) -> Found:
    """Draw the pairs whose experts of some kind were merged under several BatchNorm policies."""
    everything = weights_only(on_split(rows, reported_split(rows)))
    for pair in pairs_of(rows):
        between = [row for row in everything if set(experts_of(row)) <= set(pair)]
        for kind in names_in(between, "experts"):
            own = [row for row in between if row["experts"] == kind]
            known = policies_of(own)
            if len(known) > 1:  # single models have a policy of their own: they stand with the first
                own = [row if row["batchnorm"] in known else {**row, "batchnorm": known[0]} for row in own]
                yield pair, partial(batchnorm_panels, own, pair, tasks=_tasks(own, pair))
                break


def _averages(rows: Records, styles: Styles) -> Found:
    """Draw the pretrained model and the average of the most experts, where that is of three or more."""
    own = weights_only(one_policy(rows))
    most = max((experts_of(row) for row in own if is_average(row)), key=len, default=[])
    chosen = [row for row in own if experts_of(row) == [PRETRAINED] or (is_average(row) and experts_of(row) == most)]
    names = names_in(chosen, "series")

    def make() -> Figure:
        groups = _radar_groups(chosen, reported_split(rows))
        if not groups:
            raise StudyError(f"no task has scores of all of {', '.join(names)}: run the study")
        return radar(chosen, groups, by="series", styles=styles)

    if most and len(names) > 1:
        yield (), make


def _shifted(rows: Records, styles: Styles) -> Found:
    shown, reported = one_policy(rows), reported_split(rows)
    for task in names_in(rows, "task"):
        if splits := shifted_splits(rows, task):
            yield (task,), partial(ood_scatter, shown, task, splits, in_split=reported, by="series", styles=styles)


FIGURES = {
    "ternary": Kind(
        "Scores over the shares of {}, {} and {}",
        "Corners are the experts, dots the evaluated points; ringed is the highest of them.",
        _ternaries,
    ),
    "curves": Kind(
        "Scores between the {} and the {} expert",
        "Thin dashes are the straight line between the two ends, the band is the mean 95 % interval of the examples, "
        "small dots are training seeds. Ringed is the highest point.",
        _curves,
    ),
    "plane": Kind(
        "Trade-off between the {} and the {} expert",
        "A point a ratio, with 95 % intervals. Stars are the experts, hollow marks other models; the dotted corner is "
        "where both skills would be whole.",
        _planes,
    ),
    "batchnorm": Kind(
        "BatchNorm policies between the {} and the {} expert",
        "A column a policy for the statistics of merged weights; dotted in grey is the first one.",
        _policies,
    ),
    "radar": Kind(
        "Averages of all experts and the pretrained model",
        "Each axis has a scale of its own, from the lowest of its scores in the centre to the highest at the rim.",
        _averages,
    ),
    "ood": Kind(
        "{}: out of distribution against in distribution",
        "A mark a model; on the dotted line both scores are equal.",
        _shifted,
    ),
}


def _shown(rows: Records) -> Records:
    """Rows of the reported split and of one BatchNorm policy."""
    return one_policy(on_split(rows, reported_split(rows)))


def _of_pair(rows: Records, pair: Pair) -> tuple[Records, list[str]]:
    """The shown rows of a pair and of the models that are no pair's expert, and the names of these."""
    own = _shown(rows)
    levels = references_of(own)
    return [row for row in own if set(experts_of(row)) <= set(pair) or experts_of(row)[0] in levels], levels


def _tasks(rows: Records, pair: Pair) -> list[str]:
    """The tasks of a pair's experts, or all that its points were evaluated on."""
    there = names_in([row for row in rows if set(experts_of(row)) == set(pair)], "task")
    return list(pair) if set(pair) <= set(there) else there


def _radar_groups(rows: Records, reported: str) -> dict[str, list[tuple[str, str]]]:
    """The axes that have a score of every series, by chart: the reported split, then shifted splits one after the
    other, as many to a chart as give it three axes."""
    axes: dict[tuple[str, str], set[str]] = {}
    for row in rows:
        axes.setdefault((row["task"], row["split"]), set()).add(row["series"])
    whole = [axis for axis, there in axes.items() if there == set(names_in(rows, "series"))]
    joined: list[tuple[list[str], list[tuple[str, str]]]] = []
    for split in shifted_splits(rows):
        own = [axis for axis in whole if axis[1] == split]
        if joined and min(len(own), len(joined[-1][1])) < 3:
            joined[-1] = (joined[-1][0] + [split], joined[-1][1] + own)
        else:
            joined.append(([split], own))
    inside = [axis for axis in whole if axis[1] == reported]
    outside = {f"out of distribution: {', '.join(splits)}": own for splits, own in joined if own}
    return {"in distribution": inside, **outside} if inside else outside
