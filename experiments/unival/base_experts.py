"""Making experts at setup base: ratatouille and fusing, from the published ones.

experts/ratatouille/<task>/   in the study's folder, as at setup pocket (experiments.unival.pocket.experts)

Averages are of the weights that were trained, not of their running averages, as published; names that only some experts
have (the network of videos) are averaged among these.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Protocol

from experiments.errors import StudyError
from experiments.study.points import Expert
from experiments.unival.pocket.kinds import KINDS, Step, with_parents
from merge import Input, MergeError, Options, Policy, Recipe, open_checkpoint, run
from unival_core import COMPUTED, Tokenizer, UnivalConfig, find_task, load_model, train
from unival_core.data import MediaCache, TaskDataset
from unival_core.training import TrainOptions, options_for

LIVE = "model"  # section of the weights that were trained


class Files(Protocol):
    """What is asked of setup base (experiments.unival.published)."""

    @property
    def folder(self) -> Path: ...
    @property
    def pretrained(self) -> Path: ...
    def source(self, expert: Expert, seed: int = 0) -> Input: ...
    def page(self, expert: Expert) -> str: ...
    def tokenizer(self, config: UnivalConfig) -> Tokenizer: ...
    def data_digest(self, task: str, split: str) -> str: ...
    def dataset(
        self, task: str, split: str, tokenizer: Tokenizer, config: UnivalConfig, cache: MediaCache, *, seed: int | None
    ) -> TaskDataset: ...


@dataclass(frozen=True)
class BasePlace:
    """What kinds of experts ask of the setup: recipes as published."""

    seed: int

    def recipe(self, task: str) -> TrainOptions:
        """Return the published options of finetuning on a task."""
        return replace(options_for(find_task(task), "base"), seed=self.seed)


def step_at(expert: Expert, seed: int) -> Step | None:
    """Return the last step towards an expert that is made here; None for others."""
    kind = KINDS.get(expert.kind)
    if kind is None or not kind.at_base:
        return None
    return kind.step(BasePlace(seed), expert)  # pyright: ignore[reportArgumentType]


def make_experts(setup: Files, experts: Sequence[Expert], seed: int, device: str) -> None:
    """Make whatever is missing of the experts, one step after the other; a stopped run goes on.

    Raises StudyError for experts that are neither there nor made here, before anything is made.
    """
    steps: list[Step] = []
    for expert in experts:
        if setup.source(expert, seed).path.exists():
            continue
        step = step_at(expert, seed)
        if step is None:
            raise StudyError(f"{setup.source(expert, seed).path} is missing: {setup.page(expert)}")
        steps.append(step)
    wanted = with_parents(steps)
    for step in wanted:
        if is_published(step) and not file_of(setup, step, seed).exists():
            raise StudyError(f"{file_of(setup, step, seed)} is missing: {setup.page(published_expert(step))}")
    for step in (step for step in wanted if not file_of(setup, step, seed).exists()):
        if step.options is None:
            average(setup, step, seed)
        else:
            finetune(setup, step, step.options, device)


def is_published(step: Step) -> bool:
    """Tell whether a step is the finetuning that was published."""
    return step.file.startswith("vanilla/")


def published_expert(step: Step) -> Expert:
    """Return the expert that a published step made."""
    return Expert(step.tasks[0], step.tasks[0], "vanilla")


def file_of(setup: Files, step: Step | None, seed: int) -> Path:
    """Return the file of a step; None: of the pretrained weights."""
    if step is None:
        return setup.pretrained
    if is_published(step):
        return setup.source(published_expert(step), seed).path
    return made_file(setup, step, seed)


def made_file(setup: Files, step: Step, seed: int) -> Path:
    """Return where a step that is made here is, or will be: in a folder of the seed but for seed 0."""
    return setup.folder / (f"seed-{seed}" if seed else "") / "experts" / step.file


def average(setup: Files, step: Step, seed: int) -> None:
    """Write the uniform average of the parents, with its recipe."""
    file = file_of(setup, step, seed)
    file.parent.mkdir(parents=True, exist_ok=True)
    files = {Path(parent.file).parent.name: file_of(setup, parent, seed) for parent in step.parents}
    inputs = tuple(Input(name, path, live_section(path)) for name, path in files.items())
    names = {name for item in inputs for name in open_checkpoint(item.path, item.section)}
    drop = tuple(glob for glob in COMPUTED if any(fnmatchcase(name, glob) for name in names))
    run(Recipe("average", inputs, policy=Policy(drop=drop, missing="union")), file, Options(overwrite=True))


def live_section(file: Path) -> str:
    """Return the section of the weights that were trained, where a file has several."""
    try:
        return open_checkpoint(file).section
    except MergeError:
        return open_checkpoint(file, LIVE).section


def finetune(setup: Files, step: Step, options: TrainOptions, device: str) -> None:
    """Do a finetuning from its parent, or from the pretrained weights."""
    start = file_of(setup, step.parents[0] if step.parents else None, options.seed)
    model = load_model(start, section=live_section(start))
    options = options if device != "cpu" else replace(options, precision="fp32")
    tokenizer, (task,) = setup.tokenizer(model.config), step.tasks
    data = setup.dataset(task, "train", tokenizer, model.config, MediaCache(), seed=options.seed)
    record = {"init": str(start), "data": setup.data_digest(task, "train")}
    folder = made_file(setup, step, options.seed).parent
    train(model.to(device), tokenizer, {task: data}, options, folder, record=record)
