"""Models that are asked in Python: they answer what the command line prints."""

import copy
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import unival_core
from tests.docs.blocks import blocks
from tests.unival_core.golden import fill, filled
from tests.unival_core.made_files import SMALL, published, training_file
from unival_core.commands import app as program
from unival_core.config import CONFIGS
from unival_core.decoding import GenerationOptions
from unival_core.errors import UnivalError
from unival_core.model import UnivalModel
from unival_core.tasks import TASKS
from unival_core.vocabulary import TOKENIZER_KEY, Tokenizer

WORDS = ["what does the image describe?", "which digit is red? the blue one", "four two red blue"]
QUESTION = "which digit is red?"


@pytest.fixture(scope="module")
def folder(pocket: UnivalModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An expert with its words and the answers that it was trained to choose among, and an image."""
    folder = tmp_path_factory.mktemp("asked")
    metadata = {
        TOKENIZER_KEY: Tokenizer.train(WORDS, CONFIGS["pocket"]).to_json(),
        "expert.answers.vqa": '["two", "four"]',
    }
    unival_core.save_model(pocket, folder / "vqa.safetensors", metadata=metadata)
    other = UnivalModel(CONFIGS["pocket"])
    fill(other, scale=3.0)
    unival_core.save_model(other, folder / "caption.safetensors", metadata=metadata)
    Image.effect_noise((60, 40), 80).convert("RGB").save(folder / "a.png")
    return folder


@pytest.fixture(scope="module")
def model(folder: Path) -> unival_core.AnsweringModel:
    return unival_core.load(folder / "vqa.safetensors")


def printed(folder: Path, *arguments: str, checkpoint: str = "vqa") -> str:
    """What `generate` prints."""
    command = ["generate", "--checkpoint", str(folder / f"{checkpoint}.safetensors"), "--image", str(folder / "a.png")]
    run = CliRunner().invoke(program, [*command, *arguments])
    assert run.exit_code == 0, run.stderr
    return run.stdout.strip()


def test_the_three_lines_of_the_page(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """The blocks of docs/tasks.md run, and say what the command line says of either file."""
    monkeypatch.chdir(folder)
    three, merged = (one for one in blocks("docs/tasks.md") if "model.answer(" in one.text)
    assert len([line for line in three.text.splitlines() if line]) == 3
    names: dict[str, object] = {}
    exec(compile(three.text, three.place, "exec"), names)
    assert names["said"] in ("two", "four")
    exec(compile(merged.text, merged.place, "exec"), names)
    ratios = capsys.readouterr().out.splitlines()
    assert names["said"] == printed(folder, "--task", "vqa", "--text", QUESTION)
    assert ratios[2] == f"1.0 {printed(folder, '--task', 'caption', checkpoint='caption')}" != ratios[0]


@pytest.mark.parametrize("task", ["caption", "grounding"])
def test_python_and_the_command_line_say_the_same(folder: Path, model: unival_core.AnsweringModel, task: str) -> None:
    text = "the blue one" if TASKS[task].asks else ""
    said = model.answer(task, image=folder / "a.png", text=text)
    shown = said if isinstance(said, str) else " ".join(f"{value:.1f}" for value in said)
    assert shown == printed(folder, "--task", task, *(("--text", text) if text else ()))
    assert len(said) == 4 or task == "caption"


def test_an_image_is_a_path_bytes_or_open(folder: Path, model: unival_core.AnsweringModel) -> None:
    path = folder / "a.png"
    said = [model.answer("caption", image=image) for image in (path, str(path), path.read_bytes(), Image.open(path))]
    assert len(set(said)) == 1


def test_answers_and_search_may_be_others(folder: Path, model: unival_core.AnsweringModel) -> None:
    asked = {"image": folder / "a.png", "text": QUESTION}
    assert model.answer("vqa", **asked, answers=["red", "blue"]) in ("red", "blue")
    free = model.answer("vqa", **asked, answers=[], options=GenerationOptions(max_len_b=9, min_len=9))
    assert free not in ("two", "four")
    own = replace(TASKS["vqa"], name="colours", answers=("blue",))
    assert model.answer(own, **asked) == "blue"


def test_it_is_a_model_like_any_other(folder: Path, model: unival_core.AnsweringModel, pocket: UnivalModel) -> None:
    """It is copied, and what it shares with a model is the model's."""
    model = copy.deepcopy(model)
    assert isinstance(model, UnivalModel)
    assert not model.training
    assert model.answer("vqa", image=folder / "a.png", text=QUESTION) in ("two", "four")
    shared = unival_core.AnsweringModel.of(pocket, model.tokenizer)
    assert shared.encoder.embed_tokens.weight.data_ptr() == pocket.encoder.embed_tokens.weight.data_ptr()
    assert shared.decoder.output_projection.weight is shared.encoder.embed_tokens.weight
    assert shared.answers == {}


@pytest.mark.parametrize(
    ("task", "asked", "message"),
    [
        ("vqa", {"image": "a.png"}, "vqa needs text="),
        ("vqa", {"text": QUESTION}, "vqa needs image=, got none"),
        ("caption", {"image": "a.png", "text": "hm"}, "caption takes no text="),
        ("caption", {"video": "a.png"}, "caption needs image=, got video="),
        ("image-generation", {"image": "a.png", "text": "four"}, "image-generation looks at nothing, got image="),
        ("caption", {"image": "none.png"}, "none.png: No such file or directory"),
        ("caption", {"image": 5}, "damaged image (TypeError: "),
        ("describe", {"image": "a.png"}, "no task 'describe': choose one of caption, "),
        ("vqa", {"image": "a.png", "text": QUESTION, "answers": ["green"]}, "the tokenizer has no word 'green'"),
    ],
)
def test_mistakes_are_told(model: unival_core.AnsweringModel, folder: Path, task, asked, message) -> None:
    asked = {
        name: folder / value if name == "image" and isinstance(value, str) else value for name, value in asked.items()
    }
    with pytest.raises(UnivalError, match=re.escape(message)) as error:
        model.answer(task, **asked)
    assert "\n" not in str(error.value)


def test_unknown_words_are_warned_of(folder: Path, model: unival_core.AnsweringModel) -> None:
    with pytest.warns(UserWarning, match="does not know these words, and reads <unk>: hmm"):
        model.answer("vqa", image=folder / "a.png", text="which digit is hmm?")


def test_a_published_file_is_asked_at_the_size_that_it_was_trained_with(tmp_path: Path, monkeypatch) -> None:
    """Weights of another project's training file, a tokenizer of published text given in its place."""
    path = training_file(tmp_path / "old.pt", published(filled(SMALL)), {"patch_image_size": 96})
    tokenizer = Tokenizer.train(WORDS, SMALL)
    monkeypatch.setattr("unival_core.answering.load_tokenizer", lambda *_, **__: tokenizer)
    model = unival_core.load(path, dtype=torch.bfloat16)
    assert model.encoder.embed_tokens.weight.dtype == torch.bfloat16
    sides: list[int] = []
    monkeypatch.setattr("unival_core.answering.ask", lambda model, tokenizer, task, *_: sides.append(task.side))
    model.answer("caption", image="a.png")
    assert sides == [96]
