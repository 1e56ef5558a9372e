"""The figures of every study, drawn from its rows by the functions of `experiments.pages.figures.drawing`."""

import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from experiments.errors import StudyError
from experiments.grid.rows import Records, Rows, names_in
from experiments.pages.figures import drawing as plots
from experiments.pages.views import (
    PRETRAINED,
    Pair,
    experts_of,
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


class Drawing(NamedTuple):
    """A figure to draw: the stem of its file, what it shows in words, and the function that draws it."""

    stem: str
    caption: str
    draw: Callable[[], Figure]


class Drawn(NamedTuple):
    """A figure, the stem of its file, and what it shows in words."""

    stem: str
    caption: str
    figure: Figure


def figures(study: str, rows: Rows) -> tuple[list[Drawn], list[str]]:
    """Every figure of a study that its rows allow, and one line for each that lacks rows."""
    if study not in FIGURES:
        raise StudyError(f"study {study} has no figures, those of {', '.join(FIGURES)} have: see its table")
    drawn: list[Drawn] = []
    missing: list[str] = []
    for drawing in FIGURES[study](with_series(main_metrics(rows))):
        try:
            drawn.append(Drawn(drawing.stem, drawing.caption, drawing.draw()))
        except StudyError as error:
            missing.append(f"{drawing.stem}: {error}")
    return drawn, missing


def interpolation(rows: Records) -> Iterator[Drawing]:
    """Of every pair the curves, the trade-off plane and the BatchNorm policies; of every task its shifted splits."""
    split = reported_split(rows)
    for pair in pairs_of(rows):
        own = on_split(rows, split)
        yield from _of_pair(one_policy(own), pair)
        several = _several_policies(own, pair)
        if several:
            draw = _later(plots.batchnorm_panels, several, pair, tasks=_tasks(several, pair))
            yield Drawing(f"batchnorm_{'_'.join(pair)}", f"BatchNorm policies between {_words(pair)}", draw)
    yield from scatters(rows)


def averaging(rows: Records) -> Iterator[Drawing]:
    """The radar charts of the averages and the pretrained model, with their table."""
    there = [[PRETRAINED], *(experts_of(row) for row in rows if len(experts_of(row)) > 1)]
    chosen = [row for row in weights_only(one_policy(rows)) if experts_of(row) in there]
    groups = _groups(chosen, reported_split(rows))

    def draw() -> Figure:
        if not groups:
            raise StudyError(f"no task has scores of all of {', '.join(names_in(chosen, 'series'))}: run the study")
        return plots.radar(chosen, groups, by="series")

    yield Drawing("radar", "Averages of all experts and the pretrained model; the axes have scales of their own", draw)


def scatters(rows: Records) -> Iterator[Drawing]:
    """Of every task its scores on shifted splits against those on the reported split."""
    split, own = reported_split(rows), one_policy(rows)
    for task in names_in(rows, "task"):
        shifted = shifted_splits(rows, task)
        if shifted:
            draw = _later(plots.ood_scatter, own, task, shifted, in_split=split, by="series")
            yield Drawing(f"ood_{task}", f"{task}: out of distribution against in distribution", draw)


def rewarded_soups(rows: Records) -> Iterator[Drawing]:
    """Heat maps over the shares of three experts, and the plane of every two rewards. Tasks are named after experts."""
    own = weights_only(one_policy(on_split(rows, reported_split(rows))))
    names = list(dict.fromkeys(name for row in own if len(experts_of(row)) > 1 for name in experts_of(row)))
    tasks = names_in(own, "task")
    for corners in itertools.combinations(names, 3):
        draw = _later(plots.ternary, own, corners, tasks=tasks)
        yield Drawing(f"ternary_{'_'.join(corners)}", f"Scores over the shares of {', '.join(corners)}", draw)
    for pair in pairs_of(own):
        yield from _of_pair(own, pair)


FIGURES: dict[str, Callable[[Records], Iterator[Drawing]]] = {
    "interpolation": interpolation,
    "averaging": averaging,
    "ood": scatters,
    "rewarded-soups": rewarded_soups,
}


def _of_pair(rows: Records, pair: Pair) -> Iterator[Drawing]:
    """Curves and plane of a pair, from rows of one split and one policy."""
    name, levels, tasks = "_".join(pair), references_of(rows), _tasks(rows, pair)
    lines = [row for row in rows if set(experts_of(row)) <= set(pair) or experts_of(row)[0] in levels]
    draw = _later(plots.accuracy_curves, lines, pair, tasks=tasks, by="series", levels=levels)
    yield Drawing(f"curves_{name}", f"Scores between {_words(pair)}", draw)
    if set(tasks) == set(pair):
        draw = _later(plots.tradeoff_plane, lines, pair[1], pair[0], by="series", levels=levels)
        yield Drawing(f"plane_{name}", f"Trade-off between {_words(pair)}", draw)


def _several_policies(rows: Records, pair: Pair) -> Records:
    """The rows of a pair whose kind of experts was evaluated under several policies; none if there is no such kind."""
    between = [row for row in weights_only(rows) if set(experts_of(row)) <= set(pair)]
    for kind in names_in(between, "experts"):
        own = [row for row in between if row["experts"] == kind]
        known = policies_of(own)
        if len(known) > 1:
            return [row if row["batchnorm"] in known else {**row, "batchnorm": known[0]} for row in own]
    return []


def _groups(rows: Records, reported: str) -> dict[str, list[tuple[str, str]]]:
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


def _tasks(rows: Records, pair: Pair) -> list[str]:
    """The tasks of a pair's experts, or all that its points were evaluated on."""
    there = names_in([row for row in rows if set(experts_of(row)) == set(pair)], "task")
    return list(pair) if set(pair) <= set(there) else there


def _words(pair: Pair) -> str:
    return f"the {pair[0]} and the {pair[1]} expert"


def _later(function: Callable[..., Figure], *values: Any, **options: Any) -> Callable[[], Figure]:
    return lambda: function(*values, **options)
