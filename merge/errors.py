"""The one exception class of the package, and the words that its messages share."""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Iterable

_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxother, _SHORT.maxlong = 2, 60, 60, 40


class MergeError(ValueError):
    """A user's mistake or a bad input, said in one line: what, where, both values, the way out.

    The library raises it; the command line prints it without a traceback and exits with code 2.
    """


class MergeWarning(UserWarning):
    """What a merge noticed and was not stopped by. The command line prints it on stderr, once."""


def nearest(word: str, known: Iterable[str]) -> str:
    """End a sentence with the known word that is nearest to `word`, or with all of them."""
    choices = sorted(known)
    close = difflib.get_close_matches(word, choices, 1, 0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; known are {', '.join(choices)}"


def shortened(value: object) -> str:
    """Show what a file holds in an error: at most a line, also of a small file's lists that repeat each other."""
    return " ".join(_SHORT.repr(value).split())[:120]
