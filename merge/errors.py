"""The one exception class of the package, and the words that its messages share."""

from __future__ import annotations

import difflib
import os
import reprlib
from collections.abc import Iterable
from pathlib import Path

_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxother, _SHORT.maxlong = 2, 60, 60, 40


class MergeError(ValueError):
    """A user's mistake or a bad input, said in one line: what, where, both values, the way out.

    The library raises it; the command line prints it without a traceback and exits with code 2.
    """


class MergeWarning(UserWarning):
    """What a merge noticed and was not stopped by. The command line prints it on stderr, once."""


def meant(word: str, known: Iterable[str], cutoff: float = 0.5) -> str:
    """End a sentence with the known word that is nearest to `word`, "" where none is near."""
    close = difflib.get_close_matches(word, sorted(known), 1, cutoff)
    return f"; did you mean {close[0]!r}?" if close else ""


def nearest(word: str, known: Iterable[str]) -> str:
    """End a sentence with the known word that is nearest to `word`, or with all of them."""
    choices = sorted(known)
    return meant(word, choices) or f"; known are {', '.join(choices)}"


def beside(path: Path) -> str:
    """End a sentence on a file that is not there with the one beside it that was meant, "" where there is none."""
    try:
        names = sorted(name for name in os.listdir(path.parent) if not name.startswith("."))
    except OSError:
        return ""
    same = [name for name in names if Path(name).stem == path.stem]
    stems = {Path(name).stem: name for name in names if Path(name).suffix == path.suffix}
    close = same or [stems[stem] for stem in difflib.get_close_matches(path.stem, stems, 1, 0.85)]
    return f"; did you mean {path.with_name(close[0])}?" if close else ""


def shortened(value: object) -> str:
    """Show what a file holds in an error: at most a line, also of a small file's lists that repeat each other."""
    return " ".join(_SHORT.repr(value).split())[:120]
