"""Shifted against reported scores: whether a model is better on new data than its score at home foretells."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from experiments.errors import StudyError
from experiments.grid.escapes import SHORT
from experiments.grid.escapes import figure as shown
from experiments.grid.rows import Records, Rows, mean_of, names_in, records, scored
from experiments.grid.units import unit_of
from experiments.pages.figures.style import (
    GREY,
    SMALL,
    Style,
    Styles,
    intervals_of,
    legend_below,
    name_axes,
    panels,
    score_name,
    seeds_of,
    sides,
    styles_of,
    tidy,
)
from experiments.pages.views import (
    experts_of,
    has_equal_shares,
    is_single,
    main_metrics,
    method_words,
    one_policy,
    plain_singles,
    with_series,
)
from experiments.statistics.robustness import Scale, pairs_of_splits, trend_of
from merge import share_label

_SIZE = (4.9, 4.7)  # inches of a panel
_CROWDED = 0.1  # merged models, and single ones if they are many, are named where less of the name is covered by others
_FEW = 12  # single models that are named in any case
_TICKS = np.array([0.001, 0.002, 0.005, 0.01, 0.02, 0.05, *np.arange(1, 10) / 10, 0.95, 0.98, 0.99, 0.995, 0.998])
_SIDES = [(7, 0), (-7, 0), (0, 10), (0, -10), (6, 9), (-6, 9), (6, -9), (-6, -9)]  # of a name, in points
_SIDES += [(0, 20), (0, -20), (14, 20), (-14, 20), (14, -20), (-14, -20)]
_FIT = (0, (6, 2))
Interval = tuple[float, float, float]  # a score and its bounds


class _Mark(NamedTuple):
    """A model: its series, what it is called ("" for nothing), whether it is as it is, its places."""

    series: str
    name: str
    single: bool
    x: Interval
    y: Interval


def ood_scatter(
    rows: Rows,
    task: str,
    splits: Sequence[str],
    *,
    in_split: str = "test",
    by: str = "",
    styles: Styles | None = None,
) -> Figure:
    """Draw shifted against reported scores, a panel a shifted split, a mark a model (mean over its seeds) with its 95 %
    intervals; shares of 1 on logit axes.

    Single models are stars. Three or more of them give a line, fitted on the axes as they are, of experts of the first
    kind and the pretrained model: what lies above it is better on shifted data than its reported score foretells
    (effective robustness, arXiv 2007.00644). Dotted is y = x.
    Without `by`, series are how the models were made, under one BatchNorm policy.
    """
    found, by = (records(rows), by) if by else (with_series(one_policy(main_metrics(rows))), "series")
    inside = scored(found, task, in_split)
    figure, axes = panels(len(splits), *_SIZE, most=2)
    for axis, split in zip(axes, splits, strict=True):
        outside = scored(found, task, split)
        scales = Scale(unit_of(inside)), Scale(unit_of(outside))
        marks = _marks(inside, outside, scales, by)
        if not marks:
            raise StudyError(f"no point of {task} has both splits {in_split} and {split}: evaluate them first")
        _scale_axis(axis, "x", scales[0], [mark.x for mark in marks])
        _scale_axis(axis, "y", scales[1], [mark.y for mark in marks])
        for name, style in styles_of(dict.fromkeys(mark.series for mark in marks), styles).items():
            _draw_marks(axis, [mark for mark in marks if mark.series == name], style, shown(name, 2 * SHORT))
        _draw_fit(axis, inside, outside, scales)
        _draw_equal(axis, scales)
        tidy(axis)
        _name_marks(axis, marks, scales)
        name_axes(axis, score_name(inside), score_name(outside), 4, 3.5)
    title = f"a mark a model, mean of {seeds_of(inside)}" if len(names_in(inside, "seed")) > 1 else "a mark a model"
    if any(np.isfinite(row["lo"]) for row in inside):
        title += f"; bars: {intervals_of(inside)}"
    star = Line2D([], [], marker="*", ls="none", ms=10, mfc="none", mec="black", label="a single model")
    legend_below(figure, axes, title=title, more=[star] if any(map(is_single, inside)) else [])
    return figure


def _marks(inside: Records, outside: Records, scales: tuple[Scale, Scale], by: str) -> list[_Mark]:
    """Pair the scores of every model on both splits, over the seeds that have both."""
    there, found = _by_point(outside), list[_Mark]()
    for point, own in _by_point(inside).items():
        others = there.get(point, {})
        seeds = [seed for seed in own if seed in others]
        if not seeds:
            continue
        first = own[seeds[0]]
        x, y = (
            _place([rows[seed] for seed in seeds], scale) for rows, scale in zip((own, others), scales, strict=True)
        )
        found.append(_Mark(str(first[by]), _name(first), is_single(first), x, y))
    return found


def _place(rows: Records, scale: Scale) -> Interval:
    value, lo, hi = (float(scale.place(mean_of(rows, column))) for column in ("value", "lo", "hi"))
    return value, lo, hi


def _by_point(rows: Records) -> dict[tuple[Any, ...], dict[Any, dict[str, Any]]]:
    """Return the rows of a split by point, whatever the order of its shares, and seed."""
    found: dict[tuple[Any, ...], dict[Any, dict[str, Any]]] = {}
    for row in rows:
        label = share_label(dict(sorted(row["shares"].items())))
        found.setdefault((label, method_words(row), row["experts"], row["batchnorm"]), {})[row["seed"]] = row
    return found


def _name(row: Mapping[str, Any]) -> str:
    """Name a model of equal shares by its experts; of others the places on a line tell."""
    return "+".join(experts_of(row)) if has_equal_shares(row) else ""


def _scale_axis(axis: Axes, which: str, scale: Scale, scores: Sequence[Interval]) -> None:
    """Set the limits and ticks of an axis: intervals lie inside, but for those far longer than the scores are apart."""
    straight = scale.straight(np.array(scores))
    low, high = straight[:, 0].min(), straight[:, 0].max()
    room = 0.1 * (high - low) or 0.1 * abs(high) or 1
    found = straight[np.isfinite(straight)]
    low, high = max(found.min() - room, low - 5 * room), min(found.max() + room, high + 5 * room)
    limits = scale.bent(np.array([low, high]))
    if scale.is_logit:
        axis.set(**{f"{which}scale": "logit"})
        ticks = _TICKS[(limits[0] < _TICKS) & (limits[1] > _TICKS)]
        if len(ticks) < 4:
            ticks = np.array(MaxNLocator(6).tick_values(*limits))
            ticks = ticks[(ticks > limits[0]) & (ticks < limits[1])]
        own = axis.xaxis if which == "x" else axis.yaxis
        own.set_minor_locator(NullLocator())
        own.set_major_locator(FixedLocator(ticks.tolist()))
        own.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.4g}"))
    axis.set(**{f"{which}lim": tuple(limits)})


def _draw_marks(axis: Axes, marks: Sequence[_Mark], style: Style, label: str) -> None:
    for single in (False, True):
        own = [mark for mark in marks if mark.single == single]
        if not own:
            continue
        x, y = (np.array(scores).T for scores in ([mark.x for mark in own], [mark.y for mark in own]))
        bars = {"fmt": "none", "ecolor": style.color, "elinewidth": 0.6, "alpha": 0.45}
        across, up = sides(*x), sides(*y)
        if across or up:
            axis.errorbar(x[0], y[0], yerr=up, xerr=across, **bars)
        star = {"marker": "*", "ms": 12, "mfc": "none", "mew": 1.3}
        look = star if single else {"marker": style.marker, "ms": style.size + 1.5, "mew": 0}
        named = label if not single or len(own) == len(marks) else "_"
        axis.plot(x[0], y[0], color=style.color, ls="none", label=named, zorder=4 if single else 3, **look)


def _draw_fit(axis: Axes, inside: Records, outside: Records, scales: tuple[Scale, Scale]) -> None:
    """Draw the line that single models trace (`experiments.statistics.robustness`), if there are enough of them."""
    there = _by_point(plain_singles(outside))
    models = [(own, there.get(point, {})) for point, own in _by_point(plain_singles(inside)).items()]
    line = trend_of([pair for own, others in models for pair in pairs_of_splits(own, others).values()])
    if line is None:
        return
    limits = axis.get_xlim(), axis.get_ylim()
    left, right = scales[0].straight(np.array(limits[0]))
    across = np.linspace(left, right, 50)
    label = f"line through {line.models} single models" + " (a seed each)" * (len(models) < line.models)
    look = {"color": GREY, "lw": 1.1, "ls": _FIT, "label": label, "zorder": 1}
    axis.plot(scales[0].bent(across), scales[1].bent(line.at(across)), **look)
    axis.set(xlim=limits[0], ylim=limits[1])


def _draw_equal(axis: Axes, scales: tuple[Scale, Scale]) -> None:
    """Draw y = x where it crosses the panel and both axes are of one unit."""
    (left, right), (low, high) = axis.get_xlim(), axis.get_ylim()
    ends = max(left, low), min(right, high)
    if scales[0].unit == scales[1].unit and ends[0] < ends[1]:
        axis.plot(ends, ends, color=GREY, lw=0.9, ls=(0, (1, 2)), label="equal on both", zorder=0)


def _name_marks(axis: Axes, marks: Sequence[_Mark], scales: tuple[Scale, Scale]) -> None:
    """Write names beside marks, each on the side where it covers least of marks and other names; of merged models, and
    of many single ones, only where there is room."""
    few = sum(mark.single for mark in marks) <= _FEW
    size = 72 * np.array(_SIZE) * (0.8, 0.75)  # points of the plotting area, about

    def at(mark: _Mark) -> np.ndarray:
        parts: list[float] = []
        for scale, value, ends in zip(scales, (mark.x[0], mark.y[0]), (axis.get_xlim(), axis.get_ylim()), strict=True):
            low, high, own = (scale.straight(np.array(one)) for one in (*ends, value))
            parts.append(float((own - low) / (high - low)))
        return size * parts

    taken = [(*(at(mark) - 5), *(at(mark) + 5)) for mark in marks]
    for mark in sorted((mark for mark in marks if mark.name), key=lambda mark: not mark.single):
        centre = at(mark)
        text = shown(mark.name, SHORT + 8)
        width, height = 0.56 * SMALL * len(text), SMALL + 2
        places: list[tuple[float, tuple[float, float], str, tuple[float, ...]]] = []
        for dx, dy in _SIDES if mark.single and few else _SIDES[:8]:
            side = {1: "left", -1: "right", 0: "center"}[int(np.sign(dx))]
            left = centre[0] + dx - {"left": 0, "right": width, "center": width / 2}[side]
            box = (left, centre[1] + dy - height / 2, left + width, centre[1] + dy + height / 2)
            cost = sum(_overlap(box, other) for other in taken) + 50 * _outside(box, size)
            places.append((cost, (dx, dy), side, box))
        cost, offset, side, box = min(places, key=lambda place: place[0])
        if cost > _CROWDED * width * height and not (mark.single and few):
            continue
        taken.append(box)
        axis.annotate(
            text, (mark.x[0], mark.y[0]), offset, textcoords="offset points", fontsize=SMALL, ha=side, va="center"
        )


def _overlap(one: Sequence[float], other: Sequence[float]) -> float:
    width, height = (min(one[i + 2], other[i + 2]) - max(one[i], other[i]) for i in (0, 1))
    return max(width, 0) * max(height, 0)


def _outside(box: Sequence[float], size: np.ndarray) -> float:
    return sum(max(0, -box[i]) + max(0, box[i + 2] - size[i]) for i in (0, 1))
