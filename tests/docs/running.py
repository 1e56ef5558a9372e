"""Pages run: their blocks one after the other, in one folder and one namespace, and what they print compared."""

from __future__ import annotations

import contextlib
import doctest
import io
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

from experiments.commands import main
from tests.docs.blocks import ELSEWHERE, NOT_RUN, Block, blocks, importable

LIKE = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def run_page(page: str, names: dict[str, Any]) -> int:
    """Run the blocks of a page in the working folder, with some names known; how many of them ran.

    A block with a title is a file. One that is `text` right behind a block that ran is what that printed; `...` stands
    for anything.
    """
    ran, printed = 0, None
    for block in blocks(page):
        if block.language == "text":
            if printed is not None:
                compare(block, printed)
            printed = None
            continue
        printed = None
        if block.title:
            Path(block.title).write_text(block.text, encoding="utf-8")
        elif ELSEWHERE.match(block.note):
            importable(block)
        elif not NOT_RUN.match(block.note):
            printed, ran = run_block(block, names), ran + 1
    return ran


def run_block(block: Block, names: dict[str, Any]) -> str:
    """Run Python or commands, and give what they print."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        if block.language == "python":
            exec(compile(block.text, block.place, "exec"), names)
        elif block.language == "sh":
            with contextlib.redirect_stderr(out):
                for line in block.text.replace("\\\n", " ").splitlines():
                    run_line(block, line)
        else:
            pytest.fail(f"{block.place}: a block of {block.language or 'no language'} is neither run nor marked")
    return out.getvalue()


def run_line(block: Block, line: str) -> None:
    """Run the commands of a line, in this process. Only those that end as `# refused` says may fail."""
    words, comment = shlex.split(line, comments=True), line.partition("#")[2].strip()
    while words:
        end = words.index("&&") if "&&" in words else len(words)
        command, words = words[:end], words[end + 1 :]
        if command[0] != "unival-merge":
            pytest.fail(f"{block.place}: {command[0]} is not run by the tests: say so in front of the block")
        code = call(command)
        if bool(code) != comment.startswith("refused"):
            pytest.fail(f"{block.place}: {line} ended with {code}")


def call(command: list[str]) -> int:
    """Run `unival-merge ...` as a terminal would, and give its exit code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", command)
        with pytest.raises(SystemExit) as stop:
            main()
    return int(stop.value.code or 0)


def compare(block: Block, printed: str) -> None:
    """Fail where a block of output is not what was printed."""
    checker = doctest.OutputChecker()
    if not checker.check_output(block.text, printed, LIKE):
        pytest.fail(f"{block.place} is not what is printed:\n{printed}")
