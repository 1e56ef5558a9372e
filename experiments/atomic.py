"""Files that are written whole or not at all."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from experiments.errors import StudyError


def write_whole(path: Path, data: str | bytes, remedy: str = "the same command goes on") -> None:
    """Write a file that takes its name only when it is whole; text as UTF-8, folders that are missing are made.

    What stood there before stays until then. StudyError, with the `remedy`, where it cannot be written (a full disk, no
    permission): nothing is left of it. One process writes a file at a time.
    """
    partial = path.with_name(f"{path.name}.partial")  # one name: what a killed run left of it is written over
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(data.encode() if isinstance(data, str) else data)
        partial.replace(path)
    except BaseException as error:  # a signal too
        with suppress(OSError):
            partial.unlink()
        if isinstance(error, OSError):
            raise StudyError(f"{path} cannot be written: {error.strerror}: {remedy}") from error
        raise
