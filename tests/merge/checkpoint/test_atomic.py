"""Outputs appear whole or not at all: full disks, refusals, links, two runs at once."""

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import merge
from merge import MergeError, alone, load_checkpoint
from merge.checkpoint.atomic import replacing
from tests import ROOT
from tests.merge.handmade import assert_tensors, random_tensor
from tests.merge.outputs import caught_at_work, check_recipe, content, interpolate, leftovers, write_pair
from tests.merge.running import Server

# -- no room -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("out", ["out.safetensors", "out.pt", "out", "points"])
@pytest.mark.parametrize("limit", [0, 100, 5_000, 11_000])
def test_files_that_may_not_grow(tmp_path: Path, command: Server, out: str, limit: int) -> None:
    """The disk's refusal by RLIMIT_FSIZE, before and while tensors are written: one line, nothing lost."""
    write_pair(tmp_path, tensors=6, rows=2)
    what = ["sweep", *interpolate(tmp_path, 0)[1:3], "--points", "3"] if out == "points" else interpolate(tmp_path, 0.5)
    assert command(*what, "-o", tmp_path / out).code == 0
    before = content(tmp_path)
    changed = [*what[:-1], "2"] if out == "points" else interpolate(tmp_path, 0.25)
    ended = command(*changed, "-o", tmp_path / out, "--overwrite", file_size=limit)
    assert ended.code == 2
    assert ended.err.startswith(f"error: {tmp_path / out}")
    assert "larger than allowed" in ended.err
    assert ended.err.count("\n") == 1
    assert content(tmp_path) == before
    assert leftovers(tmp_path) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 400 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=400k", "none", folder], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def test_an_output_that_does_not_fit_is_refused_at_once(tmp_path: Path, small_disk: Path, command: Server) -> None:
    write_pair(tmp_path, tensors=6, rows=100)
    ended = command(*interpolate(tmp_path, 0.5), "-o", small_disk / "out.safetensors")
    assert ended.code == 2
    assert "needs 61" in ended.err
    assert "409,600 are free" in ended.err
    assert list(small_disk.iterdir()) == []


def test_a_disk_that_fills_up_on_the_way(tmp_path: Path, small_disk: Path, command: Server) -> None:
    """Many tiny files need more blocks than bytes: the check of free space passes, the writing does not."""
    for seed, name in enumerate("ab"):
        save_file({"w": random_tensor((4,), torch.float32, seed)}, tmp_path / f"{name}.safetensors")
    assert command(*interpolate(tmp_path, 0.5), "-o", small_disk / "old.safetensors").code == 0
    before = content(small_disk)
    pair = interpolate(tmp_path, 0.5)[1:3]
    ended = command("sweep", *pair, "--points", "101", "-o", small_disk / "points")
    assert ended.code == 2
    assert (
        ended.err
        == f"error: {small_disk / 'points'}: the disk is full; nothing was written (No space left on device)\n"
    )
    assert content(small_disk) == before
    assert sorted(path.name for path in small_disk.iterdir()) == ["old.safetensors", "old.safetensors.recipe.json"]


def test_room_for_the_weights_but_not_for_the_recipe(tmp_path: Path, small_disk: Path, command: Server) -> None:
    write_pair(tmp_path, tensors=4, rows=2)
    plan = json.loads(
        command(*interpolate(tmp_path, 0.5), "-o", small_disk / "out.safetensors", "--dry-run", "--json").out
    )
    room = -(-plan["outputs"][0]["bytes"] // 4096) * 4096
    with (small_disk / "filler").open("wb") as file:
        file.write(bytes(409_600 - room))
    ended = command(*interpolate(tmp_path, 0.5), "-o", small_disk / "out.safetensors")
    assert ended.code == 2
    assert "disk is full" in ended.err
    assert [path.name for path in small_disk.iterdir()] == ["filler"]


# -- permissions -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("out", ["out.safetensors", "out.pt", "out"])
@pytest.mark.parametrize("mode", [0o500, 0o000])
def test_a_folder_that_may_not_be_written(tmp_path: Path, command: Server, out: str, mode: int) -> None:
    write_pair(tmp_path, tensors=2, rows=2)
    locked = tmp_path / "locked"
    locked.mkdir()
    assert command(*interpolate(tmp_path, 0.5), "-o", locked / out).code == 0
    before = content(locked)
    locked.chmod(mode)
    results = [
        command(*interpolate(tmp_path, 0.25), "-o", locked / name, "--overwrite", unprivileged=True)
        for name in (out, f"new-{out}")
    ]
    locked.chmod(0o700)
    for result in results:
        assert result.code == 2, result
        assert "ermission" in result.err
        assert result.err.count("\n") == 1
    assert content(locked) == before


@pytest.mark.parametrize(
    ("umask", "file", "folder"), [(0o022, 0o644, 0o755), (0o077, 0o600, 0o700), (0o002, 0o664, 0o775)]
)
def test_the_umask_is_respected(tmp_path: Path, command: Server, umask: int, file: int, folder: int) -> None:
    write_pair(tmp_path, tensors=2, rows=2)
    command(*interpolate(tmp_path, 0.5), "-o", tmp_path / "out.safetensors", umask=umask)
    command(*interpolate(tmp_path, 0.5), "-o", tmp_path / "out", umask=umask)
    command("sweep", *interpolate(tmp_path, 0)[1:3], "--points", "2", "-o", tmp_path / "points", umask=umask)
    made = [path for top in tmp_path.glob("[op]*") for path in (top, *top.rglob("*"))]
    assert len(made) > 10
    for path in made:
        assert stat.S_IMODE(path.stat().st_mode) == (folder if path.is_dir() else file), path


# -- what is there already ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("out", ["out.safetensors", "out.pt", "out", "points"])
def test_nothing_is_overwritten_unasked(tmp_path: Path, command: Server, out: str) -> None:
    write_pair(tmp_path, tensors=2, rows=2)
    target = tmp_path / out
    what = ["sweep", *interpolate(tmp_path, 0)[1:3]] if out == "points" else interpolate(tmp_path, 0.5)
    assert command(*what, "-o", target).code == 0
    before = content(tmp_path)
    for more in ([], ["--dry-run"]):
        ended = command(*what, "-o", target, *more)
        assert (ended.code, ended.out) == (2, "")
        assert ended.err == f"error: {target}: exists; choose another name or pass --overwrite\n"
    assert content(tmp_path) == before
    assert command(*what, "-o", target, "--overwrite").code == 0


@pytest.mark.parametrize(
    ("out", "reason"),
    [
        ("a.safetensors", "input"),
        ("link.safetensors", "input"),
        ("folder/../b.safetensors", "input"),
        (".", "input"),
        ("..", "input"),
        ("missing/out.safetensors", "does not exist"),
        ("a.safetensors/out.safetensors", "does not exist"),
        ("folder", "input"),
        ("taken.safetensors", "is a folder"),
        ("file", "is a file"),
        ("noted.safetensors", "noted.safetensors.recipe.json"),
        ("x" * 300 + ".safetensors", "too long"),
        ("x" * 240 + ".safetensors", "too long"),
        ("x" * 226 + ".safetensors", "too long"),
    ],
)
def test_outputs_that_cannot_be(tmp_path: Path, command: Server, out: str, reason: str) -> None:
    """Refused in one line, also with --overwrite; what is there stays."""
    write_pair(tmp_path, tensors=2, rows=2)
    for name in ("folder", "taken.safetensors", "noted.safetensors.recipe.json"):
        (tmp_path / name).mkdir()
    shutil.copy(tmp_path / "a.safetensors", tmp_path / "folder" / "c.safetensors")
    (tmp_path / "file").write_text("precious")
    (tmp_path / "link.safetensors").symlink_to("a.safetensors")
    before = content(tmp_path)
    inputs = [tmp_path / "a.safetensors", tmp_path / "b.safetensors", tmp_path / "folder" / "c.safetensors"]
    ended = command("average", *inputs, "-o", tmp_path / out, "--overwrite")
    assert (ended.code, ended.out) == (2, ""), ended
    assert reason in ended.err
    assert ended.err.count("\n") == 1
    assert content(tmp_path) == before
    assert leftovers(tmp_path) == []


def test_a_sweep_does_not_replace_the_folder_of_its_inputs(tmp_path: Path, command: Server) -> None:
    for folder in (tmp_path / "in", tmp_path / "in" / "deeper"):
        folder.mkdir()
        write_pair(folder, tensors=2, rows=2)
    before = content(tmp_path)
    for source in (tmp_path / "in", tmp_path / "in" / "deeper"):
        ended = command("sweep", *interpolate(source, 0)[1:3], "-o", tmp_path / "in", "--overwrite")
        assert ended.code == 2
        assert "input" in ended.err
    assert content(tmp_path) == before


def test_the_name_is_replaced_and_not_what_it_points_to(tmp_path: Path, command: Server) -> None:
    """An output that is a link to a file becomes a file of its own; a link into nowhere or to a folder is refused."""
    write_pair(tmp_path, tensors=2, rows=2)
    (tmp_path / "kept").mkdir()
    for name in ("file.safetensors", "folder"):
        assert command(*interpolate(tmp_path, 0.5), "-o", tmp_path / "kept" / name).code == 0
    before = content(tmp_path / "kept")
    links = {"latest.safetensors": "kept/file.safetensors", "latest": "kept/folder", "nowhere.safetensors": "kept/none"}
    for name, goal in links.items():
        (tmp_path / name).symlink_to(goal)
    first = command(*interpolate(tmp_path, 0.25), "-o", tmp_path / "latest.safetensors")
    assert first.code == 2, "a link to a file is an existing output"
    ends = [command(*interpolate(tmp_path, 0.25), "-o", tmp_path / name, "--overwrite") for name in links]
    assert [ended.code for ended in ends] == [0, 2, 2]
    assert "nowhere.safetensors: is a link to what is not there; remove it or choose another" in ends[2].err
    assert not (tmp_path / "latest.safetensors").is_symlink()
    assert_tensors(
        load_checkpoint(tmp_path / "latest.safetensors"),
        merge.interpolate(
            load_checkpoint(tmp_path / "a.safetensors"), load_checkpoint(tmp_path / "b.safetensors"), 0.25
        ),
    )
    assert (tmp_path / "latest").is_symlink()
    assert content(tmp_path / "kept") == before
    assert leftovers(tmp_path) == []


def test_hard_links_to_an_old_output_keep_it(tmp_path: Path, command: Server) -> None:
    write_pair(tmp_path, tensors=2, rows=2)
    out = tmp_path / "out.safetensors"
    assert command(*interpolate(tmp_path, 0.5), "-o", out).code == 0
    os.link(out, tmp_path / "snapshot.safetensors")
    before = (tmp_path / "snapshot.safetensors").read_bytes()
    assert command(*interpolate(tmp_path, 0.25), "-o", out, "--overwrite").code == 0
    assert (tmp_path / "snapshot.safetensors").read_bytes() == before != out.read_bytes()


# -- two at once -------------------------------------------------------------------------------------------------------


def two(folder: Path, out: str) -> tuple[list[str | Path], ...]:
    """Two merges that differ, into files, folders or sweeps."""
    pair = interpolate(folder, 0)[1:3]
    return tuple(
        ["sweep", *pair, "--points", str(4 + i)] if out == "points" else interpolate(folder, 0.25 + 0.5 * i)
        for i in range(2)
    )


@pytest.mark.parametrize("out", ["out.safetensors", "out", "points"])
def test_a_second_run_into_one_output_waits_if_told_to_overwrite(tmp_path: Path, command: Server, out: str) -> None:
    """Without --overwrite it is refused in one line; with it, it says that it waits, and then takes the place whole."""
    write_pair(tmp_path, tensors=40, rows=512)
    first, second = two(tmp_path, out)
    slow = caught_at_work(command, tmp_path, *first, "-o", tmp_path / out)
    refused = command(*second, "-o", tmp_path / out)
    told = "another run is writing it"
    assert (refused.code, refused.err) == (
        2,
        f"error: {tmp_path / out}: {told}; choose another name or wait for its end\n",
    )
    waiting = command.start(*second, "-o", tmp_path / out, "--overwrite")
    slow.signal(signal.SIGCONT)
    assert slow.wait().code == 0
    ended = waiting.wait()
    assert ended.code == 0, ended
    assert ended.err in ("", f"{tmp_path / out}: {told}; waiting for its end\n")
    found = content(tmp_path / out)
    assert command(*second, "-o", tmp_path / out, "--overwrite").code == 0
    same = {name: digest for name, digest in content(tmp_path / out).items() if not name.endswith(".json")}
    assert same == {name: digest for name, digest in found.items() if not name.endswith(".json")}
    check_recipe(tmp_path / out)
    assert leftovers(tmp_path) == []


def test_eight_runs_into_one_output(tmp_path: Path, command: Server) -> None:
    """The recipe beside the file is the file's, whoever came last; every run says what it made."""
    write_pair(tmp_path, tensors=4, rows=64)
    out = tmp_path / "out.safetensors"
    running = [command.start(*interpolate(tmp_path, i / 8), "-o", out, "--overwrite", "--json") for i in range(8)]
    for i, ended in enumerate([each.wait() for each in running]):
        assert ended.code == 0, ended
        assert json.loads(ended.out)["parameters"] == {"ratio": i / 8}
    check_recipe(out)
    assert json.loads((tmp_path / "out.safetensors.recipe.json").read_text())["output"]["file"] == out.name
    assert leftovers(tmp_path) == []


def test_what_dead_runs_left_is_swept_away(tmp_path: Path, command: Server) -> None:
    write_pair(tmp_path, tensors=1, rows=2)
    out = tmp_path / "out.safetensors"
    (tmp_path / ".out.safetensors.partial-00000000").write_text("left by a dead run")
    (tmp_path / ".out.safetensors.partial-lock").write_text("")
    (tmp_path / ".out.safetensors.partial-folder").mkdir()
    (tmp_path / ".other.safetensors.partial-00000000").write_text("of another output")
    assert command(*interpolate(tmp_path, 0.5), "-o", out).code == 0
    assert leftovers(tmp_path) == [".other.safetensors.partial-00000000"]


# -- what --overwrite replaces -----------------------------------------------------------------------------------------


def test_a_folder_that_holds_anything_else_is_never_replaced(tmp_path: Path, command: Server) -> None:
    write_pair(tmp_path, tensors=2, rows=2)
    thesis = tmp_path / "thesis"
    thesis.mkdir()
    (thesis / "chapter.tex").write_text("all of it")
    pair = interpolate(tmp_path, 0)[1:3]
    commands = (interpolate(tmp_path, 0.5), ["sweep", *pair, "--points", "2"], ["convert", pair[0]])
    for argv in commands:
        ended = command(*argv, "-o", thesis, "--overwrite")
        assert (ended.code, ended.out) == (2, ""), ended
        assert "thesis: holds chapter.tex, which is not of what this tool wrote there" in ended.err
    for number, argv in enumerate(commands):
        out = tmp_path / f"out{number}"
        assert command(*argv, "-o", out).code == 0
        assert command(*argv, "-o", out, "--overwrite").code == 0
        (out / "deeper").mkdir()
        (out / "deeper" / "results.csv").write_text("mine")
        ended = command(*argv, "-o", out, "--overwrite")
        assert f"out{number}: holds deeper/results.csv" in ended.err
        assert (out / "deeper" / "results.csv").read_text() == "mine"
    assert content(thesis).keys() == {"thesis/chapter.tex"}
    assert leftovers(tmp_path) == []


def test_files_that_are_no_checkpoints_are_never_replaced(tmp_path: Path, command: Server) -> None:
    write_pair(tmp_path, tensors=2, rows=2)
    (tmp_path / "notes.pt").write_text("precious notes about the runs")
    (tmp_path / "pipe.pt").unlink(missing_ok=True)
    os.mkfifo(tmp_path / "pipe.pt")
    (tmp_path / "null.pt").symlink_to("/dev/null")
    (tmp_path / "kept.pt.recipe.json").write_text('{"mine": 1}')
    os.mkfifo(tmp_path / "told.pt.recipe.json")
    for name, problem in {
        "notes.pt": "is no checkpoint",
        "pipe.pt": "is a device, pipe or socket",
        "null.pt": "is a device, pipe or socket",
        "kept.pt": "is no recipe",
        "told.pt": "is no file",
    }.items():
        ended = command(*interpolate(tmp_path, 0.5), "-o", tmp_path / name, "--overwrite")
        assert (ended.code, ended.out) == (2, ""), ended
        assert problem in ended.err, ended
        assert ended.err.count("\n") == 1
    assert (tmp_path / "notes.pt").read_text().startswith("precious")
    assert (tmp_path / "null.pt").is_symlink()
    (tmp_path / "empty.pt").touch()
    assert command(*interpolate(tmp_path, 0.5), "-o", tmp_path / "empty.pt", "--overwrite").code == 0


# -- the library's own -------------------------------------------------------------------------------------------------


def test_an_error_within_leaves_nothing(tmp_path: Path) -> None:
    with (
        pytest.raises(UnicodeEncodeError),
        replacing(tmp_path / "x", 10, folder=False, overwrite=False) as partial,
    ):
        partial.write_text("half" * 10_000 + "\ud800")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("folder", [False, True])
def test_a_name_that_was_taken_meanwhile(tmp_path: Path, folder: bool) -> None:
    target = tmp_path / "x"

    def write_into(path: Path, text: str) -> None:
        path.mkdir(exist_ok=True) if folder else None
        (path / "file" if folder else path).write_text(text)

    def race() -> None:
        with replacing(target, 0, folder=folder, overwrite=False) as partial:
            write_into(partial, "mine")
            write_into(target, "theirs")

    with pytest.raises(MergeError, match=r"x: was made by someone else meanwhile; pass overwrite=True"):
        race()
    assert (target / "file" if folder else target).read_text() == "theirs"
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_names_with_signs_of_patterns(tmp_path: Path) -> None:
    """Sweeping away leftovers takes the name for a name."""
    other = tmp_path / ".a1.partial-0"
    other.write_text("of another output")
    (tmp_path / ".a[1].partial-0").write_text("of this output")
    with replacing(tmp_path / "a[1]", 0, folder=False, overwrite=False) as partial:
        partial.write_text("new")
    assert (tmp_path / "a[1]").read_text() == "new"
    assert sorted(path.name for path in tmp_path.iterdir()) == [".a1.partial-0", "a[1]"]


# -- a folder for one run ----------------------------------------------------------------------------------------------


def test_a_run_that_waits_for_a_folder_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    order: list[str] = []

    def second() -> None:
        with alone(tmp_path / "new" / "run"):
            order.append("second")

    with alone(tmp_path / "new" / "run"):
        waiting = threading.Thread(target=second)
        waiting.start()
        waiting.join(0.2)
        order.append("first")
        (tmp_path / "new" / "run").rename(tmp_path / "moved")  # the second then has one of its own
    waiting.join(10)
    assert order == ["first", "second"]
    assert caplog.messages == [f"another run works in {tmp_path / 'new' / 'run'}: waiting until it is done"]
    assert os.listdir(tmp_path / "new" / "run") == []


def test_the_lock_of_a_folder_ends_with_a_killed_run(tmp_path: Path) -> None:
    code = "import sys, time, merge\nwith merge.alone(sys.argv[1]): print('in', flush=True); time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, cwd=ROOT)
    assert process.stdout is not None
    assert process.stdout.readline() == b"in\n"
    process.kill()
    process.communicate()
    with alone(tmp_path):
        assert os.listdir(tmp_path) == []
