"""Every example of a help text runs: these are the commands' own words, on tiny files of the names that they use."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
import torch

import merge
from merge.commands import COMMANDS
from merge.methods import METHODS
from tests.merge.made import weights
from tests.merge.shell import command, done

CHECKPOINTS = ("vqa.pt", "caption.pt", "grounding.pt", "pretrained.pt", "vqa.safetensors")


def examples(name: str) -> list[list[str]]:
    """The command lines that a help text shows."""
    lines = done(*name.split(), "--help").out.splitlines()
    return [shlex.split(line)[1:] for line in lines if line.startswith("  unival-merge ")]


def finetuned(seed: int) -> dict[str, torch.Tensor]:
    """Weights a little away from those of seed 3, which stand for the ancestor's."""
    ancestor, other = weights(3), weights(seed)
    floats = {key for key, value in ancestor.items() if value.is_floating_point()}
    return {key: value + 0.01 * other[key] if key in floats else value for key, value in ancestor.items()}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with all that the examples name: finetuned a little from one ancestor, and two adapters."""
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(CHECKPOINTS):
        merge.save_checkpoint(finetuned(seed), name)
    merge.save_checkpoint({"model.layer.weight": torch.ones(4, 6)}, "model.safetensors")
    merge.save_checkpoint({"model.layer.weight": torch.eye(4, 6)}, "tuned.safetensors")
    Path("run").mkdir()
    for name in ("small.safetensors", "one.pt", "two.pt"):
        merge.save_checkpoint({f"h.{number}.w": torch.ones(2) for number in range(24)}, name)
    for name in ("vqa_lora", "caption_lora"):
        (tmp_path / name).mkdir()
        factors = {"lora_A": torch.ones(2, 6), "lora_B": torch.ones(4, 2)}
        state = {f"base_model.model.model.layer.{key}.weight": value for key, value in factors.items()}
        merge.save_checkpoint(state, tmp_path / name / "adapter_model.safetensors")
        settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["layer"]}
        (tmp_path / name / "adapter_config.json").write_text(json.dumps(settings))
    for seed, name in enumerate(("a.pt", "b.pt")):
        torch.manual_seed(seed)
        merge.save_checkpoint(torch.nn.Sequential(torch.nn.Linear(5, 8), torch.nn.Linear(8, 3)).state_dict(), name)
    for step in range(1, 6):
        merge.save_checkpoint(finetuned(step), f"run/step={step}.safetensors")
    Path("groups.json").write_text(json.dumps({"hidden": {"0.weight": 0, "0.bias": 0, "1.weight": 1}}))
    done("interpolate", "vqa.pt", "caption.pt", "--ratio", 0.5, "-o", "merged.safetensors")
    return tmp_path


@pytest.mark.parametrize("name", COMMANDS)
def test_the_examples_of_every_command_run(folder: Path, name: str) -> None:
    found = examples(name)
    assert found
    for arguments in found:
        assert arguments[: len(name.split())] == name.split()
        output = Path(arguments[arguments.index("-o") + 1]) if "-o" in arguments else None
        ran = command(*arguments, *(["--overwrite"] if output and output.exists() else []))
        assert ran.code == 0, ran
        assert output is None or output.exists()


@pytest.mark.parametrize("name", METHODS)
def test_the_example_of_every_method_runs(folder: Path, name: str) -> None:
    for part in ("vqa", "caption"):  # as squares of gradients
        squares = {key: value.abs() for key, value in weights(5).items()}
        merge.save_checkpoint(squares, f"{part}-fisher.pt")
    shown = json.loads(done("methods", name, "--json").out)[name]["example"]
    ran = command(*shlex.split(shown)[1:], "--overwrite")
    assert ran.code == 0, ran
    assert json.loads(Path("merged.safetensors.recipe.json").read_text())["method"] == name
