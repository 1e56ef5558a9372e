"""The command line in this process, through `main` itself, and what a folder holds."""

from __future__ import annotations

import io
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

from merge.commands import main


@dataclass(frozen=True)
class Outcome:
    """What a command left on the terminal. `code` is its exit code."""

    code: int | str | None
    out: str
    err: str

    @property
    def said(self) -> str:
        """The first line: of a merge what was written; the next tell what came of its tensors."""
        return "".join(self.out.splitlines(keepends=True)[:1])


def command(*arguments: object) -> Outcome:
    """Run `unival-merge ARGUMENTS` here; anything but an exit (a traceback for a user) is raised."""
    out, err = io.StringIO(), io.StringIO()
    before = sys.argv
    sys.argv = ["unival-merge", *map(str, arguments)]
    try:
        with redirect_stdout(out), redirect_stderr(err):
            main()
    except SystemExit as stop:
        return Outcome(stop.code or 0, out.getvalue(), err.getvalue())
    finally:
        sys.argv = before
    return Outcome(0, out.getvalue(), err.getvalue())


def done(*arguments: object) -> Outcome:
    """A command that must succeed, and says nothing on stderr but notes."""
    outcome = command(*arguments)
    assert outcome.code == 0, outcome
    assert all(line.startswith("note: ") for line in outcome.err.splitlines()), outcome
    return outcome


def snapshot(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Every file below a folder, hidden ones too: its time of change and content."""
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else b"")
        for path in sorted(folder.rglob("*"))
    }
