"""Figures from rows alone: give each function a frame of `read_rows`, filtered as you like, or a list of such rows.

Scores are drawn times 100. Lines of several training seeds are their mean: small dots show the seeds, and the band is
the mean 95 % interval, which is evaluation noise only. `by` names the column whose values are the series; a column of
your own (`rows.assign(series=...)`) does too. Single models that lie on no line (`levels`: pretrained, joint) are
found by name. Colours are Okabe and Ito's, and every series has its own marker and dashes, so that a figure survives
colour blindness and a grey printer.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple, cast

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.projections.polar import PolarAxes
from matplotlib.transforms import Bbox
from matplotlib.tri import Triangulation

from experiments.errors import StudyError
from experiments.grid.rows import (
    Records,
    Rows,
    is_made_of,
    mean_of,
    names_in,
    records,
    scored,
    share_label,
)
from experiments.statistics.curves import Line, lines_between

GREY, GREEN = "#666666", "#009E73"
SMALL = 7.5  # points
TEXT = 8.5
_UNDATED: dict[str, dict[str, Any] | None] = {".png": None, ".svg": {"Date": None}, ".pdf": {"CreationDate": None}}
_Means = dict[str, tuple[float, float, float]]  # value, lo, hi times 100 by series


class _Style(NamedTuple):
    color: str
    marker: str
    dashes: Any
    size: float

    def line(self) -> dict[str, Any]:
        return {"color": self.color, "marker": self.marker, "ls": self.dashes, "ms": self.size, "mew": 0, "lw": 1.4}


_KNOWN = {  # the same in every figure
    "vanilla": _Style("#0072B2", "o", "-", 4.5),
    "ratatouille": _Style("#E69F00", "s", (0, (5, 1.5)), 5),
    "fusing": _Style("#D55E00", "^", (0, (1, 1)), 5.5),
    "average": _Style("#0072B2", "o", "-", 4.5),
    "pretrained": _Style("#9A8FBF", "*", (0, (1, 2)), 9),
    "joint": _Style("#009E73", "P", (0, (4, 2, 1, 2)), 7),
}
_OTHERS = (
    _Style("#CC79A7", "D", (0, (3, 1, 1, 1)), 4.5),
    _Style("#56B4E9", "v", (0, (6, 1)), 5.5),
    _Style("#000000", "d", (0, (2, 1)), 5),
    _Style("#009E73", "X", (0, (1, 1)), 5.5),
    _Style("#D55E00", "<", (0, (5, 2)), 5.5),
    _Style("#0072B2", ">", (0, (3, 1, 1, 1, 1, 1)), 5.5),
)


def accuracy_curves(
    rows: Rows,
    pair: tuple[str, str],
    *,
    tasks: Sequence[str] | None = None,
    by: str = "experts",
    levels: Sequence[str] = ("pretrained",),
) -> Figure:
    """Score against ratio from the first expert of the pair to the second, a panel a task (the pair's two).

    Thin dashes: the chord between the ends. Ringed, and named in the legend: the highest point.
    """
    found, tasks = records(rows), tasks or pair
    figure = Figure(figsize=(3.5 * len(tasks), 3.7), layout="constrained")
    for axis, task in zip(figure.subplots(1, len(tasks), squeeze=False)[0], tasks, strict=True):
        chosen = scored(found, task)
        lines = _lines(chosen, pair, by)
        for name, style in _styles(lines).items():
            _draw_curve(axis, lines[name], style, f"{name}, highest at {_best(lines[name], pair)}")
        _draw_levels(axis, chosen, levels)
        _name_curve_axes(axis, chosen, pair)
        axis.legend(fontsize=SMALL, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.26))
    return figure


def batchnorm_panels(
    rows: Rows, pair: tuple[str, str], *, tasks: Sequence[str] | None = None, reference: str = "average"
) -> Figure:
    """Accuracy curves of every BatchNorm policy side by side, the reference policy dotted in grey behind each."""
    found, tasks = records(rows), tasks or pair
    policies = names_in(found, "batchnorm")
    figure = Figure(figsize=(2.3 * len(policies) + 0.7, 2.2 * len(tasks) + 0.5), layout="constrained")
    grid = figure.subplots(len(tasks), len(policies), squeeze=False, sharey="row", sharex=True)
    for i, task in enumerate(tasks):
        chosen = scored(found, task)
        lines = _lines(chosen, pair, "batchnorm")
        styles = _styles(lines)
        for axis, policy in zip(grid[i], policies, strict=True):
            if reference in lines and policy != reference:
                behind, label = lines[reference], f"{reference}, for comparison"
                axis.plot(behind.share, behind.value, color=GREY, lw=1.2, ls=":", label=label)
            if policy in lines:
                _draw_curve(axis, lines[policy], styles[policy], policy)
            _name_curve_axes(axis, chosen, pair)
            axis.label_outer()
    _legend_below(figure, grid.flat)
    for axis, policy in zip(grid[0], policies, strict=True):
        axis.set_title(f"BatchNorm {policy}", fontsize=TEXT)
    return figure


def tradeoff_plane(
    rows: Rows, x: str, y: str, *, by: str = "experts", levels: Sequence[str] = ("pretrained",)
) -> Figure:
    """Scores of two tasks against each other, a point a ratio, joined in order from y's expert to x's.

    Stars: the experts at the ends; hollow: models on no line. The dotted green L marks the two specialists' scores of
    the first series; it bends at the corner where both skills are whole.
    """
    found = records(rows)
    across, up = scored(found, x), scored(found, y)
    horizontal, vertical = _lines(across, (y, x), by), _lines(up, (y, x), by)
    figure = Figure(figsize=(4.4, 4.8), layout="constrained")
    axis = figure.subplots()
    for name, style in _styles(horizontal).items():
        if name not in vertical or vertical[name].share.tolist() != horizontal[name].share.tolist():
            raise StudyError(f"{name}: {x} and {y} are not scored at the same shares: evaluate the missing cells")
        _draw_plane_line(axis, horizontal[name], vertical[name], style, name)
    for name, style in _styles(levels).items():
        across_level, up_level = _level(across, name), _level(up, name)
        if across_level is not None and up_level is not None:
            hollow = {"ms": 10, "mfc": "white", "mec": style.color, "mew": 1.4, "ls": "none"}
            axis.plot(across_level, up_level, style.marker, **hollow, label=name)
    first = next(iter(horizontal))
    _draw_corner(axis, horizontal[first], vertical[first], (x, y))
    _tidy(axis)
    axis.set_xlabel(_score_name(across), fontsize=TEXT)
    axis.set_ylabel(_score_name(up), fontsize=TEXT)
    _legend_below(figure, [axis], title=_shares(horizontal.values(), (y, x)))
    return figure


def radar(rows: Rows, groups: Mapping[str, Sequence[tuple[str, str]]], *, by: str = "experts") -> Figure:
    """A radar chart a group of (task, split) axes, and the table of its scores beside it.

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
        means = {f"{a[0]['task']}, {a[0]['split']}\n{a[0]['metric']}": _means(a, names, by) for a in own}
        _draw_radar(cast(PolarAxes, charts[i]), means, title)
        _draw_table(figure.add_subplot(grid[i, 1]), means)
    _legend_below(figure, charts)
    return figure


def ood_scatter(rows: Rows, task: str, splits: Sequence[str], *, in_split: str = "test", by: str = "experts") -> Figure:
    """Score out of distribution against in distribution, a panel an OOD split, a mark a point; the line is y = x."""
    found = records(rows)
    inside = {_point(row, by): row for row in scored(found, task, in_split)}
    figure = Figure(figsize=(3.2 * len(splits), 3.3), layout="constrained")
    axes = figure.subplots(1, len(splits), squeeze=False)[0]
    for axis, split in zip(axes, splits, strict=True):
        outside = {_point(row, by): row for row in scored(found, task, split)}
        both = [(inside[point], row) for point, row in outside.items() if point in inside]
        if not both:
            raise StudyError(f"no point of {task} has both splits {in_split} and {split}: evaluate them first")
        for name, style in _styles(names_in(found, by)).items():
            own = [(100 * one["value"], 100 * other["value"]) for one, other in both if str(one[by]) == name]
            axis.plot(
                *np.array(own).reshape(-1, 2).T, style.marker, color=style.color, ms=style.size, mew=0, label=name
            )
        _draw_diagonal(axis)
        _tidy(axis)
        axis.set_xlabel(_score_name(list(inside.values())), fontsize=TEXT)
        axis.set_ylabel(_score_name(list(outside.values())), fontsize=TEXT)
    _legend_below(figure, axes)
    return figure


def ternary(rows: Rows, corners: tuple[str, str, str], *, tasks: Sequence[str]) -> Figure:
    """Heat map of a score over the shares of three experts, a panel a task; dots are the points, the ring the best."""
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


def save(figure: Figure, stem: str | Path, suffixes: Sequence[str] = tuple(_UNDATED)) -> list[Path]:
    """Write STEM.png, .svg and .pdf, or some of them, and return their paths. Equal figures give equal bytes."""
    written: list[Path] = []
    with matplotlib.rc_context({"svg.hashsalt": "unival-merge", "pdf.fonttype": 42}):
        for suffix in suffixes:
            metadata = _UNDATED[suffix]
            written.append(Path(f"{stem}{suffix}"))
            figure.savefig(written[-1], dpi=200, metadata=metadata)
    return written


def _draw_curve(axis: Axes, line: Line, style: _Style, label: str) -> None:
    top = int(line.value.argmax())
    axis.plot(line.share, line.value, **style.line(), label=label)
    axis.fill_between(line.share, line.lo, line.hi, color=style.color, alpha=0.16, lw=0)
    axis.plot(line.share[[0, -1]], line.value[[0, -1]], color=style.color, lw=0.8, ls=(0, (4, 3)), zorder=1)
    axis.plot(line.share[top], line.value[top], "o", ms=10, mfc="none", mec=style.color, mew=1.2)
    for share, values in zip(line.share, line.seeds, strict=True):
        if len(values) > 1:
            axis.plot([share] * len(values), values, ".", color=style.color, ms=3, mew=0)


def _draw_levels(axis: Axes, rows: Records, levels: Sequence[str]) -> None:
    for name, style in _styles(levels).items():
        level = _level(rows, name)
        if level is not None:
            axis.axhline(level, color=style.color, lw=1.2, ls=style.dashes, label=name, zorder=0)


def _name_curve_axes(axis: Axes, rows: Records, pair: tuple[str, str]) -> None:
    _tidy(axis)
    axis.set_xlim(-0.04, 1.04)
    axis.set_xticks([0, 0.25, 0.5, 0.75, 1], [f"0\n{pair[0]}\nexpert", "0.25", "0.5", "0.75", f"1\n{pair[1]}\nexpert"])
    axis.set_xlabel(f"share of {pair[1]} in {pair[0]} → {pair[1]}", fontsize=TEXT)
    axis.set_ylabel(_score_name(rows), fontsize=TEXT)


def _draw_plane_line(axis: Axes, x: Line, y: Line, style: _Style, label: str) -> None:
    bars = {"fmt": "none", "ecolor": style.color, "elinewidth": 0.6, "alpha": 0.6}
    if np.isfinite([*x.lo, *y.lo]).all():
        axis.errorbar(x.value, y.value, [y.value - y.lo, y.hi - y.value], [x.value - x.lo, x.hi - x.value], **bars)
    axis.plot(x.value, y.value, **style.line(), label=label)
    axis.plot(x.value[[0, -1]], y.value[[0, -1]], "*", color=style.color, ms=12, mec="black", mew=0.5, zorder=4)


def _draw_corner(axis: Axes, across: Line, up: Line, names: tuple[str, str]) -> None:
    x, y = across.value[-1], up.value[0]
    left, bottom = axis.get_xlim()[0], axis.get_ylim()[0]
    axis.plot([left, x, x], [y, y, bottom], color=GREEN, lw=1.2, ls=(0, (1, 1.5)), zorder=0)
    axis.set_xlim(left=left)
    axis.set_ylim(bottom=bottom)
    inward = across.value[0] - left < 0.25 * (axis.get_xlim()[1] - left)
    upper = {"xytext": (0, -9), "ha": "left"} if inward else {"xytext": (-9, -5), "ha": "right"}
    style: dict[str, Any] = {"textcoords": "offset points", "fontsize": SMALL}
    axis.annotate(f"{names[1]} expert", (across.value[0], y), va="top", **upper, **style)
    axis.annotate(f"{names[0]} expert", (x, up.value[-1]), xytext=(-9, 0), ha="right", va="center", **style)


def _draw_diagonal(axis: Axes) -> None:
    bounds = (min(axis.get_xlim()[0], axis.get_ylim()[0]), max(axis.get_xlim()[1], axis.get_ylim()[1]))
    axis.plot(bounds, bounds, color=GREY, lw=0.9, ls=(0, (1, 2)), zorder=0)
    axis.set(xlim=bounds, ylim=bounds, aspect="equal")


def _draw_radar(axis: PolarAxes, table: Mapping[str, _Means], title: str) -> None:
    angles = 2 * np.pi * np.arange(len(table)) / len(table)
    ranges = [(min(v for v, _, _ in row.values()), max(v for v, _, _ in row.values())) for row in table.values()]
    axis.set_theta_zero_location("N")
    axis.set_theta_direction(-1)
    for name, style in _styles(next(iter(table.values()))).items():
        radii = [(row[name][0] - lo) / ((hi - lo) or 1) for row, (lo, hi) in zip(table.values(), ranges, strict=True)]
        axis.plot([*angles, angles[0]], [*radii, radii[0]], **style.line(), label=name, clip_on=False, zorder=3)
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
    axis.set_title(title, fontsize=TEXT, pad=16)


def _draw_table(axis: Axes, table: Mapping[str, _Means]) -> None:
    names = list(next(iter(table.values())))
    cells = [[_cell(*row[name]) for row in table.values()] for name in names]
    titles = [title.replace(", ", "\n") for title in table]
    axis.axis("off")
    place = Bbox.from_bounds(0.15, 0.1, 0.85, 0.8)
    drawn = axis.table(cells, rowLabels=names, colLabels=titles, cellLoc="center", edges="horizontal", bbox=place)
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
    axis.set_title(f"{_score_name(points)}\nhighest at {share_label(points[best]['shares'])}", fontsize=SMALL)
    for name, place, side in zip(corners, [(0, -0.06), (1, -0.06), (0.5, 0.93)], ("top", "top", "bottom"), strict=True):
        axis.text(*place, f"{name}\nexpert", ha="center", va=side, fontsize=SMALL)
    axis.set(aspect="equal", xlim=(-0.14, 1.14), ylim=(-0.18, 1.05))
    axis.axis("off")
    axis.figure.colorbar(drawn, ax=axis, shrink=0.7, pad=0.02).ax.tick_params(labelsize=SMALL)


def _legend_below(figure: Figure, axes: Iterable[Axes], title: str | None = None) -> None:
    found = {label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    style: dict[str, Any] = {"loc": "outside lower center", "fontsize": SMALL, "frameon": False}
    columns = max(1, min(5, int(figure.get_size_inches()[0] / 1.4)))
    figure.legend(list(found.values()), list(found), ncols=columns, title=title, title_fontsize=SMALL, **style)


def _tidy(axis: Axes) -> None:
    axis.grid(color="#dddddd", lw=0.5)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(labelsize=SMALL)


def _cell(value: float, lo: float, hi: float) -> str:
    return f"{value:.1f}" if np.isnan(lo) else f"{value:.1f}\n[{lo:.1f}, {hi:.1f}]"


def _lines(rows: Records, pair: tuple[str, str], by: str) -> dict[str, Line]:
    """`lines_between`, times 100."""
    found: dict[str, Line] = {}
    for name, (share, value, lo, hi, seeds) in lines_between(rows, pair, by=by).items():
        found[name] = Line(share, 100 * value, 100 * lo, 100 * hi, [[100 * one for one in own] for own in seeds])
    return found


def _best(line: Line, pair: tuple[str, str]) -> str:
    share = float(line.share[line.value.argmax()])
    return share_label({pair[0]: 1 - share, pair[1]: share})


def _shares(lines: Iterable[Line], pair: tuple[str, str]) -> str:
    """What the points of all lines are, in words."""
    found = [line.share.tolist() for line in lines]
    steps = np.diff(found[0])
    text = f"points in order of the share of {pair[1]} in {pair[0]} → {pair[1]}"
    if any(shares != found[0] for shares in found) or not np.allclose(steps, steps[0]):
        return text
    return f"{text}:\n{found[0][0]:g} to {found[0][-1]:g} in steps of {steps[0]:.3g}"


def _means(rows: Records, names: Sequence[str], by: str) -> _Means:
    found: _Means = {}
    for name in names:
        own = [row for row in rows if str(row[by]) == name]
        if not own:
            raise StudyError(f"no score of {name} on {rows[0]['task']} {rows[0]['split']}: evaluate it first")
        found[name] = (100 * mean_of(own, "value"), 100 * mean_of(own, "lo"), 100 * mean_of(own, "hi"))
    return found


def _level(rows: Records, name: str) -> float | None:
    own = [row for row in rows if is_made_of(row, [name])]
    return 100 * mean_of(own, "value") if own else None


def _point(row: Mapping[str, Any], by: str) -> tuple[Any, ...]:
    return share_label(dict(sorted(row["shares"].items()))), *(
        row[name] for name in (by, "experts", "batchnorm", "seed")
    )


def _score_name(rows: Records) -> str:
    unit = "%" if "acc" in rows[0]["metric"].lower() else "× 100"
    return f"{rows[0]['task']}, {rows[0]['split']}: {rows[0]['metric']} ({unit})"


def _styles(names: Iterable[str]) -> dict[str, _Style]:
    others = cycle(_OTHERS)
    return {name: _KNOWN[name] if name in _KNOWN else next(others) for name in names}
