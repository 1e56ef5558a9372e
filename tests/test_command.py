"""The console script finds its own packages among others of their names."""

import subprocess
import sys
from pathlib import Path

import pytest

import unival_merge
from tests import ROOT

WAY = "import unival_merge; unival_merge.main()"


def command(folder: Path, *argv: str) -> subprocess.CompletedProcess[str]:
    """Run `unival-merge` where `folder` comes first on the way that Python looks."""
    path = f"{folder}:{ROOT}"
    return subprocess.run(
        [sys.executable, "-c", WAY, *argv],
        cwd=folder,
        env={"PYTHONPATH": path, "PATH": "/usr/bin:/bin", "HOME": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_packages_of_the_same_names_are_passed_by(tmp_path: Path) -> None:
    (tmp_path / "merge.py").write_text("raise SystemExit('the wrong one')")
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "__init__.py").write_text("raise SystemExit('the wrong one')")
    done = command(tmp_path, "--version")
    assert (done.returncode, done.stderr) == (
        0,
        f"note: {tmp_path / 'merge.py'} is called merge too: {ROOT / 'merge'} is used\n",
    )
    assert "\nunival-merge " in done.stdout


def test_nothing_is_said_where_they_are_ours(tmp_path: Path) -> None:
    (tmp_path / "merge").mkdir()  # someone's data, no package
    done = command(tmp_path, "--version")
    assert (done.returncode, done.stderr) == (0, "")


def test_packages_that_were_written_over_are_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "experiments.commands", None)
    monkeypatch.setattr(unival_merge, "packages_distributions", lambda: {"merge": ["unival-merge", "merge"]})
    with pytest.raises(SystemExit, match="2"):
        unival_merge.main()
    assert "error: merge wrote over packages of unival-merge in " in capsys.readouterr().err
    monkeypatch.setattr(unival_merge, "packages_distributions", lambda: {"merge": ["unival-merge"]})
    with pytest.raises(ImportError):
        unival_merge.main()
