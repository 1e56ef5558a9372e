"""Figures of what lies on a line: curves over a ratio or a parameter of a method, policies side by side."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.transforms import ScaledTranslation

from experiments.errors import StudyError
from experiments.grid.escapes import SHORT, WORD
from experiments.grid.escapes import figure as shown
from experiments.grid.rows import Records, Rows, mean_of, names_in, records, scored
from experiments.grid.units import Unit, unit_of
from experiments.pages.figures.style import (
    GREEN,
    GREY,
    SERIES,
    SMALL,
    TEXT,
    Figure,
    Style,
    Styles,
    intervals_of,
    legend_below,
    level,
    name_axes,
    panels,
    score_name,
    sides,
    styles_of,
    tidy,
    wrapped,
)
from experiments.pages.views import (
    PRETRAINED,
    Pair,
    between,
    experts_of,
    follows_shares,
    is_single,
    method_words,
    reported,
    tasks_of,
)
from experiments.statistics.curves import Line, lines_between
from merge import share_label

_DASHES, CHORD = (0, (4, 3)), 0.8  # of the straight line between two ends


def accuracy_curves(
    rows: Rows,
    pair: Pair,
    *,
    tasks: Sequence[str] | None = None,
    by: str = "",
    levels: Sequence[str] = (PRETRAINED,),
    styles: Styles | None = None,
) -> Figure:
    """Draw score against ratio from the first expert of the pair to the second, a panel a task (the experts' own).

    Without `by`, the column whose values are the series, the rows of the reported split and of one BatchNorm policy are
    shown by how the models were made. Thin dashes: the chord between the ends. Ringed, and named in the legend: the
    best point. Methods that shares say nothing to are marks. Raises StudyError where a task has no rows between the
    two.
    """
    found, by = (records(rows), by) if by else (reported(rows), "series")
    tasks = tasks or tasks_of(found, pair)
    figure, axes = panels(len(tasks), 3.7, 3.7 + 0.17 * len(names_in(found, by)))
    for axis, task in zip(axes, tasks, strict=True):
        chosen = scored(found, task)
        unit, own = unit_of(chosen), between(chosen, pair)
        lines = lines_between(own, pair, by=by, scale=unit.factor)
        marks = {str(row[by]) for row in own if not (follows_shares(row) or is_single(row))}
        for name, style in styles_of(lines, styles).items():
            if name in marks:
                _draw_mark(axis, lines[name], style, shown(name, 2 * SHORT))
                continue
            share = float(lines[name].share[unit.best(lines[name].value)])
            best = share_label({pair[0]: 1 - share, pair[1]: share})
            _draw_curve(axis, lines[name], style, f"{shown(name, 2 * WORD)}, {unit.top} at {shown(best, 2 * SHORT)}")
            _ring(axis, lines[name], style, unit)
        for name, style in styles_of(levels, styles).items():
            height = level(chosen, name)
            if height is not None:
                axis.axhline(height, color=style.color, lw=1.2, ls=style.dashes, label=shown(name), zorder=0)
        _name_curve_axes(axis, chosen, pair)
        _legend_under(axis)
    legend_below(figure, [], more=_told(found, axes))
    return figure


def parameter_curves(
    rows: Rows,
    method: str,
    parameter: str,
    *,
    tasks: Sequence[str] | None = None,
    levels: Sequence[str] = (PRETRAINED,),
    styles: Styles | None = None,
) -> Figure:
    """Draw score against a parameter of a method, a panel a task, a line a mixture of experts; other parameters that
    differ are other lines.

    Rows are of one split and one BatchNorm policy. Levels are the task's own expert and the models of `levels`. Values
    that are no numbers stand at equal distances. StudyError where no row has the parameter.
    """
    found = records(rows)
    swept = [row for row in found if row["method"] == method and parameter in (row.get("parameters") or {})]
    if not swept:
        raise StudyError(f"no rows of {method} with a {parameter}: run the study with several values of it")
    named = _sweep_names(swept, parameter)
    values = list(dict.fromkeys(row["parameters"][parameter] for row in swept))
    places = _places(values)
    tasks = tasks or names_in(swept, "task")
    figure, axes = panels(len(tasks), 3.4, 3.2)
    style = styles_of(dict.fromkeys(named))
    for axis, task in zip(axes, tasks, strict=True):
        chosen = scored(found, task)
        unit = unit_of(chosen)
        own = [(name, row) for name, row in zip(named, swept, strict=True) if row["task"] == task]
        for name in style:
            points: dict[float, Records] = {}
            for row in (row for label, row in own if label == name):
                points.setdefault(places[row["parameters"][parameter]], []).append(row)
            if points:
                line = _line(points, unit)
                _draw_line(axis, line, style[name], shown(name, 3 * SHORT), 0.16 if len(style) < 3 else 0.08)
                if len(line.share) > 1:
                    _ring(axis, line, style[name], unit)
        _draw_levels(axis, chosen, levels, styles)
        _name_values(axis, places, parameter)
        tidy(axis)
        name_axes(axis, f"{shown(parameter)} of {shown(method)}", score_name(chosen))
    legend_below(figure, axes, more=_told(swept, axes))
    return figure


def batchnorm_panels(
    rows: Rows, pair: Pair, *, tasks: Sequence[str] | None = None, reference: str = "average"
) -> Figure:
    """Draw the curves of every BatchNorm policy side by side, the reference policy dotted in grey behind each."""
    found, tasks = records(rows), tasks or pair
    policies = names_in(found, "batchnorm")
    figure = Figure(figsize=(2.3 * len(policies) + 0.7, 2.2 * len(tasks) + 0.7), layout="constrained")
    grid = figure.subplots(len(tasks), len(policies), squeeze=False, sharey="row", sharex=True)
    for i, task in enumerate(tasks):
        chosen = scored(found, task)
        unit = unit_of(chosen)
        lines = lines_between(chosen, pair, by="batchnorm", scale=unit.factor)
        styles = styles_of(lines, {reference: SERIES[0]})
        for axis, policy in zip(grid[i], policies, strict=True):
            if reference in lines and policy != reference:
                behind, label = lines[reference], f"{shown(reference)}, for comparison"
                axis.plot(behind.share, behind.value, color=GREY, lw=1.2, ls=":", label=label)
            if policy in lines:
                _draw_curve(axis, lines[policy], styles[policy], shown(policy))
                _ring(axis, lines[policy], styles[policy], unit)
            _name_curve_axes(axis, chosen, pair, 1.4)
            axis.label_outer()
    legend_below(figure, grid.flat, more=_told(found, grid.flat))
    for axis, policy in zip(grid[0], policies, strict=True):
        axis.set_title(wrapped(f"BatchNorm {shown(policy)}", 2.2), fontsize=TEXT)
    return figure


def _line(points: Mapping[float, Records], unit: Unit) -> Line:
    """The mean scores over the seeds of points by place."""
    ordered = [points[place] for place in sorted(points)]
    value, lo, hi = (unit.factor * np.array([mean_of(own, name) for own in ordered]) for name in ("value", "lo", "hi"))
    seeds = [[unit.factor * row["value"] for row in own] for own in ordered]
    return Line(np.array(sorted(points)), value, lo, hi, seeds)


def _draw_curve(axis: Axes, line: Line, style: Style, label: str) -> None:
    _draw_line(axis, line, style, label)
    if (line.share[0], line.share[-1]) == (0, 1):
        axis.plot([0, 1], line.value[[0, -1]], color=style.color, lw=CHORD, ls=_DASHES, zorder=1)


def _draw_line(axis: Axes, line: Line, style: Style, label: str, alpha: float = 0.16) -> None:
    axis.plot(line.share, line.value, **style.line(), label=label)
    if len(line.share) > 1 and np.isfinite(line.lo).any():
        axis.fill_between(line.share, line.lo, line.hi, color=style.color, alpha=alpha, lw=0)
    elif np.isfinite(line.lo).all():
        _draw_bars(axis, line, style)
    for share, values in zip(line.share, line.seeds, strict=True):
        if len(values) > 1:
            axis.plot([share] * len(values), values, ".", color=style.color, ms=3, mew=0)


def _draw_mark(axis: Axes, line: Line, style: Style, label: str) -> None:
    """Draw the points between the ends of what is no line."""
    inner = (line.share > 0) & (line.share < 1)
    values = [own for own, wanted in zip(line.seeds, inner, strict=True) if wanted]
    own = Line(line.share[inner], line.value[inner], line.lo[inner], line.hi[inner], values)
    look = {**style.line(), "ls": "none", "ms": style.size + 2}
    axis.plot(own.share, own.value, **look, label=label, zorder=3)
    if np.isfinite(own.lo).all():
        _draw_bars(axis, own, style)


def _draw_bars(axis: Axes, line: Line, style: Style) -> None:
    bars = {"fmt": "none", "ecolor": style.color, "elinewidth": 0.8, "alpha": 0.7}
    axis.errorbar(line.share, line.value, sides(line.value, line.lo, line.hi), **bars)


def _ring(axis: Axes, line: Line, style: Style, unit: Unit) -> None:
    best = unit.best(line.value)
    axis.plot(line.share[best], line.value[best], "o", ms=10, mfc="none", mec=style.color, mew=1.2)


def _legend_under(axis: Axes) -> None:
    """Add a legend of an axis under the names of its ends."""
    handles, labels = axis.get_legend_handles_labels()
    lines = max(text.get_text().count("\n") + 1 for text in axis.get_xticklabels()) + axis.get_xlabel().count("\n") + 1
    figure = axis.get_figure(root=True)
    assert figure is not None
    under = axis.transAxes + ScaledTranslation(0, -(12 + lines * 1.3 * TEXT) / 72, figure.dpi_scale_trans)
    labels = [wrapped(label, 3.0, SMALL) for label in labels]
    place: dict[str, Any] = {"loc": "upper center", "bbox_to_anchor": (0.5, 0), "bbox_transform": under}
    axis.legend(handles, labels, fontsize=SMALL, frameon=False, borderpad=0, **place)


def _told(rows: Records, axes: Iterable[Axes]) -> list[Artist]:
    """Explain what is drawn around the lines: the band and how many seeds it is of, the seeds' dots, the chords."""
    axes, found = list(axes), list[Artist]()
    lines = [line for axis in axes for line in axis.get_lines()]
    several = len(names_in(rows, "seed")) > 1
    if any(collection.get_paths() for axis in axes for collection in axis.collections):
        found.append(Patch(color=GREY, alpha=0.25, lw=0, label=intervals_of(rows)))
    if several:
        found.append(Line2D([], [], color=GREY, marker=".", ls="none", ms=4, label="a training seed each"))
    if any(line.get_linewidth() == CHORD for line in lines):
        found.append(Line2D([], [], color=GREY, lw=CHORD, ls=_DASHES, label="straight line between the ends"))
    return found


def _draw_levels(axis: Axes, rows: Records, levels: Sequence[str], styles: Styles | None) -> None:
    owner = rows[0].get("owner", "")
    own = level(rows, owner) if owner else None
    if own is not None:
        axis.axhline(own, color=GREEN, lw=1.2, ls=(0, (1, 1.5)), label="the task's own expert", zorder=0)
    for name, style in styles_of(levels, styles).items():
        height = level(rows, name)
        if height is not None:
            axis.axhline(height, color=style.color, lw=1.2, ls=style.dashes, label=shown(name), zorder=0)


def _sweep_names(rows: Records, parameter: str) -> list[str]:
    """Name the line of each row: its mixture, and of kinds and other parameters those that differ."""
    kinds = len(names_in(rows, "experts")) > 1
    names: list[str] = []
    for row in rows:
        rest = {name: value for name, value in row["parameters"].items() if name != parameter}
        words = ["+".join(experts_of(row)), *([row["experts"]] if kinds else [])]
        names.append(", ".join(words) + method_words({"method": "", "parameters": rest}))
    return names


def _places(values: Sequence[Any]) -> dict[Any, float]:
    """Place values on an axis: numbers where they are, anything else one after the other."""
    if all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values):
        return {value: float(value) for value in values}
    return {value: float(i) for i, value in enumerate(values)}


def _name_values(axis: Axes, places: Mapping[Any, float], parameter: str) -> None:
    numbers = list(places.values())
    if list(places) == numbers and min(numbers) > 0 and max(numbers) / min(numbers) > 30:
        axis.set_xscale("log")
    if len(places) <= 7:
        axis.set_xticks(numbers, [shown(f"{value:g}" if isinstance(value, float) else str(value)) for value in places])
        axis.minorticks_off()


def _name_curve_axes(axis: Axes, rows: Records, pair: Pair, height: float = 2) -> None:
    tidy(axis)
    axis.set_xlim(-0.04, 1.04)
    first, second = (wrapped(shown(name, 2 * WORD - 6), 1, SMALL) for name in pair)
    axis.set_xticks([0, 0.25, 0.5, 0.75, 1], [f"0\n{first}\nexpert", "0.25", "0.5", "0.75", f"1\n{second}\nexpert"])
    first, second = (shown(name, WORD) for name in pair)
    name_axes(axis, f"share of {second} in {first} → {second}", score_name(rows), height=height)
