"""Processes of this machine, one or several, each with a worker that holds its own endpoints."""

from __future__ import annotations

import multiprocessing
import os
import queue
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from typing import Any

from experiments.errors import StudyError
from experiments.grid.subject import Subject
from experiments.grid.worker import Done, Job, Worker, one_thread

POLL = 1.0  # seconds between looks at whether the workers live


def evaluate(
    groups: Sequence[Sequence[Job]], subject: Subject, device: str = "cpu", *, processes: int = 1
) -> Iterator[Done]:
    """Yield the jobs of all groups, each when it is finished.

    On a processor every process has one thread, which gives the same bits everywhere. With one process the work is
    done in this one. StudyError if a worker dies; what a worker raises is raised here.
    """
    if processes == 1 or len(groups) < 2:
        yield from in_this_process(groups, subject, device)
    else:
        yield from in_processes(groups, subject, device, min(processes, len(groups)))


def in_this_process(groups: Sequence[Sequence[Job]], subject: Subject, device: str) -> Iterator[Done]:
    """Evaluate one group after the other."""
    with one_thread(device):
        worker = Worker(subject, device)
        for group in groups:
            yield from worker.evaluate(group)


def in_processes(groups: Sequence[Sequence[Job]], subject: Subject, device: str, count: int) -> Iterator[Done]:
    """Start processes that take the next group when they are free."""
    start = multiprocessing.get_context("spawn")
    waiting, finished = start.Queue(), start.Queue()
    for group in [*groups, *[None] * count]:
        waiting.put(group)
    given = (waiting, finished, subject, device, os.getpid())
    workers = [start.Process(target=_work, args=given) for _ in range(count)]
    try:
        with _without_interrupts():
            for worker in workers:
                worker.start()
        for _ in range(sum(map(len, groups))):
            yield _next(finished, workers)
        for worker in workers:
            worker.join()  # they have met the end of the queue
    finally:
        for worker in workers:
            if worker.is_alive():
                worker.terminate()
                worker.join()
        for channel in (waiting, finished):
            channel.cancel_join_thread()
            channel.close()


@contextmanager
def _without_interrupts() -> Iterator[None]:
    """Processes started meanwhile never see Ctrl-C, not even while they import: it is the parent's, which ends them."""
    if threading.current_thread() is not threading.main_thread():  # which alone may set signals
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _next(finished: Any, workers: Sequence[BaseProcess]) -> Done:
    while True:
        try:
            item = finished.get(timeout=POLL)
        except queue.Empty:
            if dead := [worker for worker in workers if worker.exitcode]:
                raise StudyError(
                    f"a worker died (exit code {dead[0].exitcode}; -9 is mostly too little memory): "
                    "the same command goes on, with fewer --processes if need be"
                ) from None
            continue
        if isinstance(item, BaseException):
            raise item
        return item


def _work(waiting: Any, finished: Any, subject: Subject, device: str, parent: int) -> None:
    """Groups until there is none. Without its parent, which alone writes rows, it stops after the job in hand."""
    try:
        with one_thread(device):
            worker = Worker(subject, device)
            while (group := waiting.get()) is not None:
                for done in worker.evaluate(group):
                    finished.put(done)
                    if os.getppid() != parent:
                        return
    except Exception as error:
        finished.put(error)
