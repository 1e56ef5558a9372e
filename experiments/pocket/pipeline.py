"""From nothing to experts and the table that compares them, as steps that are done once.

world/                 the embedded world
backbone.safetensors   a model whose image network knows digits and colours
pretraining/<stage>/   runs of `unival_core.train`; quick starts from the shipped weights instead
experts/<task>/        likewise
rows.jsonl, table.md   scores (experiments.results), and the table
times.csv              CPU seconds of every step
"""

from __future__ import annotations

import json
import multiprocessing
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from experiments.errors import StudyError
from experiments.pocket.backbone import fresh_model, inflate, train_backbone
from experiments.pocket.data import Files, world_tokenizer
from experiments.world.build import make_world
from merge import digest, open_checkpoint
from unival_core.checkpoint import load_model, save_model
from unival_core.config import CONFIGS
from unival_core.model import UnivalModel
from unival_core.recipes import BACKBONE, RECIPES, STAGES
from unival_core.train import TrainOptions, train
from unival_core.vocabulary import TOKENIZER_KEY, load_tokenizer

SHIPPED = Path(__file__).with_name("pretrained.safetensors")
IMAGE_TASKS = ("vqa", "caption", "grounding", "entailment")


@dataclass(frozen=True)
class Preset:
    """How much is made: size of the world, experts, share of the recipes' updates, rows evaluated per cell."""

    world: str
    experts: tuple[str, ...]
    updates: float
    rows: int


PRESETS = {
    "full": Preset("full", (*IMAGE_TASKS, "video-caption", "video-qa", "audio-caption"), 1.0, 1000),
    "quick": Preset("quick", IMAGE_TASKS, 0.5, 400),
    "micro": Preset("micro", ("vqa", "caption", "video-qa"), 0.001, 8),  # shows that everything runs
}


@dataclass(frozen=True)
class Pocket:
    """A folder, what is made in it, and the seed of all training. The world's own seed is 0."""

    folder: Path
    preset: str = "full"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.preset not in PRESETS:
            raise StudyError(f"no preset {self.preset!r}: choose one of {', '.join(PRESETS)}")

    @property
    def plan(self) -> Preset:
        """The preset."""
        return PRESETS[self.preset]

    @property
    def world(self) -> Path:
        """Its world."""
        return self.folder / "world"

    @property
    def pretrained(self) -> Path:
        """The weights that every expert starts from."""
        if self.preset == "quick":
            return SHIPPED
        return self.folder / "pretraining" / STAGES["pocket"][-1].name / "last.safetensors"

    def expert(self, task: str) -> Path:
        """The weights of an expert."""
        return self.folder / "experts" / task / "last.safetensors"


def make_models(pocket: Pocket, processes: int = 2, *, progress: bool = True) -> None:
    """World, pretrained model and experts, whatever of them is missing. Experts are trained `processes` at a time,
    each on one thread, which is faster than one at a time on several and gives the same bits anywhere."""
    pocket.folder.mkdir(parents=True, exist_ok=True)
    record = pocket.folder / "pocket.json"
    wanted = json.dumps({"preset": pocket.preset, "seed": pocket.seed})
    if record.exists() and record.read_text() != wanted:
        raise StudyError(f"{pocket.folder} holds {record.read_text()}, not {wanted}: choose another folder")
    record.write_text(wanted)
    steps = [write_world] if pocket.preset == "quick" else [write_world, make_backbone, pretrain]
    for step in steps:
        in_processes(step, [(pocket, progress)], 1, "", progress=False)
    jobs = [(pocket, task) for task in pocket.plan.experts if not pocket.expert(task).exists()]
    in_processes(make_expert, jobs, processes, "experts", progress=progress)


def write_world(pocket: Pocket, progress: bool = True) -> None:
    """The embedded world of the preset's size."""
    if not (pocket.world / "world.json").exists():
        with timed(pocket, "world"):
            make_world(pocket.world, 0, pocket.plan.world, progress=progress)


def make_backbone(pocket: Pocket, progress: bool = True) -> None:
    """A fresh model with a trained image network."""
    file = pocket.folder / "backbone.safetensors"
    if file.exists():
        return
    with timed(pocket, "backbone"):
        model = fresh_model(CONFIGS["pocket"], pocket.seed)
        train_backbone(model, pocket.world, shared_out(BACKBONE, pocket), progress=progress)
        tokenizer = world_tokenizer(pocket.world, model.config)
        save_model(model, file, metadata={TOKENIZER_KEY: tokenizer.to_json()})


def pretrain(pocket: Pocket, progress: bool = True) -> None:
    """The stages of pretraining, each from the weights of the one before."""
    source = pocket.folder / "backbone.safetensors"
    for stage in STAGES["pocket"]:
        folder = pocket.folder / "pretraining" / stage.name
        if not (folder / "last.safetensors").exists():
            with timed(pocket, f"pretraining {stage.name}"):
                model, files = open_model(pocket, source)
                if any(task.startswith("video") for task in stage.tasks):
                    inflate(model)
                splits = [(task, stage.split(task)) for task in stage.tasks]
                data = files.training(splits, pocket.seed)
                options = shared_out(stage.options, pocket)
                record = {"stage": stage.name, "init": file_digest(source)}
                shares = stage.tasks
                train(model, files.tokenizer, data, options, folder, weights=shares, record=record, progress=progress)
        source = folder / "last.safetensors"


def make_expert(pocket: Pocket, task: str) -> None:
    """Finetunes the pretrained model on one task."""
    with timed(pocket, f"expert {task}"):
        model, files = open_model(pocket, pocket.pretrained)
        options = shared_out(RECIPES["pocket"][task].options, pocket)
        data = files.training([(task, "train")], pocket.seed)
        record = {"task": task, "init": file_digest(pocket.pretrained)}
        train(model, files.tokenizer, data, options, pocket.expert(task).parent, record=record, progress=False)


def shared_out(options: TrainOptions, pocket: Pocket) -> TrainOptions:
    """The options with the preset's share of updates, and the seed."""
    return replace(options, updates=max(1, round(options.updates * pocket.plan.updates)), seed=pocket.seed)


def open_model(pocket: Pocket, file: Path) -> tuple[UnivalModel, Files]:
    """A model, and the world's files as it reads them."""
    model = load_model(file)
    return model, Files(pocket.world, load_tokenizer(file, model.config), model.config)


def file_digest(file: Path) -> str:
    """The digest of a checkpoint's tensors."""
    return digest(open_checkpoint(file))


@contextmanager
def timed(pocket: Pocket, step: str) -> Iterator[None]:
    """Notes the CPU seconds of a step in `times.csv`."""
    began = time.process_time()
    yield
    with (pocket.folder / "times.csv").open("a") as file:
        file.write(f"{step},{time.process_time() - began:.1f}\n")


def in_processes(
    work: Callable[..., None], jobs: Iterable[tuple[Any, ...]], processes: int, name: str, *, progress: bool
) -> None:
    """Calls `work` with each job's arguments, in so many processes of one thread each; 1: in this one."""
    jobs = list(jobs)
    bar = tqdm(desc=name, total=len(jobs), disable=not progress)
    if processes == 1:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            for job in jobs:
                work(*job)
                bar.update()
        finally:
            torch.set_num_threads(threads)
    elif jobs:
        start = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(processes, start, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            for future in as_completed([pool.submit(work, *job) for job in jobs]):
                future.result()
                bar.update()
    bar.close()
