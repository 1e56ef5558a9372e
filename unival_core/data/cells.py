"""What stands in the cells of the published files, read and checked."""

from __future__ import annotations

import math
import string

from unival_core.data.task import Box, Codes
from unival_core.errors import UnivalError

_NO_MARKS = str.maketrans("", "", string.punctuation)


def plain(text: str) -> str:
    """Return a caption without punctuation, single-spaced, as the published captioners write it.

    >>> plain(" A man's dog,  asleep. ")
    'A mans dog asleep'
    """
    return " ".join(text.translate(_NO_MARKS).split())


def several(cell: str) -> list[str]:
    """Return the texts of a cell that are joined by &&, at least one."""
    if texts := [text for text in (part.strip() for part in cell.split("&&")) if text]:
        return texts
    raise UnivalError("the cell of texts is empty")


def weighted(cell: str) -> dict[str, float]:
    """Read answers and their confidence, in the order of the cell.

    >>> weighted("1.0|!+red&&0.3|!+dark red")
    {'red': 1.0, 'dark red': 0.3}
    """
    answers: dict[str, float] = {}
    for part in cell.split("&&"):
        confidence, mark, answer = part.partition("|!+")
        try:
            answers[answer.strip()] = float(confidence)
        except ValueError:
            mark = ""
        if not mark or not answer.strip() or not math.isfinite(answers.get(answer.strip(), math.nan)):
            raise UnivalError(f"answers {_short(cell)} are not 'confidence|!+answer', joined by &&")
    return answers


def best(cell: str) -> str:
    """Return the most confident of the weighted answers, of equals the first."""
    answers = weighted(cell)
    return max(answers, key=answers.__getitem__)


def region(cell: str) -> Box:
    """Return a box given as 'x0,y0,x1,y1'."""
    try:
        box = Box(*(float(value) for value in cell.split(",")))
    except (TypeError, ValueError):
        raise UnivalError(f"box {_short(cell)} is not 'x0,y0,x1,y1'") from None
    if not (math.isfinite(sum(box)) and box.x0 < box.x1 and box.y0 < box.y1):
        raise UnivalError(f"box {_short(cell)} is empty or infinite")
    return box


def codes(cell: str) -> Codes:
    """Return image codes given as integers between spaces."""
    try:
        values = Codes(tuple(int(value) for value in cell.split()))
    except ValueError:
        raise UnivalError(f"image codes {_short(cell)} are not integers between spaces") from None
    if not values.values:
        raise UnivalError("the cell of image codes is empty")
    return values


def _short(cell: str) -> str:
    return repr(cell if len(cell) <= 60 else f"{cell[:57]}...")
