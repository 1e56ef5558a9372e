"""Processes of this machine, one or several, each with a worker that holds its own endpoints."""

from __future__ import annotations

import multiprocessing
import queue
from collections.abc import Generator, Sequence
from multiprocessing.process import BaseProcess
from typing import Any

import torch

from experiments.errors import StudyError
from experiments.grid.children import be_child, end, shielded
from experiments.grid.subject import Subject
from experiments.grid.worker import Done, Job, Worker, check_device, one_thread

POLL = 1.0  # seconds between looks at whether the workers live


def evaluate(
    groups: Sequence[Sequence[Job]], subject: Subject, device: str = "cpu", *, processes: int = 1
) -> Generator[Done]:
    """Yield the jobs of all groups, each when it is finished.

    On a processor every process has one thread, which gives the same bits everywhere. With one process the work is
    done in this one. StudyError if a worker dies; what a worker raises is raised here.
    """
    check_device(device)
    if processes == 1 or len(groups) < 2:
        yield from in_this_process(groups, subject, device)
    else:
        yield from in_processes(groups, subject, device, min(processes, len(groups)))


def in_this_process(groups: Sequence[Sequence[Job]], subject: Subject, device: str) -> Generator[Done]:
    """Evaluate one group after the other."""
    with one_thread(device):
        worker = Worker(subject, device)
        for group in groups:
            yield from worker.evaluate(group)


def in_processes(groups: Sequence[Sequence[Job]], subject: Subject, device: str, count: int) -> Generator[Done]:
    """Start processes that take the next group when they are free."""
    start = multiprocessing.get_context("spawn")
    with shielded():  # this starts the process that frees them however this one ends: it must outlive the terminal
        waiting, finished = start.Queue(), start.Queue()
    for group in [*groups, *[None] * count]:
        waiting.put(group)
    places = spread(device, count)
    workers = [start.Process(target=_work, args=(waiting, finished, subject, place)) for place in places]
    try:
        with shielded():
            for worker in workers:
                worker.start()
        for _ in range(sum(map(len, groups))):
            yield _next(finished, workers)
        for worker in workers:
            worker.join()  # they have met the end of the queue
    finally:
        end(worker for worker in workers if worker.pid)
        for channel in (waiting, finished):
            channel.cancel_join_thread()
            channel.close()


def spread(device: str, count: int) -> list[str]:
    """Return a device for each of some processes: "cuda" is all visible GPUs in turn, "cuda:1" that one.

    >>> spread("cpu", 2)
    ['cpu', 'cpu']
    """
    visible = torch.cuda.device_count() if device == "cuda" else 0
    return [f"{device}:{number % visible}" if visible else device for number in range(count)]


def _next(finished: Any, workers: Sequence[BaseProcess]) -> Done:
    while True:
        try:
            item = finished.get(timeout=POLL)
        except queue.Empty:
            if dead := [worker for worker in workers if worker.exitcode]:
                raise StudyError(
                    f"a worker died (exit code {dead[0].exitcode}; -9 is mostly too little memory, 1 tells why above): "
                    "the same command goes on, with fewer --processes if need be"
                ) from None
            continue
        if isinstance(item, BaseException):
            raise item
        return item


def _work(waiting: Any, finished: Any, subject: Subject, device: str) -> None:
    """Groups until there is none."""
    be_child()
    try:
        with one_thread(device):
            worker = Worker(subject, device)
            while (group := waiting.get()) is not None:
                for done in worker.evaluate(group):
                    finished.put(done)
    except Exception as error:
        finished.put(error)
    except SystemExit:
        finished.cancel_join_thread()  # nobody reads any more, and what is not written must not hold the process
        raise
