"""Scores over what models have more or less of: experts in an average, updates of their finetuning."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.grid.escapes import SHORT
from experiments.grid.escapes import figure as shown
from experiments.grid.rows import Records, mean_of, names_in
from experiments.grid.units import unit_of
from experiments.pages.figures.style import (
    GREY,
    SERIES,
    SMALL,
    TEXT,
    Style,
    Styles,
    intervals_of,
    legend_below,
    panels,
    seeds_of,
    tidy,
    wrapped,
)
from experiments.pages.models import Model, kept_on
from experiments.pages.views import (
    PRETRAINED,
    experts_of,
    has_equal_shares,
    is_single,
    losses_of,
    main_metrics,
    on_split,
    one_policy,
    reported_split,
    shifted_splits,
    weights_only,
)

WITH, WITHOUT = "the task's expert has a part", "it has none"
OWN, MERGED, OTHERS = "the task's own expert", "average of all experts", "experts of other tasks"
ITS, EVERY = "mean over the tasks of its experts", "mean over all tasks"
LOOKS = {
    **dict.fromkeys((WITH, ITS, OWN), SERIES[0]),
    **dict.fromkeys((MERGED, EVERY), SERIES[1]),
    **dict.fromkeys((WITHOUT, OTHERS), SERIES[2]),
}
Found = Iterator[tuple[tuple[str, ...], Callable[[], Figure]]]
Placing = Callable[[Mapping[str, Any]], list[tuple[str, float]]]  # the series of a row, and the place on the axis
Points = Mapping[float, Sequence[tuple[float, float, float]]]  # by place: values with their intervals


# -- how many experts are averaged


def counts(rows: Records, styles: Styles) -> Found:
    """Draw averages of equal shares, where experts of one kind were averaged in several numbers."""
    own = [row for row in weights_only(one_policy(rows)) if has_equal_shares(row)]
    merged = [row for row in main_metrics(own) if not is_single(row)]
    names = {name for row in merged for name in experts_of(row)}
    kinds = names_in(merged, "experts")
    own = [row for row in own if set(experts_of(row)) <= names and row["experts"] in kinds]
    if len({len(experts_of(row)) for row in merged}) > 1 and len(kinds) == 1:
        yield (), partial(count_panels, own)


def count_panels(rows: Records) -> Figure:
    """Draw what averages keep over the number of experts in them, a dot a set of experts and a line through the means:
    retention on reported data, below on shifted data; every task's score, and below its loss."""

    def placing(row: Mapping[str, Any]) -> list[tuple[str, float]]:
        held = experts_of(row)
        return [(WITH if row["owner"] in held else WITHOUT, len(held))]

    figure, means, tasks = _task_panels(rows, placing)
    for axis, where in zip(means, ("reported", "shifted"), strict=False):
        if where == "reported" or shifted_splits(rows):
            _draw_kept(axis, rows, where)
        else:
            axis.remove()
    sizes = sorted({len(experts_of(row)) for row in rows})
    for axis in [axis for axis in figure.axes if axis in (*means, *tasks)]:
        axis.set_xticks(sizes)
        axis.set_xlabel("experts in the average", fontsize=SMALL)
    legend_below(figure, figure.axes, title=f"a dot a set of experts, {_mean(rows)}; lines: mean over the sets")
    return figure


def _draw_kept(axis: Axes, rows: Records, where: str) -> None:
    """Draw the mean retention of every average: over the tasks of its experts, and over all tasks."""
    main = main_metrics(rows)
    groups: dict[tuple[str, ...], Records] = {}
    for row in main:
        groups.setdefault(tuple(sorted(experts_of(row))), []).append(row)
    models = [Model("", names, own) for names, own in groups.items()]
    owners = {row["task"]: row["owner"] for row in main if row["owner"]}
    split = reported_split(rows)
    splits = {task: [split] if where == "reported" else shifted_splits(rows, task) for task in owners}
    table = {task: 100 * kept_on(models, main, task, splits[task])[0] for task in owners if splits[task]}
    found: dict[str, dict[float, list[tuple[float, float, float]]]] = {ITS: {}, EVERY: {}}
    for i, model in enumerate(models):
        for name, tasks in ((ITS, [task for task in table if owners[task] in model.experts]), (EVERY, [*table])):
            value = float(np.mean([table[task][i] for task in tasks])) if tasks else np.nan
            found[name].setdefault(len(model.experts), []).append((value, np.nan, np.nan))
    for name, points in found.items():
        _draw(axis, points, LOOKS[name], name)
    _title(axis, f"all tasks, {shown(split if where == 'reported' else 'shifted data')}", "% of the task's own expert")


# -- how far along a finetuning


def along(rows: Records, styles: Styles) -> Found:
    """Draw experts and their averages over their progress, where rows know of three places or more."""
    own = [row for row in weights_only(one_policy(rows)) if "progress" in row and has_equal_shares(row)]
    most = max((len(experts_of(row)) for row in own), default=0)
    if len({row["progress"] for row in own if len(experts_of(row)) == most > 1}) > 2:
        yield (), partial(progress_panels, [row for row in own if len(experts_of(row)) in (1, most)])


def progress_panels(rows: Records) -> Figure:
    """Draw scores and losses of every task over the share of the updates: of its own expert, of the average of all
    experts, and the mean of the others; first the mean over tasks, of shares of the finished expert."""
    most = max(len(experts_of(row)) for row in rows)

    def placing(row: Mapping[str, Any]) -> list[tuple[str, float]]:
        held, x = experts_of(row), 100 * row["progress"]
        if held == [PRETRAINED]:
            return [(name, x) for name in (OWN, MERGED, OTHERS)]
        return [(MERGED if len(held) == most else OWN if held == [row["owner"]] else OTHERS, x)]

    figure, means, tasks = _task_panels(rows, placing)
    _draw_progress(means[0], on_split(main_metrics(rows), reported_split(rows)), placing)
    for axis in means[1:]:
        axis.remove()
    for axis in (means[0], *tasks):
        axis.set_xlabel("% of the updates", fontsize=SMALL)
    bars = f"; bands: {intervals_of(rows)}" if any(np.isfinite(row["lo"]) for row in rows) else ""
    legend_below(figure, figure.axes, title=f"{_mean(rows)}{bars}")
    return figure


def _draw_progress(axis: Axes, rows: Records, placing: Placing) -> None:
    """Draw the mean over tasks of what experts keep of the finished ones, where all tasks have such."""
    last = max(row["progress"] for row in rows)
    table: dict[tuple[str, float], list[float]] = {}
    for task in names_in(rows, "task"):
        own = [row for row in rows if row["task"] == task]
        finished = [row for row in own if experts_of(row) == [row["owner"]] and row["progress"] == last]
        points = _points(own, placing, 1)
        for name, places in points.items():
            for x, values in places.items():
                value = np.mean([value for value, _, _ in values]) if finished else np.nan
                whole = mean_of(finished, "value") if finished else np.nan
                table.setdefault((name, x), []).append(100 * (value / whole if unit_of(own).rises else whole / value))
    for name in (OWN, MERGED, OTHERS):
        points = {x: [(float(np.mean(kept)), np.nan, np.nan)] for (one, x), kept in table.items() if one == name}
        _draw(axis, points, LOOKS[name], name)
    axis.axhline(100, color=GREY, lw=0.8, ls=(0, (4, 3)))
    _title(axis, f"mean over tasks, {shown(rows[0]['split'])}", "% of the task's finished expert")


# -- panels of all tasks


def _task_panels(rows: Records, placing: Placing) -> tuple[Figure, list[Axes], list[Axes]]:
    """Draw a column a task behind a free one, scores above and losses below, if there are such; return the figure, the
    free axes, and those of tasks."""
    here = on_split(rows, reported_split(rows))
    main, losses = main_metrics(here), losses_of(here)
    owners = {row["task"]: row["owner"] for row in main}
    lines = [main, losses] if losses else [main]
    columns = len(owners) + 1
    figure, axes = panels(columns * len(lines), 2.5, 2.5, most=columns)
    drawn: list[Axes] = []
    for i, line in enumerate(lines):
        for axis, (task, owner) in zip(axes[i * columns + 1 :], owners.items(), strict=False):
            own = [{**row, "owner": owner} for row in line if row["task"] == task]
            if not own:
                axis.remove()
                continue
            unit = unit_of(own)
            for name, points in sorted(
                _points(own, placing, unit.factor).items(), key=lambda one: [*LOOKS].index(one[0])
            ):
                _draw(axis, points, LOOKS[name], name)
            words = f"{shown(own[0]['metric'], SHORT)}" + f" ({unit.words})" * bool(unit.words)
            _title(axis, f"{shown(task)}, {shown(own[0]['split'])}", words)
            drawn.append(axis)
    return figure, axes[::columns], drawn


def _points(rows: Records, placing: Placing, factor: float) -> dict[str, dict[float, list[tuple[float, float, float]]]]:
    """Return means over seeds with their intervals, by series and place."""
    models: dict[tuple[str, float, str], Records] = {}
    for row in rows:
        for name, x in placing(row):
            models.setdefault((name, x, str(row["point"])), []).append(row)
    found: dict[str, dict[float, list[tuple[float, float, float]]]] = {}
    for (name, x, _), own in models.items():
        value, lo, hi = (factor * mean_of(own, column) for column in ("value", "lo", "hi"))
        found.setdefault(name, {}).setdefault(x, []).append((value, lo, hi))
    return found


def _draw(axis: Axes, points: Points, style: Style, label: str) -> None:
    """Draw a line through the means; where places have several points these as dots, else the band of intervals."""
    places = sorted(points)
    means = [float(np.mean([value for value, _, _ in points[x]])) for x in places]
    several = any(len(points[x]) > 1 for x in places)
    axis.plot(places, means, color=style.color, ls=style.dashes, lw=1.4, zorder=2)
    axis.plot([], [], **style.line(), label=label)
    dots = [(x, value) for x in places for value, _, _ in points[x]]
    axis.plot(*zip(*dots, strict=True), style.marker, color=style.color, ms=style.size, mew=0, alpha=0.75, zorder=3)
    if not several and np.isfinite([points[x][0][1:] for x in places]).all():
        lo, hi = ([points[x][0][i] for x in places] for i in (1, 2))
        axis.fill_between(places, lo, hi, color=style.color, alpha=0.16, lw=0)


def _title(axis: Axes, title: str, words: str) -> None:
    axis.set_title(wrapped(title, 2.3), fontsize=TEXT)
    axis.set_ylabel(wrapped(words, 1.9, SMALL), fontsize=SMALL)
    tidy(axis)


def _mean(rows: Records) -> str:
    seeds = seeds_of(rows)
    return f"mean of {seeds}" if len(names_in(rows, "seed")) > 1 else f"of {seeds}"
