"""Methods of merging, best first: what each keeps of the experts on reported and on shifted data."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
from matplotlib.axes import Axes

from experiments.grid.escapes import SHORT
from experiments.grid.escapes import figure as shown
from experiments.grid.rows import Records
from experiments.pages.figures.style import GREEN, SERIES, SMALL, TEXT, Figure, Styles, legend_below, tidy, wrapped
from experiments.pages.ranking import PLAIN, Kept, Standing, rankings, told_apart

Found = Iterator[tuple[tuple[str, ...], Callable[[], Figure]]]


def ranked(rows: Records, styles: Styles) -> Found:
    """Draw the methods of every mixture that was merged by several and chosen on val."""
    if any(row["split"] == "val" and row.get("parameters") for row in rows):
        scores = {str(row["key"]): row["examples"] for row in rows if row.get("examples") is not None}
        for (mixture, kind), own in rankings(rows, scores).items():
            yield (mixture, kind), partial(ranking_dots, own)


def ranking_dots(own: Sequence[Standing]) -> Figure:
    """Draw a line a method with its mean retention and 95 % interval, on reported and on shifted data."""
    sides: list[tuple[str, list[Kept | None]]] = [("reported data", [one.reported for one in own])]
    if any(one.shifted for one in own):
        sides.append(("shifted data", [one.shifted for one in own]))
    figure = Figure(figsize=(2.6 + 2.9 * len(sides), 1.3 + 0.21 * len(own)), layout="constrained")
    axes = list(figure.subplots(1, len(sides), squeeze=False, sharey=True)[0])
    for axis, (title, kept) in zip(axes, sides, strict=True):
        _draw(axis, own, kept, told_apart(own, shifted=axis is not axes[0]))
        axis.set_title(title, fontsize=TEXT)
        axis.set_xlabel("mean retention, % of the own experts", fontsize=SMALL)
    names = [wrapped(shown(one.series.label, 2 * SHORT), 2.4, SMALL) for one in own]
    axes[0].set_yticks(range(len(own)), names, fontsize=SMALL)
    axes[0].set_ylim(len(own) - 0.4, -0.6)
    hollow = "; hollow: not told apart from the plain average (differences, Holm-corrected)"
    title = f"dots: means over tasks; bars: 95 % intervals, {own[0].interval}" + hollow * any(one.over for one in own)
    legend_below(figure, axes, title=title)
    return figure


def _draw(axis: Axes, own: Sequence[Standing], kept: Sequence[Kept | None], clear: Sequence[bool]) -> None:
    for place, (one, found, is_clear) in enumerate(zip(own, kept, clear, strict=True)):
        if found is None:
            continue
        value, lo, hi = (100 * number for number in found)
        style = SERIES[one.series.method == PLAIN]
        if np.isfinite([lo, hi]).all():
            axis.plot([lo, hi], [place, place], color=style.color, lw=1.1, solid_capstyle="butt")
        face = "white" if one.over is not None and not is_clear else style.color
        axis.plot(value, place, style.marker, color=style.color, mfc=face, ms=style.size + 1)
        if one.series.method == PLAIN:
            axis.axvline(value, color=style.color, lw=1, ls=style.dashes, zorder=0, label="plain average")
    axis.axvline(100, color=GREEN, lw=1.2, ls=(0, (1, 1.5)), zorder=0, label="each task's own expert")
    tidy(axis)
