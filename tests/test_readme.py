"""The README's examples run, and its commands exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import merge
import merge.commands
import unival_core.commands
from experiments.commands import COMMANDS
from tests import ROOT
from unival_core.checkpoint import save_model
from unival_core.config import CONFIGS
from unival_core.model import UnivalModel

README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.fixture
def experts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Two one-layer experts in the working folder, named as in the README."""
    monkeypatch.chdir(tmp_path)
    values = {"vqa": 1.0, "caption": 2.0}
    for name, value in values.items():
        merge.save_checkpoint({"weight": torch.full((2, 2), value)}, f"{name}.safetensors")
    return values


def test_the_ten_lines(experts: dict[str, float]) -> None:
    model = torch.nn.Linear(2, 2, bias=False)
    exec(BLOCKS[0], {"model": model})
    expected = torch.full((2, 2), 0.6 * experts["vqa"] + 0.4 * experts["caption"])
    torch.testing.assert_close(merge.load_checkpoint("merged.safetensors")["weight"], expected)
    torch.testing.assert_close(model.weight.detach(), torch.full((2, 2), 2.0))  # the last point of the sweep, restored


def test_the_script_of_a_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "results").symlink_to(ROOT / "results")
    for name in ("vqa", "caption"):
        save_model(UnivalModel(CONFIGS["pocket"]), tmp_path / f"{name}.safetensors")
    exec(BLOCKS[1], {})
    assert (tmp_path / "curves.png").stat().st_size > 10_000
    assert "1.00 joint" in capsys.readouterr().out


def test_the_table_of_commands_names_them_all() -> None:
    rows = [line.split("|")[1] for line in README.splitlines() if line.startswith("| `unival-merge ")]
    named: set[str] = set()
    for row in rows:
        first, *others = [word.removeprefix("unival-merge ").split()[:2] for word in re.findall(r"`([^`]+)`", row)]
        group = f"{first[0]} " if first[0] in ("study", "world") else ""
        named.add(group + first[1] if group else first[0])
        named |= {group + (other[1] if other[0] == group.strip() else other[0]) for other in others}
    assert named == {*merge.commands.COMMANDS, *unival_core.commands.COMMANDS, *COMMANDS}


def test_links_lead_to_files() -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
