"""The examples of the help texts run as they stand, on tiny files of the names that they use.

`pocket`, `demo` and the worlds take long and torchrun a machine with GPUs: their examples are parsed (test_table), and
what they do runs in test_pocket, test_demo, test_world and test_train. Weights are random here, so what models answer
in studies is made up.
"""

from __future__ import annotations

import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import merge
import unival_core.commands
from experiments.commands import COMMANDS, app
from experiments.grid.rows import read_rows
from experiments.grid.subject import Score
from experiments.study.points import Cell
from experiments.unival.setups import PocketSetup
from experiments.unival.studies import STUDIES
from experiments.unival.subject import UnivalSubject
from tests.experiments.commands.test_table import examples, page
from tests.experiments.made_pocket import TINY, make_pocket
from tests.experiments.study_rows import write_study
from unival_core import TASKS
from unival_core.image_codes import ImageCodes, ImageCodesConfig, save_image_codes
from unival_core.training import STAGES

CHAINED = ("study new", "study run", "study samples")
ELSEWHERE = ("pocket", "demo", "world make", "world show")
NAMES = [name for name in (*unival_core.commands.COMMANDS, *COMMANDS) if name not in (*CHAINED, *ELSEWHERE)]
PAIR = {"vqa": "vqa", "caption": "caption"}
STUDY = replace(TINY, name="interpolation", experts=PAIR, mixtures=(tuple(PAIR),))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, micro_world: Path) -> Path:
    """All that the examples name: a world, models, an image, rows of studies."""
    folder = tmp_path_factory.mktemp("examples") / "whole"
    home = make_pocket(folder / "pocket-full", micro_world, tuple(PAIR))
    shutil.copytree(micro_world, folder / "world")
    for name in ("pretrained", "backbone", "vqa"):
        shutil.copy(PocketSetup(home).pocket().pretrained, folder / f"{name}.safetensors")
    shutil.copy(micro_world / "vqa" / "val.tsv", folder / "vqa_val.tsv")
    (folder / "trainval_ans2label.pkl").write_bytes(pickle.dumps({"four": 0, "red": 1}))
    Image.new("RGB", (64, 48), (200, 30, 30)).save(folder / "dog.jpg")
    few = {"only": "vqa+caption", "points": 3, "kinds": ("vanilla",)}
    for split in ("val", "test"):
        write_study(folder / "rows", "interpolation", split=split, **few)
    write_study(folder / "results" / "pocket-interpolation", "interpolation", split="val", **few)
    write_study(folder / "results" / "pocket-averaging", "averaging", points=2, kinds=("vanilla",))
    for seed, name in enumerate(("a.pt", "b.pt")):
        torch.manual_seed(seed)
        merge.save_checkpoint(torch.nn.Sequential(torch.nn.Linear(5, 8), torch.nn.Linear(8, 3)).state_dict(), name)
        shutil.move(name, folder / name)
    shutil.copy(folder / "vqa.safetensors", folder / "drawing.pt")  # files are known by what they hold
    save_image_codes(ImageCodes(ImageCodesConfig(16, 8, 8, 8, (1,), 1, ())), folder / "codes.safetensors")
    shutil.move(folder / "codes.safetensors", folder / "codes.pt")
    (folder / "groups.json").write_text('{"hidden": {"0.weight": 0, "0.bias": 0, "1.weight": 1}}')
    return folder


@pytest.fixture
def folder(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy to work in; recipes of one update, a study of three points."""
    folder = tmp_path / "work"
    shutil.copytree(whole, folder)
    monkeypatch.chdir(folder)
    short = {"pocket": {"updates": 1, "batch": 2}}
    monkeypatch.setitem(TASKS, "vqa", replace(TASKS["vqa"], recipes=short))
    stages = [replace(stage, options=replace(stage.options, updates=1, batch=2)) for stage in STAGES["pocket"]]
    monkeypatch.setitem(STAGES, "pocket", tuple(stages))
    monkeypatch.setitem(STUDIES, "interpolation", STUDY)
    monkeypatch.setitem(STUDIES, "mergeability", replace(STUDY, name="mergeability"))

    def evaluate(subject: UnivalSubject, model: torch.nn.Module, cell: Cell) -> dict[str, Score]:
        return {name: Score(0.5, 0.4, 0.6, 4, np.full(4, 0.5)) for name in subject.metrics(cell)}

    monkeypatch.setattr(UnivalSubject, "evaluate", evaluate)
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_the_examples_run(folder: Path, name: str) -> None:
    shown = [words for words in examples(page(app, name)) if "cuda" not in words]
    assert shown
    if name == "study best":  # the rows of a study that was evaluated
        shutil.copytree(folder / "rows", folder / "pocket-full", dirs_exist_ok=True)
    for words in shown:
        ran = CliRunner().invoke(app, words)
        assert ran.exit_code == 0, ran.output
        assert ran.stdout


def test_a_study_is_run_and_sampled_by_the_words_of_its_help(folder: Path) -> None:
    """One after the other, as a user would: samples are those of the rows that were evaluated."""
    for name in (*CHAINED, "study report"):
        for words in examples(page(app, name)):
            here = ["pocket-full" if word.startswith("results/") else word for word in words]
            ran = CliRunner().invoke(
                app, [*here, *(["--processes", "1", "--points", "3"] if name == "study run" else [])]
            )
            assert ran.exit_code == 0, ran.output
    assert set(read_rows("pocket-full/rows.jsonl")["study"]) == {"interpolation"}
    assert (folder / "pocket-full" / "samples.jsonl").stat().st_size > 500
    assert "No sample answers" in Path("report.html").read_text(encoding="utf-8")  # its script's words
