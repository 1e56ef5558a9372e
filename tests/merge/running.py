"""Command lines in processes of their own, without waiting for torch to be imported in each.

A server process imports the package once and forks itself for every command: real processes, which can be killed,
stopped and limited.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import merge

SERVER = r"""
import contextlib, ctypes, functools, gc, json, os, resource, signal, sys, tempfile, traceback
import torch
import merge, merge.commands
from merge.commands import table
from merge.engine import stream

def drop_capabilities():
    # Root may do anything: without its capabilities the modes of files bind it as they bind everybody.
    header, data = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    if ctypes.CDLL(None, use_errno=True).capset(header, data):
        raise OSError(ctypes.get_errno(), "capset")

def unread():
    # A pipe that nobody reads any more, as behind `| head`.
    end, begin = os.pipe()
    os.close(end)
    return begin

def stepping(number, step):
    # Deliver a signal to oneself at the given step through atomic.py: a line to be run, each counted twice.
    left, seen = step, {}
    def line(frame, event, argument):
        nonlocal left
        if event == "line":
            seen[frame.f_lineno] = seen.get(frame.f_lineno, 0) + 1
            left -= seen[frame.f_lineno] <= 2
            if left == 0:
                left = -1
                os.kill(os.getpid(), number)
        return line
    def trace(frame, event, argument):
        return line if frame.f_code.co_filename.endswith("merge/checkpoint/atomic.py") else None
    def traced(function):
        def call(*args, **more):
            sys.settrace(trace)
            return function(*args, **more)
        return call
    # Commands take these when they are called. Tracing what comes before (the table of commands) takes far longer.
    stream.write, stream.write_sweep = traced(stream.write), traced(stream.write_sweep)

def child(order):
    os.chdir(order["cwd"])
    signal.alarm(order["seconds"])
    if order["umask"] is not None:
        os.umask(order["umask"])
    if order["file_size"] is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (order["file_size"], order["file_size"]))
    if order["unprivileged"] and os.getuid() == 0:
        drop_capabilities()
    for number in order["ignored"]:
        signal.signal(number, signal.SIG_IGN)
    if order["stdout"] == "closed":
        os.close(1)
    elif order["stdout"]:
        os.dup2(os.open("/dev/full", os.O_WRONLY) if order["stdout"] == "full" else unread(), 1)
    sys.argv = ["unival-merge", *order["argv"]]
    if order["step"] is not None:
        stepping(order["signal"], order["step"])
    merge.commands.main()

def warm_up():
    # What a first merge imports and prepares is then there in every child, as is the page of its options.
    table._page = functools.cache(table._page)
    with tempfile.TemporaryDirectory() as folder, open(os.devnull, "w") as nowhere:
        for name in ("a.pt", "b.safetensors"):
            merge.save_checkpoint({"w": torch.zeros(1)}, f"{folder}/{name}")
        merging = ["interpolate", f"{folder}/a.pt", f"{folder}/b.safetensors", "--ratio", "0.5", "-o", f"{folder}/c.pt"]
        sweeping = ["sweep", *merging[1:3], "--points", "2", "-o", f"{folder}/points"]
        for argv in (merging, sweeping, ["inspect", f"{folder}/c.pt"]):
            sys.argv = ["unival-merge", *argv]
            with contextlib.redirect_stdout(nowhere), contextlib.suppress(SystemExit):
                merge.commands.main()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    gc.freeze()

torch.set_num_threads(1)
warm_up()
pipes = {}
for message in sys.stdin:
    order = json.loads(message)
    if "wait" in order:
        code = os.waitstatus_to_exitcode(os.waitpid(order["wait"], 0)[1])
        printed = [pipe.read() for pipe in pipes.pop(order["wait"])]
        print(json.dumps([code, *printed]), flush=True)
        continue
    ends = [os.pipe(), os.pipe()]
    pid = os.fork()
    if pid:
        for _, end in ends:
            os.close(end)
        pipes[pid] = [open(end) for end, _ in ends]
        print(pid, flush=True)
        continue
    os.dup2(ends[0][1], 1)
    os.dup2(ends[1][1], 2)
    for end in (*ends[0], *ends[1]):
        os.close(end)
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

    def __init__(self, server: Server, pid: int):
        self._server, self.pid = server, pid

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def wait(self) -> Result:
        return Result(*self._server.ask({"wait": self.pid}))


class Server:
    """Runs `unival-merge` command lines; `server("inspect", path).code`."""

    def __init__(self, folder: Path):
        self._folder = folder
        environment = {**os.environ, "PYTHONPATH": str(Path(merge.__file__).parents[1])}
        self._process = subprocess.Popen(
            [sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def ask(self, order: dict[str, Any]) -> Any:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

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
        stdout: str = "",
        ignored: Sequence[int] = (),
    ) -> Command:
        """Start a command line.

        `file_size` limits the files it may write, `unprivileged` takes root's rights away, `seconds` is when SIGALRM
        ends it. `stdout` may be "full", "closed" or a "pipe" that nobody reads, `ignored` are signals. With `step` it
        sends itself the signal `number` when it comes to that line of checkpoint/atomic.py.
        """
        order = {"argv": [str(word) for word in argv], "cwd": str(cwd or self._folder), "umask": umask}
        order |= {"file_size": file_size, "unprivileged": unprivileged, "seconds": seconds}
        order |= {"step": step, "signal": int(number), "stdout": stdout, "ignored": [int(one) for one in ignored]}
        return Command(self, self.ask(order))

    def __call__(self, *argv: str | Path, **how: Any) -> Result:
        return self.start(*argv, **how).wait()

    def close(self) -> None:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()
