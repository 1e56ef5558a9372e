"""Pages taken apart: their blocks of code, and their links."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests import ROOT

# A block runs unless a comment before it says why not, or which test runs it. What is no code is output, or a file.
NOT_RUN = re.compile(r"<!-- not run: (?P<why>.{8,}?) -->")
ELSEWHERE = re.compile(r"<!-- run by (?P<test>tests/\S+\.py) -->")
_FENCE = re.compile(r"(?P<indent> *)```(?P<language>\w*)(?P<rest>.*)")
_LINK = re.compile(r"(?<!!)\[[^\]]*\]\((?P<target>[^)\s]+)\)|!\[[^\]]*\]\((?P<image>[^)\s]+)\)")


@dataclass(frozen=True)
class Block:
    """A block of a page: `title` names the file that it is, `note` is the comment in front of it."""

    page: str
    line: int
    language: str
    text: str
    title: str
    note: str

    @property
    def place(self) -> str:
        """Where it is."""
        return f"{self.page}:{self.line}"


def blocks(page: str) -> list[Block]:
    """All blocks of a page, in order."""
    return list(_blocks(page, (ROOT / page).read_text(encoding="utf-8").splitlines()))


def _blocks(page: str, lines: list[str]) -> Iterator[Block]:
    note, number = "", 0
    while number < len(lines):
        line = lines[number]
        opened = _FENCE.match(line)
        if opened:
            end = next(n for n in range(number + 1, len(lines)) if lines[n].strip() == "```")
            text = "\n".join(one.removeprefix(opened["indent"]) for one in lines[number + 1 : end])
            title = re.search(r'title="([^"]+)"', opened["rest"])
            yield Block(page, number + 1, opened["language"], text + "\n", title[1] if title else "", note)
            number, note = end, ""
        elif line.startswith("<!-- "):
            note = line
        elif line.strip():
            note = ""
        number += 1


def indented(page: str) -> list[str]:
    """Lines that Markdown takes for a block of code without a fence: nobody would know what they are."""
    found, before, is_open, listed = list[str](), "", False, False
    for number, line in enumerate((ROOT / page).read_text(encoding="utf-8").splitlines(), 1):
        is_open ^= line.lstrip().startswith("```")
        listed = bool(re.match(r"\s*([*+-]|\d+\.|!!!|\?\?\?|===)\s", line)) or (listed and line[:1] in ("", " "))
        if not is_open and not listed and line.startswith("    ") and not before.strip():
            found.append(f"{page}:{number}")
        before = line
    return found


def links(page: str) -> list[str]:
    """Targets of links and images outside of code."""
    text = re.sub(r"(?ms)^ *```.*?^ *```", "", (ROOT / page).read_text(encoding="utf-8"))
    text = re.sub(r"`[^`\n]+`", "", text)
    return [found["target"] or found["image"] for found in _LINK.finditer(text)]


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as the site makes them."""
    text = re.sub(r"(?ms)^ *```.*?^ *```", "", page.read_text(encoding="utf-8"))
    titles = (re.sub(r"[^\w\s-]", "", title).strip().lower() for title in re.findall(r"(?m)^#+ (.*)$", text))
    return {re.sub(r"[-\s]+", "-", title) for title in titles}


def importable(block: Block) -> None:
    """Fail unless the test that is said to run a block is there, and reads its page."""
    noted = ELSEWHERE.match(block.note)
    assert noted
    test = ROOT / noted["test"]
    if not test.is_file() or Path(block.page).name not in test.read_text(encoding="utf-8"):
        pytest.fail(f"{block.place}: {noted['test']} does not run it")
