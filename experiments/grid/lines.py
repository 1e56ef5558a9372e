"""Files of JSON lines: append-only, whole after any kill or full disk; what is complete may be packed beside them."""

from __future__ import annotations

import gzip
import json
import os
import warnings
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from experiments.errors import StudyError

try:
    import fcntl
except ImportError:  # Windows has no advisory locks: one writer at a time is then the user's care
    fcntl = None


def files_of(path: Path) -> list[Path]:
    """List what there is of a file of JSON lines: `<name>.gz`, which is never added to, and the file, which comes
    later."""
    return [file for file in (path.with_name(f"{path.name}.gz"), path) if file.is_file()]


def entries(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the objects of a file of JSON lines, its packed part first, with the numbers of their lines.

    A torn last line is left out, with a warning.
    StudyError for a file that cannot be read, and for a line that is not an object of JSON (which has no NaN).
    """
    files = files_of(path)
    if (path / "rows.jsonl").is_file():
        raise StudyError(f"{path}: is a folder: give the file in it, {path / 'rows.jsonl'}")
    if not files:
        raise StudyError(f"{path}: {'is no file' if path.exists() else 'no such file'}: run the study first")
    for file in files:
        yield from _entries(file)


def packed(lines: Iterable[str]) -> bytes:
    """Pack lines into the bytes of a `<name>.gz`, the same ones every time."""
    return gzip.compress("".join(f"{line}\n" for line in lines).encode(), mtime=0)


def _entries(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        data = path.read_bytes()
        *lines, torn = (gzip.decompress(data) if path.suffix == ".gz" else data).split(b"\n")
    except (OSError, EOFError, zlib.error) as error:
        raise StudyError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if torn:
        warnings.warn(
            f"{path}: ignored a torn last line of {len(torn)} bytes, left by a killed run or still being written",
            stacklevel=4,
        )
    for number, line in enumerate(lines, start=1):
        try:
            entry = json.loads(line, parse_constant=_refuse)
        except (ValueError, RecursionError) as error:
            raise StudyError(f"{path}:{number}: not JSON ({error}): remove the line to go on") from error
        if not isinstance(entry, dict):
            raise StudyError(f"{path}:{number}: not an object: remove the line to go on")
        yield number, entry


def append_lines(path: Path, lines: Sequence[str], *, durable: bool = True) -> None:
    """Add lines, all or none, behind cutting off what a killed run left of a last one, with a warning.

    They are on the disk when this returns, or else, not `durable`, when the system sees fit: a kill loses none of them,
    a power cut those of the last seconds. StudyError where they cannot be written (a full disk); what there is of them
    is cut off again.
    """
    is_new = not path.exists()
    try:
        with path.open("a+b", buffering=0) as file:
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_EX)
            _append(file, path, "".join(f"{line}\n" for line in lines).encode(), durable)
        if is_new:
            _sync_folder(path.parent)
    except OSError as error:
        told = f"{path} cannot be written: {error.strerror}; what it holds is whole, the same command goes on"
        raise StudyError(told) from error


def _append(file: IO[bytes], path: Path, data: bytes, durable: bool) -> None:
    end, rest = _end_of_whole_lines(file, path), memoryview(data)
    try:
        while rest:
            rest = rest[file.write(rest) :]
        if durable:
            os.fsync(file.fileno())
    except BaseException:  # a signal too
        file.truncate(end)
        raise


def _refuse(name: str) -> None:
    raise ValueError(f"JSON has no {name}")


def _end_of_whole_lines(file: IO[bytes], path: Path) -> int:
    """Measure the file, once a torn last line is cut off: under the lock it can only come from a dead writer."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - 1))
    if file.read(1) in (b"", b"\n"):
        return size
    file.seek(0)
    whole = file.read().rfind(b"\n") + 1
    warnings.warn(f"{path}: cut off a torn last line of {size - whole} bytes, left by a killed run", stacklevel=5)
    file.truncate(whole)
    return whole


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":  # elsewhere a folder cannot be opened
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
