"""`train` and `pretrain`: finetuning on one task, and pretraining on several, stage by stage."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Output = Annotated[Path, typer.Option("--output", "-o", help="Folder of the run; a stopped run goes on in it.")]
Data = Annotated[Path, typer.Option(help="Folder with <task>/<split>.tsv, as `world make` writes it.")]
Setup = Annotated[str, typer.Option(help="Whose recipe: base (published) or pocket; default: by the vocabulary.")]
Rate = Annotated[float | None, typer.Option(help="Highest learning rate, instead of the recipe's.")]
Updates = Annotated[int | None, typer.Option(min=1, help="Updates, instead of the recipe's length.")]
Batch = Annotated[int | None, typer.Option(min=1, help="Samples of an update in all processes together.")]
Accumulate = Annotated[int | None, typer.Option(min=1, help="Parts that the batch is computed in, to save memory.")]
Precision = Annotated[str | None, typer.Option(help="fp32, bf16 or fp16.")]
Recompute = Annotated[bool, typer.Option("--recompute", help="Compute layers twice, to save memory.")]
SaveEvery = Annotated[int | None, typer.Option(min=0, help="Updates between places to resume at (0: none).")]
Seed = Annotated[int, typer.Option(min=0, help="Of everything random.")]
Device = Annotated[str, typer.Option(help="cpu or cuda; with torchrun every process takes its own GPU.")]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads of a process.")]
Workers = Annotated[int, typer.Option(min=0, help="Threads that read and decode media ahead.")]
Bpe = Annotated[Path | None, typer.Option(help="Folder with the published encoder.json, vocab.bpe, dict.txt.")]
Board = Annotated[bool, typer.Option("--tensorboard", help="Write the metrics for TensorBoard too.")]
Section = Annotated[str, typer.Option(help="Part of a training file to start from.")]
Answers = Annotated[Path | None, typer.Option(help="Allowed answers: .txt, .json (world.json), .pkl or .tsv.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace another run in the folder.")]


def train(
    task: Annotated[str, typer.Option(help="Task to learn.")],
    init: Annotated[Path, typer.Option(help="Checkpoint to start from.")],
    data: Data,
    output: Output,
    split: Annotated[str, typer.Option(help="Split to train on.")] = "train",
    val_split: Annotated[str, typer.Option(help="Split that chooses the best weights; '' for none.")] = "val",
    val_rows: Annotated[int, typer.Option(min=1, help="Rows of it that are evaluated.")] = 500,
    answers: Answers = None,
    setup: Setup = "",
    reward: Annotated[str, typer.Option(help="Self-critical training for small, medium or large boxes.")] = "",
    lr: Rate = None,
    updates: Updates = None,
    epochs: Annotated[float | None, typer.Option(help="Passes over the data, instead of the recipe's.")] = None,
    batch: Batch = None,
    accumulate: Accumulate = None,
    precision: Precision = None,
    group: Annotated[str | None, typer.Option(help="all, 'all but embeddings' or projections.")] = None,
    batchnorm: Annotated[str | None, typer.Option(help="train or freeze the statistics.")] = None,
    recompute: Recompute = False,
    validate_every: Annotated[int | None, typer.Option(min=0, help="Updates between validations.")] = None,
    save_every: SaveEvery = None,
    seed: Seed = 0,
    device: Device = "cpu",
    threads: Threads = None,
    workers: Workers = 2,
    bpe: Bpe = None,
    section: Section = "auto",
    tensorboard: Board = False,
    overwrite: Overwrite = False,
) -> None:
    """Finetune a checkpoint on one task, by its recipe.

    \b
    unival-merge train --task vqa --init pretrained.safetensors --data world -o vqa
    torchrun --nproc-per-node 8 -m experiments train --task vqa --init W0.pt --data sets -o vqa --device cuda
    """
    given = {
        "lr": lr, "updates": updates, "epochs": epochs, "batch": batch, "accumulate": accumulate,
        "precision": precision, "group": group, "batchnorm": batchnorm, "recompute": recompute,
        "validate_every": validate_every, "save_every": save_every, "seed": seed,
    }  # fmt: skip
    from unival_core.tasks import find_task
    from unival_core.training import prepare
    from unival_core.training.parallel import team
    from unival_core.training.recipes import REWARDS, options_for
    from unival_core.training.train import train as learn

    prepare.use_threads(threads)
    model, tokenizer = prepare.open_model(init, bpe, section)
    setup = setup or prepare.setup_of(model.config)
    known = find_task(task)
    options = options_for(known, setup)
    if setup not in known.recipes:
        length = f"{options.updates} updates" if options.updates else f"{options.epochs:g} epochs"
        typer.echo(f"{task} has no {setup} recipe: trained by the setup's own, {length} at {options.lr:g}", err=True)
    chosen = prepare.choose(REWARDS[setup], reward, "reward") if reward else None
    options = prepare.change(options, given | {"reward": chosen})
    make = prepare.Data(data, model, tokenizer, answers=answers, seed=seed)
    rows = make(task, split, training=True)
    held = make(task, val_split) if val_split else None
    with team(device) as members:
        weights = learn(
            model,
            tokenizer,
            {task: rows},
            options,
            output,
            validate=None if held is None else prepare.validation(held, val_rows, workers),
            record={"init": prepare.tensors_digest(init, section)},
            team=members,
            workers=workers,
            tensorboard=tensorboard,
            overwrite=overwrite,
        )
        if members.leads:
            typer.echo(str(weights))


def pretrain(
    init: Annotated[Path, typer.Option(help="Checkpoint to start from: a backbone's, or an earlier stage's.")],
    data: Data,
    output: Output,
    stage: Annotated[str, typer.Option(help="Only this stage; default: all, one after the other.")] = "",
    answers: Answers = None,
    setup: Setup = "",
    lr: Rate = None,
    updates: Updates = None,
    batch: Batch = None,
    accumulate: Accumulate = None,
    precision: Precision = None,
    recompute: Recompute = False,
    save_every: SaveEvery = None,
    seed: Seed = 0,
    device: Device = "cpu",
    threads: Threads = None,
    workers: Workers = 2,
    bpe: Bpe = None,
    section: Section = "auto",
    tensorboard: Board = False,
    overwrite: Overwrite = False,
) -> None:
    """Pretrain on several tasks at once, in the stages of the recipe; each has a folder of its own.

    \b
    unival-merge pretrain --init backbone.safetensors --data world -o pretraining
    """
    given = {
        "lr": lr, "updates": updates, "batch": batch, "accumulate": accumulate, "precision": precision,
        "recompute": recompute, "save_every": save_every, "seed": seed,
    }  # fmt: skip
    from unival_core.training import prepare
    from unival_core.training.parallel import team
    from unival_core.training.recipes import STAGES
    from unival_core.training.train import train as learn

    prepare.use_threads(threads)
    source, (model, tokenizer) = init, prepare.open_model(init, bpe, section)
    stages = {part.name: part for part in prepare.choose(STAGES, setup or prepare.setup_of(model.config), "setup")}
    with team(device) as members:
        for part in [prepare.choose(stages, stage, "stage")] if stage else stages.values():
            make = prepare.Data(data, model, tokenizer, answers=answers, seed=seed)
            rows = {
                task: make(task, part.split(task), training=True, side=part.side, frames=part.frames)
                for task in part.tasks
            }
            record = {"init": prepare.tensors_digest(source, section)}
            source = learn(
                model,
                tokenizer,
                rows,
                prepare.change(part.options, given),
                output / part.name,
                weights=part.tasks,
                record=record,
                team=members,
                workers=workers,
                tensorboard=tensorboard,
                overwrite=overwrite,
            )
            section, (model, _) = "auto", prepare.open_model(source, bpe)
        if members.leads:
            typer.echo(str(source))
