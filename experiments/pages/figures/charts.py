"""Figures of many tasks or many shares at once: radar charts, and heat maps over the shares of three experts."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
from matplotlib.axes import Axes
from matplotlib.projections.polar import PolarAxes
from matplotlib.transforms import Bbox
from matplotlib.tri import Triangulation

from experiments.errors import StudyError
from experiments.grid.escapes import SHORT
from experiments.grid.escapes import figure as shown
from experiments.grid.rows import Records, Rows, is_made_of, mean_of, names_in, records, scored
from experiments.grid.units import unit_of
from experiments.pages.figures.style import (
    GREY,
    SMALL,
    TEXT,
    Figure,
    Styles,
    legend_below,
    score_name,
    styles_of,
    wrapped,
)
from experiments.pages.views import shifted_splits
from merge import share_label

_Means = dict[str, tuple[str, str, str]]  # value, lo, hi as they are shown, by series


def radar(
    rows: Rows,
    groups: Mapping[str, Sequence[tuple[str, str]]],
    *,
    by: str = "experts",
    styles: Styles | None = None,
) -> Figure:
    """Draw a radar chart of each group of (task, split) axes, and the table of its scores beside it.

    All axes have one scale: % of the best score on the axis (best / score where lower is better), from a common centre.
    Several rows of one series on one axis (seeds) are averaged. StudyError where a score is not above zero.
    """
    found = records(rows)
    names = names_in(found, by)
    figure = Figure(figsize=(10.5, 4 * len(groups) + 0.3), layout="constrained")
    grid = figure.add_gridspec(len(groups), 2, width_ratios=(1, 1.2))
    charts = [figure.add_subplot(grid[i, 0], projection="polar") for i in range(len(groups))]
    every = {title: [scored(found, task, split) for task, split in keys] for title, keys in groups.items()}
    relative = {title: {_axis_name(own[0]): _relative(own, names, by) for own in axes} for title, axes in every.items()}
    lowest = min(value for table in relative.values() for own in table.values() for value in own.values())
    centre = max(0, np.floor(10 * lowest - 0.5) / 10)
    for i, (title, axes) in enumerate(every.items()):
        _draw_radar(cast(PolarAxes, charts[i]), relative[title], styles_of(names, styles), title, centre)
        means = {_axis_name(own[0]): _means(own, names, by) for own in axes}
        _draw_table(figure.add_subplot(grid[i, 1]), means)
    legend_below(figure, charts)
    return figure


def radar_groups(rows: Records, reported: str) -> dict[str, list[tuple[str, str]]]:
    """List the axes that have a score of every series, by chart: the reported split, then shifted splits one after the
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


def ternary(rows: Rows, corners: tuple[str, str, str], *, tasks: Sequence[str]) -> Figure:
    """Draw a heat map of a score over the shares of three experts, a panel a task; dots: points, ring: the best."""
    found = records(rows)
    figure = Figure(figsize=(3.7 * len(tasks), 3.5), layout="constrained")
    for axis, task in zip(figure.subplots(1, len(tasks), squeeze=False)[0], tasks, strict=True):
        inside = [row for row in scored(found, task) if is_made_of(row, corners)]
        if len(inside) < 3:
            raise StudyError(
                f"{len(inside)} points of {task} over {', '.join(corners)}: a heat map needs three or more"
            )
        _draw_ternary(axis, inside, corners)
    return figure


def _draw_radar(
    axis: PolarAxes, table: Mapping[str, Mapping[str, float]], styles: Styles, title: str, centre: float
) -> None:
    angles = 2 * np.pi * np.arange(len(table)) / len(table)
    axis.set_theta_zero_location("N")
    axis.set_theta_direction(-1)
    for name, style in styles.items():
        radii = [row[name] for row in table.values()]
        axis.plot([*angles, angles[0]], [*radii, radii[0]], **style.line(), label=shown(name), clip_on=False, zorder=3)
    axis.set_xticks(angles, list(table), fontsize=SMALL)
    for label, x, y in zip(axis.get_xticklabels(), np.sin(angles), np.cos(angles), strict=True):
        label.set_horizontalalignment(("center", "left", "right")[int(np.sign(np.round(x)))])
        label.set_verticalalignment(("center", "bottom", "top")[int(np.sign(np.round(y)))])
    rings = np.linspace(centre, 1, 5)[1:]
    axis.set_yticks(rings, [f"{100 * ring:.3g} %" for ring in rings], fontsize=6.5, color=GREY)
    axis.set_rlabel_position(180 / max(len(table), 1))
    axis.set_ylim(centre, 1)
    axis.tick_params(axis="x", pad=6)
    axis.spines["polar"].set_visible(False)
    axis.grid(color="#cccccc", lw=0.6)
    words = f"{shown(title, 3 * SHORT)}: % of the best, {100 * centre:.0f} % in the centre"
    axis.set_title(wrapped(words, 4.4), fontsize=TEXT, pad=16)


def _draw_table(axis: Axes, table: Mapping[str, _Means]) -> None:
    names = list(next(iter(table.values())))
    cells = [
        [value + ("" if "nan" in (lo, hi) else f"\n[{lo}, {hi}]") for value, lo, hi in own]
        for own in ([row[name] for row in table.values()] for name in names)
    ]
    titles = [title.replace(", ", "\n") for title in table]
    axis.axis("off")
    place = Bbox.from_bounds(0.15, 0.1, 0.85, 0.8)
    drawn = axis.table(
        cells, rowLabels=[*map(shown, names)], colLabels=titles, cellLoc="center", edges="horizontal", bbox=place
    )
    drawn.auto_set_font_size(False)
    drawn.set_fontsize(SMALL)


def _draw_ternary(axis: Axes, points: Records, corners: tuple[str, str, str]) -> None:
    weights = np.array([[row["shares"].get(name, 0.0) for name in corners] for row in points])
    x, y = weights[:, 1] + weights[:, 2] / 2, weights[:, 2] * np.sqrt(3) / 2
    unit = unit_of(points)
    values = np.array([unit.factor * row["value"] for row in points])
    colours = "viridis" if unit.rises else "viridis_r"
    drawn = axis.tripcolor(Triangulation(x, y), values, shading="gouraud", cmap=colours, rasterized=True)
    axis.plot([0, 1, 0.5, 0], [0, 0, np.sqrt(3) / 2, 0], color="black", lw=0.8)
    axis.plot(x, y, ".", color="black", ms=3)
    best = unit.best(values)
    axis.plot(x[best], y[best], "o", ms=11, mfc="none", mec="black", mew=1.4, clip_on=False)
    place = shown(share_label(points[best]["shares"]), 3 * SHORT)
    axis.set_title(wrapped(f"{score_name(points)}\n{unit.top} at {place}", 3.5, SMALL), fontsize=SMALL)
    for name, place, side in zip(corners, [(0, -0.06), (1, -0.06), (0.5, 0.93)], ("top", "top", "bottom"), strict=True):
        axis.text(*place, f"{shown(name)}\nexpert", ha="center", va=side, fontsize=SMALL)
    axis.set(aspect="equal", xlim=(-0.14, 1.14), ylim=(-0.18, 1.05))
    axis.axis("off")
    axis.figure.colorbar(drawn, ax=axis, shrink=0.7, pad=0.02).ax.tick_params(labelsize=SMALL)


def _axis_name(row: Mapping[str, Any]) -> str:
    """Name the axis of a radar; other rows have another name."""
    return f"{shown(row['task'])}, {shown(row['split'])}\n{shown(row['metric'])}"


def _relative(rows: Records, names: Sequence[str], by: str) -> dict[str, float]:
    """Return the mean scores of every series over the best of them, 1 for the best."""
    unit = unit_of(rows)
    means = {name: mean_of(_of(rows, name, by), "value") for name in names}
    best = [*means.values()][unit.best([*means.values()])]
    if min(means.values()) < 0 or best <= 0:
        place = f"{rows[0]['task']} {rows[0]['split']}"
        raise StudyError(f"{place} has scores of zero or less: a radar shows shares of the best")
    return {name: mean / best if unit.rises else best / mean for name, mean in means.items()}


def _means(rows: Records, names: Sequence[str], by: str) -> _Means:
    unit, found = unit_of(rows), _Means()
    for name in names:
        own = _of(rows, name, by)
        value, lo, hi = (unit.text(mean_of(own, column)) for column in ("value", "lo", "hi"))
        found[name] = value, lo, hi
    return found


def _of(rows: Records, name: str, by: str) -> Records:
    own = [row for row in rows if str(row[by]) == name]
    if not own:
        raise StudyError(f"no score of {name} on {rows[0]['task']} {rows[0]['split']}: evaluate it first")
    return own
