"""`train` and `pretrain`: finetuning on one task, and pretraining on several, stage by stage."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from merge.commands import one_of
from unival_core.commands.options import (
    BATCHNORMS,
    GROUPS,
    PRECISIONS,
    REWARDS,
    SETUPS,
    Bpe,
    Config,
    Section,
    TaskName,
    Workers,
    running,
)

LENGTH, MEMORY = "Instead of the recipe", "Memory and precision"
instead, memory = (partial(typer.Option, rich_help_panel=title) for title in (LENGTH, MEMORY))
validation = partial(typer.Option, rich_help_panel="Validation")


@dataclass(frozen=True)
class Run:
    """What finetuning and pretraining are asked alike; options that are None leave the recipe's."""

    data: Annotated[
        Path, typer.Option(metavar="DIR", help="Folder with <task>/<split>.tsv, as `world make` writes it.")
    ]
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="Folder of the run; a stopped run goes on in it.")
    ]
    answers: Annotated[Path | None, typer.Option(help="Allowed answers: .txt, .json (world.json), .pkl or .tsv.")] = (
        None
    )
    setup: Annotated[
        str | None,
        one_of(SETUPS, "--setup", "Whose recipe, the published one or pocket's; default: by the vocabulary."),
    ] = None
    lr: Annotated[float | None, instead(help="Highest learning rate.")] = None
    updates: Annotated[int | None, instead(min=1, help="Updates of the optimiser.")] = None
    batch: Annotated[int | None, instead(min=1, help="Samples of an update in all processes together.")] = None
    precision: Annotated[str | None, one_of(PRECISIONS, "--precision", "Of the arithmetic.", panel=MEMORY)] = None
    accumulate: Annotated[int | None, memory(min=1, help="Parts that the batch is computed in, to save memory.")] = None
    recompute: Annotated[bool, memory("--recompute", help="Compute layers twice, to save memory.")] = False
    config: Config = None
    bpe: Bpe = None
    section: Section = "auto"
    device: Annotated[
        str, running(metavar="DEVICE", help="cpu or cuda; with torchrun every process takes its own GPU.")
    ] = "cpu"
    seed: Annotated[int, running(min=0, help="Of everything random.")] = 0
    threads: Annotated[int | None, running(min=1, help="CPU threads of a process.")] = None
    workers: Workers = 2
    save_every: Annotated[int | None, running(min=0, help="Updates between places to resume at (0: none).")] = None
    parts: Annotated[
        int, running(min=1, help="Keep the weights at the end of each of so many equal parts of the updates.")
    ] = 1
    tensorboard: Annotated[bool, running("--tensorboard", help="Write the metrics for TensorBoard too.")] = False
    overwrite: Annotated[bool, running("--overwrite", help="Replace another run in the folder.")] = False

    def given(self) -> dict[str, Any]:
        """Return the training options among these, by the names of `TrainOptions`."""
        names = ("lr", "updates", "batch", "accumulate", "precision", "recompute", "save_every", "seed")
        return {name: getattr(self, name) for name in names}

    def how(self) -> dict[str, Any]:
        """Say how a training runs, whatever it learns: arguments of `unival_core.train`."""
        return {name: getattr(self, name) for name in ("workers", "parts", "tensorboard", "overwrite")}


def train(
    task: TaskName,
    init: Annotated[Path, typer.Option(help="Checkpoint to start from.")],
    run: Run,
    split: Annotated[str, typer.Option(metavar="SPLIT", help="Split to train on.")] = "train",
    epochs: Annotated[float | None, instead(help="Passes over the data.")] = None,
    group: Annotated[str | None, one_of(GROUPS, "--group", "Parameters that are trained.", panel=LENGTH)] = None,
    batchnorm: Annotated[
        str | None, one_of(BATCHNORMS, "--batchnorm", "What happens to the statistics.", panel=LENGTH)
    ] = None,
    reward: Annotated[
        str | None, one_of(REWARDS, "--reward", "Self-critical training for boxes of such sizes.", panel=LENGTH)
    ] = None,
    val_split: Annotated[str, validation(metavar="SPLIT", help="Chooses the best weights; '' for none.")] = "val",
    val_rows: Annotated[int, validation(min=1, help="Rows of it that are evaluated.")] = 500,
    validate_every: Annotated[int | None, validation(min=0, help="Updates between validations.")] = None,
) -> None:
    """Finetune a checkpoint on one task, by its recipe.

    \b
    unival-merge train --task vqa --init pretrained.safetensors --data world -o vqa
    torchrun --nproc-per-node 8 -m experiments train --task vqa --init W0.pt --data sets -o vqa --device cuda
    """
    from unival_core.answering import open_model
    from unival_core.tasks import find_task
    from unival_core.training import prepare
    from unival_core.training.parallel import team
    from unival_core.training.recipes import REWARDS, options_for
    from unival_core.training.train import train as learn

    prepare.use_threads(run.threads)
    model, tokenizer = open_model(init, config=run.config, bpe=run.bpe, section=run.section)
    setup = run.setup or prepare.setup_of(model.config)
    known = find_task(task)
    options = options_for(known, setup)
    if setup not in known.recipes:
        length = f"{options.updates} updates" if options.updates else f"{options.epochs:g} epochs"
        typer.echo(f"{task} has no {setup} recipe: trained by the setup's own, {length} at {options.lr:g}", err=True)
    own = {"epochs": epochs, "group": group, "batchnorm": batchnorm, "validate_every": validate_every}
    own["reward"] = prepare.choose(REWARDS[setup], reward, "reward") if reward else None
    options = prepare.change(options, run.given() | own)
    make = prepare.Data(run.data, model, tokenizer, answers=run.answers, seed=run.seed)
    rows = {task: make(task, split, training=True)}
    validate = prepare.validation(make(task, val_split), val_rows, run.workers) if val_split else None
    record = {"init": prepare.tensors_digest(init, run.section)}
    with team(run.device) as members:
        weights = learn(
            model, tokenizer, rows, options, run.output, validate=validate, record=record, team=members, **run.how()
        )
        if members.leads:
            typer.echo(str(weights))


def pretrain(
    init: Annotated[Path, typer.Option(help="Checkpoint to start from: a backbone's, or an earlier stage's.")],
    run: Run,
    stage: Annotated[
        str | None, typer.Option(metavar="STAGE", help="Only this stage; default: all, one after the other.")
    ] = None,
) -> None:
    """Pretrain on several tasks at once, in the stages of the recipe; each has a folder of its own.

    \b
    unival-merge pretrain --init backbone.safetensors --data world -o pretraining
    """
    from unival_core.answering import open_model
    from unival_core.training import prepare
    from unival_core.training.parallel import team
    from unival_core.training.recipes import STAGES
    from unival_core.training.train import train as learn

    prepare.use_threads(run.threads)
    source, section = init, run.section
    model, tokenizer = open_model(init, config=run.config, bpe=run.bpe, section=section)
    recipe = prepare.choose(STAGES, run.setup or prepare.setup_of(model.config), "setup")
    stages = {part.name: part for part in recipe}
    with team(run.device) as members:
        for part in [prepare.choose(stages, stage, "stage")] if stage else stages.values():
            make = prepare.Data(run.data, model, tokenizer, answers=run.answers, seed=run.seed)
            rows = {task: make(task, part.split(task), training=True, **part.sizes(task)) for task in part.tasks}
            record = {"init": prepare.tensors_digest(source, section)}
            options = prepare.change(part.options, run.given())
            output, how = run.output / part.name, {"weights": part.tasks, "stop": part.stop, **run.how()}
            source = learn(model, tokenizer, rows, options, output, record=record, team=members, **how)
            section, (model, _) = "auto", open_model(source, bpe=run.bpe)
        if members.leads:
            typer.echo(str(source))
