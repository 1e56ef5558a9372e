"""The plane of two scores: a point a ratio between two experts, one task across and the other up."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from experiments.errors import StudyError
from experiments.grid.escapes import SHORT, WORD
from experiments.grid.escapes import figure as shown
from experiments.grid.rows import Rows, records, scored
from experiments.grid.units import Unit, unit_of
from experiments.pages.figures.style import (
    GREEN,
    SMALL,
    Figure,
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

_MOST_MARKS = 6  # whose shapes can be distinguished
_SIDES = ((1, 0), (-1, 0), (0, 1), (0, -1), (0.7, 0.7), (-0.7, 0.7), (0.7, -0.7), (-0.7, -0.7))


class _Mark(NamedTuple):
    """A method that shares say nothing to, and the colour that it is drawn in."""

    x: Line
    y: Line
    color: str

    @property
    def place(self) -> tuple[float, float]:
        """Return the scores of its point between the experts."""
        inner = (self.x.share > 0) & (self.x.share < 1)
        return float(self.x.value[inner][0]), float(self.y.value[inner][0])


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
    no line. Many methods that shares say nothing to are numbered, without intervals. The dotted green L marks the two
    experts' own scores of the first series; it bends at the corner where both skills are whole.
    """
    found, by = (records(rows), by) if by else (reported(rows), "series")
    pair = (experts[1], experts[0]) if experts else (y, x)
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
    numbered: list[_Mark] = []
    for name, style in styles_of(horizontal, styles).items():
        whole = name in vertical and vertical[name].share.tolist() == horizontal[name].share.tolist()
        if name in marks and not whole:
            continue
        if not whole:
            raise StudyError(f"{name}: {x} and {y} are not scored at the same shares: evaluate the missing cells")
        label = shown(name, 2 * SHORT)
        if name in marks and len(marks) > _MOST_MARKS:
            numbered.append(_Mark(horizontal[name], vertical[name], style.color))
            label = f"{len(numbered)}  {label}"
            axis.plot(*numbered[-1].place, "o", color=style.color, ms=3.5, mew=0, label=label)
            continue
        _draw_plane_line(axis, horizontal[name], vertical[name], style, label, name in marks)
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
    _number_marks(axis, numbered)
    tidy(axis)
    name_axes(axis, score_name(across), score_name(up), 4, 3.5)
    title = _order(pair, [line.share.tolist() for name, line in horizontal.items() if name not in marks])
    star = Line2D([], [], marker="*", ls="none", ms=11, mfc="none", mec="black", label="the two experts")
    legend_below(figure, [axis], title=f"{title}; {seeds_of(found)}", more=[star])
    return figure


def _order(pair: Pair, shares: Sequence[Sequence[float]]) -> str:
    """Say in which order points are joined, and the steps where all lines have the same."""
    first, second = (shown(name, WORD) for name in pair)
    title = f"points in order of the share of {second} in {first} → {second}"
    steps = np.diff(shares[0]) if shares else np.empty(0)
    if len(steps) and all(own == shares[0] for own in shares) and np.allclose(steps, steps[0]):
        title += f":\n{shares[0][0]:g} to {shares[0][-1]:g} in steps of {steps[0]:.3g}"
    return title


def _draw_plane_line(axis: Axes, x: Line, y: Line, style: Style, label: str, is_mark: bool) -> None:
    inner = (x.share > 0) & (x.share < 1) if is_mark else np.ones(len(x.share), dtype=bool)
    bars = {"fmt": "none", "ecolor": style.color, "elinewidth": 0.6, "alpha": 0.6}
    x, y = (Line(own.share[inner], own.value[inner], own.lo[inner], own.hi[inner], own.seeds) for own in (x, y))
    across, up = (sides(own.value, own.lo, own.hi) for own in (x, y))
    if across or up:
        axis.errorbar(x.value, y.value, yerr=up, xerr=across, **bars)
    line = {**style.line(), "ls": "none", "ms": style.size + 2} if is_mark else style.line()
    axis.plot(x.value, y.value, **line, label=label)


def _number_marks(axis: Axes, marks: Sequence[_Mark]) -> None:
    """Write its number beside every mark, where it covers least of marks and other numbers, with a line between."""
    limits = np.array([axis.get_xlim(), axis.get_ylim()])
    size = 72 * np.array([4.0, 3.6])  # points of the plotting area, about
    places = [size * (np.array(one.place) - limits[:, 0]) / (limits[:, 1] - limits[:, 0]) for one in marks]
    taken = [*places]
    for number, (mark, place) in enumerate(zip(marks, places, strict=True), start=1):
        steps = [place + far * np.array(side) for far in (8, 14, 22, 32) for side in _SIDES]
        crowd = [sum(float(np.exp(-(((step - other) / 7) ** 2).sum())) for other in taken) for step in steps]
        outside = [float((np.maximum(6 - step, 0) + np.maximum(step + 6 - size, 0)).sum()) for step in steps]
        cost = np.array(crowd) + np.array(outside)
        chosen = steps[int(np.argmin(np.round(cost, 2)))]  # the nearest of those with room
        taken.append(chosen)
        style = {"textcoords": "offset points", "fontsize": SMALL - 1, "ha": "center", "va": "center"}
        line = {"arrowstyle": "-", "lw": 0.5, "color": mark.color, "shrinkA": 1, "shrinkB": 1}
        text = axis.annotate(str(number), mark.place, xytext=tuple(chosen - place), **style, arrowprops=line)
        text.set_in_layout(False)


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
