"""Outputs that appear whole or not at all: one lock a target, temporary siblings, fsync, rename; folders locked."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import glob
import logging
import os
import secrets
import shutil
from collections.abc import Generator, Iterable, Mapping
from pathlib import Path
from typing import Any

from merge.checkpoint.owned import recipe_path, refuse_foreign_file, refuse_foreign_folder
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
    recipe: bool = False,
    copied: Mapping[str, Path] | None = None,
) -> Generator[Path]:
    """Yield a temporary path beside `target`; on success it takes the target's name, on any error it is removed.

    The path is an empty file, or an empty directory with `folder`. `size` bytes must be free. An existing target is
    refused unless `overwrite`, and is then exchanged as a whole, if it is nothing but what this tool writes (`copied`:
    files of a folder that are there again). A link to a file is replaced by a file of its own: what it points to, as
    the hub's cache does to what several models share, stays. With `recipe` a second file, `<path>.recipe.json`, takes
    its place beside the target last: killed in between, an output has no recipe, and never that of another merge. Two
    runs into one target follow each other: without `overwrite` the second is refused. What runs killed earlier have
    left is swept away. Raises MergeError for a target that exists, a missing or read-only parent, a disk without room.
    """
    target = Path(target)
    kind: dict[str, Any] = {"folder": folder, "overwrite": overwrite, "recipe": recipe, "copied": copied}
    check_target(target, size, **kind)
    partial = target.parent / f".{target.name}{PARTIAL}{secrets.token_hex(4)}"
    pairs = {partial: target} | ({recipe_path(partial): recipe_path(target)} if recipe else {})
    lock: list[int] = []
    with _explained(target):
        try:
            _take_lock(target, lock, wait=overwrite)
            check_target(target, size, **kind)  # again: another run may have made it meanwhile
            for path in pairs:
                partial.mkdir() if folder and path == partial else path.touch(exist_ok=False)
            yield partial
            if sync:
                for path in (*pairs, *(partial.rglob("*") if folder else ())):
                    _sync(path)
            if overwrite:
                check_target(target, 0, **kind)
            _commit(pairs, overwrite)
            if sync:
                with contextlib.suppress(OSError):  # some file systems cannot sync a folder; the output is there
                    _sync(target.parent)
        finally:
            try:
                _tidy(pairs, target, lock)
            except BaseException:  # Ctrl-C while tidying up: finish that first
                _tidy(pairs, target, lock)
                raise


@contextlib.contextmanager
def alone(folder: str | Path) -> Generator[None]:
    """Make a folder and keep other runs out of it while this one works there; where one does, say so and wait for it.

    The lock is on the folder itself and leaves no file. It ends with the process, also with one that is killed. A run
    that held it may have moved or removed the folder: this one then has a new one.
    """
    folder = Path(folder)
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            if not _may_hold(descriptor):
                logging.getLogger(__name__).warning("another run works in %s: waiting until it is done", folder)
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            if _is(folder, descriptor):
                yield
                return
        finally:
            os.close(descriptor)


def check_target(
    target: Path,
    size: int,
    *,
    folder: bool,
    overwrite: bool,
    recipe: bool = False,
    copied: Mapping[str, Path] | None = None,
) -> None:
    """Raise MergeError where `replacing` could not succeed, before anything is computed."""
    with _explained(target):
        _check_place(target)
        if target.exists():
            if not (target.is_file() or target.is_dir()):
                raise MergeError(f"{target}: is a device, pipe or socket and is never replaced; choose another output")
            if target.is_dir() != folder:
                raise MergeError(f"{target}: is a {'folder' if target.is_dir() else 'file'}; choose another output")
            if not overwrite:
                raise MergeError(f"{target}: exists; choose another name or pass overwrite=True")
            refuse_foreign_folder(target, copied or {}) if folder else refuse_foreign_file(target)
        if recipe and os.path.lexists(recipe_path(target)):
            refuse_foreign_file(recipe_path(target))
        if not os.access(target.parent, os.W_OK | os.X_OK):
            raise MergeError(f"{target}: no permission to write into {target.parent}")
        free = shutil.disk_usage(target.parent).free
        if size > free:
            raise MergeError(f"{target}: needs {size:,} bytes, {free:,} are free on its disk")


def _check_place(target: Path) -> None:
    if target.name in ("", ".", ".."):
        raise MergeError(f"{target}: not a name for an output")
    if target.is_symlink() and not target.exists():
        raise MergeError(f"{target}: is a link to what is not there; remove it or choose another output")
    if not target.parent.is_dir():
        raise MergeError(f"{target}: its folder {target.parent} does not exist; make it first")


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


def _lock_path(target: Path) -> Path:
    return target.parent / f".{target.name}{PARTIAL}lock"


def _take_lock(target: Path, lock: list[int], *, wait: bool) -> None:
    """Take the lock of a target, a hidden file that is gone afterwards; whoever is killed lets go of it.

    Raises MergeError where another run has it and this one does not `wait`. What such runs left is swept away.
    """
    path = _lock_path(target)
    while not lock:
        lock.append(os.open(path, os.O_WRONLY | os.O_CREAT, 0o666))
        try:
            fcntl.flock(lock[0], fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            problem = f"{target}: another run is writing it"
            if not wait:
                raise MergeError(f"{problem}; choose another name or wait for its end") from error
            logging.getLogger(__name__).warning("%s; waiting for its end", problem)
            fcntl.flock(lock[0], fcntl.LOCK_EX)
        except OSError:  # a file system without locks: others may be at work, and what lies there may be theirs
            return
        if not _is(path, lock[0]):  # who had it has removed it in between
            os.close(lock.pop())
    left = target.parent.glob(f".{glob.escape(target.name)}{PARTIAL}*")
    _remove(item for item in left if item != path)


def _tidy(partials: Iterable[Path], target: Path, lock: list[int]) -> None:
    """Remove what is partial, then the lock, if it is this run's."""
    _remove(partials)
    path = _lock_path(target)
    if not lock:  # ended by a signal just after the file was made, before its descriptor was noted
        with contextlib.suppress(OSError):
            lock.append(os.open(path, os.O_WRONLY))
    while lock:
        if _may_hold(lock[0]) and _is(path, lock[0]):
            _remove([path])
        os.close(lock.pop())


def _may_hold(descriptor: int) -> bool:
    """Take a lock, or one's own again; whether nobody else has it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # no locks here
        return True
    return True


def _is(path: Path, descriptor: int) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    return False


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        with contextlib.suppress(OSError):  # gone, or never made
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink()


def _commit(pairs: Mapping[Path, Path], overwrite: bool) -> None:
    """Let the output take its name, then its recipe; the recipe of what was there goes before."""
    (partial, target), *notes = pairs.items()
    for _, note in notes if overwrite else ():
        note.unlink(missing_ok=True)
    _take_place(partial, target, overwrite)
    for written, note in notes:
        written.replace(note)


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
    _remove([aside])


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
