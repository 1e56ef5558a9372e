"""Command lines in processes of their own, without waiting for torch to be imported in each.

A server process imports the package once and forks itself for every command: real processes, which can be killed,
stopped and limited.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import merge

SERVER = r"""
import ctypes, json, os, resource, signal, sys, traceback
import numpy, torch, xxhash
import merge.cli, merge.diagnose, merge.engine

def drop_capabilities():
    # Root may do anything: without its capabilities the modes of files bind it as they bind everybody.
    header, data = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    if ctypes.CDLL(None, use_errno=True).capset(header, data):
        raise OSError(ctypes.get_errno(), "capset")

def stepping(number, step):
    # Deliver a signal to oneself before the given line of merge/files.py, counted as executed.
    left = step
    def line(frame, event, argument):
        nonlocal left
        if event == "line":
            left -= 1
            if left == 0:
                os.kill(os.getpid(), number)
        return line
    sys.settrace(lambda frame, event, argument: line if frame.f_code.co_filename.endswith("merge/files.py") else None)

def child(order):
    os.chdir(order["cwd"])
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        os.dup2(os.open(order[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), descriptor)
    signal.alarm(order["seconds"])
    if order["umask"] is not None:
        os.umask(order["umask"])
    if order["file_size"] is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (order["file_size"], order["file_size"]))
    if order["unprivileged"] and os.getuid() == 0:
        drop_capabilities()
    sys.argv = ["unival-merge", *order["argv"]]
    if order["step"] is not None:
        stepping(order["signal"], order["step"])
    merge.cli.main()

torch.set_num_threads(1)
for message in sys.stdin:
    order = json.loads(message)
    if "wait" in order:
        print(os.waitstatus_to_exitcode(os.waitpid(order["wait"], 0)[1]), flush=True)
        continue
    pid = os.fork()
    if pid:
        print(pid, flush=True)
        continue
    code = 0
    try:
        child(order)
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
"""


class Result(NamedTuple):
    """How a command ended: its exit code (negative: the signal that killed it) and what it printed."""

    code: int
    out: str
    err: str


class Command:
    """A running command."""

    def __init__(self, server: Server, pid: int, out: Path, err: Path):
        self._server, self.pid, self._out, self._err = server, pid, out, err

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def wait(self) -> Result:
        code = self._server.ask({"wait": self.pid})
        return Result(code, self._out.read_text(), self._err.read_text())


class Server:
    """Runs `unival-merge` command lines; `server("inspect", path).code`."""

    def __init__(self, folder: Path):
        self._folder, self._numbers = folder, itertools.count()
        environment = {**os.environ, "PYTHONPATH": str(Path(merge.__file__).parents[1])}
        self._process = subprocess.Popen(
            [sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def ask(self, order: dict[str, Any]) -> int:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def start(
        self,
        *argv: str | Path,
        cwd: Path | None = None,
        umask: int | None = None,
        file_size: int | None = None,
        unprivileged: bool = False,
        step: int | None = None,
        number: int = signal.SIGKILL,
        seconds: int = 60,
    ) -> Command:
        """Start a command line.

        `file_size` limits the files it may write, `unprivileged` takes root's rights away, `seconds` is when SIGALRM
        ends it. With `step` it sends itself the signal `number` before that many lines of merge/files.py were run.
        """
        at = next(self._numbers)
        out, err = self._folder / f"{at}.out", self._folder / f"{at}.err"
        order = {"argv": [str(word) for word in argv], "cwd": str(cwd or self._folder), "stdout": str(out)}
        order |= {"stderr": str(err), "umask": umask, "file_size": file_size, "unprivileged": unprivileged}
        order |= {"step": step, "signal": int(number), "seconds": seconds}
        return Command(self, self.ask(order), out, err)

    def __call__(self, *argv: str | Path, **how: Any) -> Result:
        return self.start(*argv, **how).wait()

    def close(self) -> None:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()
