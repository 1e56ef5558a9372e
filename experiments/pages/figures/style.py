"""What all figures share: colours, markers, axes, legends, and writing files.

Colours are Okabe and Ito's, and every series has its own marker and dashes, so that a figure survives colour blindness
and a grey printer.
"""

import textwrap
import unicodedata
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from io import BytesIO
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Plain
from PIL import Image

from experiments.grid.escapes import SHORT, WORD
from experiments.grid.escapes import figure as shown
from experiments.grid.rows import Records, is_made_of, mean_of, names_in
from experiments.grid.units import unit_of
from experiments.pages.views import is_single
from experiments.study.points import PRETRAINED

GREY, GREEN = "#666666", "#009E73"
SMALL, TEXT = 7.5, 8.5  # points
_ROOM = 1.0  # inches that figures have for a legend; they grow by what it needs more
# Of files, each with what takes the date out of it.
SUFFIXES: dict[str, dict[str, Any] | None] = {".png": None, ".svg": {"Date": None}, ".pdf": {"CreationDate": None}}


class Figure(Plain):
    """A figure that notebooks show, also where nobody has imported pyplot."""

    def _repr_png_(self) -> bytes:
        buffer = BytesIO()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of signs that the font lacks, of names that leave the axes little room
            self.savefig(buffer, format="png", dpi=100)
        return buffer.getvalue()


class Style(NamedTuple):
    """How a series is drawn: colour, marker, dashes of its line, size of its marker in points."""

    color: str
    marker: Any
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
EXPERT = Style("#444444", "*", "-", 9)  # experts that are all of one kind
BESIDE = (Style("#9A8FBF", "p", (0, (1, 2)), 7), Style("#009E73", "P", (0, (4, 2, 1, 2)), 7))
OTHERS = (
    Style("#CC79A7", "D", (0, (3, 1, 1, 1)), 4.5),
    Style("#56B4E9", "v", (0, (6, 1)), 5.5),
    Style("#000000", "d", (0, (2, 1)), 5),
    Style("#009E73", "X", (0, (1, 1)), 5.5),
    Style("#D55E00", "<", (0, (5, 2)), 5.5),
    Style("#0072B2", ">", (0, (3, 1, 1, 1, 1, 1)), 5.5),
    Style("#E69F00", (4, 1, 0), (0, (4, 1)), 7),
    Style("#CC79A7", (3, 1, 0), (0, (2, 2)), 7),
    Style("#56B4E9", (6, 1, 0), (0, (7, 2, 1, 2)), 7),
    Style("#000000", "H", (0, (1, 3)), 5.5),
)
Styles = Mapping[str, Style]


def styles_of(names: Iterable[str], known: Styles | None = None) -> dict[str, Style]:
    """Give every series its style: the known one, or the next of those that are free."""
    free = _free(OTHERS if known else (*SERIES, *OTHERS), known or {})
    known = {PRETRAINED: BESIDE[0], **(known or {})}
    return {name: known[name] if name in known else next(free) for name in names}


def study_styles(series: Iterable[str], kinds: Iterable[str], beside: Iterable[str]) -> dict[str, Style]:
    """Give every series of a study the style that it has in all figures: those of the kinds of experts, those of the
    models `beside` what is merged, and the others."""
    known = dict(zip(kinds, cycle((*SERIES, *OTHERS)), strict=False))
    known |= zip(beside, _free((*BESIDE, *reversed(OTHERS)), known), strict=False)
    return known | styles_of(series, known)


def _free(styles: Sequence[Style], known: Styles) -> Iterator[Style]:
    """Yield the styles that nothing known has, without end."""
    return cycle([style for style in styles if style not in known.values()] or styles)


def save(figure: Plain, stem: str | Path, suffixes: Sequence[str] = tuple(SUFFIXES)) -> list[Path]:
    """Write STEM.png, .svg and .pdf, or some of them, and return their paths. Equal figures give equal bytes.

    A figure whose names leave its axes no room is made larger.
    """
    written = [Path(f"{stem}{suffix}") for suffix in suffixes]
    with matplotlib.rc_context({"svg.hashsalt": "unival-merge", "pdf.fonttype": 42}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph \d+ .*missing")  # signs that the font lacks are drawn as boxes
        for file in written:
            _write(figure, file)
    return written


def _write(figure: Plain, file: Path) -> None:
    for larger in (2, 2, 0):
        warnings.filterwarnings("error" if larger else "ignore", "constrained_layout not applied")
        try:
            if file.suffix == ".png":
                return _write_png(figure, file)
            return figure.savefig(file, metadata=SUFFIXES[file.suffix])
        except UserWarning:
            figure.set_size_inches(*(figure.get_size_inches() * larger))
    return None


def _write_png(figure: Plain, file: Path) -> None:
    """Write a PNG of 256 colours, a third of the size of one of all colours, which nobody can tell from it."""
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    Image.open(buffer).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(file, optimize=True)


def score_name(rows: Records) -> str:
    """Name the scores of rows of one task, split and metric, with their unit and, where lower is better, that."""
    words = unit_of(rows).words
    task, split, metric = (shown(rows[0][name], WORD + 4) for name in ("task", "split", "metric"))
    return f"{task}, {split}: {metric}" + f" ({shown(words, 3 * SHORT)})" * bool(words)


def seeds_of(rows: Records) -> str:
    """Say of how many training seeds rows are."""
    count = len(names_in(rows, "seed"))
    return "one training seed" if count == 1 else f"{count} training seeds"


def intervals_of(rows: Records) -> str:
    """Say what the 95 % intervals of rows take into account."""
    seeds, over = seeds_of(rows), {row.get("interval", "") for row in rows if np.isfinite(row["lo"])}
    if seeds == "one training seed":
        return f"95 % interval of the examples of {seeds}: evaluation noise only"
    if over & {"seeds", "seeds and examples"}:
        return f"95 % interval over {seeds}" + " and their examples" * ("seeds and examples" in over)
    return f"95 % interval of the examples, mean over {seeds}: evaluation noise only"


def sides(value: np.ndarray, lo: np.ndarray, hi: np.ndarray) -> list[np.ndarray] | None:
    """Return how far intervals reach below and above scores, as error bars want it; None without intervals."""
    return None if np.isnan(lo).any() else [np.maximum(value - lo, 0), np.maximum(hi - value, 0)]


def level(rows: Records, name: str) -> float | None:
    """Return the mean score of a model by itself, as it is shown; None if it has no rows."""
    own = [row for row in rows if is_single(row) and is_made_of(row, [name])]
    return unit_of(rows).factor * mean_of(own, "value") if own else None


def wrapped(text: str, inches: float, size: float = TEXT) -> str:
    """Break text, whose signs of formulas are escaped, into lines of so many inches."""
    plain = text.replace(r"\$", "\ue000")  # one sign, so that no line ends within it
    wide = 2 if any(unicodedata.east_asian_width(sign) in "WF" for sign in plain) else 1
    width = max(4, int(inches * 72 / (0.56 * wide * size)))
    return "\n".join(textwrap.fill(line, width) for line in plain.split("\n")).replace("\ue000", r"\$")


def panels(count: int, width: float, height: float, most: int = 4) -> tuple[Figure, list[Axes]]:
    """Return a figure of so many axes of a size in inches, at most so many beside each other."""
    columns = min(count, most)
    lines = -(-count // columns)
    figure = Figure(figsize=(width * columns, height * lines), layout="constrained")
    every = list(figure.subplots(lines, columns, squeeze=False).flat)
    for axis in every[count:]:
        axis.remove()
    return figure, every[:count]


def name_axes(axis: Axes, x: str, y: str, width: float = 3, height: float = 2) -> None:
    """Write what is on the axes of so many inches, in as many lines as their lengths ask for."""
    axis.set_xlabel(wrapped(x, width), fontsize=TEXT)
    axis.set_ylabel(wrapped(y, height), fontsize=TEXT)


def legend_below(figure: Plain, axes: Iterable[Axes], title: str | None = None, more: Iterable[Artist] = ()) -> None:
    """Add one legend under all axes: every label of theirs once, and `more` that only explain."""
    found = {label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    found |= {str(handle.get_label()): handle for handle in more}
    if not found and not title:
        return
    width = 0.95 * figure.get_figwidth()
    labels = [wrapped(label, width - 0.6, SMALL) for label in found]
    longest = max((len(line) for label in labels for line in label.split("\n")), default=1)
    columns = max(1, min(5, int(width / (0.6 + longest * 0.56 * SMALL / 72))))
    style: dict[str, Any] = {"loc": "outside lower center", "fontsize": SMALL, "frameon": False}
    title = title and wrapped(title, width, SMALL)
    height = SMALL * 1.35 * (-(-len(labels) // columns) * max((label.count("\n") + 1 for label in labels), default=0))
    height += SMALL * 1.35 * (title.count("\n") + 1 if title else 0)
    figure.set_figheight(figure.get_figheight() + max(0.0, height / 72 - _ROOM))
    figure.legend(list(found.values()), labels, ncols=columns, title=title, title_fontsize=SMALL, **style)


def tidy(axis: Axes) -> None:
    """Draw a light grid behind the data and no frame on the right and above."""
    axis.grid(color="#dddddd", lw=0.5)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(labelsize=SMALL)
