"""Pairs of inputs, what lies in folders, and commands caught while they write."""

import json
import signal
import time
from pathlib import Path
from typing import Any

import torch
import xxhash
from safetensors.torch import save_file

import merge
from merge import load_checkpoint
from tests.merge.handmade import random_tensor
from tests.merge.running import Command, Server


def content(path: Path) -> dict[str, str]:
    """What lies at a path: every file below it (or the file itself) with the hash of its bytes."""
    files = [path] if path.is_file() else sorted(path.rglob("*")) if path.is_dir() else []
    return {
        str(file.relative_to(path.parent)): xxhash.xxh3_128(file.read_bytes()).hexdigest()
        for file in files
        if file.is_file()
    }


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if ".partial-" in path.name)


def check_recipe(target: Path) -> None:
    """A recipe beside an output describes it, if there is one."""
    recipe = target.with_name(target.name + ".recipe.json")
    if recipe.exists() and target.exists():
        digest = json.loads(recipe.read_text())["output"]["digest"]
        assert digest == merge.digest(load_checkpoint(target)), "the recipe of another merge lies beside the output"


def interpolate(folder: Path, ratio: float) -> list[str | Path]:
    return ["interpolate", folder / "a.safetensors", folder / "b.safetensors", "--ratio", str(ratio)]


def write_pair(folder: Path, tensors: int, rows: int) -> None:
    for seed, name in enumerate("ab"):
        many = {f"layer.{i}": random_tensor((rows, 256), torch.float32, 1000 * seed + i) for i in range(tensors)}
        save_file(many, folder / f"{name}.safetensors")


def caught_at_work(command: Server, folder: Path, *argv: str | Path, **how: Any) -> Command:
    """The command, stopped while its partial output lies in `folder`."""
    for _ in range(20):
        running = command.start(*argv, **how)
        end = time.monotonic() + 10
        while time.monotonic() < end:
            if any(path.is_dir() or path.stat().st_size for path in folder.glob(".*.partial-*")):
                running.signal(signal.SIGSTOP)
                break
        if leftovers(folder):
            return running
        running.signal(signal.SIGCONT)
        running.wait()
    raise AssertionError("the command is never seen at work")
