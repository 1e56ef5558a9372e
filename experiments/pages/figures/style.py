"""What all figures share: colours, markers, axes, legends, and writing files.

Colours are Okabe and Ito's, and every series has its own marker and dashes, so that a figure survives colour blindness
and a grey printer.
"""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.grid.escapes import WORD
from experiments.grid.escapes import figure as shown
from experiments.grid.rows import Records, is_made_of, mean_of
from experiments.study.points import PRETRAINED

GREY, GREEN = "#666666", "#009E73"
SMALL, TEXT = 7.5, 8.5  # points
LINE = 40  # signs of an axis's name in one line
_UNDATED: dict[str, dict[str, Any] | None] = {".png": None, ".svg": {"Date": None}, ".pdf": {"CreationDate": None}}


class Style(NamedTuple):
    """How a series is drawn: colour, marker, dashes of its line, size of its marker in points."""

    color: str
    marker: str
    dashes: Any
    size: float

    def line(self) -> dict[str, Any]:
        """Return the options of `plot` for a line with markers."""
        return {"color": self.color, "marker": self.marker, "ls": self.dashes, "ms": self.size, "mew": 0, "lw": 1.4}


# Every series of a figure takes the next; models beside them, the pretrained one first, have styles of their own.
SERIES = (
    Style("#0072B2", "o", "-", 4.5),
    Style("#E69F00", "s", (0, (5, 1.5)), 5),
    Style("#D55E00", "^", (0, (1, 1)), 5.5),
)
BESIDE = (Style("#9A8FBF", "*", (0, (1, 2)), 9), Style("#009E73", "P", (0, (4, 2, 1, 2)), 7))
OTHERS = (
    Style("#CC79A7", "D", (0, (3, 1, 1, 1)), 4.5),
    Style("#56B4E9", "v", (0, (6, 1)), 5.5),
    Style("#000000", "d", (0, (2, 1)), 5),
    Style("#009E73", "X", (0, (1, 1)), 5.5),
    Style("#D55E00", "<", (0, (5, 2)), 5.5),
    Style("#0072B2", ">", (0, (3, 1, 1, 1, 1, 1)), 5.5),
)
Styles = Mapping[str, Style]


def styles_of(names: Iterable[str], known: Styles | None = None) -> dict[str, Style]:
    """Give every series its style: the known one, or the next of those that are free."""
    free = cycle(OTHERS if known else (*SERIES, *OTHERS))
    known = {PRETRAINED: BESIDE[0], **(known or {})}
    return {name: known[name] if name in known else next(free) for name in names}


def study_styles(series: Iterable[str], kinds: Iterable[str], beside: Iterable[str]) -> dict[str, Style]:
    """Give every series of a study the style that it has in all figures: those of the kinds of experts, those of the
    models `beside` what is merged, and the others."""
    known = dict(zip(kinds, cycle((*SERIES, *OTHERS)), strict=False))
    known |= zip(beside, cycle((*BESIDE, *OTHERS)), strict=False)
    return known | styles_of(series, known)


def save(figure: Figure, stem: str | Path, suffixes: Sequence[str] = tuple(_UNDATED)) -> list[Path]:
    """Write STEM.png, .svg and .pdf, or some of them, and return their paths. Equal figures give equal bytes.

    A figure whose names leave its axes no room is made larger.
    """
    written = [Path(f"{stem}{suffix}") for suffix in suffixes]
    with matplotlib.rc_context({"svg.hashsalt": "unival-merge", "pdf.fonttype": 42}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph \d+ .*missing")  # signs that the font lacks are drawn as boxes
        for file in written:
            _write(figure, file)
    return written


def _write(figure: Figure, file: Path) -> None:
    for larger in (2, 2, 0):
        warnings.filterwarnings("error" if larger else "ignore", "constrained_layout not applied")
        try:
            return figure.savefig(file, dpi=200, metadata=_UNDATED[file.suffix])
        except UserWarning:
            figure.set_size_inches(*(figure.get_size_inches() * larger))
    return None


def score_name(rows: Records) -> str:
    """Name the scores of rows of one task, split and metric, with their unit."""
    unit = "%" if "acc" in rows[0]["metric"].lower() else "× 100"
    task, split, metric = (shown(rows[0][name], WORD) for name in ("task", "split", "metric"))
    told = [f"{task}, {split}:", f"{metric} ({unit})"]
    return (" " if sum(map(len, told)) < LINE else "\n").join(told)


def level(rows: Records, name: str) -> float | None:
    """Return the mean score, times 100, of a model by itself; None if it has no rows."""
    own = [row for row in rows if is_made_of(row, [name])]
    return 100 * mean_of(own, "value") if own else None


def legend_below(figure: Figure, axes: Iterable[Axes], title: str | None = None) -> None:
    """Add one legend for all axes under them, every label once."""
    found = {label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    style: dict[str, Any] = {"loc": "outside lower center", "fontsize": SMALL, "frameon": False}
    columns = max(1, min(5, int(figure.get_size_inches()[0] / 1.4)))
    figure.legend(list(found.values()), list(found), ncols=columns, title=title, title_fontsize=SMALL, **style)


def tidy(axis: Axes) -> None:
    """Draw a light grid behind the data and no frame on the right and above."""
    axis.grid(color="#dddddd", lw=0.5)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(labelsize=SMALL)
