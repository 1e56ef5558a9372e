"""A command among other processes: signals, full and closed streams, errors that nobody foresaw."""

from __future__ import annotations

import contextlib
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import merge
from merge.commands import COMMANDS, looking, process
from merge.commands.table import printable
from tests.merge.outputs import caught_at_work, content, interpolate, leftovers, write_pair
from tests.merge.running import Server
from tests.merge.shell import command as here

NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
TOLD = {signal.SIGINT: "interrupted", signal.SIGTERM: "stopped by SIGTERM", signal.SIGHUP: "stopped by SIGHUP"}


@pytest.mark.parametrize("number", NUMBERS, ids=lambda number: number.name)
def test_signals_while_it_computes_leave_nothing(tmp_path: Path, command: Server, number: signal.Signals) -> None:
    write_pair(tmp_path, tensors=40, rows=1024)
    before = content(tmp_path)
    running = caught_at_work(command, tmp_path, *interpolate(tmp_path, 0.5), "-o", tmp_path / "out.safetensors")
    running.signal(number)
    running.signal(signal.SIGCONT)
    ended = running.wait()
    assert (ended.code, ended.err) == (128 + number, f"{TOLD[number]}: nothing was left half-written\n")
    assert content(tmp_path) == before


@pytest.mark.parametrize("error", [merge.MergeError("aligning needs SciPy"), KeyError("w")], ids=["ours", "unforeseen"])
def test_a_signal_that_an_import_takes_for_its_own_failure(error: Exception, monkeypatch) -> None:
    """Compiled modules turn whatever comes while they are imported into an ImportError, and that is told as missing."""

    def importing() -> None:
        with contextlib.suppress(SystemExit):
            signal.raise_signal(signal.SIGTERM)
        raise error

    monkeypatch.setattr(looking, "methods", importing)
    ended = here("methods")
    assert (ended.code, ended.err) == (143, f"{TOLD[signal.SIGTERM]}: nothing was left half-written\n")


@pytest.mark.parametrize("number", NUMBERS, ids=lambda number: number.name)
def test_a_signal_in_a_finaliser_is_not_lost(number: signal.Signals, monkeypatch) -> None:
    """Python drops what is raised there; the command would go on, deaf to every further signal."""

    class Held:
        def __del__(self) -> None:
            signal.raise_signal(number)

    def working() -> None:
        Held()
        time.sleep(10)

    before = signal.getsignal(number), sys.unraisablehook
    monkeypatch.setattr(looking, "methods", working)
    ended = here("methods")
    assert (ended.code, ended.err) == (128 + number, f"{TOLD[number]}: nothing was left half-written\n")
    assert (signal.getsignal(number), sys.unraisablehook) == before


def test_a_signal_that_is_ignored_stays_ignored(tmp_path: Path, command: Server) -> None:
    """As under `nohup`: the merge goes on when its terminal goes."""
    write_pair(tmp_path, tensors=40, rows=1024)
    out = tmp_path / "out.safetensors"
    running = caught_at_work(command, tmp_path, *interpolate(tmp_path, 0.5), "-o", out, ignored=[signal.SIGHUP])
    running.signal(signal.SIGHUP)
    running.signal(signal.SIGCONT)
    assert running.wait().code == 0
    assert merge.open_checkpoint(out)
    assert leftovers(tmp_path) == []


def test_handlers_are_only_the_command_lines(tmp_path: Path) -> None:
    """Nothing of the library takes a signal, and a command gives back what it found."""
    before = [signal.getsignal(number) for number in NUMBERS]
    write_pair(tmp_path, tensors=1, rows=1)
    assert here(*interpolate(tmp_path, 0.5), "-o", tmp_path / "out.safetensors").code == 0
    assert [signal.getsignal(number) for number in NUMBERS] == before


@pytest.mark.parametrize("stream", ["full", "closed", "pipe"])
def test_a_merge_is_done_though_it_cannot_be_told(tmp_path: Path, command: Server, stream: str) -> None:
    write_pair(tmp_path, tensors=2, rows=2)
    out = tmp_path / "out.safetensors"
    ended = command(*interpolate(tmp_path, 0.5), "-o", out, stdout=stream)
    told = "standard output could not be written (No space left on device): the work is done\n"
    assert (ended.code, ended.err) == (0, told if stream == "full" else "")
    assert out.with_name(out.name + ".recipe.json").is_file()
    merge.open_checkpoint(out)
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize(("stream", "code"), [("full", 1), ("pipe", 1), ("closed", 0)])
def test_what_only_prints_has_not_succeeded_where_it_cannot(
    tmp_path: Path, command: Server, stream: str, code: int
) -> None:
    write_pair(tmp_path, tensors=2, rows=2)
    ended = command("inspect", tmp_path / "a.safetensors", stdout=stream)
    told = "standard output could not be written (No space left on device): it is incomplete\n"
    assert (ended.code, ended.err) == (code, told if stream == "full" else "")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-16"])
def test_signs_that_the_terminal_lacks_are_escaped(tmp_path: Path, monkeypatch, encoding: str) -> None:
    with (tmp_path / "told").open("w", encoding=encoding) as file:
        monkeypatch.setattr(sys, "stdout", file)
        with process.patient_streams():
            print("→ Łódź 😀")
    told = (tmp_path / "told").read_bytes().decode(encoding)
    assert "dź" in told or "\\u017a" in told


def test_the_closed_descriptors_are_taken_before_a_file_could_be_one(tmp_path: Path) -> None:
    code = f"""
import os, sys
os.close(1), os.close(2)
sys.stdout = sys.stderr = None
from merge.commands.process import patient_streams
with patient_streams():
    with open({str(tmp_path / "file")!r}, "w") as file:
        assert file.fileno() > 2
        print("nowhere")
        os.write(1, b"nowhere")
        file.write("whole")
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert (tmp_path / "file").read_text() == "whole"


def test_a_folder_that_is_gone_is_one_line(tmp_path: Path, monkeypatch, capsys) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    ended = here("methods")
    assert ended.code == 2
    assert (
        ended.err
        == "error: the folder that this runs in is not usable (No such file or directory): change into another\n"
    )


UNFORESEEN = [
    (RecursionError("maximum recursion depth exceeded"), 1, r"internal error: RecursionError: maximum recursion depth"),
    (KeyError("w"), 1, r"internal error: KeyError: 'w' \(test_process.py:\d+\); please report it with /.*\.txt"),
    (RuntimeError("first\nsecond\u2028third"), 1, r"internal error: RuntimeError: first \("),
    (UnicodeEncodeError("ascii", "é", 0, 1, "ordinal"), 1, r"internal error: UnicodeEncodeError: 'ascii' codec"),
    (MemoryError(), 2, r"error: not enough memory: it ran out"),
    (RuntimeError("CUDA out of memory. Tried"), 2, r"error: not enough memory: CUDA out of memory. Tried"),
    (PermissionError(13, "Permission denied", "/a/b.pt"), 2, r"error: /a/b.pt: Permission denied"),
    (IsADirectoryError(21, "Is a directory", Path("c")), 2, r"error: c: Is a directory"),
    (OSError(28, "No space left on device"), 2, r"error: No space left on device"),
    (OSError(9, "Bad file descriptor"), 1, r"internal error: OSError: \[Errno 9\] Bad file"),
    (PermissionError(13, "Permission denied", "a\x1b[2J\nb"), 2, r"error: a\\x1b\[2J\\nb: Permission denied"),
]


@pytest.mark.parametrize(("error", "code", "line"), UNFORESEEN, ids=lambda one: type(one).__name__)
def test_what_nobody_foresaw_is_one_line(error, code, line, tmp_path: Path, monkeypatch) -> None:
    def broken() -> None:
        raise error

    monkeypatch.setattr(looking, "methods", broken)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    ended = here("methods")
    assert (ended.code, ended.out) == (code, "")
    assert re.fullmatch(f"{line}[^\n]*\n", ended.err), ended.err
    reports = list(tmp_path.iterdir())
    assert len(reports) == (code == 1)
    if code == 1:
        assert "Traceback (most recent call last)" in reports[0].read_text()
        assert "unival-merge methods" in reports[0].read_text()


def test_a_report_that_cannot_be_written_is_said(tmp_path: Path, monkeypatch) -> None:
    def broken() -> None:
        raise KeyError("w")

    monkeypatch.setattr(looking, "methods", broken)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "nowhere"))
    assert "could not be written: No such file" in here("methods").err


def test_warnings_are_one_line() -> None:
    code = "import warnings\nfrom merge.commands.process import patient_streams\n"
    code += "with patient_streams(): warnings.warn('a torn line')"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stderr == "warning: a torn line\n"


def test_escapes_are_shown_not_obeyed() -> None:
    assert printable("a\u2028b\x1b[2J\udc80 é→😀") == "a\\u2028b\\x1b[2J\\udc80 é→😀"


def test_every_command_says_whether_it_prints_or_writes() -> None:
    """Those without an output and without a folder to write into print, and only these."""
    assert {name for name, entry in COMMANDS.items() if entry.prints} == {"methods", "inspect", "diff", "doctor"}
