"""Figures of what lies between two experts: curves, policies side by side, the plane of both scores."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.errors import StudyError
from experiments.grid.escapes import SHORT, WORD
from experiments.grid.escapes import figure as shown
from experiments.grid.rows import Records, Rows, names_in, records, scored
from experiments.pages.figures.style import (
    GREEN,
    GREY,
    LINE,
    SERIES,
    SMALL,
    TEXT,
    Style,
    Styles,
    legend_below,
    level,
    score_name,
    styles_of,
    tidy,
)
from experiments.statistics.curves import Line, lines_between
from experiments.study.points import PRETRAINED
from merge import share_label

Pair = tuple[str, str]


def accuracy_curves(
    rows: Rows,
    pair: Pair,
    *,
    tasks: Sequence[str] | None = None,
    by: str = "experts",
    levels: Sequence[str] = (PRETRAINED,),
    styles: Styles | None = None,
) -> Figure:
    """Draw score against ratio from the first expert of the pair to the second, a panel a task (the pair's two).

    Thin dashes: the chord between the ends. Ringed, and named in the legend: the highest point. Raises StudyError where
    a task has no rows between the two.
    """
    found, tasks = records(rows), tasks or pair
    figure = Figure(figsize=(3.5 * len(tasks), 3.7), layout="constrained")
    for axis, task in zip(figure.subplots(1, len(tasks), squeeze=False)[0], tasks, strict=True):
        chosen = scored(found, task)
        lines = lines_between(chosen, pair, by=by, scale=100)
        for name, style in styles_of(lines, styles).items():
            share = float(lines[name].share[lines[name].value.argmax()])
            best = share_label({pair[0]: 1 - share, pair[1]: share})
            label = f"{shown(name, WORD)}, highest at {shown(best, 2 * SHORT, LINE)}"
            _draw_curve(axis, lines[name], style, label)
        for name, style in styles_of(levels, styles).items():
            height = level(chosen, name)
            if height is not None:
                axis.axhline(height, color=style.color, lw=1.2, ls=style.dashes, label=shown(name), zorder=0)
        _name_curve_axes(axis, chosen, pair)
        axis.legend(fontsize=SMALL, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.26))
    return figure


def batchnorm_panels(
    rows: Rows, pair: Pair, *, tasks: Sequence[str] | None = None, reference: str = "average"
) -> Figure:
    """Draw the curves of every BatchNorm policy side by side, the reference policy dotted in grey behind each."""
    found, tasks = records(rows), tasks or pair
    policies = names_in(found, "batchnorm")
    figure = Figure(figsize=(2.3 * len(policies) + 0.7, 2.2 * len(tasks) + 0.5), layout="constrained")
    grid = figure.subplots(len(tasks), len(policies), squeeze=False, sharey="row", sharex=True)
    for i, task in enumerate(tasks):
        chosen = scored(found, task)
        lines = lines_between(chosen, pair, by="batchnorm", scale=100)
        styles = styles_of(lines, {reference: SERIES[0]})
        for axis, policy in zip(grid[i], policies, strict=True):
            if reference in lines and policy != reference:
                behind, label = lines[reference], f"{shown(reference)}, for comparison"
                axis.plot(behind.share, behind.value, color=GREY, lw=1.2, ls=":", label=label)
            if policy in lines:
                _draw_curve(axis, lines[policy], styles[policy], shown(policy))
            _name_curve_axes(axis, chosen, pair)
            axis.label_outer()
    legend_below(figure, grid.flat)
    for axis, policy in zip(grid[0], policies, strict=True):
        axis.set_title(f"BatchNorm {shown(policy, SHORT, SHORT - 4)}", fontsize=TEXT)
    return figure


def tradeoff_plane(
    rows: Rows,
    x: str,
    y: str,
    *,
    by: str = "experts",
    levels: Sequence[str] = (PRETRAINED,),
    styles: Styles | None = None,
) -> Figure:
    """Draw the scores of two tasks against each other, a point a ratio, joined in order from y's expert to x's.

    Stars: the experts at the ends; hollow: models on no line. The dotted green L marks the two experts' own scores of
    the first series; it bends at the corner where both skills are whole.
    """
    found = records(rows)
    across, up = scored(found, x), scored(found, y)
    horizontal, vertical = (lines_between(own, (y, x), by=by, scale=100) for own in (across, up))
    figure = Figure(figsize=(4.4, 4.8), layout="constrained")
    axis = figure.subplots()
    for name, style in styles_of(horizontal, styles).items():
        if name not in vertical or vertical[name].share.tolist() != horizontal[name].share.tolist():
            raise StudyError(f"{name}: {x} and {y} are not scored at the same shares: evaluate the missing cells")
        _draw_plane_line(axis, horizontal[name], vertical[name], style, shown(name))
    for name, style in styles_of(levels, styles).items():
        at, height = level(across, name), level(up, name)
        if at is not None and height is not None:
            hollow = {"ms": 10, "mfc": "white", "mec": style.color, "mew": 1.4, "ls": "none"}
            axis.plot(at, height, style.marker, **hollow, label=shown(name))
    first = next(iter(horizontal))
    _draw_corner(axis, horizontal[first], vertical[first], (x, y))
    tidy(axis)
    axis.set_xlabel(score_name(across), fontsize=TEXT)
    axis.set_ylabel(score_name(up), fontsize=TEXT)
    title = f"points in order of the share of {shown(x, WORD)} in {shown(y, WORD)} → {shown(x, WORD)}"
    shares = [line.share.tolist() for line in horizontal.values()]
    steps = np.diff(shares[0])
    if all(own == shares[0] for own in shares) and np.allclose(steps, steps[0]):
        title += f":\n{shares[0][0]:g} to {shares[0][-1]:g} in steps of {steps[0]:.3g}"
    legend_below(figure, [axis], title=title)
    return figure


def _draw_curve(axis: Axes, line: Line, style: Style, label: str) -> None:
    top = int(line.value.argmax())
    axis.plot(line.share, line.value, **style.line(), label=label)
    axis.fill_between(line.share, line.lo, line.hi, color=style.color, alpha=0.16, lw=0)
    axis.plot(line.share[[0, -1]], line.value[[0, -1]], color=style.color, lw=0.8, ls=(0, (4, 3)), zorder=1)
    axis.plot(line.share[top], line.value[top], "o", ms=10, mfc="none", mec=style.color, mew=1.2)
    for share, values in zip(line.share, line.seeds, strict=True):
        if len(values) > 1:
            axis.plot([share] * len(values), values, ".", color=style.color, ms=3, mew=0)


def _name_curve_axes(axis: Axes, rows: Records, pair: Pair) -> None:
    tidy(axis)
    axis.set_xlim(-0.04, 1.04)
    first, second = (f"{number}\n{shown(name, 2 * WORD - 6, WORD - 2)}\nexpert" for number, name in enumerate(pair))
    axis.set_xticks([0, 0.25, 0.5, 0.75, 1], [first, "0.25", "0.5", "0.75", second])
    first, second = (shown(name, WORD) for name in pair)
    between = f" in {first} → {second}" if len(first) + 2 * len(second) <= LINE else ""
    axis.set_xlabel(f"share of {second}{between}", fontsize=TEXT)
    axis.set_ylabel(score_name(rows), fontsize=TEXT)


def _draw_plane_line(axis: Axes, x: Line, y: Line, style: Style, label: str) -> None:
    bars = {"fmt": "none", "ecolor": style.color, "elinewidth": 0.6, "alpha": 0.6}
    if np.isfinite([*x.lo, *y.lo]).all():
        axis.errorbar(x.value, y.value, [y.value - y.lo, y.hi - y.value], [x.value - x.lo, x.hi - x.value], **bars)
    axis.plot(x.value, y.value, **style.line(), label=label)
    axis.plot(x.value[[0, -1]], y.value[[0, -1]], "*", color=style.color, ms=12, mec="black", mew=0.5, zorder=4)


def _draw_corner(axis: Axes, across: Line, up: Line, names: Pair) -> None:
    x, y = across.value[-1], up.value[0]
    left, bottom = axis.get_xlim()[0], axis.get_ylim()[0]
    axis.plot([left, x, x], [y, y, bottom], color=GREEN, lw=1.2, ls=(0, (1, 1.5)), zorder=0)
    axis.set_xlim(left=left)
    axis.set_ylim(bottom=bottom)
    inward = across.value[0] - left < 0.25 * (axis.get_xlim()[1] - left)
    upper = {"xytext": (0, -9), "ha": "left"} if inward else {"xytext": (-9, -5), "ha": "right"}
    style: dict[str, Any] = {"textcoords": "offset points", "fontsize": SMALL}
    axis.annotate(f"{shown(names[1], WORD)} expert", (across.value[0], y), va="top", **upper, **style)
    axis.annotate(
        f"{shown(names[0], WORD)} expert", (x, up.value[-1]), xytext=(-9, 0), ha="right", va="center", **style
    )
