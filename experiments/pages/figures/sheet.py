"""Contact sheets: examples in rows under headings, for a person to check."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from experiments.grid.escapes import figure as shown

WIDTH, DPI = 2.6, 80  # of one column, in inches
TOLD = 300  # signs of a text below a panel


@dataclass(frozen=True)
class Panel:
    """One example: what is seen or heard, and what is said about it.

    Attributes:
        image: height x width x 3, uint8; several frames side by side. None where there is only audio.
        audio: samples in [-1, 1] and their number in a second; drawn as a spectrogram from 500 to 1,700 Hz.
        boxes: x0, y0, x1, y1 in pixels of the image.
        marks: short words at x, y of the image.
        lines: texts below.
    """

    image: np.ndarray | None = None
    audio: tuple[np.ndarray, int] | None = None
    boxes: Sequence[tuple[float, ...]] = ()
    marks: Sequence[tuple[float, float, str]] = ()
    lines: Sequence[str] = ()


def contact_sheet(bands: Mapping[str, Sequence[Panel]], columns: int) -> Figure:
    """Draw a band of panels under each heading, the full width shared by the panels of a band.

    A band of `columns` panels shows them nearly square; one of fewer has room for frames side by side and is lower.
    """
    wide = [len(panels) < columns for panels in bands.values()]
    heights = [1.55 if is_wide else 2.75 for is_wide in wide]
    figure = Figure(figsize=(WIDTH * columns, sum(heights)), dpi=DPI)
    places = figure.subfigures(len(bands), 1, height_ratios=heights, squeeze=False)[:, 0]
    for (title, panels), band, is_wide in zip(bands.items(), places, wide, strict=True):
        band.suptitle(shown(title), fontsize=11, x=0.01, y=0.99, ha="left", weight="bold")
        grid = {"left": 0.01, "right": 0.99, "bottom": 0.3, "top": 0.86, "wspace": 0.1}
        every = band.subplots(1, max(1, len(panels)), gridspec_kw=grid, squeeze=False)[0]
        for axes, panel in zip(every, panels, strict=False):
            _draw(axes, panel, 60 if is_wide else 30)
        for axes in every:
            axes.set_axis_off()
    return figure


def _draw(axes: Axes, panel: Panel, width: int) -> None:
    if panel.image is not None:
        axes.imshow(panel.image, interpolation="nearest")
    if panel.audio is not None:
        samples, rate = panel.audio
        axes.specgram(samples, NFFT=256, noverlap=192, Fs=rate, vmin=-110, vmax=-30)
        axes.set_ylim(500, 1700)
    for x0, y0, x1, y1 in panel.boxes:
        axes.add_patch(Rectangle((x0 - 0.5, y0 - 0.5), x1 - x0, y1 - y0, fill=False, color="white", linewidth=1.5))
    for x, y, word in panel.marks:
        axes.text(x - 0.5, y - 0.5, shown(word), color="white", fontsize=6, ha="center", va="center")
    text = "\n".join(shown(line, TOLD, width) for line in panel.lines)
    axes.text(0.5, -0.03, text, transform=axes.transAxes, ha="center", va="top", fontsize=8)
