"""Figures of many tasks and splits at once: radar charts, shifted against reported scores, heat maps over shares."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.projections.polar import PolarAxes
from matplotlib.transforms import Bbox
from matplotlib.tri import Triangulation

from experiments.errors import StudyError
from experiments.grid.escapes import SHORT
from experiments.grid.escapes import figure as shown
from experiments.grid.rows import Records, Rows, is_made_of, mean_of, names_in, records, scored
from experiments.pages.figures.style import GREY, SMALL, TEXT, Styles, legend_below, score_name, styles_of, tidy
from merge import share_label

_Means = dict[str, tuple[float, float, float]]  # value, lo, hi times 100 by series


def radar(
    rows: Rows,
    groups: Mapping[str, Sequence[tuple[str, str]]],
    *,
    by: str = "experts",
    styles: Styles | None = None,
) -> Figure:
    """Draw a radar chart of each group of (task, split) axes, and the table of its scores beside it.

    Every axis runs from the lowest of the scores, the centre, to the highest, the rim; both are printed with the rings
    between. Several rows of one series on one axis (seeds) are averaged.
    """
    found = records(rows)
    names = names_in(found, by)
    figure = Figure(figsize=(10.5, 4 * len(groups) + 0.3), layout="constrained")
    grid = figure.add_gridspec(len(groups), 2, width_ratios=(1, 1.2))
    charts = [figure.add_subplot(grid[i, 0], projection="polar") for i in range(len(groups))]
    for i, (title, keys) in enumerate(groups.items()):
        own = [scored(found, task, split) for task, split in keys]
        means = {_axis_name(a[0]): _means(a, names, by) for a in own}
        _draw_radar(cast(PolarAxes, charts[i]), means, styles_of(names, styles), title)
        _draw_table(figure.add_subplot(grid[i, 1]), means)
    legend_below(figure, charts)
    return figure


def ood_scatter(
    rows: Rows,
    task: str,
    splits: Sequence[str],
    *,
    in_split: str = "test",
    by: str = "experts",
    styles: Styles | None = None,
) -> Figure:
    """Draw shifted against reported scores, a panel a shifted split, a mark a point; the line is y = x."""
    found = records(rows)
    inside = {_point(row, by): row for row in scored(found, task, in_split)}
    figure = Figure(figsize=(3.2 * len(splits), 3.3), layout="constrained")
    axes = figure.subplots(1, len(splits), squeeze=False)[0]
    for axis, split in zip(axes, splits, strict=True):
        outside = {_point(row, by): row for row in scored(found, task, split)}
        both = [(inside[point], row) for point, row in outside.items() if point in inside]
        if not both:
            raise StudyError(f"no point of {task} has both splits {in_split} and {split}: evaluate them first")
        for name, style in styles_of(names_in(found, by), styles).items():
            own = [(100 * one["value"], 100 * other["value"]) for one, other in both if str(one[by]) == name]
            marks = {"color": style.color, "ms": style.size, "mew": 0, "label": shown(name)}
            axis.plot(*np.array(own).reshape(-1, 2).T, style.marker, **marks)
        bounds = (min(axis.get_xlim()[0], axis.get_ylim()[0]), max(axis.get_xlim()[1], axis.get_ylim()[1]))
        axis.plot(bounds, bounds, color=GREY, lw=0.9, ls=(0, (1, 2)), zorder=0)
        axis.set(xlim=bounds, ylim=bounds, aspect="equal")
        tidy(axis)
        axis.set_xlabel(score_name(list(inside.values())), fontsize=TEXT)
        axis.set_ylabel(score_name(list(outside.values())), fontsize=TEXT)
    legend_below(figure, axes)
    return figure


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


def _draw_radar(axis: PolarAxes, table: Mapping[str, _Means], styles: Styles, title: str) -> None:
    angles = 2 * np.pi * np.arange(len(table)) / len(table)
    ranges = [(min(v for v, _, _ in row.values()), max(v for v, _, _ in row.values())) for row in table.values()]
    axis.set_theta_zero_location("N")
    axis.set_theta_direction(-1)
    for name, style in styles.items():
        radii = [(row[name][0] - lo) / ((hi - lo) or 1) for row, (lo, hi) in zip(table.values(), ranges, strict=True)]
        axis.plot([*angles, angles[0]], [*radii, radii[0]], **style.line(), label=shown(name), clip_on=False, zorder=3)
    texts = [f"{name}\ncentre {lo:.1f}, rim {hi:.1f}" for name, (lo, hi) in zip(table, ranges, strict=True)]
    axis.set_xticks(angles, texts, fontsize=SMALL)
    for label, x, y in zip(axis.get_xticklabels(), np.sin(angles), np.cos(angles), strict=True):
        label.set_horizontalalignment(("center", "left", "right")[int(np.sign(np.round(x)))])
        label.set_verticalalignment(("center", "bottom", "top")[int(np.sign(np.round(y)))])
    axis.set_yticks([1 / 3, 2 / 3, 1], ["", "", ""])
    axis.set_ylim(0, 1)
    axis.tick_params(axis="x", pad=6)
    axis.spines["polar"].set_visible(False)
    axis.grid(color="#cccccc", lw=0.6)
    for angle, (lo, hi) in zip(angles, ranges, strict=True):
        for radius in (1 / 3, 2 / 3):  # beside the axis, equally far from it on both rings
            place, text = (angle + np.arctan2(0.13, radius), np.hypot(0.13, radius)), f"{lo + radius * (hi - lo):.1f}"
            behind = {"facecolor": "white", "alpha": 0.7, "linewidth": 0, "pad": 0.5}
            axis.text(*place, text, fontsize=6.5, color=GREY, ha="center", va="center", bbox=behind, zorder=4)
    axis.set_title(shown(title, 3 * SHORT), fontsize=TEXT, pad=16)


def _draw_table(axis: Axes, table: Mapping[str, _Means]) -> None:
    names = list(next(iter(table.values())))
    cells = [
        [f"{value:.1f}" + ("" if np.isnan(lo) else f"\n[{lo:.1f}, {hi:.1f}]") for value, lo, hi in own]
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
    values = np.array([100 * row["value"] for row in points])
    drawn = axis.tripcolor(Triangulation(x, y), values, shading="gouraud", cmap="viridis", rasterized=True)
    axis.plot([0, 1, 0.5, 0], [0, 0, np.sqrt(3) / 2, 0], color="black", lw=0.8)
    axis.plot(x, y, ".", color="black", ms=3)
    best = int(values.argmax())
    axis.plot(x[best], y[best], "o", ms=11, mfc="none", mec="black", mew=1.4, clip_on=False)
    highest = shown(share_label(points[best]["shares"]), 3 * SHORT)
    axis.set_title(f"{score_name(points)}\nhighest at {highest}", fontsize=SMALL)
    for name, place, side in zip(corners, [(0, -0.06), (1, -0.06), (0.5, 0.93)], ("top", "top", "bottom"), strict=True):
        axis.text(*place, f"{shown(name)}\nexpert", ha="center", va=side, fontsize=SMALL)
    axis.set(aspect="equal", xlim=(-0.14, 1.14), ylim=(-0.18, 1.05))
    axis.axis("off")
    axis.figure.colorbar(drawn, ax=axis, shrink=0.7, pad=0.02).ax.tick_params(labelsize=SMALL)


def _axis_name(row: Mapping[str, Any]) -> str:
    """Name the axis of a radar; other rows have another name."""
    return f"{shown(row['task'])}, {shown(row['split'])}\n{shown(row['metric'])}"


def _means(rows: Records, names: Sequence[str], by: str) -> _Means:
    found: _Means = {}
    for name in names:
        own = [row for row in rows if str(row[by]) == name]
        if not own:
            raise StudyError(f"no score of {name} on {rows[0]['task']} {rows[0]['split']}: evaluate it first")
        found[name] = (100 * mean_of(own, "value"), 100 * mean_of(own, "lo"), 100 * mean_of(own, "hi"))
    return found


def _point(row: Mapping[str, Any], by: str) -> tuple[Any, ...]:
    """Tell points apart, whatever the order of their shares."""
    label = share_label(dict(sorted(row["shares"].items())))
    return label, *(row[name] for name in (by, "experts", "batchnorm", "seed"))
