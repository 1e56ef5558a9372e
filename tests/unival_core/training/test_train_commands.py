"""The commands `train` and `pretrain`."""

import csv
import json

import pytest
from typer.testing import CliRunner

from tests.unival_core.training.made_run import COLOURS, PLAIN, fresh, tokenizer
from unival_core.checkpoint import save_model
from unival_core.commands import app
from unival_core.tasks import TASKS
from unival_core.training.prepare import tensors_digest
from unival_core.training.recipes import STAGES, Stage, options_for
from unival_core.vocabulary import TOKENIZER_KEY


@pytest.fixture(scope="module")
def initial(tmp_path_factory):
    path = tmp_path_factory.mktemp("initial") / "initial.safetensors"
    return save_model(fresh(), path, metadata={TOKENIZER_KEY: tokenizer().to_json()})


def command(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


def test_train_command_follows_the_recipe_and_what_is_given(tables, initial, tmp_path):
    (tables / "colours.txt").write_text("\n".join(COLOURS))
    common = ["--data", tables, "--init", initial, "--workers", 0, "--batch", 8, "--updates", 3]
    done = command(
        "train", "--task", "vqa", "-o", tmp_path / "vqa", *common, "--answers", tables / "colours.txt", "--lr", 2e-3
    )
    assert (done.exit_code, done.stdout.strip()) == (0, str(tmp_path / "vqa" / "best.safetensors"))
    options = json.loads((tmp_path / "vqa" / "run.json").read_text())["options"]
    wanted = options_for(TASKS["vqa"], "pocket")
    assert (options["lr"], options["updates"], options["group"]) == (2e-3, 3, wanted.group)
    with (tmp_path / "vqa" / "metrics.csv").open() as file:
        assert 0 <= float([*csv.DictReader(file)][-1]["validation"]) <= 1
    done = command(
        "train", "--task", "grounding", "-o", tmp_path / "large", *common, "--reward", "large", "--val-split", ""
    )
    assert (done.exit_code, done.stdout.strip()) == (0, str(tmp_path / "large" / "last.safetensors"))


def test_pretrain_command_goes_through_the_stages(tables, initial, tmp_path, monkeypatch):
    tasks = {"caption": 1.0, "vqa": 1.0}
    stages = (Stage("one", PLAIN, tasks), Stage("two", PLAIN, tasks, splits={"vqa": "train"}))
    monkeypatch.setitem(STAGES, "pocket", stages)
    common = ["--data", tables, "--init", initial, "--workers", 0, "--batch", 8, "--updates", 2]
    done = command("pretrain", "-o", tmp_path / "out", *common)
    assert (done.exit_code, done.stdout.strip()) == (0, str(tmp_path / "out" / "two" / "last.safetensors"))
    first = tensors_digest(tmp_path / "out" / "one" / "last.safetensors")
    assert json.loads((tmp_path / "out" / "two" / "run.json").read_text())["init"] == first


def test_mistakes_are_one_line(tables, initial, tmp_path):
    common = ["--data", tables, "--init", initial, "-o", tmp_path / "out"]
    for words, told in (
        (["train", "--task", "chess"], "no task 'chess': choose one of caption, vqa"),
        (["train", "--task", "vqa", "--split", "dev"], "dev.tsv"),
        (["train", "--task", "grounding", "--reward", "huge"], "'huge' is not one of small, medium, large"),
        (["pretrain", "--stage", "nine"], "no stage 'nine'"),
    ):
        done = command(*words, *common)
        assert done.exit_code == 2
        assert done.stderr.startswith("error: ")
        assert done.stderr.count("\n") == 1
        assert told in done.stderr
