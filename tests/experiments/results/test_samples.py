"""What models between two experts answer to a few examples, for any study: text, images, tables."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import experiments
from experiments.commands import app
from experiments.errors import StudyError
from experiments.results.samples import LARGEST, image_of, part_of, samples_of
from experiments.study.study import Task
from tests.experiments import made_study

ROW = {"task": "up", "split": "test"}


def show(model, split, index):
    """Three examples: their numbers, what is right and what the model says."""
    inputs = made_study.inputs(split)[:3]
    said = model(inputs[[index]]).softmax(1)[0]
    return {
        "prompt": "is the first number positive?",
        "text": str(bool(said.argmax())),
        "reference": bool(inputs[index, 0] > 0),
        "image": inputs[index].reshape(1, 3),
        "probabilities": [["no", "yes"], said.tolist()],
    }


def study(**changes):
    given = made_study.study()
    return replace(given, tasks={**given.tasks, "up": replace(given.tasks["up"], **{"show": show, **changes})})


def lines(folder):
    return [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]


def test_models_between_experts_answer_examples(tmp_path):
    results = experiments.run(study(), tmp_path, progress=False)
    assert results.samples(count=5) == 5  # the line of five points, on the task that shows, of test
    assert results.samples() == 0
    found = lines(tmp_path)
    rows = results.rows.set_index("key")
    assert {(rows.loc[line["key"]].task, rows.loc[line["key"]].split) for line in found} == {("up", "test")}
    middle = next(line for line in found if line["shares"] == {"up": 0.5, "down": 0.5})
    assert [sample["title"] for sample in middle["samples"]] == [
        f"example {number}{what}" for number in range(3) for what in ("", ", probabilities")
    ]
    first, second = middle["samples"][:2]
    assert set(first) == {"title", "prompt", "text", "reference", "image"}
    assert second["table"][0] == ["no", "yes"]
    with torch.no_grad():
        ends = [made_study.weights(seed) for seed in (1, 2)]
        model = made_study.make_model().eval()
        model.load_state_dict({name: torch.lerp(ends[0][name].float(), ends[1][name].float(), 0.5) for name in ends[0]})
        said = model(made_study.inputs("test")[:1]).softmax(1)[0]
    assert second["table"][1] == [f"{value:.4g}" for value in said.tolist()]
    images = sorted(path.name for path in (tmp_path / "samples").iterdir())
    assert images == sorted({sample["image"] for line in found for sample in line["samples"] if "image" in sample})
    with Image.open(tmp_path / "samples" / first["image"]) as image:
        assert image.size == (96, 32)  # 3 x 1 pixels, each a square


def test_samples_by_the_command_line(tmp_path):
    file, folder = tmp_path / "signs.py", tmp_path / "rows"
    file.write_text("from tests.experiments.results import test_samples\n\nstudy = test_samples.study()\n")
    call = lambda *words: CliRunner().invoke(app, ["study", *map(str, words)])  # noqa: E731
    assert call("run", file, folder, "--points", "3").exit_code == 0
    assert call("samples", folder, "--count", "1").stdout == f"{folder / 'samples.jsonl'}: 3 rows more\n"
    assert "--pocket is for the studies of `study list`" in call("samples", folder, "--pocket", tmp_path).stderr
    assert "--pocket says where the models of interpolation are" in call("samples", "interpolation", folder).stderr


def test_what_cannot_be_shown_is_told(tmp_path):
    results = experiments.run(study(show=None), tmp_path, progress=False)
    with pytest.raises(StudyError, match="no task says what to show"):
        results.samples()
    with pytest.raises(StudyError, match=r"run the study of .* first"):
        experiments.open_results(tmp_path).samples()
    changed = replace(study(), experts={"up": made_study.weights(3), "down": made_study.weights(2)})
    with pytest.raises(StudyError, match=r"has the digest .*: run the study again"):
        experiments.results.samples.make_samples(changed, tmp_path, progress=False)

    def broken(model, split, index):
        raise ValueError("no\nwords")

    with pytest.raises(StudyError, match="task up: show of example 0 of split test: ValueError: no"):
        samples_of(tmp_path, broken, None, ROW, 0)
    for answer, message in (
        (object(), "returned a object: give text"),
        ({"image": "seven"}, "its image is a str"),
        (np.zeros((2, 2, 7)), r"no image: an array of shape \[2, 2, 7\]"),
        (tmp_path / "none.png", "no image: .*No such file"),
    ):
        with pytest.raises(StudyError, match=message):
            samples_of(tmp_path, lambda *_, answer=answer: answer, None, ROW, 0)


def test_answers_of_every_form(tmp_path):
    ask = lambda answer: samples_of(tmp_path, lambda *_: answer, None, ROW, 2)  # noqa: E731
    assert ask("seven") == [{"title": "example 2", "text": "seven"}]
    assert ask(None) == ask({}) == []
    assert ask([["a", 1], ["b", 0.123456]]) == [{"title": "example 2", "table": [["a", "1"], ["b", "0.1235"]]}]
    assert part_of(tmp_path, torch.tensor([1, 2]), "")["table"] == [["1"], ["2"]]
    assert ask({"before": "a", "after": "b"}) == [
        {"title": "example 2, before", "text": "a"},
        {"title": "example 2, after", "text": "b"},
    ]
    Image.new("L", (2000, 1000)).save(tmp_path / "large.png")
    (shown,) = ask(tmp_path / "large.png")
    with Image.open(tmp_path / "samples" / shown["image"]) as image:
        assert image.size == (LARGEST, LARGEST // 2)


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        (np.array([[0, 255]], np.uint8), [0, 255]),
        (np.array([[0.0, 1.0]]), [0, 255]),
        (np.array([[0.0, 16.0]]), [0, 255]),
        (np.array([[-1.0, 1.0]], np.float32), [0, 255]),
        (np.array([[False, True]]), [0, 255]),
        (np.array([[0.2, np.nan]]), [51, 0]),
    ],
)
def test_numbers_as_greys(values, wanted):
    for given in (values, values[..., None], np.stack([values] * 3, -1)):
        image = np.asarray(image_of(given))
        assert image.shape == (1, 2, 3)
        assert image[0, :, 1].tolist() == wanted


def test_a_function_that_shows_is_part_of_a_task():
    assert Task(len, show=show).show is show
