"""Paths with `~` and globs that no shell has read: quoted, or from another program."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import merge
from tests.merge.shell import command, done


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with three checkpoints of one tensor, the working and the home folder."""
    for number, name in enumerate(("run1", "run2", "run[3]")):
        merge.save_checkpoint({"w": torch.full((2,), float(number))}, tmp_path / f"{name}.safetensors")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_a_glob_stands_for_its_files_in_order(here: Path) -> None:
    done("average", "run*.safetensors", "-o", "~/mean.safetensors")
    assert merge.load_checkpoint(here / "mean.safetensors")["w"].tolist() == [1.0, 1.0]


def test_home_is_read_in_every_path(here: Path) -> None:
    assert f"{here}/run1.safetensors: safetensors file" in done("inspect", "~/run1.safetensors").out
    done(
        "merge", "task-arithmetic", "~/run2.safetensors", "--base", "~/run1.*", "-p", "scale=1", "-o", "out.safetensors"
    )
    assert merge.load_checkpoint(here / "out.safetensors")["w"].tolist() == [1.0, 1.0]


def test_a_path_that_is_there_is_itself(here: Path) -> None:
    done("convert", "run[3].safetensors", "-o", "three.pt")
    assert merge.load_checkpoint(here / "three.pt")["w"].tolist() == [2.0, 2.0]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("average", "none*.pt", "-o", "o.pt"), "none*.pt: fits no file"),
        (("inspect", "run?.safetensors"), "run?.safetensors fits 2 files, and one is meant: run1.safetensors, run2"),
        (("inspect", "~nobody-is-called-so/a.pt"), "~nobody-is-called-so/a.pt"),
    ],
)
def test_what_fits_no_file_is_one_line(here: Path, arguments: tuple[str, ...], told: str) -> None:
    outcome = command(*arguments)
    assert (outcome.code, outcome.err.count("\n")) == (2, 1)
    assert told in outcome.err
    assert not (here / "o.pt").exists()


def test_globs_of_tensors_are_left_alone(here: Path) -> None:
    done("average", "run1.safetensors", "run2.safetensors", "--keep", "*", "-o", "kept.safetensors")
    assert merge.load_checkpoint(here / "kept.safetensors")["w"].tolist() == [0.0, 0.0]
