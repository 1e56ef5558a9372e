"""From nothing to a pretrained model, as steps that are done once; experts go on from there.

world/                 the embedded world
backbone.safetensors   a model whose image network knows digits and colours
pretraining/<stage>/   runs of `unival_core.training.train`; quick starts from the shipped weights instead
experts/<kind>/        likewise, and averages of them (experiments.unival.pocket.experts)
rows.jsonl, table.md   scores (experiments.grid.rows), and the table
times.csv              CPU seconds of every step
seed-<n>/              experts of another seed, from the same world and pretrained model
"""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from experiments.atomic import write_whole
from experiments.errors import StudyError
from experiments.grid.children import be_child, end, shielded
from experiments.grid.rows import ROW_DIGEST
from experiments.unival.pocket.backbone import fresh_model, inflate, train_backbone
from experiments.unival.pocket.data import Files, world_tokenizer
from experiments.unival.pocket.families import families
from experiments.unival.world.build import make_world
from merge import alone, digest, open_checkpoint
from unival_core import (
    CONFIGS,
    TASKS,
    TOKENIZER_KEY,
    UnivalModel,
    find_task,
    load_model,
    load_tokenizer,
    save_model,
    train,
)
from unival_core.training import BACKBONE, STAGES, TrainOptions, options_for

SHIPPED = Path(__file__).with_name("pretrained.safetensors")
RECORD = "pocket.json"  # in the folder of a pocket: which one it is
Call = tuple[Any, ...]


@dataclass(frozen=True)
class Preset:
    """How much is made: size of the world, experts, share of the recipes' updates, rows evaluated per cell."""

    world: str
    experts: tuple[str, ...]
    updates: float
    rows: int


def _presets() -> dict[str, Preset]:
    """Make the presets: all tasks that have a pocket recipe, those on images, and two of them with one on videos."""
    images, videos = families()["image"], families()["video"]
    others = (name for name, task in TASKS.items() if "pocket" in task.recipes and name not in images)
    return {
        "full": Preset("full", (*images, *others), 1.0, 1000),
        "quick": Preset("quick", images, 0.5, 400),
        "micro": Preset("micro", (*images[:2], videos[0]), 0.001, 8),  # shows that everything runs
    }


PRESETS = _presets()


@dataclass(frozen=True)
class Pocket:
    """A folder, what is made in it, and the seed of all training. The world's own seed is 0.

    With `start`, another pocket of the preset, world and pretrained model are those of that one.
    """

    folder: Path
    preset: str = "full"
    seed: int = 0
    start: Pocket | None = None

    def __post_init__(self) -> None:
        if self.preset not in PRESETS:
            raise StudyError(f"no preset {self.preset!r}: choose one of {', '.join(PRESETS)}")

    @classmethod
    def read(cls, folder: Path) -> Pocket:
        """Return the pocket that was made in a folder; StudyError where none was, or its record is broken."""
        record = folder / RECORD
        if not record.is_file():
            raise StudyError(f"{folder} has no pocket models: make them, unival-merge pocket {folder}")
        try:
            made = json.loads(record.read_bytes())
            return cls(folder, str(made["preset"]), int(made["seed"]))
        except (OSError, ValueError, TypeError, KeyError, RecursionError, StudyError) as error:
            told = str(error) or type(error).__name__
            raise StudyError(
                f"{record} does not tell which pocket this is ({told}): remove it, make the pocket again"
            ) from None

    @property
    def plan(self) -> Preset:
        """Return the preset."""
        return PRESETS[self.preset]

    @property
    def world(self) -> Path:
        """Return its world."""
        return (self.start or self).folder / "world"

    @property
    def backbone(self) -> Path:
        """Return the weights that pretraining starts from."""
        return (self.start or self).folder / "backbone.safetensors"

    @property
    def pretrained(self) -> Path:
        """Return the weights that every expert starts from."""
        if self.preset == "quick":
            return SHIPPED
        return (self.start or self).folder / "pretraining" / STAGES["pocket"][-1].name / "last.safetensors"

    def recipe(self, task: str) -> TrainOptions:
        """Return the options of finetuning on a task."""
        return shared_out(options_for(find_task(task), "pocket"), self)

    def alone(self) -> AbstractContextManager[None]:
        """Keep others out of the folder, with all seeds, while something is made there; wait for who is at work."""
        return alone((self.start or self).folder)

    def with_seed(self, seed: int) -> Pocket:
        """Return experts of another seed, in a folder of their own, from this pocket's world and pretrained model."""
        return Pocket(self.folder / f"seed-{seed}", self.preset, seed, self)


def make_start(pocket: Pocket, *, pretrained: bool = True, progress: bool = True) -> None:
    """Make world, backbone and, if wanted, the pretrained model, whatever of them is missing.

    Nobody else may be at work in the folder: see `Pocket.alone`.
    """
    if pocket.start is not None:
        make_start(pocket.start, pretrained=pretrained, progress=progress)
    pocket.folder.mkdir(parents=True, exist_ok=True)
    record = pocket.folder / RECORD
    if record.exists():
        there = Pocket.read(pocket.folder)
        if (there.preset, there.seed) != (pocket.preset, pocket.seed):
            made, wanted = (f"preset {one.preset}, seed {one.seed}" for one in (there, pocket))
            raise StudyError(f"{pocket.folder} holds {made}, not {wanted}: choose another folder")
    else:
        write_whole(record, json.dumps({"preset": pocket.preset, "seed": pocket.seed}))
    if pocket.start is None:
        done = pocket.preset == "quick" or (pretrained and pocket.pretrained.exists())
        for step in [write_world] if done else [write_world, make_backbone, pretrain][: 2 + pretrained]:
            in_processes(step, [(pocket, progress)], 1, "", progress=False)


def write_world(pocket: Pocket, progress: bool = True) -> None:
    """Write the embedded world of the preset's size."""
    if not (pocket.world / "world.json").exists():
        with timed(pocket, "world"):
            make_world(pocket.world, 0, pocket.plan.world, progress=progress)


def make_backbone(pocket: Pocket, progress: bool = True) -> None:
    """Make a fresh model with a trained image network."""
    file = pocket.backbone
    if file.exists():
        return
    with timed(pocket, "backbone"):
        model = fresh_model(CONFIGS["pocket"], pocket.seed)
        tokenizer = world_tokenizer(pocket.world, model.config)
        train_backbone(model, tokenizer, pocket.world, shared_out(BACKBONE, pocket), progress=progress)
        save_model(model, file, metadata={TOKENIZER_KEY: tokenizer.to_json()})


def pretrain(pocket: Pocket, progress: bool = True) -> None:
    """Run the stages of pretraining, each from the weights of the one before."""
    source = pocket.backbone
    for stage in STAGES["pocket"]:
        folder = pocket.folder / "pretraining" / stage.name
        if not (folder / "last.safetensors").exists():
            with timed(pocket, f"pretraining {stage.name}"):
                model, files = open_model(pocket, source)
                if any(TASKS[task].medium == "video" for task in stage.tasks):
                    inflate(model)
                splits = [(task, stage.split(task)) for task in stage.tasks]
                data = files.training(splits, pocket.seed)
                options = shared_out(stage.options, pocket)
                record = {"stage": stage.name, "init": file_digest(source)}
                shares = stage.tasks
                train(model, files.tokenizer, data, options, folder, weights=shares, record=record, progress=progress)
        source = folder / "last.safetensors"


def shared_out(options: TrainOptions, pocket: Pocket) -> TrainOptions:
    """Return the options with the preset's share of updates, and the seed."""
    return replace(options, updates=max(1, round(options.updates * pocket.plan.updates)), seed=pocket.seed)


def open_model(pocket: Pocket, file: Path) -> tuple[UnivalModel, Files]:
    """Return a model, and the world's files as it reads them."""
    model = load_model(file)
    return model, Files(pocket.world, load_tokenizer(file, model.config), model.config)


def file_digest(file: Path) -> str:
    """Return the digest of a checkpoint's tensors."""
    return digest(open_checkpoint(file), ROW_DIGEST)


@contextmanager
def timed(pocket: Pocket, step: str) -> Iterator[None]:
    """Note the CPU seconds of a step in `times.csv`."""
    began = time.process_time()
    yield
    with (pocket.folder / "times.csv").open("a") as file:
        file.write(f"{step},{time.process_time() - began:.1f}\n")


def nothing_first(*_: Any) -> tuple[()]:
    """Return the jobs that come before a job where any order will do."""
    return ()


def in_processes(
    work: Callable[..., object],
    jobs: Iterable[Call],
    processes: int,
    name: str,
    *,
    progress: bool,
    first: Callable[..., Iterable[Call]] = nothing_first,
) -> None:
    """Call `work` with each job's arguments, in so many processes of one thread each; 1: in this one.

    `first`, called likewise, gives the jobs that have to be done before a job; they stand before it in `jobs`. After
    an error no more jobs are begun, and it is raised when those that run are done.
    """
    waiting = list(jobs)
    with tqdm(desc=name, total=len(waiting), disable=None if progress else True) as bar:
        if processes == 1:
            threads = torch.get_num_threads()
            torch.set_num_threads(1)
            try:
                for job in waiting:
                    work(*job)
                    bar.update()
            finally:
                torch.set_num_threads(threads)
        elif waiting:
            start, others = multiprocessing.get_context("spawn"), multiprocessing.active_children()
            with shielded():  # this starts the process that frees its queues however this one ends
                pool = ProcessPoolExecutor(processes, start, initializer=_begin)
            with pool:
                try:
                    for _ in finished(pool, work, waiting, first):
                        bar.update()
                except BaseException as error:
                    if not isinstance(error, Exception):  # a signal, which waits for nothing
                        end(child for child in multiprocessing.active_children() if child not in others)
                    pool.shutdown(cancel_futures=True)
                    if isinstance(error, BrokenProcessPool):
                        told = "a process died, mostly for too little memory: run it again, with fewer --processes"
                        raise StudyError(f"{name}: {told}") from None
                    raise


def _begin() -> None:
    be_child()
    torch.set_num_threads(1)


def _ending(work: Callable[..., object], *job: Any) -> object:
    """Do a job in a child: told to end, it ends once it has tidied up, where a pool would go on with the next job."""
    try:
        return work(*job)
    except SystemExit as stop:
        os._exit(int(stop.code or 0))


def finished(
    pool: Executor, work: Callable[..., object], jobs: list[Call], first: Callable[..., Iterable[Call]]
) -> Iterator[Call]:
    """Hand jobs to the pool as soon as those before them are done, and yield each when it is done."""
    running: dict[Future[object], Call] = {}
    while jobs or running:
        undone = [*jobs, *running.values()]
        for job in [job for job in jobs if not any(before in undone for before in first(*job))]:
            with shielded():  # this may start a process
                running[pool.submit(_ending, work, *job)] = job
            jobs.remove(job)
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            future.result()
            yield running.pop(future)
