"""Runs that are stopped, alone or beside another: nothing broken, nothing left, nothing twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

from experiments.errors import StudyError
from experiments.grid.children import _once_more
from experiments.grid.engines.local import evaluate
from experiments.grid.grid import run_cells
from experiments.grid.rows import read_rows
from merge import alone
from tests import ROOT
from tests.experiments.grid.stopping import FULL, make_experts, plan, run, told

FILES = {"rows.jsonl", "rows.scores.jsonl", "study.json"}


def test_stopped_at_random_it_always_goes_on(tmp_path: Path) -> None:
    """Killed, told to end, at the limit of a file's size: what is there is whole, and the end is the same."""
    argv = [sys.executable, "-W", "ignore", "-m", "tests.experiments.grid.stopping", str(tmp_path)]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    codes = {"SIGKILL": -9, "SIGTERM": 143, "SIGHUP": 129, "SIGINT": 130, "full": FULL}
    for end in result["ends"]:
        early = -int(getattr(signal, end["how"], 0))  # before the command had its handlers
        assert end["code"] in (0, codes[end["how"]], early), end
        assert {*end["left"]} <= FILES | ({"study.json.partial"} if end["how"] == "SIGKILL" else set()), end
    stopped = [end["how"] for end in result["ends"] if end["code"]]
    assert len(stopped) >= 10  # of 30: the others were done before
    assert len(set(stopped)) >= 3
    assert result["same"]
    assert set(result["left"]) == FILES


def test_a_script_without_a_guard_is_told_to_have_one(tmp_path: Path) -> None:
    """Its workers run it again, and would wait for the folder that it holds, and it for them."""
    make_experts(tmp_path / "experts")
    script = tmp_path / "go.py"
    script.write_text(
        "import sys; from pathlib import Path; from functools import partial\n"
        f"sys.path[:0] = [{str(ROOT)!r}]\n"
        "from tests.experiments.grid.stopping import evaluate, plan, run_cells\n"
        f"grid, cells = plan(Path({str(tmp_path / 'experts')!r}), 3)\n"
        f"run_cells(grid, cells, Path({str(tmp_path / 'rows')!r}), partial(evaluate, processes=2), progress=False)\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    assert f"{script} runs again in each process that it starts: put what starts the study under `if __name__ ==" in (
        done.stderr
    )
    assert done.stderr.splitlines()[-1].startswith("experiments.errors.StudyError: a worker died (exit code 1; ")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
def test_no_worker_outlives_its_run(tmp_path: Path, number: signal.Signals) -> None:
    """Two workers in the middle of a cell that would take a minute. A terminal that goes tells all processes of it."""
    make_experts(tmp_path / "experts")
    script = tmp_path / "go.py"
    script.write_text(
        "import sys; from pathlib import Path; from functools import partial\n"
        f"sys.path[:0] = [{str(ROOT)!r}]\n"
        "if __name__ == '__main__':\n"
        "    from tests.experiments.grid.stopping import evaluate, plan, run_cells, ending_on_signals\n"
        f"    grid, cells = plan(Path({str(tmp_path / 'experts')!r}), 3)\n"
        "    grid.subject.seconds = 60 if sys.argv[1:] else 0\n"
        "    with ending_on_signals():\n"
        f"        run_cells(grid, cells, Path({str(tmp_path / 'rows')!r}), partial(evaluate, processes=2))\n"
    )
    process = subprocess.Popen(
        [sys.executable, str(script), "slow"], cwd=ROOT, stderr=subprocess.PIPE, start_new_session=True
    )
    workers: set[int] = set()
    while len(workers) < 2 and process.poll() is None:
        time.sleep(0.05)
        workers = {pid for pid in children(process.pid) if b"spawn_main" in command_of(pid)}
    time.sleep(0.3)
    os.kill(-process.pid if number == signal.SIGHUP else process.pid, number)
    _, errors = process.communicate(timeout=60)  # waits for the workers too, who hold the pipe
    assert process.returncode == (-number if number == signal.SIGKILL else 128 + number), errors.decode()
    assert b"Traceback" not in errors
    assert not any(command_of(pid) for pid in workers)  # of one that nobody has waited for yet nothing is left


def test_a_signal_that_python_drops_comes_again() -> None:
    """What a signal raises in a finaliser of a child is dropped; the child would go on."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        _once_more(SimpleNamespace(exc_type=SystemExit))
        with pytest.raises(SystemExit) as ended:
            time.sleep(10)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert ended.value.code == 143


def children(pid: int) -> set[int]:
    return {int(path.parent.name) for path in Path("/proc").glob("[0-9]*/stat") if parent_of(path) == pid}


def parent_of(stat: Path) -> int:
    try:
        return int(stat.read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def command_of(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def test_the_second_run_in_a_folder_waits_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make_experts(tmp_path / "experts")
    (tmp_path / "rows").mkdir()
    done: list[str] = []

    def second() -> None:
        done.append(str(run(tmp_path / "experts", tmp_path / "rows")))

    with alone(tmp_path / "rows"):
        waiting = threading.Thread(target=second)
        waiting.start()
        waiting.join(0.5)
        assert not done
        assert list((tmp_path / "rows").iterdir()) == []
    waiting.join(30)
    assert done[0].startswith("22 cells evaluated")
    assert caplog.messages == [f"another run works in {tmp_path / 'rows'}: waiting until it is done"]


def test_runs_at_once_evaluate_every_cell_once(tmp_path: Path) -> None:
    make_experts(tmp_path / "experts")
    found: list[int] = []

    def one() -> None:
        found.append(run(tmp_path / "experts", tmp_path / "rows").evaluated)

    threads = [threading.Thread(target=one) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == [0, 0, 22]
    assert len((tmp_path / "rows" / "rows.jsonl").read_text().splitlines()) == 22
    assert len(told(tmp_path / "rows")) == 22


def test_an_engine_is_closed_where_a_row_cannot_be_written(tmp_path: Path) -> None:
    """A folder has the rows' name: one line, and the engine's processes do not go on."""
    make_experts(tmp_path / "experts")
    closed: list[bool] = []

    def engine(groups, subject, device):
        try:
            yield from evaluate(groups, subject, device)
        finally:
            closed.append(True)

    (tmp_path / "rows" / "rows.scores.jsonl").mkdir(parents=True)
    with pytest.raises(StudyError, match=r"rows.scores.jsonl cannot be written: Is a directory; what it holds"):
        run_cells(*plan(tmp_path / "experts"), tmp_path / "rows", engine, progress=False)
    assert closed == [True]
    with pytest.raises(StudyError, match=r"rows/x.jsonl: no such file"):
        read_rows(tmp_path / "rows" / "x.jsonl")
    (tmp_path / "rows" / "rows.jsonl").mkdir()
    with pytest.raises(StudyError, match=r"rows.jsonl: is no file: run the study first"):
        read_rows(tmp_path / "rows" / "rows.jsonl")
    with pytest.raises(StudyError, match=r"rows.jsonl: is no file"):
        run(tmp_path / "experts", tmp_path / "rows")


@pytest.mark.parametrize("processes", [1, 2])
def test_a_device_that_is_not_there_is_one_line(tmp_path: Path, processes: int) -> None:
    make_experts(tmp_path / "experts")
    grid, cells = plan(tmp_path / "experts")
    grid.device = "cuda:99"
    with pytest.raises(StudyError, match=r"--device cuda:99: [^\n]+$"):
        run_cells(grid, cells, tmp_path / "rows", partial(evaluate, processes=processes), progress=False)
