"""Making experts: the steps of `experiments.unival.pocket.kinds`, each once, as soon as what it starts from is there.

experts/vanilla/<task>/                   run of `unival_core.training.train` from the pretrained weights
experts/joint/<task>+<task>/              the same on several tasks at once
experts/ratatouille/<task>/from-<other>/  run from the vanilla expert of another task of the family
experts/ratatouille/<task>/average.*      of those runs, with its recipe
experts/fusing/<task>/average.*           of the vanilla experts of the family's other tasks, with its recipe
experts/fusing/<task>/from-average/       run from that average
experts/fusing-with-own/<tasks>/average.* of all vanilla experts of a family, with its recipe
experts/fusing-with-own/<task>/from-*/    run from that average
experts/longer/<task>/                    run from the pretrained weights, as long as two
experts/soup/<task>/seed-<n>/             vanilla runs of other seeds, and average.* of these and the vanilla expert
experts/along/<task>/                     run from the pretrained weights that keeps those of every tenth of it
experts/reward/<size>/                    run from the vanilla grounding expert, rewarded for boxes of one size
experts/mixed-rewards/                    the same, rewarded for boxes of all sizes
experts/pretraining/<name>/               run of the study `pretraining`, from the backbone or from another one
costs.csv                                 what those runs took (experiments.unival.pocket.costs)
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from experiments.errors import StudyError
from experiments.study.points import Expert
from experiments.unival.pocket.backbone import inflate
from experiments.unival.pocket.cache import fetch, keep, key_of
from experiments.unival.pocket.codec import make_codes, open_codes
from experiments.unival.pocket.costs import measured
from experiments.unival.pocket.data import rows_digest
from experiments.unival.pocket.kinds import Step, step_of, with_parents
from experiments.unival.pocket.pipeline import (
    Pocket,
    file_digest,
    in_processes,
    make_start,
    open_model,
    timed,
)
from experiments.unival.pocket.pretrainings import Training
from merge import Input, Options, Recipe, read_recipe, run
from unival_core import TASKS, train
from unival_core.training import RunFolder, TrainOptions


def make_models(pocket: Pocket, processes: int = 2, *, progress: bool = True) -> None:
    """Make the world, the pretrained model and the preset's experts, whatever of them is missing."""
    make_experts(pocket, [Expert(task, task, "vanilla") for task in pocket.plan.experts], processes, progress=progress)


def make_experts(
    pocket: Pocket, experts: Iterable[Expert], processes: int = 2, *, progress: bool = True, cache: Path | None = None
) -> dict[str, Path]:
    """Make whatever is missing of the experts and of all they depend on; return their files by their ids.

    Steps run `processes` at a time, each on one thread, which is faster than one at a time on several and gives the
    same bits anywhere. Killed, it goes on where it stopped; two at once follow each other. Finished runs are taken from
    the folder `cache` and put there, if given. Raises StudyError where a run was made of other weights, files or
    settings than it would be now.
    """
    experts = list(experts)
    steps = with_parents([step_of(pocket, expert) for expert in experts])  # says what is wrong before anything is made
    with pocket.alone():
        make_start(pocket, pretrained=not steps or any(step.training is None for step in steps), progress=progress)
        if any(TASKS[task].writes == "codes" for step in steps for task in step.tasks):
            make_codes(pocket, progress=progress)
        refuse_stale(pocket, steps)
        jobs = [(pocket, step, cache) for step in steps if not is_done(pocket, step)]
        in_processes(make, jobs, processes, "experts", progress=progress, first=parent_jobs)
    return {expert.id: expert_file(pocket, expert) for expert in experts}


def parent_jobs(pocket: Pocket, step: Step, cache: Path | None) -> list[tuple[Pocket, Step, Path | None]]:
    """List the jobs that come before the job of a step."""
    return [(pocket, parent, cache) for parent in step.parents]


def expert_file(pocket: Pocket, expert: Expert) -> Path:
    """Say where an expert's weights are, or will be."""
    return file_of(pocket, step_of(pocket, expert))


# -- what is there


def file_of(pocket: Pocket, step: Step | None) -> Path:
    """Return the file of a step; None: of the pretrained weights."""
    return pocket.pretrained if step is None else pocket.folder / "experts" / step.file


def start_of(pocket: Pocket, step: Step) -> Path:
    """Say what a finetuning starts from."""
    if step.training is not None and not step.parents:
        return pocket.backbone
    return file_of(pocket, step.parents[0] if step.parents else None)


def recipe_beside(file: Path) -> Path:
    """Return the recipe that merging writes beside an average, last of all."""
    return file.with_name(f"{file.name}.recipe.json")


def is_done(pocket: Pocket, step: Step) -> bool:
    """Tell whether a step and all before it are done; an average, of the weights that are there now."""
    file = file_of(pocket, step)
    if not file.exists() or not all(is_done(pocket, parent) for parent in step.parents):
        return False
    if step.tasks or step.kept:
        return run_record(file).exists()
    recipe = recipe_beside(file)
    members = [file_digest(file_of(pocket, parent)) for parent in step.parents]
    return recipe.exists() and [item.digest for item in read_recipe(recipe).inputs] == members


def run_record(file: Path) -> Path:
    """Say what `unival_core.training.train` notes beside a run's weights."""
    return file.with_name("run.json")


def made_of(pocket: Pocket, step: Step) -> dict[str, Any]:
    """Return all that a run's weights depend on, for its record."""
    split = step.split if step.training is None else step.training.split
    record: dict[str, Any] = {
        "init": file_digest(start_of(pocket, step)),
        "files": {f"{task}/{split}": rows_digest(pocket.world, task, split) for task in step.tasks},
        "options": None if step.options is None else asdict(step.options),
    }
    if step.parts > 1:
        record["parts"] = step.parts
    if step.training is not None:
        record["portions"] = {portion.task: [portion.share, portion.part] for portion in step.training.portions}
    return record


def refuse_stale(pocket: Pocket, steps: Iterable[Step]) -> None:
    """Raise StudyError where a run, finished or not, is not the one that would be made now, or starts from such a
    one."""
    stale: dict[Step, str] = {}
    for step in steps:
        known = run_record(file_of(pocket, step))
        if not step.tasks or not known.exists():
            continue
        if any(ancestor in stale for ancestor in with_parents(step.parents)):
            stale[step] = ""
        elif start_of(pocket, step).exists():
            difference = differing(RunFolder(known.parent).record(), made_of(pocket, step))
            stale |= {step: difference} if difference else {}
    if stale:
        folders = [str(file_of(pocket, step).parent) for step in stale]
        raise StudyError(
            f"{folders[0]} is another run: {next(iter(stale.values()))}; put that back, or remove {', '.join(folders)}"
        )


def differing(there: dict[str, Any], here: dict[str, Any]) -> str:
    """Return the first thing that the record of a run has otherwise, with both values; "" if there is none."""
    there, here = (
        {"init": record.get("init"), **record.get("files", {}), **record.get("portions", {}), **record["options"]}
        for record in (there, json.loads(json.dumps(here)))
    )
    names = [name for name in here if there.get(name) != here[name]]
    return f"{names[0]} was {there.get(names[0])}, is {here[names[0]]}" if names else ""


# -- making


def make(pocket: Pocket, step: Step, cache: Path | None = None) -> None:
    """Do one step whose parents are there."""
    refuse_stale(pocket, [step])  # that its parents were made anew
    file = file_of(pocket, step)
    if step.kept:  # with its run
        if not file.exists():
            raise StudyError(f"{file} is gone: remove {file.parent}, it is made again")
        return
    with timed(pocket, f"expert {Path(step.file).parent.as_posix()}"):
        if step.options is None:
            average(pocket, step)
            return
        if step.training is not None:
            train_anew(pocket, step, step.training, step.options)
            return
        model, files = open_model(pocket, start_of(pocket, step))
        if any(TASKS[task].writes == "codes" for task in step.tasks):
            model, files = open_codes(pocket, model, files)
        splits = [(task, step.split) for task in step.tasks]
        data = files.training(splits, step.options.seed, step.options.reward)
        record = made_of(pocket, step)
        key = key_of(record)
        fetch(cache, key, file.parent)
        options = {"parts": step.parts, "record": record, "progress": False}
        train(model, files.tokenizer, data, step.options, file.parent, **options)
        keep(cache, key, file.parent)


def train_anew(pocket: Pocket, step: Step, training: Training, options: TrainOptions) -> None:
    """Do a training of the study `pretraining`. None is taken from a cache, as its cost is measured."""
    model, files = open_model(pocket, start_of(pocket, step))
    if step.sees_videos and not any(parent.sees_videos for parent in step.parents):
        inflate(model)
    data = {
        portion.task: files.data(portion.task, training.split, training=True, seed=pocket.seed, part=portion.part)
        for portion in training.portions
    }
    shares = {portion.task: portion.share for portion in training.portions}
    folder, record = file_of(pocket, step).parent, made_of(pocket, step)
    with measured(pocket, folder, training.start, options):
        train(model, files.tokenizer, data, options, folder, weights=shares, record=record, progress=False)


def average(pocket: Pocket, step: Step) -> None:
    """Write the uniform average of the parents, with its recipe."""
    file = file_of(pocket, step)
    file.parent.mkdir(parents=True, exist_ok=True)
    parents = [file_of(pocket, parent) for parent in step.parents]
    inputs = tuple(Input(path.parent.name, path, digest=file_digest(path)) for path in parents)
    run(Recipe("average", inputs), file, Options(overwrite=True, threads=1))
