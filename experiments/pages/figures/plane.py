"""The plane of two scores: a point a ratio between two experts, one task across and the other up."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from experiments.errors import StudyError
from experiments.grid.escapes import SHORT, WORD
from experiments.grid.escapes import figure as shown
from experiments.grid.rows import Rows, records, scored
from experiments.grid.units import Unit, unit_of
from experiments.pages.figures.style import (
    GREEN,
    SMALL,
    Style,
    Styles,
    legend_below,
    level,
    name_axes,
    score_name,
    seeds_of,
    sides,
    styles_of,
    tidy,
    wrapped,
)
from experiments.pages.views import PRETRAINED, Pair, between, follows_shares, is_single, reported
from experiments.statistics.curves import Line, lines_between


def tradeoff_plane(
    rows: Rows,
    x: str,
    y: str,
    *,
    experts: Pair | None = None,
    by: str = "",
    levels: Sequence[str] = (PRETRAINED,),
    styles: Styles | None = None,
) -> Figure:
    """Draw the scores of two tasks against each other, a point a ratio, joined in order from y's expert to x's.

    `experts` are those of x and of y, by default of the tasks' names. Stars: the experts at the ends; hollow: models on
    no line. The dotted green L marks the two experts' own scores of the first series; it bends at the corner where both
    skills are whole.
    """
    found, by = (records(rows), by) if by else (reported(rows), "series")
    first, second = experts or (x, y)
    pair = second, first
    across, up = scored(found, x), scored(found, y)
    units = unit_of(across), unit_of(up)
    horizontal, vertical = (
        lines_between(between(own, pair), pair, by=by, scale=unit.factor)
        for own, unit in zip((across, up), units, strict=True)
    )
    marks = {str(row[by]) for row in found if not (follows_shares(row) or is_single(row))}
    kinds = {str(row[by]): row["experts"] for row in found}
    figure = Figure(figsize=(4.8, 5.2), layout="constrained")
    axis = figure.subplots()
    drawn: dict[str, Style] = {}
    for name, style in styles_of(horizontal, styles).items():
        whole = name in vertical and vertical[name].share.tolist() == horizontal[name].share.tolist()
        if name in marks and not whole:
            continue
        if not whole:
            raise StudyError(f"{name}: {x} and {y} are not scored at the same shares: evaluate the missing cells")
        _draw_plane_line(axis, horizontal[name], vertical[name], style, shown(name, 2 * SHORT), name in marks)
        if kinds[name] not in drawn:
            _draw_stars(axis, horizontal[name], vertical[name], style, len(drawn))
            drawn[kinds[name]] = style
    for name, style in styles_of(levels, styles).items():
        at, height = level(across, name), level(up, name)
        if at is not None and height is not None:
            hollow = {"ms": 10, "mfc": "none", "mec": style.color, "mew": 1.4, "ls": "none"}
            axis.plot(at, height, marker=style.marker, **hollow, label=shown(name))
    corner = next(iter(horizontal))
    _draw_corner(axis, horizontal[corner], vertical[corner], pair, units)
    tidy(axis)
    name_axes(axis, score_name(across), score_name(up), 4, 3.5)
    first, second = (shown(name, WORD) for name in pair)
    title = f"points in order of the share of {second} in {first} → {second}"
    shares = [line.share.tolist() for name, line in horizontal.items() if name not in marks]
    steps = np.diff(shares[0]) if shares else np.empty(0)
    if len(steps) and all(own == shares[0] for own in shares) and np.allclose(steps, steps[0]):
        title += f":\n{shares[0][0]:g} to {shares[0][-1]:g} in steps of {steps[0]:.3g}"
    star = Line2D([], [], marker="*", ls="none", ms=11, mfc="none", mec="black", label="the two experts")
    legend_below(figure, [axis], title=f"{title}; {seeds_of(found)}", more=[star])
    return figure


def _draw_plane_line(axis: Axes, x: Line, y: Line, style: Style, label: str, is_mark: bool) -> None:
    inner = (x.share > 0) & (x.share < 1) if is_mark else np.ones(len(x.share), dtype=bool)
    bars = {"fmt": "none", "ecolor": style.color, "elinewidth": 0.6, "alpha": 0.6}
    x, y = (Line(own.share[inner], own.value[inner], own.lo[inner], own.hi[inner], own.seeds) for own in (x, y))
    across, up = (sides(own.value, own.lo, own.hi) for own in (x, y))
    if across or up:
        axis.errorbar(x.value, y.value, yerr=up, xerr=across, **bars)
    line = {**style.line(), "ls": "none", "ms": style.size + 2} if is_mark else style.line()
    axis.plot(x.value, y.value, **line, label=label)


def _draw_stars(axis: Axes, x: Line, y: Line, style: Style, place: int) -> None:
    """Draw the two experts hollow, those of later kinds smaller, so that none hides another."""
    star = {"ms": max(7, 16 - 4 * place), "mfc": "none", "mec": style.color, "mew": 1.5, "ls": "none"}
    axis.plot(x.value[[0, -1]], y.value[[0, -1]], marker="*", **star, zorder=4)


def _draw_corner(axis: Axes, across: Line, up: Line, names: Pair, units: tuple[Unit, Unit]) -> None:
    x, y = across.value[-1], up.value[0]
    left, bottom = axis.get_xlim()[not units[0].rises], axis.get_ylim()[not units[1].rises]
    limits = axis.get_xlim(), axis.get_ylim()
    axis.plot([left, x, x], [y, y, bottom], color=GREEN, lw=1.2, ls=(0, (1, 1.5)), zorder=0)
    axis.set(xlim=limits[0], ylim=limits[1])
    style: dict[str, Any] = {"textcoords": "offset points", "fontsize": SMALL}
    middle = sum(limits[0]) / 2
    for name, at, height in ((names[0], across.value[0], y), (names[1], x, up.value[-1])):
        right, below = at < middle, height > limits[1][0] + 0.1 * (limits[1][1] - limits[1][0])  # the axis lies there
        offset = (9 if right else -9, -9 if below else 9)
        axis.annotate(
            wrapped(f"{shown(name, WORD)} expert", 1.6, SMALL),
            (at, height),
            xytext=offset,
            va="top" if below else "bottom",
            ha="left" if right else "right",
            **style,
        )
