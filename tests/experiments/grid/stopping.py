"""A study that is stopped in every way: `python -m tests.experiments.grid.stopping FOLDER` prints how each run ended.

Runs are forks of one process, so that none has to import torch. What is studied are models of one number.
"""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import sys
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import merge
from experiments.errors import StudyError
from experiments.grid.engines.local import evaluate
from experiments.grid.grid import Grid, Summary, run_cells
from experiments.grid.notes import Notes
from experiments.grid.rows import read_rows, read_scores
from experiments.grid.subject import Score
from experiments.study.cells import Outline
from experiments.study.points import Cell, Expert
from merge.commands.process import ending_on_signals

EXPERTS = {name: Expert(name, name, "plain") for name in ("up", "down")}
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
FULL = 2  # exit code of a run whose file may not grow any more
STOPS = 30


@dataclass
class OneNumber:
    """A subject whose score is the model's number; `seconds` a cell."""

    folder: Path
    seconds: float = 0.01

    def expected(self, experts: Any, seed: int, places: Any) -> dict[Path, str]:
        return {self.source(expert, seed).path: "made" for expert in experts}

    def source(self, expert: Expert, seed: int) -> Any:
        return merge.Input(expert.name, self.folder / f"{expert.name}.safetensors")

    def data_digest(self, task: str, split: str) -> str:
        return f"{task} {split}"

    def metrics(self, cell: Cell) -> dict[str, tuple[()]]:
        return {"number": ()}

    def conditions(self, task: str) -> dict[str, Any]:
        return {}

    def clusters(self, task: Any, split: Any) -> list[str]:
        return []

    def recalibration(self, tasks: Any) -> list[str]:
        return []

    def layout(self, checkpoint: Any, task: str) -> str:
        return "one"

    def build(self, layout: Any) -> nn.Module:
        return nn.Linear(1, 1, bias=False).eval()

    def unused(self, layout: Any) -> tuple[()]:
        return ()

    def ensemble(self, models: Any, shares: Any) -> nn.Module:
        raise NotImplementedError

    def recalibrate(self, model: nn.Module, tasks: Any) -> None:
        raise NotImplementedError

    def evaluate(self, model: nn.Module, cell: Cell) -> dict[str, Score]:
        time.sleep(self.seconds)
        value = float(next(model.parameters()).detach())
        return {"number": Score(value, value, value, 500, np.full(500, value) * np.arange(500))}


def make_experts(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in (("up", 1.0), ("down", -1.0)):
        merge.save_checkpoint({"weight": torch.full((1, 1), value)}, folder / f"{name}.safetensors")


def plan(experts: Path, points: int = 11) -> tuple[Grid, list[Cell]]:
    grid = Grid("numbers", OneNumber(experts), notes=Notes("Is it whole?"))
    ask = lambda point: [Cell(point, task, "test") for task in "ab"]  # noqa: E731
    return grid, Outline(experts=EXPERTS, mixtures=[("up", "down")], ask=ask, points=points).cells()


def run(experts: Path, folder: Path) -> Summary:
    return run_cells(*plan(experts), folder, evaluate, progress=False)


def child(experts: Path, folder: Path, size: int | None) -> None:
    """A run in a fork of its own, ended as the command line ends it."""
    code = 1
    try:
        if size is not None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
        with ending_on_signals():
            run(experts, folder)
        code = 0
    except SystemExit as stop:
        code = int(stop.code or 0)
    except KeyboardInterrupt:  # before the command had its handlers
        code = 128 + signal.SIGINT
    except StudyError as error:
        code = FULL if "File too large" in str(error) else 3
    finally:
        os._exit(code)


def told(folder: Path) -> list[str]:
    rows = read_rows(folder / "rows.jsonl")
    scores = read_scores(folder / "rows.jsonl", rows["key"])
    return sorted(f"{row.key} {row.value} {scores[row.key].sum()}" for row in rows.itertuples())


def main(folder: Path) -> None:
    experts, whole, stopped = folder / "experts", folder / "whole", folder / "stopped"
    make_experts(experts)
    began = time.perf_counter()
    run(experts, whole)
    seconds, wanted, chance = time.perf_counter() - began, told(whole), random.Random(11)
    stopped.mkdir()
    ends: list[dict[str, Any]] = []
    for number in range(STOPS):
        how: Any = (*SIGNALS, "full")[number % 5]
        there = sum(file.stat().st_size for file in stopped.glob("rows.scores.jsonl"))
        size = there + chance.randrange(3000) if how == "full" else None
        pid = os.fork()
        if not pid:
            child(experts, stopped, size)
        if how != "full":
            time.sleep(chance.uniform(0, seconds / 4))
            os.kill(pid, how)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        left = sorted(path.name for path in stopped.iterdir())
        rows = 0
        if "rows.jsonl" in left:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of a torn last line
                found = told(stopped)
            assert set(found) <= set(wanted), "a row is another"
            rows = len(found)
        ends.append({"how": str(getattr(how, "name", how)), "code": code, "left": left, "rows": rows})
        if rows == len(wanted):
            for path in stopped.iterdir():
                path.unlink()
    run(experts, stopped)
    print(json.dumps({"ends": ends, "same": told(stopped) == wanted, "left": sorted(os.listdir(stopped))}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
