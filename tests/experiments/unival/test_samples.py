"""Samples: what merged models answer to a few rows, kept once, and never those of other weights."""

import json

import pytest
from PIL import Image

from experiments.errors import StudyError
from experiments.pages.views import open_study, read_samples
from experiments.study.points import Expert
from experiments.unival.samples import make_samples, shares_of_image
from experiments.unival.setups import PocketSetup
from experiments.unival.subject import UnivalSubject
from merge import digest, open_checkpoint
from tests.experiments.made_pocket import make_pocket
from tests.experiments.study_rows import write_study

TASKS = ("caption", "grounding")


@pytest.fixture(scope="module")
def subject(tmp_path_factory, micro_world):
    return UnivalSubject(PocketSetup(make_pocket(tmp_path_factory.mktemp("samples") / "home", micro_world, TASKS)))


@pytest.fixture(scope="module")
def inputs(subject):
    files = [subject.source(Expert(task, task, "vanilla"), 0).path for task in TASKS]
    return {task: digest(open_checkpoint(file), "xxh3_128/1") for task, file in zip(TASKS, files, strict=True)}


def test_samples_are_what_the_models_answer(subject, inputs, tmp_path):
    made = {"only": "caption+grounding", "points": 3, "kinds": ("vanilla",), "inputs": inputs}
    write_study(tmp_path, "interpolation", **made)
    assert make_samples(tmp_path, "interpolation", subject, count=2) == 6  # three points, two tasks
    text = (tmp_path / "samples.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    places = {(tuple(line["shares"].items()), line["task"], line["split"]) for line in lines}
    assert ((("caption", 0.5), ("grounding", 0.5)), "grounding", "test") in places
    rows = {row["key"]: row for row in open_study(tmp_path, "interpolation")[0]}
    assert all(rows[key]["task"] in inputs for key in read_samples(tmp_path))
    caption, boxes = (next(line["samples"] for line in lines if line["task"] == task) for task in inputs)
    assert caption[0]["prompt"] == "what does the image describe?"
    assert " / " in caption[0]["reference"]
    assert caption[0]["reference_box"] is None
    assert boxes[0]["prompt"] not in ("", caption[0]["prompt"])
    x0, y0, x1, y1 = boxes[0]["reference_box"]
    assert 0 <= x0 < x1 <= 1
    assert 0 <= y0 < y1 <= 1
    with Image.open(tmp_path / "samples" / boxes[0]["image"]) as image:
        assert image.size == (48, 48)
    assert len(list((tmp_path / "samples").iterdir())) == len({s["image"] for s in [*caption, *boxes]})

    whole = text.splitlines(keepends=True)
    (tmp_path / "samples.jsonl").write_text("".join(whole[:4]) + whole[4][:50])  # killed while writing the fifth
    with pytest.warns(UserWarning, match="torn last line"):
        assert make_samples(tmp_path, "interpolation", subject, count=2) == 2
    assert (tmp_path / "samples.jsonl").read_text() == text
    assert make_samples(tmp_path, "interpolation", subject, count=2) == 0


def test_samples_of_other_weights_are_refused(subject, tmp_path):
    write_study(tmp_path, "interpolation", only="caption+grounding", points=3, kinds=("vanilla",))
    with pytest.raises(StudyError, match=r"last\.safetensors has the digest xxh.*: run the study again"):
        make_samples(tmp_path, "interpolation", subject)


def test_boxes_as_shares_of_their_image():
    assert shares_of_image((6, 12, 24, 48), (48, 96)) == [0.125, 0.125, 0.5, 0.5]
    assert shares_of_image((float("nan"),) * 4, (48, 48)) is None
