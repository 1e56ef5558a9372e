"""Killed or interrupted at any moment: the old output or the new one, to the bit, and nothing else for long."""

import json
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.merge.damage import TIMES
from tests.merge.handmade import random_tensor
from tests.merge.outputs import caught_at_work, check_recipe, content, interpolate, leftovers, write_pair
from tests.merge.running import Command, Server

MOMENTS = 6 * TIMES  # random ends of every command; FUZZ=4 in the environment makes them 24


def remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


class Case:
    """A command with an output, what lay there before, and what lies there after it was done."""

    def __init__(self, command: Server, target: Path, argv: list[str | Path], before: list[str | Path] | None):
        self.command, self.target, self.argv = command, target, argv
        self.saved = target.parent / "saved"
        self.saved.mkdir()
        if before is not None:
            self.done(before)
            self.store(True)
        self.old = content(target)
        self.done(argv)
        start = time.perf_counter()
        self.done(argv)
        self.seconds = time.perf_counter() - start
        self.new = content(target)
        assert self.new
        assert self.new != self.old
        self.store(False)

    def done(self, argv: list[str | Path]) -> None:
        shown = self.command(*argv, "-o", self.target, "--overwrite")
        assert shown.code == 0, shown

    def store(self, away: bool) -> None:
        """Copy what is at the target (and its recipe) away, or back."""
        for path in (self.target, self.target.with_name(self.target.name + ".recipe.json")):
            source, goal = (path, self.saved / path.name) if away else (self.saved / path.name, path)
            remove(goal)
            if source.is_dir():
                shutil.copytree(source, goal)
            elif source.exists():
                shutil.copy2(source, goal)

    def start(self, **how: int) -> Command:
        return self.command.start(*self.argv, "-o", self.target, "--overwrite", **how)

    def check(self) -> bool:
        """The old output or the new one, to the bit; tells whether it is the new one. Then puts back the old."""
        found = content(self.target)
        assert found in (self.old, self.new), f"neither the old output nor the new one: {sorted(found)}"
        check_recipe(self.target)
        self.store(False)
        return found == self.new


def a_file(command: Server, folder: Path) -> Case:
    return Case(command, folder / "out.safetensors", interpolate(folder, 0.5), None)


def a_file_over_another(command: Server, folder: Path) -> Case:
    return Case(command, folder / "out.pt", interpolate(folder, 0.5), interpolate(folder, 0.25))


def a_folder_over_another(command: Server, folder: Path) -> Case:
    shards: list[str | Path] = ["--shard-size", "2MB"]
    return Case(
        command,
        folder / "out",
        [*interpolate(folder, 0.5), *shards],
        [*interpolate(folder, 0.25), "--shard-size", "1GB"],
    )


def a_sweep(command: Server, folder: Path) -> Case:
    pair = [folder / "a.safetensors", folder / "b.safetensors"]
    return Case(command, folder / "out", ["sweep", *pair, "--points", "4"], None)


def a_sweep_over_another(command: Server, folder: Path) -> Case:
    pair = [folder / "a.safetensors", folder / "b.safetensors"]
    return Case(command, folder / "out", ["sweep", *pair, "--points", "3"], ["sweep", *pair, "--points", "4"])


@pytest.mark.parametrize("make", [a_file, a_file_over_another, a_folder_over_another, a_sweep])
def test_killed_at_random_moments(tmp_path: Path, command: Server, make: Callable[[Server, Path], Case]) -> None:
    """kill -9 at any time: the old output or the new one; the next run sweeps away what was left."""
    write_pair(tmp_path, tensors=24, rows=256)
    case = make(command, tmp_path)
    chance = random.Random(7)
    ends = []
    for _ in range(MOMENTS):
        running = case.start()
        time.sleep(chance.uniform(0, 1.1 * case.seconds))
        running.signal(signal.SIGKILL)
        ends.append(running.wait().code)
        case.check()
        assert len(leftovers(tmp_path)) <= 3, "runs leave more and more behind"
    assert ends.count(-signal.SIGKILL) >= MOMENTS / 3, f"too few runs were hit: {ends}"
    case.done(case.argv)
    assert content(case.target) == case.new
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("make", [a_file, a_file_over_another, a_folder_over_another, a_sweep, a_sweep_over_another])
def test_killed_between_any_two_steps_of_the_commit(
    tmp_path: Path, command: Server, make: Callable[[Server, Path], Case]
) -> None:
    """The same before every single line of the code that makes the output appear."""
    write_pair(tmp_path, tensors=3, rows=2)
    case = make(command, tmp_path)
    outcomes = []
    for step in range(1, 1000):
        ended = case.start(step=step).wait()
        if ended.code == 0:
            break
        assert ended.code == -signal.SIGKILL
        outcomes.append(case.check())
    assert len(outcomes) > 30
    assert set(outcomes) == {True, False}, "kills came only before, or only after, the output appeared"
    assert leftovers(tmp_path) == []


SLOW = [pytest.param(make, marks=pytest.mark.slow) for make in (a_file, a_file_over_another)]


@pytest.mark.parametrize("make", [a_folder_over_another, a_sweep, *SLOW])
def test_interrupted_between_any_two_steps(
    tmp_path: Path, command: Server, make: Callable[[Server, Path], Case]
) -> None:
    """Ctrl-C ends with 130 and one line, and the old output or the new one; no partial file stays.

    But for one moment, between the last step and tidying up, which Python cannot close: the next run tidies up then.
    """
    write_pair(tmp_path, tensors=3, rows=2)
    case = make(command, tmp_path)
    untidy = 0
    for step in range(1, 1000):
        ended = case.start(step=step, number=signal.SIGINT).wait()
        if ended.code == 0:
            break
        assert ended.code == 130, ended
        assert ended.err == "interrupted: nothing was left half-written\n"
        case.check()
        untidy += leftovers(tmp_path) != []
    assert step > 30
    assert untidy <= 2, "a left-over stays until the next run has swept it away, so one moment counts twice at most"
    assert leftovers(tmp_path) == []


def a_conversion(command: Server, folder: Path) -> Case:
    return Case(
        command, folder / "out.npz", ["convert", folder / "b.safetensors"], ["convert", folder / "a.safetensors"]
    )


def a_converted_folder(command: Server, folder: Path) -> Case:
    shards: list[str | Path] = ["--shard-size", "1MB"]
    a, b = (["convert", folder / f"{name}.safetensors", *shards] for name in "ab")
    return Case(command, folder / "out", b, a)


def adapters(folder: Path) -> list[Path]:
    """Two LoRA folders of one layer."""
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q"], "bias": "none"}
    for seed, name in enumerate(("vqa", "caption")):
        (folder / name).mkdir()
        sizes = {"lora_A": (2, 256), "lora_B": (256, 2)}
        factors = {
            f"base_model.model.q.{part}.weight": random_tensor(size, torch.float32, 10 * seed + i)
            for i, (part, size) in enumerate(sizes.items())
        }
        save_file(factors, folder / name / "adapter_model.safetensors")
        (folder / name / "adapter_config.json").write_text(json.dumps(config))
    return [folder / "vqa", folder / "caption"]


def a_merged_adapter(command: Server, folder: Path) -> Case:
    pair = adapters(folder)
    return Case(command, folder / "out", ["adapters", *pair, "-w", "0.5,0.5"], ["adapters", *pair, "-w", "1,0.5"])


def an_adapted_base(command: Server, folder: Path) -> Case:
    pair = adapters(folder)
    save_file({"q.weight": random_tensor((256, 256), torch.float32, 3)}, folder / "base.safetensors")
    over: list[str | Path] = ["--base", folder / "base.safetensors", "-w"]
    return Case(command, folder / "out.pt", ["adapters", *pair, *over, "0.5,0.5"], ["adapters", *pair, *over, "1,0.5"])


def an_alignment(command: Server, folder: Path) -> Case:
    pytest.importorskip("scipy")
    for seed, name in enumerate("xy"):
        sizes = {"0.weight": (64, 32), "0.bias": (64,), "2.weight": (8, 64), "2.bias": (8,)}
        held = {name: random_tensor(size, torch.float32, 10 * seed + i) for i, (name, size) in enumerate(sizes.items())}
        save_file(held, folder / f"{name}.safetensors")
    x, y = (folder / f"{name}.safetensors" for name in "xy")
    return Case(command, folder / "out.safetensors", ["align", x, y], ["align", x, x])


ENDS = (signal.SIGKILL, signal.SIGTERM, signal.SIGHUP)


@pytest.mark.parametrize(
    "make",
    [a_file_over_another, a_sweep, a_conversion, a_converted_folder, a_merged_adapter, an_adapted_base, an_alignment],
)
def test_ended_by_any_signal_or_a_full_disk(
    tmp_path: Path, command: Server, make: Callable[[Server, Path], Case]
) -> None:
    """Twenty ends at random moments and twenty limits of size: nothing is broken, and nothing but of kills is left."""
    write_pair(tmp_path, tensors=6, rows=64)
    case = make(command, tmp_path)
    chance = random.Random(11)
    for moment in range(MOMENTS):
        number, before = ENDS[moment % len(ENDS)], set(leftovers(tmp_path))
        running = case.start()
        time.sleep(chance.uniform(0, 1.1 * case.seconds))
        running.signal(number)
        ended = running.wait()
        assert ended.code in (0, -number, 128 + number), ended
        assert "Traceback" not in ended.err
        case.check()
        assert ended.code == -number or set(leftovers(tmp_path)) <= before  # of a kill before
    size = max(path.stat().st_size for path in (case.target, *case.target.glob("*"))) if case.target.exists() else 10**6
    for _ in range(MOMENTS):
        ended = case.start(file_size=chance.randrange(size)).wait()
        assert ended.code in (0, 2), ended
        assert ended.code == 0 or "larger than allowed; nothing was written" in ended.err
        case.check()
        assert leftovers(tmp_path) == []
    case.done(case.argv)
    assert content(case.target) == case.new


def test_interrupted_while_it_computes(tmp_path: Path, command: Server) -> None:
    write_pair(tmp_path, tensors=40, rows=1024)
    before = content(tmp_path)
    running = caught_at_work(command, tmp_path, *interpolate(tmp_path, 0.5), "-o", tmp_path / "out.safetensors")
    running.signal(signal.SIGINT)
    running.signal(signal.SIGCONT)
    ended = running.wait()
    assert (ended.code, ended.err) == (130, "interrupted: nothing was left half-written\n")
    assert content(tmp_path) == before
