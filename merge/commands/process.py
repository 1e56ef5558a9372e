"""A command as a process among others: its signals, its streams, and the net under errors that nobody foresaw."""

from __future__ import annotations

import contextlib
import errno
import io
import logging
import os
import shlex
import signal
import sys
import tempfile
import threading
import traceback
import warnings
from collections.abc import Generator
from typing import IO, Any

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
AGAIN = 0.05  # seconds until a signal comes again whose exception was dropped
EXIT_CODES = {
    "0": "done",
    "1": "an error of this program (a traceback is kept in a file that the line names), or standard output could not "
    "take what was asked for; of `doctor`: a merge would be refused",
    "2": "a mistake in what was given, or the system refused; one line on standard error says what, where, the way out",
    "128 + n": "ended by signal n (130 Ctrl-C, 143 SIGTERM, 129 SIGHUP); nothing is left half-written, and what can go "
    "on goes on with the same command",
}
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextlib.contextmanager
def ending_on_signals() -> Generator[list[int]]:
    """Turn Ctrl-C, SIGTERM and SIGHUP into SystemExit(128 + n), so that what is half-written is tidied away.

    A signal that is ignored stays so: `nohup` is to outlive the terminal, a background job its shell's Ctrl-C. Yields
    a list, which holds n once a signal came: what an import makes of it may be another error.
    """
    came: list[int] = []
    is_ending = False
    again: list[threading.Timer] = []

    def stop(number: int, frame: object) -> None:
        nonlocal is_ending
        if is_ending:  # tidying up takes a moment and is not to be cut short
            return
        is_ending = True
        if not came:
            came.append(number)
            told = "interrupted" if number == signal.SIGINT else f"stopped by {signal.Signals(number).name}"
            with contextlib.suppress(OSError, RuntimeError):  # the latter where it came in the middle of another print
                print(f"{told}: nothing was left half-written", file=sys.stderr, flush=True)
        raise SystemExit(128 + came[0])

    def lost(dropped: Any) -> None:
        if came and dropped.exc_type is SystemExit:  # in a finaliser, where Python drops what is raised
            again.append(threading.Timer(AGAIN, once_more))
            again[-1].start()
        else:
            hook(dropped)

    def once_more() -> None:
        nonlocal is_ending
        is_ending = False
        os.kill(os.getpid(), came[0])

    before = {number: signal.getsignal(number) for number in SIGNALS}
    heard = [number for number, handler in before.items() if handler is not signal.SIG_IGN]
    hook, sys.unraisablehook = sys.unraisablehook, lost
    for number in heard:
        signal.signal(number, stop)
    try:
        yield came
    finally:
        for timer in again:
            timer.cancel()
        sys.unraisablehook = hook
        for number in heard:
            signal.signal(number, before[number])


def check_folder() -> None:
    """Exit where the folder that this runs in is gone: libraries would end the process in words of their own."""
    try:
        os.getcwd()
    except OSError as error:
        print(
            f"error: the folder that this runs in is not usable ({error.strerror}): change into another",
            file=sys.stderr,
        )
        sys.exit(2)


class Outlet(io.RawIOBase):
    """What a stream is written through: it keeps the error of a full disk or a closed pipe, and takes what follows.

    Work under way is then finished, and `main` says at the end what could not be told.
    """

    def __init__(self, descriptor: int):
        self.descriptor = descriptor
        self.error: OSError | None = None

    def fileno(self) -> int:
        """Give the file descriptor."""
        return self.descriptor

    def writable(self) -> bool:
        """Say yes, always."""
        return True

    def isatty(self) -> bool:
        """Tell whether it is a terminal."""
        return os.isatty(self.descriptor)

    def write(self, data: Any) -> int:
        """Write what can be written; where nothing can any more, swallow it."""
        if self.error is None:
            try:
                return os.write(self.descriptor, data)
            except OSError as error:
                self.error = error
        return len(data)


@contextlib.contextmanager
def patient_streams() -> Generator[list[Outlet]]:
    """Let what is printed neither end the work nor raise for a sign that the terminal lacks; warnings are one line.

    Yields the outlet of standard output; none where that is no file of its own.
    """
    for descriptor in range(3):  # a closed one would be the number of the next file: an output written into by `print`
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    before = sys.stdout, sys.stderr
    sys.stdout, outlet = _patient(sys.stdout)
    sys.stderr, _ = _patient(sys.stderr)
    with warnings.catch_warnings():
        warnings.showwarning = _warn
        try:
            yield outlet
        finally:
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
            sys.stdout, sys.stderr = before


def _patient(stream: IO[str] | None) -> tuple[IO[str], list[Outlet]]:
    """Give a stream through an outlet, and this; another stream (of a test, a notebook) as it is."""
    if stream is None:  # closed by the caller
        return open(os.devnull, "w", encoding="utf-8"), []
    try:
        outlet = Outlet(stream.fileno())
    except OSError:
        return stream, []
    stream.flush()
    same: dict[str, Any] = {name: getattr(stream, name) for name in ("encoding", "line_buffering", "write_through")}
    return io.TextIOWrapper(io.BufferedWriter(outlet), errors="backslashreplace", **same), [outlet]


class Hushed(io.TextIOBase):
    """A stream that is no terminal, so that nothing draws progress on it, and takes no notes."""

    def __init__(self, stream: IO[str]):
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def isatty(self) -> bool:
        """Say no, always."""
        return False

    def fileno(self) -> int:
        """Give the file descriptor of the stream."""
        return self._stream.fileno()

    def flush(self) -> None:
        """Flush the stream."""
        self._stream.flush()

    def write(self, text: str) -> int:
        """Write what is no note."""
        return len(text) if text.startswith("note: ") else self._stream.write(text)


@contextlib.contextmanager
def telling(*, quiet: bool, verbose: bool, asked: bool) -> Generator[None]:
    """Print less (`--quiet`) or more (`--verbose`) of what is done meanwhile.

    Quiet: no progress, no notes, and on standard output only what was `asked` for. Verbose: what libraries log.
    """
    with contextlib.ExitStack() as stack:
        if quiet:
            stack.enter_context(contextlib.redirect_stderr(Hushed(sys.stderr)))
            if not asked:
                nowhere = stack.enter_context(open(os.devnull, "w", encoding="utf-8"))
                stack.enter_context(contextlib.redirect_stdout(nowhere))
        if verbose:
            root, handler = logging.getLogger(), logging.StreamHandler(sys.stderr)
            handler.setFormatter(logging.Formatter("%(name)s: %(message)s"))
            stack.callback(root.setLevel, root.level)
            stack.callback(root.removeHandler, handler)
            root.addHandler(handler)
            root.setLevel(logging.INFO)
        yield


def _warn(message: Warning | str, *_: Any, **__: Any) -> None:
    print(f"warning: {message}", file=sys.stderr)


def explained(error: Exception) -> tuple[str, int]:
    """Tell an error that nobody foresaw in one line, with the exit code: 2 where the system refused, else 1.

    What is ours comes with a file that holds the traceback.
    """
    if isinstance(error, OSError) and error.errno:
        file: Any = error.filename
        if file is not None or error.errno in FULL:
            named = "" if file is None or isinstance(file, int) else f"{os.fsdecode(file)}: "
            return f"error: {named}{error.strerror}", 2
    first = (str(error).strip().splitlines() or [""])[0]
    if isinstance(error, MemoryError) or "out of memory" in first or "can't allocate memory" in first:
        return f"error: not enough memory: {first or 'it ran out'}", 2
    place = traceback.extract_tb(error.__traceback__)[-1]
    where = f"{os.path.basename(place.filename)}:{place.lineno}"
    return f"internal error: {type(error).__name__}: {first or 'no message'} ({where}); {_reported(error)}", 1


def _reported(error: Exception) -> str:
    """Write the traceback into a file that a report can carry, and say so."""
    try:
        descriptor, path = tempfile.mkstemp(prefix="unival-merge-error-", suffix=".txt")
        with open(descriptor, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(f"{shlex.join(sys.argv)}\npython {sys.version}\n\n{''.join(traceback.format_exception(error))}")
    except OSError as problem:
        return f"please report it (its traceback could not be written: {problem.strerror})"
    return f"please report it with {path}"
