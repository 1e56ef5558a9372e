"""Outputs that appear whole or not at all: a temporary sibling, fsync, rename."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import glob
import os
import secrets
import shutil
from collections.abc import Callable, Generator
from pathlib import Path

from merge.errors import MergeError

PARTIAL = ".partial-"


@contextlib.contextmanager
def replacing(
    target: Path,
    size: int,
    *,
    folder: bool,
    overwrite: bool,
    sync: bool = True,
    before: Callable[[], None] | None = None,
) -> Generator[Path]:
    """Yield a temporary path beside `target`; on success it takes the target's name, on any error it is removed.

    The path is an empty file, or an empty directory with `folder`. `size` bytes must be free. An existing target is
    refused unless `overwrite`, and is then exchanged as a whole; `before` is called just before. What runs killed
    earlier have left is swept away. Raises MergeError for a target that exists, a missing or read-only parent, a disk
    without room.
    """
    target = Path(target)
    check_target(target, size, folder=folder, overwrite=overwrite)
    _sweep(target)
    partial = target.parent / f".{target.name}{PARTIAL}{secrets.token_hex(4)}"
    lock: list[int] = []
    try:
        with _explained(target):
            _claim(partial, folder, lock)
            yield partial
            if sync:
                for path in (partial, *partial.rglob("*")) if folder else (partial,):
                    _sync(path)
            if before:
                before()
            _take_place(partial, target, overwrite)
            if sync:
                with contextlib.suppress(OSError):  # some file systems cannot sync a folder; the output is there
                    _sync(target.parent)
    finally:
        try:
            _discard(partial, lock)
        except BaseException:  # Ctrl-C while tidying up: finish that first
            _discard(partial, lock)
            raise


def _claim(partial: Path, folder: bool, lock: list[int]) -> None:
    """Make the partial output and lock it; again if another run took it for a dead one's in between."""
    while True:
        if folder:
            partial.mkdir()
        else:
            os.close(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
        with contextlib.suppress(FileNotFoundError):
            lock.append(os.open(partial, os.O_RDONLY))
            with contextlib.suppress(OSError):  # a file system without locks: leftovers then stay where they are
                fcntl.flock(lock[-1], fcntl.LOCK_EX)
            if partial.stat().st_ino == os.fstat(lock[-1]).st_ino:
                return


def _discard(partial: Path, lock: list[int]) -> None:
    _remove(partial)
    while lock:
        os.close(lock.pop())


def check_target(target: Path, size: int, *, folder: bool, overwrite: bool) -> None:
    """Raise MergeError where `replacing` could not succeed, before anything is computed."""
    with _explained(target):
        if target.name in ("", ".", "..") or (target.is_symlink() and not target.exists()):
            raise MergeError(f"{target}: not a name for an output")
        if not target.parent.is_dir():
            raise MergeError(f"{target}: its folder {target.parent} does not exist; make it first")
        if target.exists():
            if target.is_dir() != folder:
                raise MergeError(f"{target}: is a {'folder' if target.is_dir() else 'file'}; choose another output")
            if not overwrite:
                raise MergeError(f"{target}: exists; choose another name or pass overwrite=True")
        if not os.access(target.parent, os.W_OK | os.X_OK):
            raise MergeError(f"{target}: no permission to write into {target.parent}")
        free = shutil.disk_usage(target.parent).free
        if size > free:
            raise MergeError(f"{target}: needs {size:,} bytes, {free:,} are free on its disk")


@contextlib.contextmanager
def _explained(target: Path) -> Generator[None]:
    """Tell what the system refuses as a MergeError about the target."""
    try:
        yield
    except OSError as error:
        problem = f"cannot be written: {error.strerror or error}"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            problem = f"the disk is full; nothing was written ({error.strerror})"
        if error.errno == errno.EFBIG:
            problem = f"the file would be larger than allowed; nothing was written ({error.strerror})"
        raise MergeError(f"{target}: {problem}") from error


def _sweep(target: Path) -> None:
    """Remove partial outputs of this target whose writer is gone: a living writer holds a lock."""
    for left in target.parent.glob(f".{glob.escape(target.name)}{PARTIAL}*"):
        with contextlib.suppress(OSError):
            lock = os.open(left, os.O_RDONLY)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _remove(left)
            finally:
                os.close(lock)


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):  # gone, or never made
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()


def _take_place(partial: Path, target: Path, overwrite: bool) -> None:
    """Rename; without `overwrite` never destroying what somebody else may have put there meanwhile."""
    if overwrite and target.is_dir() and not target.is_symlink():
        return _exchange(partial, target)
    if overwrite:
        partial.replace(target)
        return None
    try:
        if partial.is_dir():
            partial.rename(target)  # fails where the name is a folder with something in it
        else:
            os.link(partial, target)  # fails where the name exists, as a rename would not
    except OSError as error:
        if target.exists():
            problem = "was made by someone else meanwhile; pass overwrite=True to replace it"
            raise MergeError(f"{target}: {problem}") from error
        partial.replace(target)  # a file system without hard links
    return None


def _exchange(partial: Path, target: Path) -> None:
    """Swap two folders in one step, so that the name never stops existing; the old content is then removed."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    at_cwd, exchange = -100, 2
    if rename is not None and rename(at_cwd, os.fsencode(partial), at_cwd, os.fsencode(target), exchange) == 0:
        return
    aside = partial.with_name(partial.name + "-old")  # no exchange on this system: two renames
    target.rename(aside)
    partial.rename(target)
    _remove(aside)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
