"""Contact sheets: what is shown, asked and answered in every split, for a person to check."""

import base64
import io
import wave
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from textwrap import fill

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image, ImageSequence

from experiments.errors import StudyError
from experiments.unival.world.concepts import CANVAS, CELLS, COLOURS, DIGITS
from experiments.unival.world.tables import TASKS, read_rows, read_world, weights

__all__ = ["contact_sheet"]

DPI = 80
LABELS = {"entailment": "yes", "contradiction": "no", "neutral": "maybe"}


def contact_sheet(folder: Path | str, file: Path | str, task: str | None = None, examples: int = 6) -> Path:
    """Draw `examples` rows of every split of a world (of one task, if given) and save the sheet as an image."""
    names = [name.split("/") for name in read_world(folder).files if task in (None, name.split("/")[0])]
    if not names:
        raise StudyError(f"no task '{task}' in {folder}: choose one of {', '.join(TASKS)}")
    films = [TASKS[name][1] == "video" for name, _ in names]
    heights = [1.55 if film else 2.75 for film in films]
    figure = Figure(figsize=(2.6 * examples, sum(heights)), dpi=DPI)
    bands = figure.subfigures(len(names), 1, height_ratios=heights, squeeze=False)[:, 0]
    for (name, split), band, film in zip(names, bands, films, strict=True):
        band.suptitle(f"{name}/{split}", fontsize=11, x=0.01, y=0.99, ha="left", weight="bold")
        shown = examples // 2 if film else examples
        rows = list(islice(read_rows(folder, name, split), shown))
        grid = {"left": 0.01, "right": 0.99, "bottom": 0.3, "top": 0.86, "wspace": 0.1}
        for axes, row in zip(band.subplots(1, shown, gridspec_kw=grid, squeeze=False)[0], rows, strict=False):
            _draw(axes, name, row, 60 if film else 30)
        for axes in band.axes:
            axes.set_axis_off()
    figure.savefig(file)
    return Path(file)


def _draw(axes: Axes, task: str, row: Mapping[str, str], width: int) -> None:
    data, medium = base64.urlsafe_b64decode(row["media"]), TASKS[task][1]
    if medium == "audio":
        _draw_sound(axes, data)
    else:
        axes.imshow(_strip(data), interpolation="nearest")
    if "box" in row:
        x0, y0, x1, y1 = (float(v) for v in row["box"].split(","))
        axes.add_patch(Rectangle((x0 - 0.5, y0 - 0.5), x1 - x0, y1 - y0, fill=False, color="white", linewidth=1.5))
    if task == "backbone":
        _draw_cells(axes, row)
    lines = [fill(line, width) for line in _text(row)]
    axes.text(0.5, -0.03, "\n".join(lines), transform=axes.transAxes, ha="center", va="top", fontsize=8)


def _text(row: Mapping[str, str]) -> list[str]:
    """The question, then the answer."""
    if "label" in row:
        return [f"'{row['hypothesis']}'", f"-> {LABELS[row['label']]}"]
    if "box" in row:
        return [row["text"].replace("&&", " / ")]
    lines = [row[name] for name in ("question",) if row.get(name)]
    lines += [_shortened(row["caption"])] if row.get("caption") else []
    if row.get("answers"):
        lines.append("-> " + ", ".join(f"{answer} {weight:g}" for answer, weight in weights(row["answers"]).items()))
    return lines


def _shortened(captions: str) -> str:
    first, *others = captions.split("&&")
    return f"{first} (+{len(others)})" if others else first


def _strip(data: bytes) -> np.ndarray:
    """The picture, or the frames of a film side by side."""
    frames = [np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(Image.open(io.BytesIO(data)))]
    gap = np.full((frames[0].shape[0], 2, 3), 255, np.uint8)
    return np.hstack([part for frame in frames for part in (frame, gap)][:-1])


def _draw_sound(axes: Axes, data: bytes) -> None:
    with wave.open(io.BytesIO(data)) as file:
        rate, samples = file.getframerate(), np.frombuffer(file.readframes(file.getnframes()), "<i2")
    axes.specgram(samples / 32768.0, NFFT=256, noverlap=192, Fs=rate, vmin=-110, vmax=-30)
    axes.set_ylim(500, 1700)


def _draw_cells(axes: Axes, row: Mapping[str, str]) -> None:
    side = CANVAS / CELLS
    digits, colours = ([int(label) for label in row[column].split(",")] for column in ("digits", "colours"))
    for cell, (digit, colour) in enumerate(zip(digits, colours, strict=True)):
        if digit <= len(DIGITS):
            x, y = (cell % CELLS + 0.5) * side, (cell // CELLS + 0.5) * side
            words = f"{digit}{COLOURS[colour][0]}" if digit < len(DIGITS) else "card"
            axes.text(x - 0.5, y - 0.5, words, color="white", fontsize=6, ha="center", va="center")
