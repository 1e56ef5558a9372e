"""Ray: one actor for every GPU or processor slot of a machine or a cluster (extra `ray`).

An actor keeps its endpoints, so the next group it gets is one of the same experts if there is any. Jobs are handed out
one by one: what a lost actor had in hand goes back to the others. Rows come home as results, the caller writes them.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import torch

from experiments.errors import StudyError
from experiments.grid.subject import Subject
from experiments.grid.worker import Done, Job, Worker

ATTEMPTS = 3  # a job that was lost with so many actors is not tried again


class Slot:
    """An actor's side: a worker with the endpoints of its last group. On a processor it has one thread."""

    def __init__(self, make: Callable[[Subject, str], Worker], subject: Subject, device: str) -> None:
        if device == "cpu":
            torch.set_num_threads(1)
        self.worker = make(subject, device)

    def ready(self) -> None:
        """Return as soon as the actor is there."""

    def evaluate(self, job: Job) -> Done:
        """Do one job."""
        (done,) = self.worker.evaluate([job])
        return done


@dataclass
class Place:
    """The driver's side of a slot: its actor, and the jobs that it is to do."""

    actor: Any
    group: list[Job] = field(default_factory=list[Job])
    experts: Any = None


def evaluate(
    groups: Sequence[Sequence[Job]],
    subject: Subject,
    device: str = "cpu",
    *,
    processes: int | None = None,
    address: str | None = None,
    make: Callable[[Subject, str], Worker] = Worker,
) -> Generator[Done]:
    """Yield the jobs of all groups, each when it is finished, by `processes` actors (None: one for every slot).

    `address` is that of a running cluster; None starts Ray on this machine, unless the environment names a cluster
    (RAY_ADDRESS). On a cluster every node needs this package and the files at the same paths. StudyError without ray,
    without slots, and for a job that is lost three times; what a worker raises is raised here.
    """
    ray = load_ray()
    started = not ray.is_initialized()
    if started:
        ray.init(address=address, include_dashboard=False if address is None else None, log_to_driver=False)
    try:
        kind = "GPU" if device.startswith("cuda") else "CPU"
        slots = int(ray.cluster_resources().get(kind, 0))
        if not slots:
            raise StudyError(f"ray sees no {kind} for --device {device}: check ray status")
        remote = ray.remote(num_cpus=int(kind == "CPU"), num_gpus=int(kind == "GPU"))(Slot)
        count = min(processes or slots, slots, len(groups))
        yield from _schedule(groups, lambda: remote.remote(make, subject, device), count)
    finally:
        if started:
            ray.shutdown()


def load_ray() -> Any:
    """Return the package, which only this engine needs; StudyError if it is not installed."""
    try:
        return import_module("ray")
    except ImportError as error:
        raise StudyError("the engine ray needs the package ray: pip install 'unival-merge[ray]'") from error


def _schedule(groups: Sequence[Sequence[Job]], start: Callable[[], Any], count: int) -> Generator[Done]:
    """Hands out jobs until all are done. The jobs of a lost actor go to the first that is free, be it its successor."""
    ray = load_ray()
    RayActorError, RayTaskError = ray.exceptions.RayActorError, ray.exceptions.RayTaskError
    waiting = [list(group) for group in groups]
    left, lost = sum(map(len, waiting)), dict[int, int]()
    places = [Place(start()) for _ in range(count)]
    running: dict[Any, Place] = {place.actor.ready.remote(): place for place in places}
    idle: list[Place] = []
    try:
        while left:
            (reference,), _ = ray.wait(list(running), num_returns=1)
            place = running.pop(reference)
            try:
                done = ray.get(reference)
            except RayTaskError as error:
                raise (error.cause if isinstance(error.cause, Exception) else error) from None
            except RayActorError as error:
                _note_loss(place, lost, error)
                waiting += [place.group] if place.group else []
                place.actor, place.group, place.experts = start(), [], None
                running |= {free.actor.ready.remote(): free for free in [place, *idle]}
                idle.clear()
                continue
            if done is not None:
                place.group = place.group[1:]
                left -= 1
                yield done
            if not place.group and waiting:
                place.group = waiting.pop(_next(waiting, place, [other.experts for other in places]))
                place.experts = experts_of(place.group)
            if place.group:
                running[place.actor.evaluate.remote(place.group[0])] = place
            else:
                idle.append(place)
    finally:
        for place in places:
            ray.kill(place.actor)


def _next(waiting: Sequence[Sequence[Job]], place: Place, taken: Sequence[Any]) -> int:
    """The group for a place: of the experts that it has, else of experts that no other has, else the first."""
    kinds = [experts_of(group) for group in waiting]
    if place.experts in kinds:
        return kinds.index(place.experts)
    return next((index for index, kind in enumerate(kinds) if kind not in taken), 0)


def experts_of(group: Sequence[Job]) -> tuple[Any, ...]:
    """Say what a worker keeps between groups depends on: seed, method, experts."""
    job = group[0]
    point = job.cell.point
    return job.seed, point.method, *(expert.id for expert in point.experts.values())


def _note_loss(place: Place, lost: dict[int, int], error: Exception) -> None:
    """Counts how many actors a job has cost (0: one that died before its first). StudyError at the last attempt."""
    key = id(place.group[0]) if place.group else 0
    lost[key] = lost.get(key, 0) + 1
    if lost[key] == ATTEMPTS:
        point = f" at {place.group[0].cell.point.label}, {place.group[0].cell.task}" if place.group else ""
        raise StudyError(f"{ATTEMPTS} workers died{point} ({str(error).splitlines()[0]}): mostly too little memory")
