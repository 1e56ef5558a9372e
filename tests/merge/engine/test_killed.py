"""Killed or interrupted at any moment: the old output or the new one, to the bit, and nothing else for long."""

import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.merge.outputs import caught_at_work, check_recipe, content, interpolate, leftovers, write_pair
from tests.merge.running import Command, Server

MOMENTS = 20


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


@pytest.mark.parametrize("make", [a_file, a_file_over_another, a_folder_over_another, a_sweep])
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


def test_interrupted_while_it_computes(tmp_path: Path, command: Server) -> None:
    write_pair(tmp_path, tensors=40, rows=1024)
    before = content(tmp_path)
    running = caught_at_work(command, tmp_path, *interpolate(tmp_path, 0.5), "-o", tmp_path / "out.safetensors")
    running.signal(signal.SIGINT)
    running.signal(signal.SIGCONT)
    ended = running.wait()
    assert (ended.code, ended.err) == (130, "interrupted: nothing was left half-written\n")
    assert content(tmp_path) == before
