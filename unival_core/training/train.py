"""Training: one loop for pretraining on several tasks and for finetuning on one (arXiv 2307.16184, sections 3.4, G).

`train` reads from top to bottom: open the folder, resume, and for every update read batches, lower the loss, log, and
from time to time validate and save. What it lowers is in `training/loss.py` and `training/rewards.py`.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from merge import alone
from unival_core.checkpoint import load_model, save_model
from unival_core.data.batch import Batch, Example, collate
from unival_core.data.dataset import TaskDataset
from unival_core.data.loading import TrainingStream
from unival_core.data.sampling import BalancedSampler
from unival_core.decoding import first_nonfinite
from unival_core.errors import NotFinite, UnivalError
from unival_core.model import UnivalModel
from unival_core.training.loss import TokenLoss
from unival_core.training.memory import recompute_layers
from unival_core.training.optim import Average, learning_rate, make_optimizer, set_rate, trainable
from unival_core.training.options import TrainOptions
from unival_core.training.parallel import Team
from unival_core.training.rewards import RewardLoss
from unival_core.training.state import MetricsFile, RunFolder
from unival_core.vocabulary import TOKENIZER_KEY, Tokenizer

__all__ = ["TrainOptions", "train"]

Validate = Callable[[UnivalModel], float]
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def train(
    model: UnivalModel,
    tokenizer: Tokenizer,
    data: Mapping[str, TaskDataset],
    options: TrainOptions,
    folder: str | Path,
    *,
    weights: Mapping[str, float] | None = None,
    validate: Validate | None = None,
    record: Mapping[str, Any] | None = None,
    team: Team | None = None,
    workers: int = 0,
    parts: int = 1,
    stop: float = 1.0,
    tensorboard: bool = False,
    progress: bool = True,
    overwrite: bool = False,
) -> Path:
    """Train the model on the data sets by task, and returns the file of the weights to use.

    Those are the best by `validate` (a score, higher is better) if given, else the last; both are kept in `folder`
    (`training/state.py` lists its files). `weights` are the tasks' shares of every batch, equal by default. `record` is
    what else tells this run from others (digests, recipe name). Of several equal `parts` of the updates the weights at
    the end of each but the last are kept too (`RunFolder.part`). At the share `stop` of the updates the run ends, its
    rate where the whole schedule has it there. Where the same run was stopped in `folder` it goes on
    and ends with the same bits; where it is finished nothing happens. Another run there raises UnivalError unless
    `overwrite`; while one trains there, this one waits. The model is changed in place; no random generator is left as
    it was.
    """
    team = team or Team()
    run = Run(model, tokenizer, data, options, RunFolder(folder), weights=weights, team=team, workers=workers)
    made_of = {"options": asdict(options), "data": run.stream.state_dict()["made_of"], **(record or {})}
    with alone(run.folder.path) if team.leads else nullcontext():
        if team.leads:
            run.folder.open(made_of, overwrite=overwrite)
        team.wait()
        if not run.folder.last.exists():
            run.resume()
            with Log(run, tensorboard=tensorboard, progress=progress) as log:
                learn(run, validate, log, parts, max(1, round(run.total * stop)))
            if team.leads:
                run.save_weights(run.folder.last)
                run.folder.finish()
            team.wait()
    return run.folder.best if run.folder.best.exists() else run.folder.last


def learn(run: Run, validate: Validate | None, log: Log, parts: int, end: int) -> None:
    """Do the updates that are left of a run until its `end`, and from time to time validate and save."""
    ends = [max(1, round(run.total * part / parts)) for part in range(1, parts)]
    for update, examples in zip(range(run.update + 1, end + 1), run.stream, strict=False):
        log.add(run.step(update, examples))
        last = update == end
        if validate is not None and (last or is_due(update, run.options.validate_every)):
            log.add({"validation": run.validate(validate)})
        log.end(update)
        for part in (part for part, place in enumerate(ends, 1) if place == update and run.team.leads):
            run.save_weights(run.folder.part(part, parts))
        if not last and is_due(update, run.options.save_every):
            run.save()


def is_due(update: int, every: int) -> bool:
    """Tell whether an update is one of every so many (0: of none)."""
    return every > 0 and update % every == 0


class Run:
    """A model, its optimiser and its data, after `update` updates of `total`."""

    def __init__(
        self,
        model: UnivalModel,
        tokenizer: Tokenizer,
        data: Mapping[str, TaskDataset],
        options: TrainOptions,
        folder: RunFolder,
        *,
        weights: Mapping[str, float] | None,
        team: Team,
        workers: int,
    ) -> None:
        if options.batch % (options.accumulate * team.size):
            raise UnivalError(
                f"a batch of {options.batch} does not divide among {team.size} processes x {options.accumulate} parts"
            )
        self.model, self.options, self.folder, self.team = model.to(team.device), options, folder, team
        published = model.config.has_published_text  # whose tokenizer is not ours to write
        self.metadata = {} if published else {TOKENIZER_KEY: tokenizer.to_json()}
        for rows in data.values():
            self.metadata |= rows.notes
        self.update, self.total = 0, options.length(max(map(len, data.values())))
        self.best = -math.inf
        model.regularize(options.regularization)
        if options.recompute:
            recompute_layers(model)
        self.parameters = trainable(model, options.group)
        self.optimizer = make_optimizer(self.parameters, options)
        self.average = None if options.ema is None else Average(model, options.ema)
        self.scaler = torch.amp.GradScaler(team.device.type, enabled=options.precision == "fp16")
        sizes = {task: len(rows) for task, rows in data.items()}
        per_process = options.batch // team.size
        sampler = BalancedSampler(
            sizes, per_process, weights=weights, seed=options.seed, rank=team.rank, world=team.size
        )
        self.stream = TrainingStream(data, sampler, workers=workers)
        self.tasks = list(data)
        self.losses: TokenLoss | RewardLoss = (
            TokenLoss(model, options.loss) if options.reward is None else RewardLoss(model, tokenizer, options.reward)
        )
        self.parallel: DistributedDataParallel | None = None
        if team.size > 1:
            own = [team.device] if team.device.type == "cuda" else None
            self.parallel = DistributedDataParallel(self.losses, device_ids=own, find_unused_parameters=True)

    def step(self, update: int, examples: list[Example]) -> dict[str, float]:
        """Return one update; returns what is worth logging."""
        self.seed(update)
        self.model.train()
        for module in self.model.modules() if self.options.batchnorm == "freeze" else ():
            if isinstance(module, _BatchNorm):
                module.eval()
        rate = learning_rate(update, self.total, self.options)
        set_rate(self.optimizer, rate)
        parts = [self.batches(examples[part :: self.options.accumulate]) for part in range(self.options.accumulate)]
        scale = self.scale(parts, update)
        self.optimizer.zero_grad(set_to_none=True)
        losses = dict.fromkeys(self.tasks, 0.0)
        for number, part in enumerate(parts):
            for task, loss in self.backward(part, scale, update, is_last=number == len(parts) - 1).items():
                losses[task] += loss
        logged = self.logged(update, losses, scale)
        self.scaler.unscale_(self.optimizer)
        norm = float(nn.utils.clip_grad_norm_(self.parameters, self.options.clip))
        if not (math.isfinite(norm) or self.scaler.is_enabled()):  # the scaler leaves such an update out
            raise NotFinite(f"the gradient of update {update} is not finite: lower lr ({self.options.lr}) or clip")
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.average is not None:
            self.average.update(self.model)
        self.update = update
        return logged | {"lr": rate, "gradient norm": norm}

    def batches(self, examples: Sequence[Example]) -> list[Batch]:
        """Return one batch for each medium, so that no image is padded to the length of a video."""
        media = dict.fromkeys(example.medium for example in examples)
        batches = [collate([example for example in examples if example.medium == medium]) for medium in media]
        return [batch.to(self.team.device) for batch in batches]

    def scale(self, parts: list[list[Batch]], update: int) -> dict[str, float]:
        """Weigh a token of each task, so that all processes and parts together lower the mean over the tasks."""
        counts = dict.fromkeys(self.tasks, 0.0)
        for part in parts:
            for task, count in self.losses.count(part, update).items():
                counts[task] += count
        counts = {task: count for task, count in self.team.sum(counts).items() if count}
        return {task: self.team.size / (len(counts) * count) for task, count in counts.items()}

    def backward(self, part: list[Batch], scale: dict[str, float], update: int, *, is_last: bool) -> dict[str, float]:
        """Add the gradients of one part; they are exchanged among processes with the last one."""
        dtype, device = _DTYPES[self.options.precision], self.team.device.type
        with nullcontext() if is_last or self.parallel is None else self.parallel.no_sync():
            with torch.autocast(device, dtype, enabled=dtype != torch.float32):
                losses: dict[str, Tensor] = (self.parallel or self.losses)(part, scale, update)
            self.scaler.scale(torch.stack([*losses.values()]).sum()).backward()
        return {task: float(loss.detach()) for task, loss in losses.items()}

    def logged(self, update: int, losses: dict[str, float], scale: dict[str, float]) -> dict[str, float]:
        """Return what the log says of losses: their sum, and each task's own mean. NotFinite before weights spoil."""
        losses = {task: loss / self.team.size for task, loss in self.team.sum(losses).items()}
        loss = sum(losses.values())
        if not math.isfinite(loss):
            advice = f"lower lr ({self.options.lr}) or clip"
            if self.options.precision == "fp16":
                advice = f"fp16 overflows so, try bf16; or {advice}"
            if name := first_nonfinite(self.model.named_parameters()):  # statistics follow what overflows
                advice = f"{name} holds NaN or infinity, so start from other weights"
            raise NotFinite(f"the loss of update {update} is {loss}: {advice}")
        own = {f"loss {task}": losses[task] * len(scale) if task in scale else math.nan for task in self.tasks}
        return {"loss": loss, **own}

    def seed(self, update: int) -> None:
        """Seed what is random in an update by its number alone: a resumed run needs no generator's state."""
        words = np.random.SeedSequence([self.options.seed, self.team.rank, update]).generate_state(2, np.uint64)
        torch.manual_seed(int(words[0]))
        random.seed(int(words[1]))

    def validate(self, score: Validate) -> float:
        """Score the averaged weights, or of the weights; the best ones are kept. 0 in all processes but one."""
        value = 0.0
        if self.team.leads:
            with self.average.worn_by(self.model) if self.average is not None else nullcontext():
                value = score(self.model.eval())
                if value > self.best:
                    self.best = value
                    self.write(self.folder.best)
        self.team.wait()
        return value

    def save(self) -> None:
        """Make this update the place to resume at."""
        if self.team.leads:
            self.write(self.folder.weights(self.update))
            self.folder.save_state(
                {
                    "update": self.update,
                    "best": self.best,
                    "optimizer": self.optimizer.state_dict(),
                    "scaler": self.scaler.state_dict(),
                    "stream": self.stream.state_dict(),
                    "average": None if self.average is None else self.average.tensors,
                }
            )
        self.team.wait()

    def resume(self) -> None:
        """Go on where the run in the folder was saved, if it was."""
        state = self.folder.load_state()
        if state is None:
            return
        self.update, self.best = state["update"], state["best"]
        stored = load_model(self.folder.weights(self.update), self.model.config, device=self.team.device)
        self.model.load_state_dict(stored.state_dict())
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.stream.load_state_dict(state["stream"])
        if self.average is not None:
            self.average.tensors = {name: tensor.to(self.team.device) for name, tensor in state["average"].items()}

    def save_weights(self, path: Path) -> None:
        """Write the averaged weights, or the weights."""
        with self.average.worn_by(self.model) if self.average is not None else nullcontext():
            self.write(path)

    def write(self, path: Path) -> None:
        """Write the model as it is."""
        save_model(self.model, path, metadata=self.metadata, overwrite=True)


class Log:
    """A row of `metrics.csv` for every update, a progress bar, and TensorBoard if wanted; the first process only."""

    def __init__(self, run: Run, *, tensorboard: bool, progress: bool) -> None:
        self.run, self.row, self.began = run, {}, time.monotonic()
        names = ["loss", "lr", "gradient norm", *(f"loss {task}" for task in run.tasks), "validation"]
        leads = run.team.leads
        self.board = _board(run.folder.path) if tensorboard and leads else None
        columns = ["update", "seconds", *names]
        self.file = MetricsFile(run.folder.metrics, columns, run.update) if leads else None
        self.bar = tqdm(
            desc=run.folder.path.name,
            total=run.total,
            initial=run.update,
            unit="update",
            disable=not (progress and leads),
        )

    def __enter__(self) -> Log:
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()
        for file in (self.file, self.board):
            if file is not None:
                file.close()

    def add(self, values: Mapping[str, float]) -> None:
        """Add values to the current update's row."""
        self.row |= values

    def end(self, update: int) -> None:
        """Write the row of an update, which is complete."""
        if self.file is not None:
            self.file.write({"update": update, "seconds": time.monotonic() - self.began, **self.row})
        if self.board is not None:
            for name, value in self.row.items():
                self.board.add_scalar(name, value, update)
        self.bar.update()
        samples = self.run.options.batch * (self.bar.format_dict["rate"] or 0.0)
        self.bar.set_postfix_str(f"loss {self.row['loss']:.3f}, {samples:.0f} samples/s", refresh=False)
        self.row = {}


def _board(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UnivalError("TensorBoard is not installed: pip install tensorboard, or leave --tensorboard out") from None
    return SummaryWriter(str(folder))
