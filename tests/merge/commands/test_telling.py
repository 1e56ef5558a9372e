"""How much commands tell, and what they end with."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import torch

import merge
from merge.commands.process import EXIT_CODES, Hushed
from tests.merge.shell import command


def test_quiet_tells_what_was_asked_for_alone_and_verbose_more(tmp_path: Path) -> None:
    for name, value in (("a", 1.0), ("b", 2.0)):
        merge.save_checkpoint({"w": torch.full((2,), value), f"only_{name}": torch.ones(1)}, tmp_path / f"{name}.pt")
    pair = ("average", tmp_path / "a.pt", tmp_path / "b.pt", "--missing", "keep-first", "--no-sync", "--overwrite")
    out = ("-o", tmp_path / "m.pt")
    assert command(*pair, *out).out
    quiet = command(*pair, *out, "--quiet")
    assert (quiet.code, quiet.out, quiet.err) == (0, "", "")
    assert json.loads(command(*pair, *out, "-q", "--json").out)["method"] == "average"
    assert "only_a" in command("inspect", tmp_path / "a.pt", "-q").out
    wrong = command("average", tmp_path / "a.pt", tmp_path / "nowhere.pt", *out, "--quiet")
    assert wrong.code == 2
    assert wrong.err.startswith("error: ")
    told = command(*pair, *out, "--verbose").err
    assert told.startswith("merge.engine.stream: Plan(")
    assert command(*pair, *out).err == ""  # nothing of it stays


def test_quiet_streams_are_no_terminals(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(stream, "isatty", lambda: True)
    hushed = Hushed(stream)
    print("note: this", file=hushed)
    print("warning: that", file=hushed, flush=True)
    assert not hushed.isatty()
    assert stream.getvalue().strip() == "warning: that"


def test_exit_codes_are_those_that_commands_end_with(tmp_path: Path) -> None:
    merge.save_checkpoint({"w": torch.ones(2)}, tmp_path / "a.pt")
    assert command("inspect", tmp_path / "a.pt").code == int(next(iter(EXIT_CODES)))
    assert str(command("inspect", tmp_path / "nowhere.pt").code) in EXIT_CODES
    assert list(EXIT_CODES) == ["0", "1", "2", "128 + n"]
