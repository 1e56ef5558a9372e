"""The examples of the README and of docs/start.md run, and the commands exist."""

from __future__ import annotations

import re
import runpy
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import experiments
import merge
import merge.commands
import unival_core.commands
from experiments.commands import COMMANDS, app
from tests import ROOT
from unival_core.checkpoint import save_model
from unival_core.config import CONFIGS
from unival_core.model import UnivalModel

README = (ROOT / "README.md").read_text(encoding="utf-8")
START = (ROOT / "docs" / "start.md").read_text(encoding="utf-8")
TEN, CURVES, UNIVAL = (
    next(block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if sign in block)
    for page, sign in ((README, "vqa = "), (START, "experiments.Study("), (START, "unival_core.load_model"))
)


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
    exec(TEN, {"model": model})
    expected = torch.full((2, 2), 0.6 * experts["vqa"] + 0.4 * experts["caption"])
    torch.testing.assert_close(merge.load_checkpoint("merged.safetensors")["weight"], expected)
    torch.testing.assert_close(model.weight.detach(), torch.full((2, 2), 2.0))  # the last point of the sweep, restored


def test_the_study_of_your_own_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On real digits, with the experts that `study new` trains: rows are a plain loop's, and nothing is redone."""
    pytest.importorskip("sklearn")
    monkeypatch.chdir(tmp_path)
    given = runpy.run_path(str(new_study(tmp_path)))
    for file in (tmp_path / "digits_experts").iterdir():
        shutil.copy(file, tmp_path)
    calls: list[str] = []

    def counted(score: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def score_and_count(model: torch.nn.Module, split: str) -> torch.Tensor:
            calls.append(split)
            return score(model, split)

        return score_and_count

    scores = {task: partial(given["score"], task) for task in given["TASKS"]}
    names = {"make_model": given["model"], **{f"score_{task}": counted(score) for task, score in scores.items()}}
    block = CURVES.replace("points=11", "points=5")  # eleven are for people
    exec(block, dict(names))
    assert (tmp_path / "digits" / "report.html").stat().st_size > 50_000
    results = experiments.open_results("digits")
    assert len(calls) == len(results.rows)
    first, second = (torch.load(f"{name}.pt") for name in ("upright", "turned"))
    model = given["model"]().eval()
    line = results.rows[
        (results.rows["method"] == "interpolate") & results.rows["shares"].map(lambda s: "inverted" not in s)
    ]
    assert set(line["split"]) == {"val", "test", "noisy"}
    for row in line.to_dict("records"):
        state = {
            key: torch.lerp(value, second[key], row["shares"]["turned"]) if value.is_floating_point() else value
            for key, value in first.items()
        }
        model.load_state_dict(state)
        with torch.no_grad():
            right = scores[row["task"]](model, row["split"])
        assert row["value"] == right.double().mean().item()
        assert np.array_equal(results.scores(row), right.double().numpy())
    calls.clear()
    exec(block[: block.index("print(")], dict(names))
    assert not calls


def new_study(folder: Path) -> Path:
    """Write the file that `study new` writes."""
    file = folder / "digits_study.py"
    assert CliRunner().invoke(app, ["study", "new", str(file)]).exit_code == 0
    return file


def test_the_script_of_a_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "results").symlink_to(ROOT / "results")
    for name in ("vqa", "caption"):
        save_model(UnivalModel(CONFIGS["pocket"]), tmp_path / f"{name}.safetensors")
    exec(UNIVAL, {})
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
