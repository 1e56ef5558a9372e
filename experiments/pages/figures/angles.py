"""What the weights of two experts say by themselves beside the barrier between them."""

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from experiments.grid.escapes import SHORT
from experiments.grid.escapes import figure as shown
from experiments.grid.rows import Records
from experiments.pages.figures.style import GREY, SMALL, TEXT, Styles, legend_below, panels, styles_of, tidy, wrapped
from experiments.pages.pairs import MEASURES, Pairing, pairings
from experiments.statistics.barriers import rank_correlation

Found = Iterator[tuple[tuple[str, ...], Callable[[], Figure]]]


def angles(rows: Records, styles: Styles) -> Found:
    """Draw the pairs of which rows know how their weights stand to each other, where there are three or more."""
    found = [one for one in pairings(rows) if one.is_measured]
    if len(found) > 2:
        yield (), partial(angle_panels, found)


def angle_panels(found: list[Pairing]) -> Figure:
    """Draw the greatest barrier of every pair over cosine, distance and agreement of the task vectors: of scores above,
    of losses below. A mark a pair of a kind, the mean over its seeds, which are dots."""
    lines = [("score", "greatest barrier in score, % of the own experts' scores", 100.0)]
    if any(one.loss for one in found):
        lines.append(("loss", "greatest barrier in loss, nats", 1.0))
    figure, axes = panels(len(MEASURES) * len(lines), 3.0, 2.9, most=len(MEASURES))
    pairs = styles_of(dict.fromkeys(" + ".join(one.pair) for one in found))
    kinds = list(dict.fromkeys(one.kind for one in found))
    for i, (what, words, factor) in enumerate(lines):
        for axis, (measure, title) in zip(axes[i * len(MEASURES) :], MEASURES.items(), strict=False):
            places = [one.at(measure, what, factor) for one in found if getattr(one, what)]
            for one, seeds in zip([one for one in found if getattr(one, what)], places, strict=True):
                style = pairs[" + ".join(one.pair)]
                face = style.color if one.kind == kinds[0] else "white"
                axis.plot(*seeds.T, ".", color=style.color, ms=3, mew=0, alpha=0.6)
                look = {"marker": style.marker, "mec": style.color, "mfc": face, "ms": style.size + 2, "mew": 1.2}
                axis.plot(*seeds.mean(axis=0), ls="none", **look, zorder=3)
            means = np.array([seeds.mean(axis=0) for seeds in places])
            _name(axis, title, words, rank_correlation(means[:, 0].tolist(), means[:, 1].tolist()))
    marks = [
        Line2D([], [], ls="none", marker=style.marker, color=style.color, ms=style.size + 1, label=shown(name, SHORT))
        for name, style in pairs.items()
    ]
    if len(kinds) > 1:
        marks += [
            Line2D([], [], ls="none", marker="o", mec=GREY, mfc=face, label=shown(kind))
            for kind, face in zip(kinds, (GREY, "white"), strict=False)
        ]
    count = max(len(one.seeds) for one in found)
    told = f"marks: mean over {count} seeds, which are dots" if count > 1 else "one training seed"
    legend_below(figure, [], title=f"{told}; above 0 the line between two experts sags", more=marks)
    return figure


def _name(axis: Axes, title: str, words: str, correlation: float) -> None:
    axis.xaxis.set_major_locator(MaxNLocator(4))
    axis.axhline(0, color=GREY, lw=0.8, ls=(0, (4, 3)), zorder=0)
    if correlation == correlation:
        axis.set_title(f"rank correlation {correlation:.2f}", fontsize=SMALL)
    axis.set_xlabel(wrapped(title, 2.6, SMALL), fontsize=SMALL)
    axis.set_ylabel(wrapped(words, 2.3, SMALL), fontsize=TEXT - 1)
    tidy(axis)
