"""Tables, media and examples, on fabricated rows of every layout."""

import base64
import json
import pickle
from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch

from tests.unival_core.made_rows import (
    DISTINCT,
    POCKET,
    TOKENIZER,
    cells,
    dataset,
    gif,
    mp4,
    png,
    table,
    wav,
    write_file,
)
from unival_core.data.answers import allowed_answers, found_answers, load_answers
from unival_core.data.batch import Example, collate
from unival_core.data.dataset import TaskDataset
from unival_core.data.media_cache import MediaCache, Medium
from unival_core.data.reader import MediaReader
from unival_core.data.table import TsvTable
from unival_core.errors import UnivalError
from unival_core.media.audio import load_audio, prepare_audio
from unival_core.media.image import image_to_tensor, load_image
from unival_core.media.video import choose_frames, load_video, video_to_tensor
from unival_core.tasks import TASKS


def example_of(kind: str, medium: Medium) -> Example:
    return Example("task", "name", "place", [5], [5], medium=kind, media=medium.values)


# tables


def test_rows_are_found_by_number_in_any_order(tmp_path):
    first, second = tmp_path / "a.tsv", tmp_path / "b.tsv"
    first.write_bytes("x\t0\tü\r\ny\t1\t\r\n".encode())
    second.write_bytes(b"z\t2\tq")  # no end of line
    rows = TsvTable([first, second], ("name", "last"), (0, 2))
    assert len(rows) == 3
    assert [rows[i] for i in (2, 0, 1)] == [
        {"name": "z", "last": "q"},
        {"name": "x", "last": "ü"},
        {"name": "y", "last": ""},
    ]
    assert [rows.place(i) for i in range(3)] == [f"{first}:1", f"{first}:2", f"{second}:1"]
    with pytest.raises(IndexError, match="row 3 of a table of 3"):
        rows[3]


def test_an_index_is_kept_beside_the_file_and_used_until_the_file_changes(tmp_path):
    path, index = tmp_path / "a.tsv", tmp_path / "a.tsv.index.npy"
    path.write_text("one\ntwo\nthree\n")
    assert len(TsvTable(path, ("word",))) == 3
    kept = np.load(index)
    np.save(index, np.delete(kept, -2))  # a reader that indexes again would find three rows
    assert [row["word"] for row in TsvTable(path, ("word",))] == ["one", "two\nthree"]
    with path.open("a") as file:
        file.write("four\n")
    assert len(TsvTable(path, ("word",))) == 4
    index.write_bytes(b"torn")
    assert len(TsvTable(path, ("word",))) == 4
    assert np.load(index).dtype == np.int64
    assert [file.name for file in tmp_path.iterdir() if "partial" in file.name] == []


def test_an_index_that_cannot_lie_beside_the_file_lies_in_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "a.tsv"
    path.write_text("one\ntwo\n")
    (tmp_path / "a.tsv.index.npy").mkdir()  # in the way
    assert len(TsvTable(path, ("word",))) == 2
    (index,) = (tmp_path / "cache" / "unival-merge" / "index").iterdir()
    np.save(index, np.delete(np.load(index), -2))
    assert len(TsvTable(path, ("word",))) == 1
    monkeypatch.setenv("XDG_CACHE_HOME", str(path))  # nowhere to keep it
    assert len(TsvTable(path, ("word",))) == 2


def test_wrong_files_and_rows_say_so(tmp_path):
    path = tmp_path / "a.tsv"
    with pytest.raises(UnivalError, match=r"a\.tsv: no such file"):
        TsvTable(path, ("word",))
    path.touch()
    with pytest.raises(UnivalError, match="empty"):
        TsvTable(path, ("word",))
    path.write_bytes(b"a\tb\n\xff\n")
    with pytest.raises(UnivalError, match="need as many numbers"):
        TsvTable(path, ("word",), (0, 1))
    with pytest.raises(UnivalError, match="2 columns, at least 5 are wanted"):
        TsvTable(path, ("word",), (4,))[0]
    with pytest.raises(UnivalError, match="not UTF-8"):
        TsvTable(path, ("word",))[1]


# media


def test_a_cell_is_base64_of_either_alphabet_or_a_path(tmp_path):
    path = tmp_path / "deep" / "image.jpg"
    path.parent.mkdir()
    path.write_bytes(png(3))
    reader = MediaReader("image", 48)
    texts = (base64.b64encode(png(3)), base64.urlsafe_b64encode(png(3)), base64.urlsafe_b64encode(png(3)).rstrip(b"="))
    media = [reader(text.decode(), tmp_path)[0] for text in texts] + [reader("deep/image.jpg", tmp_path)[0]]
    for medium in media:
        assert medium.size == (60, 40)
        assert torch.equal(medium.values, media[0].values)
    for cell, message in [
        ("absent.jpg", r"absent\.jpg: No such file"),
        ("a*b", "neither a path nor base64"),
        ("", "empty"),
        (base64.b64encode(b"text").decode(), "not an image"),
    ]:
        with pytest.raises(UnivalError, match=message):
            reader(cell, tmp_path)


def test_small_integers_lose_nothing_of_what_the_model_reads():
    audio = POCKET.audio
    assert audio is not None
    frames = load_video(gif(1))
    wanted = {
        "image": (png(0), image_to_tensor(load_image(png(0)), 48)),
        "video": (gif(1), video_to_tensor(frames, 48)),
        "audio": (wav(2), prepare_audio(*load_audio(wav(2)), audio)),
    }
    for kind, (data, values) in wanted.items():
        medium, _ = MediaReader(kind, 48, 8, audio).decode(data)
        batch = collate([example_of(kind, medium)])
        assert torch.equal(getattr(batch.inputs, f"{kind}s")[0], values)


def test_a_video_in_a_container_of_its_own():
    pytest.importorskip("av")
    medium, is_whole = MediaReader("video", 32, 8).decode(mp4(1))
    video = load_video(mp4(1), lambda length: choose_frames(length, 8))
    assert (medium.size, is_whole) == ((64, 48), False)
    assert torch.equal(collate([example_of("video", medium)]).inputs.videos[0], video_to_tensor(video, 32))


def test_training_draws_frames_and_only_what_is_never_drawn_is_kept():
    cache = MediaCache()
    reader = MediaReader("video", 48, 4, cache=cache)
    long, short = (base64.b64encode(gif(0, frames)).decode() for frames in (20, 4))
    drawn = {reader(long, Path(), Random(seed))[0].values.numpy().tobytes() for seed in range(6)}
    assert len(drawn) > 1
    assert len(cache) == 0
    drawn = {reader(short, Path(), Random(seed))[0].values.numpy().tobytes() for seed in range(6)}
    assert (len(drawn), len(cache)) == (1, 1)
    middle = reader(long, Path())[0].values
    assert (len(cache), reader(long, Path())[0].values is middle) == (2, True)
    drawn = {reader(long, Path(), Random(seed))[0].values.numpy().tobytes() for seed in range(6)}
    assert len(drawn) > 1  # the middle frames that are kept now are not what training draws


def medium_of(seed: int) -> Medium:
    return Medium(torch.full((1000,), seed, dtype=torch.uint8), (1, 1))


def test_a_cache_is_bounded_and_keeps_what_came_first(tmp_path):
    cache = MediaCache(memory=2500)
    assert [cache.put(str(seed), medium_of(seed)) for seed in range(4)] == [True, True, False, False]
    assert cache.put("0", medium_of(9))
    assert [cache.get(str(seed)) is not None for seed in range(4)] == [True, True, False, False]
    assert int(cache.get("0").values[0]) == 0
    disk = MediaCache(memory=1500, folder=tmp_path / "media", disk=2500)
    assert [disk.put(str(seed), medium_of(seed)) for seed in range(4)] == [True, False, False, False]
    again = MediaCache(memory=0, folder=tmp_path / "media", disk=0)
    assert [again.get(str(seed)) is not None for seed in range(4)] == [False, True, True, False]
    assert torch.equal(again.get("2").values, medium_of(2).values)
    for file in (tmp_path / "media").iterdir():
        file.write_bytes(b"torn")
    assert again.get("1") is None


def test_with_a_cache_nothing_is_decoded_twice(tmp_path):
    cache = MediaCache()
    first = dataset(tmp_path / "vqa.tsv", "vqa", cache=cache)
    examples = [first[row] for row in range(4)]
    assert [first[row] for row in range(4)] == examples
    other = dataset(tmp_path / "caption.tsv", "caption", cache=cache)
    assert all(other[row].media is examples[row].media for row in range(4))  # the same images
    assert len(cache) == 4
    assert dataset(tmp_path / "big.tsv", "caption", cache=cache, side=64)[0].media.shape == (3, 64, 64)
    assert len(cache) == 5


# examples


@pytest.mark.parametrize("task", DISTINCT)
@pytest.mark.parametrize("by_path", [False, True])
def test_every_layout_gives_examples(tmp_path, task, by_path):
    if TASKS[task].medium == "video":
        pytest.importorskip("av")
    folder = tmp_path / "media" if by_path else None
    if folder:
        folder.mkdir()
    data = dataset(tmp_path / "data.tsv", task, 2, folder, media_dir=folder)
    row = cells(task, 1)
    example = data[1]
    kind = data.task
    assert (example.task, example.name, example.place) == (task, "row-1", f"{tmp_path / 'data.tsv'}:2")
    assert example.confidence == 1.0
    assert example.reference == kind.reference(row)
    assert example.prefix == (example.source if kind.repeats_prompt else [])
    if kind.writes == "text":
        assert TOKENIZER.decode(example.target) == kind.target(row, None)
        assert not kind.answers or kind.target(row, None) in kind.answers
    elif kind.writes == "box":
        assert np.allclose(TOKENIZER.ids_to_box(example.target, example.size), kind.reference(row), atol=60 / 23)
    else:
        assert tuple(TOKENIZER.ids_to_codes(example.target)) == kind.reference(row)
    shapes = {"image": (3, 48, 48), "video": (3, 8, 48, 48), "audio": (16000,), None: None}
    assert (None if example.media is None else tuple(example.media.shape)) == shapes[kind.medium]


def test_regions_in_a_prompt_are_bins(tmp_path):
    example = dataset(tmp_path / "data.tsv", "grounded-caption")[0]
    text = TOKENIZER.encode("  what does the region describe? region:")
    assert example.source == [*text, *TOKENIZER.box_to_ids((3, 4, 30, 36), (60, 40))]


def test_the_number_of_the_draw_decides_what_is_random(tmp_path):
    data = dataset(tmp_path / "data.tsv", "caption", training=True, seed=1)
    targets = [data.read(1, number).target for number in range(12)]
    assert targets == [data.read(1, number).target for number in range(12)]
    assert len({tuple(target) for target in targets}) > 1
    other = dataset(tmp_path / "data.tsv", "caption", training=True, seed=2)
    assert targets != [other.read(1, number).target for number in range(12)]


def test_only_allowed_answers_are_learnt(tmp_path):
    texts = ["four", "red", "dark red"]
    data = dataset(tmp_path / "data.tsv", "vqa", training=True, answers=texts)
    assert data[0].answers is not None
    assert data[0].answers.texts == tuple(texts)
    narrow = dataset(tmp_path / "data.tsv", "vqa", training=True, answers=["four", "red"])
    with pytest.raises(UnivalError, match=r"data\.tsv:2: 'dark red' is none of the 2 allowed answers"):
        narrow[1]
    assert dataset(tmp_path / "data.tsv", "vqa", answers=["four"])[1].name == "row-1"  # evaluation asks it anyway
    closed = dataset(tmp_path / "e.tsv", "entailment", training=True, answers=["four"])
    assert closed[0].answers.texts == ("yes", "no", "maybe")


def test_lists_of_answers_from_files(tmp_path):
    vqa = TASKS["vqa"]
    files = {
        "list.txt": b"red\n\ntwo words\n",
        "list.json": json.dumps(["red", "two words"]).encode(),
        "labels.json": json.dumps({"red": 0, "two words": 1}).encode(),
        "world.json": json.dumps({"seed": 0, "answers": {"vqa": ["red", "two words"], "x": []}}).encode(),
        "labels.pkl": pickle.dumps({"red": 0, "two words": 1}),
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        assert load_answers(tmp_path / name, vqa) == ["red", "two words"]
    train = write_file(tmp_path / "train.tsv", "vqa", 5)
    with train.open("a") as file:
        file.write("broken\n")
    assert load_answers(train, vqa) == found_answers(vqa, TsvTable(train, vqa.columns, vqa.selected_cols))
    assert load_answers(train, vqa) == ["four", "dark red"]  # three times, twice
    (tmp_path / "bad.pkl").write_bytes(pickle.dumps(Path("x")))
    (tmp_path / "bad.json").write_text("{")
    for name, message in [
        ("bad.pkl", "refused"),
        ("bad.json", "not a list of answers"),
        ("absent.txt", "No such file"),
        ("answers.csv", r"\.txt, \.json"),
    ]:
        with pytest.raises(UnivalError, match=message):
            load_answers(tmp_path / name, vqa)
    with pytest.raises(UnivalError, match="no answers of video-qa in it"):
        load_answers(tmp_path / "world.json", TASKS["video-qa"])


def test_answers_are_told_by_their_ids():
    answers = allowed_answers(["red", "dark red", "red"], TOKENIZER, POCKET)
    assert answers is not None
    assert (len(answers), "red" in answers, "blue" in answers) == (2, True, False)
    assert [answers.text(ids) for ids in answers.ids] == ["red", "dark red"]
    assert answers.text([5, 5, 5]) == ""


# broken rows


def broken_file(path: Path) -> Path:
    """Rows 2 to 6 are broken, each in another way."""
    good = write_file(path, "grounding", 3).read_text().splitlines()
    cut = good[1].split("\t")
    lines = [
        good[0],
        "only\ttwo",
        "\t".join([*cut[:3], "1,2,3", cut[4]]),
        "\t".join([*cut[:4], "absent.jpg"]),
        "\t".join([*cut[:4], cut[4][: len(cut[4]) // 2]]),
        "\t".join([*cut[:2], "word " * 70, *cut[3:]]),
        good[2],
    ]
    path.write_text("\n".join(lines) + "\n")
    return path


REASONS = [
    "2 columns",
    "box '1,2,3' is not",
    "absent.jpg: No such file",
    "not an image",
    "tokens, the model has posit",
]


def test_broken_rows_are_named_counted_and_left_out(tmp_path):
    task = TASKS["grounding"]
    rows = TsvTable(broken_file(tmp_path / "data.tsv"), task.columns, task.selected_cols)
    data = TaskDataset(task, rows, TOKENIZER, POCKET)
    with pytest.warns(UserWarning, match="skipped") as warned:
        found = [data.get(row) for row in range(7)]
    assert [row for row, example in enumerate(found) if example is not None] == [0, 6]
    assert len(warned) == 5
    assert data.get(1) is None  # no second warning
    assert [place for place, _ in data.broken] == [f"{tmp_path / 'data.tsv'}:{line}" for line in range(2, 7)]
    for (_, reason), wanted in zip(data.broken, REASONS, strict=True):
        assert wanted in reason
    with pytest.raises(UnivalError, match=r"data\.tsv:3: box '1,2,3' is not"):
        data[2]


def test_too_many_broken_rows_are_an_error(tmp_path):
    task = TASKS["grounding"]
    rows = TsvTable(broken_file(tmp_path / "data.tsv"), task.columns, task.selected_cols)
    data = TaskDataset(task, rows, TOKENIZER, POCKET, max_broken=2)
    with (
        pytest.warns(UserWarning, match="skipped"),
        pytest.raises(UnivalError, match=r"3 broken rows, at most 2 .*data\.tsv:4: .*absent"),
    ):
        [data.get(row) for row in range(7)]


def test_training_takes_the_next_audio_row_instead(tmp_path):
    task = TASKS["grounding"]
    rows = TsvTable(broken_file(tmp_path / "data.tsv"), task.columns, task.selected_cols)
    data = TaskDataset(task, rows, TOKENIZER, POCKET, training=True)
    with pytest.warns(UserWarning, match="skipped"):
        assert [data.draw(row, 0).place[-1] for row in range(7)] == ["1", "7", "7", "7", "7", "7", "7"]


def test_a_medium_the_model_cannot_take_in_is_told_at_once(tmp_path):
    deaf = replace(POCKET, audio=None)
    rows = table(tmp_path / "data.tsv", "audio-caption")
    with pytest.raises(UnivalError, match="reads image, video, not audio"):
        TaskDataset(TASKS["audio-caption"], rows, TOKENIZER, deaf)
    short = TaskDataset(TASKS["image-generation"], table(tmp_path / "g.tsv", "image-generation"), TOKENIZER, POCKET)
    assert len(short[0].target) == 36
    smaller = replace(POCKET, code_image_size=32)
    with pytest.raises(UnivalError, match="36 image codes, the model writes 16"):
        TaskDataset(TASKS["image-generation"], short.table, TOKENIZER, smaller)[0]
