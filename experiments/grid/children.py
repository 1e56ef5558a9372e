"""Processes that a run starts: they end with it however it ends, tidily, and leave signals of the terminal to it."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Generator, Iterable
from multiprocessing.process import BaseProcess
from typing import Any

from experiments.errors import StudyError

TERMINAL = {signal.SIGINT, signal.SIGHUP}  # what a terminal sends to all processes of a command


def refuse_in_script() -> None:
    """Raise StudyError in a process that runs a script again to learn its names, before it may start anything.

    Its parent holds the folder and waits for it, so it must not wait for the folder.
    """
    if getattr(multiprocessing.current_process(), "_inheriting", False):  # as multiprocessing itself tells
        script = getattr(sys.modules.get("__mp_main__"), "__file__", None) or "the script"
        raise StudyError(
            f"{script} runs again in each process that it starts: put what starts the study under "
            '`if __name__ == "__main__":`'
        )


@contextlib.contextmanager
def shielded() -> Generator[None]:
    """Start processes in this block that the terminal's signals never reach, not even while they import.

    This process gets those that come meanwhile behind the block.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, TERMINAL)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def be_child() -> None:
    """Make this process a child: SIGTERM ends it tidily, and it comes from itself when the parent is gone."""
    signal.signal(signal.SIGTERM, _end)
    sys.unraisablehook = _once_more
    for number in TERMINAL:
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_follow, daemon=True).start()


def end(children: Iterable[BaseProcess]) -> None:
    """Tell children to end, all at once, and wait until they have tidied up."""
    running = [child for child in children if child.is_alive()]
    for child in running:
        child.terminate()
    for child in running:
        child.join()


def _end(number: int, _: object) -> None:
    signal.signal(number, signal.SIG_IGN)  # tidying up is not to be cut short
    sys.exit(128 + number)


def _once_more(dropped: Any) -> None:
    """Let the signal come again where its exception was raised in a finaliser, where Python drops it."""
    if dropped.exc_type is SystemExit:
        signal.signal(signal.SIGTERM, _end)
        threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGTERM)).start()
    else:
        sys.__unraisablehook__(dropped)


def _follow() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)
