r"""Names and notes of rows as each form of a page can hold them: rows may come from anywhere and say anything.

>>> latex("a_b \\input{x}"), csv_cell("=1+1"), markdown("a|b"), file_stem("curves", "../x")
('a\\_b \\textbackslash{}input\\{x\\}', "'=1+1", 'a\\|b', 'curves_.._x-748fc07c')
"""

import hashlib
import re
from html import escape
from textwrap import wrap

LONGEST = 200  # bytes of the stem of a file
SHORT, WORD = 28, 16  # signs of a name in a figure: by itself, and in a sentence
_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "[": "{[}",  # behind a \\ it would be an option
    "]": "{]}",
    **{sign: f"\\{sign}" for sign in "&%#_${}"},
}


def one_line(text: str) -> str:
    """Keep what can be seen, in one line: line ends, controls and marks that turn the order are spaces."""
    return " ".join("".join(sign if sign.isprintable() else " " for sign in text).split())


def html(text: str) -> str:
    """Write text that is no markup, in an element or a quoted attribute."""
    return escape(one_line(text))


def markdown(text: str) -> str:
    """Write text that is no markup in a cell or a line: no bars, code, emphasis, links, formulas, elements."""
    text = re.sub(r"[\\|`*\[\]$~]|<(?=[\w/!?])", r"\\\g<0>", one_line(text))
    text = re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", text)  # inside a word they are no emphasis
    return re.sub(r"&(?=#|\w+;)", "&amp;", text)


def latex(text: str) -> str:
    """Write text without commands, for a paragraph or a cell."""
    found = "".join(_LATEX.get(sign, sign) for sign in one_line(text))
    return f"{{*}}{found[1:]}" if found.startswith("*") else found  # behind a \\ too


def csv_cell(text: str) -> str:
    """Write text that no spreadsheet takes for a formula; a reader sees a quotation mark before it."""
    text = one_line(text)
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text


def figure(text: str, longest: int = SHORT, width: int = 0) -> str:
    """Write text without formulas, which the legend of a figure does not leave out.

    Of text with more signs than `longest` the middle is left out, as names often differ at their ends. With `width` it
    is in lines of so many signs at most.
    """
    seen, half = one_line(text) or "(no name)", longest // 2
    if len(seen) > longest:
        seen = f"{seen[:half]}…{seen[half + 1 - longest :]}"
    shown = "\n".join(wrap(seen, width or longest)).replace("$", r"\$")
    return f" {shown}" if shown.startswith("_") else shown


def file_stem(*words: str) -> str:
    """Give words as one name of a file in the folder that it is put in, other for other words, on any system."""
    wanted = "_".join(words)
    stem = re.sub(r"[^\w+.,=@ -]", "_", wanted)[:LONGEST].lstrip(". ").rstrip(". ")
    while len(stem.encode()) > LONGEST:
        stem = stem[:-1]
    same = stem == wanted
    return stem if same else f"{stem}-{hashlib.sha256(wanted.encode(errors='surrogatepass')).hexdigest()[:8]}"
