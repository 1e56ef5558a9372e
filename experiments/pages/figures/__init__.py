"""The figures of a study, from its rows alone: which there are follows from the shape of the rows.

>>> from experiments.pages.figures import accuracy_curves, save
>>> save(accuracy_curves(experiments.read_rows("DIR/rows.jsonl"), ("upright", "turned")), "curves")  # doctest: +SKIP

Every function that draws takes a frame of `read_rows`, filtered as you like, or a list of such rows. Scores are drawn
in the unit of their metric (`experiments.grid.units`), an axis a metric. Lines of several training seeds are their
mean: small dots show the seeds, and the legend says what the band is. `by` names the
column whose values are the series; a column of your own (`rows.assign(series=...)`) does too. Without it they are how
the models were made. Single models that lie on no line (`levels`: pretrained, joint) are found by name.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from experiments.errors import StudyError
from experiments.grid.escapes import file_stem
from experiments.grid.rows import Records, Rows, is_made_of, names_in, records
from experiments.pages.figures.angles import angles
from experiments.pages.figures.charts import radar, radar_groups, ternary
from experiments.pages.figures.compare import retention_map, score_dots
from experiments.pages.figures.growth import along, counts
from experiments.pages.figures.landscape import landscapes
from experiments.pages.figures.lines import accuracy_curves, batchnorm_panels, parameter_curves
from experiments.pages.figures.plane import tradeoff_plane
from experiments.pages.figures.ranked import ranked
from experiments.pages.figures.scatter import ood_scatter
from experiments.pages.figures.style import EXPERT, Styles, study_styles
from experiments.pages.figures.style import SUFFIXES as SUFFIXES
from experiments.pages.figures.style import save as save
from experiments.pages.models import Model, is_chosen_on_val, merges_of, singles_of
from experiments.pages.views import (
    PRETRAINED,
    Pair,
    between,
    coefficients,
    experts_of,
    follows_shares,
    has_equal_shares,
    is_average,
    is_single,
    kinds_of,
    main_metrics,
    method_words,
    on_split,
    one_policy,
    pairs_of,
    policies_of,
    references_of,
    reported_points,
    reported_split,
    shifted_splits,
    tasks_of,
    weights_only,
    with_intervals,
    with_owners,
    with_series,
)

_MOST_ROWS = 40  # of a heat map; with more it is of one BatchNorm policy
_MOST_LINES = 8  # of mixtures in one figure of a parameter

Subject = tuple[str, ...]  # the names of what one figure is of: experts, a task, a method, or nothing
Found = Iterator[tuple[Subject, Callable[[], Figure]]]


@dataclass(frozen=True)
class Kind:
    """A kind of figure, and all that is known of it.

    `figures` finds what there is in the rows that it can be drawn of, a figure each, and how to draw it; nothing where
    the rows have another shape. `title` holds the names of the subject, `caption` says how the figure is to be read.
    Kinds that are `optional` are drawn only where they are asked for. Rows are those of main metrics without the points
    of planes; kinds that are `whole` get all rows.
    """

    title: str
    caption: str
    figures: Callable[[Records, Styles], Found]
    optional: bool = False
    whole: bool = False


class Drawn(NamedTuple):
    """A figure, the stem of its file, its title, and how it is to be read."""

    stem: str
    title: str
    caption: str
    figure: Figure


def draw(
    rows: Rows,
    scores: Mapping[str, np.ndarray] | None = None,
    *,
    tasks: Mapping[str, str] | None = None,
    also: Sequence[str] = (),
    only: Sequence[str] = (),
) -> tuple[list[Drawn], list[str]]:
    """Draw every figure that the shape of a study's rows allows; one line for each that lacks rows.

    With the `scores` of examples by row key (`read_scores`) the intervals of models of several seeds are over seeds and
    examples; without them they are the mean of the seeds', evaluation noise only. `tasks` says whose own each task is
    (`Notes.tasks`), where the rows do not (`open_study`); without it experts own the tasks of their names. `also` names
    optional kinds to draw, `only` those to draw and no others.
    """
    if unknown := [name for name in (*also, *only) if name not in FIGURES]:
        raise StudyError(f"no figure {unknown[0]!r}: choose one of {', '.join(FIGURES)}")
    every = with_series(records(with_owners(rows, tasks) if tasks else rows), policies=False)
    if scores is not None:
        every = [{**row, "examples": scores.get(row["key"])} for row in with_intervals(every, scores)]
    found = main_metrics(reported_points([row for row in every if coefficients(row) is None]))
    styles = _styles(found)
    wanted = [
        (name, *one)
        for name, kind in FIGURES.items()
        if (name in only if only else name in also or not kind.optional)
        for one in kind.figures(every if kind.whole else found, styles)
    ]
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


def _styles(rows: Records) -> Styles:
    """Give every series the style that it has in all figures: first those that mix weights, then other lines."""
    kinds = kinds_of(rows)
    beside = dict.fromkeys([PRETRAINED, *names_in(rows, "experts"), *references_of(rows)])
    merged = sorted((row for row in rows if not is_single(row)), key=lambda row: not follows_shares(row))
    main = kinds if len(kinds) > 1 else names_in(weights_only(merged), "series") or kinds
    series = [*names_in(merged, "series"), *names_in(rows, "series")]
    styles = study_styles(dict.fromkeys(series), main, [name for name in beside if name not in kinds])
    return styles if len(kinds) > 1 or set(main) == set(kinds) else {**styles, kinds[0]: EXPERT}


def _retention(rows: Records, styles: Styles) -> Found:
    """Draw the models that were merged, one of each mixture and way to make it, and those beside them."""
    if any(not is_single(row) for row in rows):
        named = with_series(rows)
        merged = merges_of(named)
        if len(merged) > _MOST_ROWS:
            named = with_series(one_policy(rows))
            merged = merges_of(named)
        yield (), partial(retention_map, named, [*_beside(named), *merged])


def _dots(rows: Records, styles: Styles) -> Found:
    """Draw every mixture of which something lies on no line: of three experts or more, or by task vectors."""
    shown = one_policy(rows)
    beside = _beside(shown)
    groups: dict[frozenset[str], Records] = {}
    for row in shown:
        if not is_single(row):
            groups.setdefault(frozenset(experts_of(row)), []).append(row)
    for experts, own in groups.items():
        if len(experts) > 2 or not all(map(follows_shares, own)):
            singles = [row for row in shown if is_single(row) and experts_of(row)[0] in experts]
            models = [*beside, *merges_of([*singles, *own])]
            named = [model._replace(name=model.name.partition(", ")[2]) for model in models[len(beside) :]]
            if len(models) > 1:
                subject = ("+".join(experts_of(own[0])),)
                yield subject, partial(score_dots, shown, [*beside, *named], styles=styles)


def _beside(rows: Records) -> list[Model]:
    """Return the pretrained model and others that no expert of a mixture is."""
    return [model for model in singles_of(rows) if model.name in references_of(rows)]


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
    for pair in _lines(rows):
        own, levels = _of_pair(rows, pair)
        tasks = tasks_of(between(own, pair), pair)
        yield pair, partial(accuracy_curves, own, pair, tasks=tasks, by="series", levels=levels, styles=styles)


def _planes(rows: Records, styles: Styles) -> Found:
    """Draw the pairs of experts that each have a task of their own, of several the first."""
    for first, second in _lines(rows):
        own, levels = _of_pair(rows, (first, second))
        owners = {row["owner"]: row["task"] for row in reversed(own) if not is_single(row)}
        if {first, second} <= set(owners):
            x, y, experts = owners[second], owners[first], (second, first)
            plane = partial(tradeoff_plane, own, x, y, experts=experts, by="series", levels=levels, styles=styles)
            yield (first, second), plane


def _sweeps(rows: Records, styles: Styles) -> Found:
    """Draw the methods of which a parameter was tried at several values, of shares at equal ones."""
    own = [row for row in _shown(rows) if is_single(row) or has_equal_shares(row)]
    merged = [row for row in own if row.get("parameters")]
    for method in names_in(merged, "method"):
        of_method = [row for row in merged if row["method"] == method]
        for parameter in _swept(of_method):
            mixtures = list(dict.fromkeys("+".join(experts_of(row)) for row in of_method))
            for some in [mixtures] if len(mixtures) <= _MOST_LINES else [[one] for one in mixtures]:
                kept = [row for row in own if is_single(row) or "+".join(experts_of(row)) in some]
                tasks = [task for task in names_in(kept, "task") if any(row["task"] == task for row in of_method)]
                subject = (method, parameter, *(some if len(some) < len(mixtures) else ()))
                levels = references_of(rows)
                make = partial(parameter_curves, kept, method, parameter, tasks=tasks, levels=levels, styles=styles)
                yield subject, make


def _policies(rows: Records, styles: Styles) -> Found:
    """Draw the pairs whose experts of some kind were merged under several BatchNorm policies."""
    everything = weights_only(on_split(rows, reported_split(rows)))
    for pair in pairs_of(everything):
        inside = between(everything, pair)
        for kind in names_in(inside, "experts"):
            own = [row for row in inside if row["experts"] == kind]
            known = policies_of(own)
            if len(known) > 1:  # single models have a policy of their own: they stand with the first
                own = [row if row["batchnorm"] in known else {**row, "batchnorm": known[0]} for row in own]
                yield pair, partial(batchnorm_panels, own, pair, tasks=tasks_of(own, pair))
                break


def _averages(rows: Records, styles: Styles) -> Found:
    """Draw the pretrained model and the average of the most experts, where that is of three or more."""
    own = weights_only(one_policy(rows))
    most = max((experts_of(row) for row in own if is_average(row)), key=len, default=[])
    chosen = [row for row in own if experts_of(row) == [PRETRAINED] or (is_average(row) and experts_of(row) == most)]
    names = names_in(chosen, "series")

    def make() -> Figure:
        groups = radar_groups(chosen, reported_split(rows))
        if not groups:
            raise StudyError(f"no task has scores of all of {', '.join(names)}: run the study")
        return radar(chosen, groups, by="series", styles=styles)

    if most and len(names) > 1:
        yield (), make


def _shifted(rows: Records, styles: Styles) -> Found:
    shown, reported = one_policy(_settled(rows)), reported_split(rows)
    for task in names_in(rows, "task"):
        if splits := shifted_splits(rows, task):
            yield (task,), partial(ood_scatter, shown, task, splits, in_split=reported, by="series", styles=styles)


FIGURES = {
    "retention": Kind(
        "What merged models keep of the experts",
        "Scores over those of each task's own expert, in %, on reported and on shifted data. Of every mixture and way "
        "to make it there is the point chosen on val, or the one of equal shares: without val, and where that was "
        "asked more.",
        _retention,
    ),
    "ternary": Kind(
        "Scores over the shares of {}, {} and {}",
        "Corners are the experts, dots the evaluated points; ringed is the best of them.",
        _ternaries,
    ),
    "curves": Kind(
        "Scores between the {} and the {} expert",
        "Thin dashes are the straight line between the two ends; single marks are methods that shares say nothing to. "
        "Ringed is the best point of each line.",
        _curves,
    ),
    "plane": Kind(
        "Trade-off between the {} and the {} expert",
        "A point a ratio, with 95 % intervals. Stars are the experts, hollow marks other models; the dotted corner is "
        "where both skills would be whole.",
        _planes,
    ),
    "sweep": Kind(
        "{}: scores over its {}",
        "A line a mixture, at equal shares; ringed is the best value of each, chosen on the scores that are shown.",
        _sweeps,
    ),
    "landscape": Kind(
        "The plane through the pretrained model, the {} and the {} expert",
        "Contours of scores, and of losses where there are such; dots are the evaluated points, the diamond is the "
        "average of the experts.",
        landscapes,
        whole=True,
    ),
    "count": Kind(
        "Averages by the number of experts in them",
        "A dot an average of equal shares, or an expert alone, whose scores are compared with the task's own expert's.",
        counts,
        whole=True,
    ),
    "along": Kind(
        "Experts and their average along the finetuning",
        "Averages are of experts at equal progress; at 0 is what all start from, at 100 are the finished experts.",
        along,
        whole=True,
    ),
    "angles": Kind(
        "Barriers between experts beside what their weights say",
        "A mark a pair of experts: how far the worst point between them lies below the straight line between them.",
        angles,
        whole=True,
    ),
    "ranking": Kind(
        "Methods that merge {} ({})",
        "Best first, each at the values that are best on val: means over tasks of scores over the own experts' scores.",
        ranked,
        whole=True,
    ),
    "batchnorm": Kind(
        "BatchNorm policies between the {} and the {} expert",
        "A column a policy for the statistics of merged weights; dotted in grey is the first one.",
        _policies,
    ),
    "dots": Kind(
        "Models of {} on every task",
        "Dots are scores with their 95 % intervals, an axis a task in its unit, reported data above and shifted data "
        "below; the dotted line is the task's own expert.",
        _dots,
    ),
    "radar": Kind(
        "Averages of all experts and the pretrained model",
        "All axes have one scale: % of the best score on each axis.",
        _averages,
        optional=True,
    ),
    "ood": Kind(
        "{}: out of distribution against in distribution",
        "A mark a model, on logit axes where scores are shares. The dashed line is what single models trace: beyond it "
        "a model is better on shifted data than its reported score foretells. On the dotted line both are equal.",
        _shifted,
    ),
}


def _shown(rows: Records) -> Records:
    """Rows of the reported split and of one BatchNorm policy."""
    return one_policy(on_split(rows, reported_split(rows)))


def _lines(rows: Records) -> list[Pair]:
    """The pairs between which shares were tried."""
    return pairs_of([row for row in _shown(rows) if follows_shares(row)])


def _of_pair(rows: Records, pair: Pair) -> tuple[Records, list[str]]:
    """The shown rows of a pair and of the models that are no pair's expert, and the names of these."""
    own = _shown(_settled(rows))
    levels = references_of(own)
    return [*between(own, pair), *(row for row in own if is_single(row) and experts_of(row)[0] in levels)], levels


def _settled(rows: Records) -> Records:
    """Leave of methods whose parameters were swept the values chosen on val, for each mixture; none without val."""
    swept = {method for method in names_in(rows, "method") if _swept([row for row in rows if row["method"] == method])}

    def place(row: Mapping[str, Any]) -> tuple[Any, ...]:
        return frozenset(experts_of(row)), row["experts"], row["batchnorm"], method_words(row)

    own = [row for row in rows if is_single(row) or row["method"] in swept]
    chosen = {
        place(model.rows[0]) for model in (merges_of(own, by_method=True) if swept and is_chosen_on_val(rows) else ())
    }
    return [row for row in rows if row["method"] not in swept or place(row) in chosen]


def _swept(rows: Records) -> list[str]:
    """The parameters of a method of which rows have several values."""
    values: dict[str, set[str]] = {}
    for row in rows:
        for name, value in (row.get("parameters") or {}).items():
            values.setdefault(name, set()).add(str(value))
    return [name for name, own in values.items() if len(own) > 1]
