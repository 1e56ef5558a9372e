"""The plane through three models: scores and losses around the base and two experts, as contours."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from matplotlib.tri import Triangulation

from experiments.errors import StudyError
from experiments.grid.escapes import WORD
from experiments.grid.escapes import figure as shown
from experiments.grid.rows import Records, mean_of, names_in
from experiments.grid.units import unit_of
from experiments.pages.figures.style import SMALL, TEXT, Styles, legend_below, name_axes, panels, seeds_of, wrapped
from experiments.pages.views import (
    PRETRAINED,
    Pair,
    coefficients,
    experts_of,
    losses_of,
    main_metrics,
    on_split,
    one_policy,
    reported_split,
)

_TAIL = 10  # % of the points that the scale of colours leaves out on its worst side


class Lattice(NamedTuple):
    """The points of a plane through the base and a pair of experts: those at (a, b) are base + a * (first - base) + b *
    (second - base). `names` are those of the method's coefficients in rows."""

    pair: Pair
    kind: str
    rows: Records


def lattices(rows: Records) -> list[Lattice]:
    """Find the planes in rows: pairs of experts of a kind that were merged at three coefficients or more of each."""
    found: dict[tuple[frozenset[str], str], Records] = {}
    for row in rows:
        if coefficients(row) is not None:
            found.setdefault((frozenset(experts_of(row)), str(row["experts"])), []).append(row)
    planes = [Lattice((experts_of(own[0])[0], experts_of(own[0])[1]), kind, own) for (_, kind), own in found.items()]
    return [one for one in planes if all(len(set(axis)) > 2 for axis in zip(*map(coefficients, one.rows), strict=True))]


def landscapes(rows: Records, styles: Styles) -> Iterator[tuple[Pair, Callable[[], Figure]]]:
    """Draw every plane that rows have points of, on the reported split."""
    shown_rows = on_split(rows, reported_split(rows))
    losses = losses_of(shown_rows)
    for plane in lattices(one_policy(main_metrics(shown_rows))):
        places = {id(row) for one in lattices(losses) if (one.pair, one.kind) == plane[:2] for row in one.rows}
        yield plane.pair, partial(landscape, plane, [row for row in losses if id(row) in places])


def landscape(plane: Lattice, losses: Records, base: str = PRETRAINED) -> Figure:
    """Draw contours of every task's score, and below of its loss where `losses` has rows of the plane, with the three
    models, the line between the experts and their average.

    Axes are those of Gram and Schmidt, where rows have the `geometry` of the pair's weights: along the first expert's
    task vector and at a right angle to it, in units of length. Else they are the two coefficients. StudyError for fewer
    than four points of a task.
    """
    tasks = names_in(plane.rows, "task")
    figure, axes = panels(2 * len(tasks) if losses else len(tasks), 3.9, 3.5, most=len(tasks))
    for axis, (task, rows) in zip(
        axes,
        [(task, rows) for rows in ([plane.rows, losses] if losses else [plane.rows]) for task in tasks],
        strict=True,
    ):
        own = [row for row in rows if row["task"] == task]
        if len(own) < 4:
            raise StudyError(f"{len(own)} points of {task} in the plane of {', '.join(plane.pair)}: run the study")
        _draw(axis, own, plane, base)
    seeds = seeds_of(plane.rows)
    told = f"mean of {seeds}" if len(names_in(plane.rows, "seed")) > 1 else f"of {seeds}"
    geometry = "; axes: Gram and Schmidt's, lengths in weights" * ("geometry" in plane.rows[0])
    legend_below(figure, axes, title=f"a dot a model, {told}{geometry}")
    return figure


def _draw(axis: Axes, rows: Records, plane: Lattice, base: str) -> None:
    places: dict[tuple[float, float], Records] = {}
    for row in rows:
        places.setdefault(coefficients(row) or (0.0, 0.0), []).append(row)
    unit, frame = unit_of(rows), _frame(plane.rows)
    points = np.array(list(places)) @ frame
    values = np.array([unit.factor * mean_of(own, "value") for own in places.values()])
    known = np.isfinite(values)
    bounds = np.percentile(values[known], [_TAIL, 100] if unit.rises else [0, 100 - _TAIL])
    levels = MaxNLocator(12).tick_values(*(bounds if np.ptp(bounds) else np.add(bounds, (0, 1))))
    drawn = axis.tricontourf(
        Triangulation(*points[known].T),
        values[known],
        levels=levels,
        extend="min" if unit.rises else "max",
        cmap="viridis" if unit.rises else "viridis_r",
    )
    axis.plot(*points.T, ".", color="white", ms=1.2, alpha=0.6, mew=0)
    three = np.array([(0, 0), (1, 0), (0, 1)]) @ frame
    axis.plot(*three[1:].T, color="black", lw=1.1, ls=(0, (4, 3)), label="straight line between the experts")
    mark: dict[str, Any] = {"ls": "none", "mfc": "white", "mec": "black", "mew": 1.2, "clip_on": False}
    axis.plot(*three[0], marker="p", ms=8, label=shown(base), **mark)
    axis.plot(*three[1:].T, marker="*", ms=12, label="the experts", **mark)
    axis.plot(*three[1:].mean(axis=0), marker="D", ms=6, label="their average", **mark)
    for name, place, side in zip(plane.pair, three[1:], ((0, -9), (8, 6)), strict=True):
        box = {"boxstyle": "round,pad=0.15", "fc": "white", "ec": "none", "alpha": 0.75}
        how: dict[str, Any] = {"textcoords": "offset points", "fontsize": SMALL, "bbox": box}
        axis.annotate(shown(name, WORD), place, side, va="top" if side[1] < 0 else "bottom", ha="left", **how)
    _name(axis, rows, plane.pair, "geometry" in plane.rows[0])
    bar = axis.figure.colorbar(drawn, ax=axis, pad=0.02)
    bar.ax.tick_params(labelsize=SMALL)
    clipped = "lowest" if unit.rises else "highest"
    bar.set_label(f"{clipped} {_TAIL} % in the last colour", fontsize=SMALL)


def _frame(rows: Records) -> np.ndarray:
    """Return the two task vectors (2, 2) in the axes that are drawn: those of the mean geometry of the seeds."""
    known = [row["geometry"] for row in rows if "geometry" in row]
    if not known:
        return np.eye(2)
    first, second, cosine = (float(np.mean([one[name] for one in known])) for name in ("first", "second", "cosine"))
    return np.array([[first, 0.0], [second * cosine, second * np.sqrt(max(0.0, 1 - cosine**2))]])


def _name(axis: Axes, rows: Records, pair: Sequence[str], measured: bool) -> None:
    first, second = (shown(name, WORD) for name in pair)
    words = unit_of(rows).words
    title = f"{shown(rows[0]['task'])}, {shown(rows[0]['split'])}: {shown(rows[0]['metric'])}" + f" ({words})" * bool(
        words
    )
    axis.set_title(wrapped(title, 3.4), fontsize=TEXT)
    axis.tick_params(labelsize=SMALL)
    if measured:
        name_axes(axis, f"along the task vector of {first}", f"at a right angle to it, towards {second}", 3.2, 3)
    else:
        name_axes(axis, f"times the task vector of {first}", f"times the task vector of {second}", 3.2, 3)
