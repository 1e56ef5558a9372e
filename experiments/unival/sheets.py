"""The drawn images among a study's samples as one sheet: a line for every point, a column for every caption."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from PIL import Image, ImageDraw, ImageFont

from experiments.grid.lines import entries
from experiments.results.samples import FILE, IMAGES
from merge import share_label
from unival_core import TASKS
from unival_core.data import TsvTable

SIDE, LABEL, HEAD, GAP = 72, 150, 78, 3  # pixels: of an image, of the words on its left and above it, between images


class Rows(Protocol):
    """What is asked of a setup: its rows, and images of codes."""

    def table(self, task: str, split: str) -> Sequence[dict[str, str]] | TsvTable:
        """Return the rows of a split."""
        ...

    def images(self, codes: Sequence[Sequence[int]]) -> list[Image.Image]:
        """Return the images of codes."""
        ...


def write_sheet(folder: Path, setup: Rows, count: int) -> Path | None:
    """Write FOLDER/drawn.png with what the first seed's points drew, above it the images of the rows as they come back
    from their codes; None where nothing was drawn."""
    drawn = [one for _, one in entries(folder / FILE) if TASKS[one["task"]].writes == "codes"]
    if not drawn:
        return None
    first = min(one["seed"] for one in drawn)
    lines = sorted((one for one in drawn if one["seed"] == first), key=lambda one: one["shares"].get(one["task"], 0.0))
    table = setup.table(lines[0]["task"], lines[0]["split"])
    rows = [table[row] for row in range(min(count, len(table)))]
    codes = setup.images([[int(code) for code in row["codes"].split()] for row in rows])
    shown: list[tuple[str, Sequence[Image.Image]]] = [("through the codes alone", codes)]
    shown += [(share_label(one["shares"]), [read(folder, sample) for sample in one["samples"]]) for one in lines]
    sheet = drawn_sheet([row["caption"] for row in rows], shown)
    path = folder / "drawn.png"
    sheet.quantize(128).save(path, optimize=True)
    return path


def read(folder: Path, sample: dict[str, Any]) -> Image.Image:
    """Return a sample's image."""
    with Image.open(folder / IMAGES / sample["image"]) as image:
        return image.convert("RGB")


def drawn_sheet(captions: Sequence[str], lines: Sequence[tuple[str, Sequence[Image.Image]]]) -> Image.Image:
    """Put lines of images below their captions, each behind its words."""
    step = SIDE + GAP
    sheet = Image.new("RGB", (LABEL + len(captions) * step, HEAD + len(lines) * step), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(10)
    for column, caption in enumerate(captions):
        pen.multiline_text((LABEL + column * step, 2), "\n".join(textwrap.wrap(caption, 14)), "black", font, spacing=1)
    for number, (words, images) in enumerate(lines):
        top = HEAD + number * step
        pen.multiline_text((4, top + SIDE // 3), "\n".join(textwrap.wrap(words, 26)), "black", font)
        for column, image in enumerate(images):
            sheet.paste(image.resize((SIDE, SIDE), Image.Resampling.NEAREST), (LABEL + column * step, top))
    return sheet
