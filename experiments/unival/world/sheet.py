"""Contact sheets of a world: what is shown, asked and answered in every split, for a person to check."""

import base64
import io
import wave
from collections.abc import Mapping
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image, ImageSequence

from experiments.errors import StudyError
from experiments.pages.figures.sheet import Panel
from experiments.pages.figures.sheet import contact_sheet as draw_sheet
from experiments.unival.world.concepts import CANVAS, CELLS, COLOURS, DIGITS
from experiments.unival.world.rows import LABELS
from experiments.unival.world.tables import read_world, weights
from experiments.unival.world.tasks import TASKS, read_rows

__all__ = ["contact_sheet"]

ANSWERS = {label: answer for answer, label in LABELS.items()}


def contact_sheet(folder: Path | str, file: Path | str, task: str | None = None, examples: int = 6) -> Path:
    """Draw `examples` rows of every split of a world (of one task, if given) and save the sheet as an image."""
    names = [name.split("/") for name in read_world(folder).files if task in (None, name.split("/")[0])]
    if not names:
        raise StudyError(f"no task '{task}' in {folder}: choose one of {', '.join(TASKS)}")
    bands = {}
    for name, split in names:
        shown = examples // 2 if TASKS[name].medium == "video" else examples
        bands[f"{name}/{split}"] = [panel_of(name, row) for row in islice(read_rows(folder, name, split), shown)]
    draw_sheet(bands, examples).savefig(file)
    return Path(file)


def panel_of(task: str, row: Mapping[str, str]) -> Panel:
    """Decode a row for the sheet."""
    data = base64.urlsafe_b64decode(row["media"])
    boxes = [tuple(float(value) for value in row["box"].split(","))] if "box" in row else []
    if TASKS[task].medium != "audio":
        return Panel(_strip(data), boxes=boxes, marks=_marks(row), lines=_lines(row))
    with wave.open(io.BytesIO(data)) as file:
        rate, samples = file.getframerate(), np.frombuffer(file.readframes(file.getnframes()), "<i2")
    return Panel(audio=(samples / 32768.0, rate), lines=_lines(row))


def _lines(row: Mapping[str, str]) -> list[str]:
    """The question, then the answer."""
    if "label" in row:
        return [f"'{row['hypothesis']}'", f"-> {ANSWERS[row['label']]}"]
    if "box" in row:
        return [row["text"].replace("&&", " / ")]
    lines = [row["question"]] if row.get("question") else []
    if row.get("caption"):
        first, *others = row["caption"].split("&&")
        lines.append(f"{first} (+{len(others)})" if others else first)
    if row.get("answers"):
        lines.append("-> " + ", ".join(f"{answer} {weight:g}" for answer, weight in weights(row["answers"]).items()))
    return lines


def _strip(data: bytes) -> np.ndarray:
    """The image, or the frames of a video side by side."""
    frames = [np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(Image.open(io.BytesIO(data)))]
    gap = np.full((frames[0].shape[0], 2, 3), 255, np.uint8)
    return np.hstack([part for frame in frames for part in (frame, gap)][:-1])


def _marks(row: Mapping[str, str]) -> list[tuple[float, float, str]]:
    """The backbone's labels: digit and colour in the middle of every cell that has them."""
    if "digits" not in row:
        return []
    side, found = CANVAS / CELLS, []
    digits, colours = ([int(label) for label in row[column].split(",")] for column in ("digits", "colours"))
    for cell, (digit, colour) in enumerate(zip(digits, colours, strict=True)):
        if digit <= len(DIGITS):
            word = f"{digit}{COLOURS[colour][0]}" if digit < len(DIGITS) else "card"
            found.append(((cell % CELLS + 0.5) * side, (cell // CELLS + 0.5) * side, word))
    return found
