"""The embedded world: same seed, same bytes; answers that hold, that are balanced, and that no text gives away."""

import base64
import hashlib
import io
import os
import re
import signal
import subprocess
import sys
import threading
import time
import wave
from collections import Counter
from random import Random

import numpy as np
import pytest
from PIL import Image, ImageSequence
from typer.testing import CliRunner

from experiments.commands import app
from experiments.errors import StudyError
from experiments.unival.world import tasks
from experiments.unival.world.audit import audit, box_overlap
from experiments.unival.world.build import make_world
from experiments.unival.world.concepts import COLOURS, DIGITS, KEYPAD, RGB, VOCABULARY, is_held_out
from experiments.unival.world.grammar import audio_captions
from experiments.unival.world.images import DOMAINS, cell_labels, draw_image, draw_video
from experiments.unival.world.scenes import Pool, load_scans, motion_path, sample_scene, sample_video
from experiments.unival.world.sheet import contact_sheet
from experiments.unival.world.tables import LAYOUTS, read_world, weighted, weights
from experiments.unival.world.tasks import TASKS, read_rows
from merge import alone
from tests import ROOT
from unival_core.tasks import TASKS as CORE_TASKS

TEXTS = ("caption", "question", "text", "hypothesis")  # columns of words


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("world") / "micro", seed=3, size="micro")


def pool_of(count, novel=False, video=False, split="test"):
    rng, scans = np.random.default_rng(0), load_scans().by_digit[split]
    return Pool([(sample_video if video else sample_scene)(rng, scans, novel) for _ in range(count)], novel)


def drawing(cell):
    return Image.open(io.BytesIO(base64.urlsafe_b64decode(cell)))


def digests(folder):
    return {p.relative_to(folder): hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.rglob("*") if p.is_file()}


# Files


def test_the_same_seed_gives_the_same_bytes_in_another_process(world, tmp_path):
    again = str(tmp_path / "again")
    code = f"from experiments.unival.world.build import make_world; make_world({again!r}, seed=3, size='micro')"
    hashing = {"PYTHONHASHSEED": "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2", "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=os.environ | hashing, check=True)
    assert digests(tmp_path / "again") == digests(world)


def test_another_seed_gives_another_world(world, tmp_path):
    other = read_world(make_world(tmp_path / "other", seed=4, size="micro"))
    mine = read_world(world)
    assert all(other.files[name].sha256 != mine.files[name].sha256 for name in mine.files)


def words(row):
    """Every word of a row that a model reads or writes."""
    texts = [row[column].replace("&&", " ").replace("?", " ") for column in TEXTS if column in row]
    texts += list(weights(row["answers"])) if row.get("answers") else []
    return {word for text in texts for word in text.split()}


def test_the_record_tells_what_the_files_hold(world):
    record, seen = read_world(world), set()
    assert {f"{p.parent.name}/{p.stem}" for p in world.rglob("*.tsv")} == set(record.files)
    for name, file in record.files.items():
        task, split = name.split("/")
        data = (world / f"{name}.tsv").read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (file.bytes, file.sha256)
        rows = list(read_rows(world, task, split))
        assert len(rows) == file.rows == 12
        assert len({row["uniq_id"] for row in rows}) == 12
        for row in rows:
            assert tuple(row) == TASKS[task].columns
            seen |= words(row)
            if "answers" in row:
                assert set(weights(row["answers"])) <= set(record.answers[task])
    assert seen <= set(record.vocabulary)
    assert len(record.vocabulary) == 103
    assert (record.seed, record.size, record.domains) == (3, "micro", "shared")
    assert "CC BY 4.0" in record.scans
    assert record.small_below <= record.large_above
    assert len(record.held_out_pairs) == 10


def test_published_column_selections_pick_the_right_columns():
    def select(layout, chosen):
        return [LAYOUTS[layout][int(i)] for i in chosen.split(",")]

    assert select("caption", "0,4,2") == ["uniq_id", "media", "caption"]
    assert select("caption", "1,4,2") == ["image_id", "media", "caption"]
    assert select("vqa", "0,5,2,3,4") == ["uniq_id", "media", "question", "answers", "objects"]
    assert select("entailment", "0,2,3,4,5") == ["uniq_id", "media", "hypothesis", "caption", "label"]
    assert select("grounding", "0,4,2,3") == ["uniq_id", "media", "text", "box"]
    assert LAYOUTS["pretraining"][1:] == ("media", "caption", "question", "answers", "objects", "dataset", "type")


@pytest.mark.parametrize("task", [name for name in TASKS if name != "backbone"])
def test_the_tasks_read_every_row(world, task):
    reader, splits = CORE_TASKS[task], [s for t, s in (n.split("/") for n in read_world(world).files) if t == task]
    assert [TASKS[task].columns[i] for i in reader.selected_cols] == list(reader.columns)
    assert reader.medium == TASKS[task].medium
    for row in (row for split in splits for row in read_rows(world, task, split)):
        target = reader.target(row, None)
        assert reader.prompt(row)
        assert reader.reference(row)
        if isinstance(target, str):
            assert set(target.split()) <= set(VOCABULARY)
            assert not reader.answers or target in reader.answers
        else:
            assert 0 <= target.x0 < target.x1 <= 48
        if reader.complete:
            assert reader.complete(row, dict, Random(0)) == row


def test_references_are_joined_for_evaluation_and_single_in_training(world):
    for task in ("caption", "video-caption", "audio-caption"):
        assert all("&&" not in row["caption"] for row in read_rows(world, task, "train"))
        assert all(len(set(row["caption"].split("&&"))) == 5 for row in read_rows(world, task, "test"))
    assert weights("1.0|!+top left&&0.3|!+top") == {"top left": 1.0, "top": 0.3}
    assert weighted({"top left": 1.0, "top": 0.3}) == "1.0|!+top left&&0.3|!+top"


def test_the_smaller_world_without_pretraining_files_keeps_every_other_byte(world, tmp_path, monkeypatch):
    monkeypatch.setitem(tasks.SIZES, "tuning", tasks.finetuning(tasks.SIZES["micro"]))
    full, tuning = read_world(world).files, read_world(make_world(tmp_path / "t", seed=3, size="tuning")).files
    assert all(full[name] == file for name, file in tuning.items())
    assert {name for name in full if "pretrain" in name or "backbone" in name} == set(full) - set(tuning)


def test_a_killed_make_leaves_nothing_that_looks_finished(tmp_path):
    code = f"from experiments.unival.world.build import make_world; make_world(r'{tmp_path / 'w'}', size='quick')"
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("*/caption/train.tsv")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert [path.name for path in tmp_path.iterdir()] == [".w.partial-world"]
    assert not list(tmp_path.rglob("world.json"))
    (tmp_path / ".w.partial-world" / "old.tsv").touch()
    made = make_world(tmp_path / "w", size="micro")  # sweeps it away
    assert [path.name for path in tmp_path.iterdir()] == ["w"]
    assert not (made / "old.tsv").exists()


def test_two_worlds_of_one_name_follow_each_other(tmp_path, caplog):
    """The second one waits until the first is there, and is refused like any other that comes later."""
    ends = []

    def second():
        with pytest.raises(StudyError, match="exists: choose another folder or pass --overwrite"):
            make_world(tmp_path / "w", size="micro")
        ends.append("refused")

    with alone(tmp_path / ".w.partial-world"):  # as `make_world` does
        waiting = threading.Thread(target=second)
        waiting.start()
        waiting.join(0.3)
        assert waiting.is_alive()
        (tmp_path / ".w.partial-world" / "world.json").touch()
        (tmp_path / ".w.partial-world").rename(tmp_path / "w")
    waiting.join(30)
    assert ends == ["refused"]
    assert caplog.messages == [f"another run works in {tmp_path / '.w.partial-world'}: waiting until it is done"]
    assert [path.name for path in tmp_path.iterdir()] == ["w"]
    assert os.listdir(tmp_path / "w") == ["world.json"]


def test_what_is_in_the_way_is_refused(world, tmp_path):
    before = digests(world)
    with pytest.raises(StudyError, match="exists: choose another folder or pass --overwrite"):
        make_world(world, size="micro")
    assert digests(world) == before
    thesis = tmp_path / "thesis" / "thesis.tex"
    thesis.parent.mkdir()
    thesis.write_text("years of work")
    for message in (r"no world\.json", r"thesis\.tex is no part of the world"):
        with pytest.raises(StudyError, match=message):
            make_world(thesis.parent, size="micro", overwrite=True)
        (thesis.parent / "world.json").write_text("{}")
    assert thesis.read_text() == "years of work"
    assert not list(tmp_path.glob("*.partial-*"))


def test_a_world_is_replaced_on_request_with_what_was_derived_from_it(tmp_path):
    folder = make_world(tmp_path / "w", size="micro")
    (folder / "caption" / "train.tsv.index.npy").touch()
    make_world(folder, seed=1, size="micro", overwrite=True)
    assert read_world(folder).seed == 1
    assert not list(folder.rglob("*.npy"))
    assert [path.name for path in tmp_path.iterdir()] == ["w"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": "huge"}, "no size 'huge': choose one of full, quick, micro"),
        ({"domains": "all"}, "no domain set 'all': choose one of shared, split"),
        ({"seed": -1}, "at least 0, not -1"),
        ({"folder": "."}, "name a new folder"),
    ],
)
def test_unknown_arguments_are_named(tmp_path, arguments, message):
    with pytest.raises(StudyError, match=message):
        make_world(**{"folder": tmp_path / "w", **arguments})


def test_a_missing_scikit_learn_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(StudyError, match=r"install unival-merge\[world\]"):
        load_scans.__wrapped__()


def test_reading_what_is_not_there_is_told(world, tmp_path):
    with pytest.raises(StudyError, match="is not a world"):
        read_world(tmp_path)
    with pytest.raises(StudyError, match=r"has no video-qa/exam\.tsv: choose one of pretrain, train, val"):
        next(read_rows(world, "video-qa", "exam"))
    with pytest.raises(StudyError, match=r"has no chess/test\.tsv: choose one of audio-caption, backbone"):
        next(read_rows(world, "chess", "test"))


def test_split_domains_change_images_of_their_tasks_only(world, tmp_path):
    split = read_world(make_world(tmp_path / "split", seed=3, size="micro", domains="split")).files
    shared = read_world(world).files
    changed = {name for name, file in split.items() if file.sha256 != shared[name].sha256}
    assert changed == {f"{task}/{s}" for task in ("grounding", "entailment") for s in ("train", "val", "test")}
    assert split["grounding/test"].domain == "lowquality"
    texts = [[row["text"] for row in read_rows(folder, "grounding", "test")] for folder in (world, tmp_path / "split")]
    assert texts[0] == texts[1]


# Scenes and images


def test_no_scan_is_in_two_splits():
    splits = {name: set(np.concatenate(digits)) for name, digits in load_scans().by_digit.items()}
    assert not splits["train"] & splits["val"]
    assert not (splits["train"] | splits["val"]) & splits["test"]
    assert sum(map(len, splits.values())) > 1650
    assert min(len(scans) for digits in load_scans().by_digit.values() for scans in digits) > 20


def test_held_out_pairs_are_only_seen_in_novel_scenes():
    for video in (False, True):
        seen, novel = pool_of(200, video=video), pool_of(200, novel=True, video=video)
        assert not any(is_held_out(t.digit, t.colour) for scene in seen.scenes for t in scene.things)
        for scene in novel.scenes:
            assert len(scene.things) == 4 or any(is_held_out(t.digit, t.colour) for t in scene.things)
    assert max(len(scene.things) for scene in seen.scenes) == 2
    assert {len(scene.things) for scene in pool_of(200).scenes} == {1, 2, 3}
    assert Counter(c for d in range(10) for c in range(6) if is_held_out(d, c)) == {0: 2, 1: 2, 2: 2, 3: 2, 4: 1, 5: 1}


@pytest.mark.parametrize("domain", DOMAINS)
def test_boxes_hold_their_digit_and_nothing_of_the_others(domain):
    for i, scene in enumerate(pool_of(60).scenes):
        drawn = draw_image(scene, np.random.default_rng(i), domain)
        pixels = np.asarray(drawn.image).astype(float)
        hue = pixels / np.maximum(np.linalg.norm(pixels, axis=2, keepdims=True), 1)
        for thing, (x0, y0, x1, y1) in zip(scene.things, drawn.boxes, strict=True):
            assert 0 <= x0 < x1 <= 48
            assert 0 <= y0 < y1 <= 48
            colour = np.array(RGB[thing.colour]) / np.linalg.norm(RGB[thing.colour])
            near = (hue @ colour > 0.97) & (pixels.max(2) > 70)
            if domain == "clean":
                assert near[y0:y1, x0:x1].mean() > 0.2
                assert near[y0, x0:x1].sum() + near[y1 - 1, x0:x1].sum() >= 1
            column, row = thing.place % 3, thing.place // 3
            assert abs((x0 + x1) / 2 - (10, 24, 38)[column]) < 8
            assert abs((y0 + y1) / 2 - (10, 24, 38)[row]) < 8
        overlaps = [box_overlap(a, b) for k, a in enumerate(drawn.boxes) for b in drawn.boxes[:k]]
        assert max(overlaps, default=0) < 0.2


def test_cell_labels_lie_under_the_boxes():
    scene = next(scene for scene in pool_of(50).scenes if scene.card and len(scene.things) == 2)
    drawn = draw_image(scene, np.random.default_rng(0))
    digits, colours = cell_labels(scene, drawn.boxes, drawn.card)
    assert len(digits) == len(colours) == 36
    assert set(digits) == {thing.digit for thing in scene.things} | {10, 11}
    for cell, (digit, colour) in enumerate(zip(digits, colours, strict=True)):
        x, y = cell % 6 * 8, cell // 6 * 8
        covered = [b for b in (*drawn.boxes, drawn.card) if b[0] < x + 8 and b[2] > x and b[1] < y + 8 and b[3] > y]
        assert bool(covered) or digit == 11
        assert (digit, colour) in {(t.digit, t.colour) for t in scene.things} | {(10, 6), (11, 6)}


def test_films_show_the_motions_that_their_captions_name(world):
    for row in read_rows(world, "video-caption", "test"):
        frames = [np.asarray(f.convert("RGB")).astype(float) for f in ImageSequence.Iterator(drawing(row["media"]))]
        assert len(frames) == 8
        for colour, motion in re.findall(
            r"a (\w+) \w+ (?:moves|stands) (\w+|in a circle)", row["caption"].split("&&")[0]
        ):
            tone = np.array(RGB[COLOURS.index(colour)])
            masks = [
                ((f @ tone) / np.linalg.norm(tone) / np.linalg.norm(f, axis=2) > 0.97) & (f.max(2) > 120)
                for f in frames
            ]
            x, y = (np.array([np.nonzero(mask)[axis].mean() for mask in masks]) for axis in (1, 0))
            if motion == "still":
                assert np.ptp(x) + np.ptp(y) < 1
            elif motion == "in":
                assert min(np.ptp(x), np.ptp(y)) > 9
            else:
                step = {"left": -x, "right": x, "up": -y, "down": y}[motion]
                assert step[-1] - step[0] > 14


def test_paths_stay_on_the_canvas_and_apart():
    for scene in pool_of(100, video=True).scenes:
        for spots in zip(*map(motion_path, scene.things), strict=True):
            for (x, y), thing in zip(spots, scene.things, strict=True):
                assert thing.side / 2 <= min(x, y)
                assert max(x, y) <= 48 - thing.side / 2
            if len(spots) == 2:
                gap = max(abs(spots[0][0] - spots[1][0]), abs(spots[0][1] - spots[1][1]))
                assert gap >= (scene.things[0].side + scene.things[1].side) / 2
        assert len({thing.motion for thing in scene.things}) == len(scene.things)
        assert len(draw_video(scene, np.random.default_rng(0))) == 8


def goertzel(samples, hertz, rate):
    return abs(np.exp(-2j * np.pi * hertz / rate * np.arange(len(samples))) @ samples) / len(samples)


def heard(data):
    """The keys dialled in a WAV file: the strongest row and column tone wherever the frame is loud."""
    with wave.open(io.BytesIO(data)) as file:
        rate, samples = file.getframerate(), np.frombuffer(file.readframes(file.getnframes()), "<i2") / 32768
        assert (file.getnchannels(), file.getsampwidth(), rate) == (1, 2, 8000)
    assert 1.0 < len(samples) / rate < 1.6
    rows, columns = sorted({row for row, _ in KEYPAD}), sorted({column for _, column in KEYPAD})
    keys, powers = [], []
    for start in range(0, len(samples) - 160, 80):
        frame = samples[start : start + 160]
        low, high = ([goertzel(frame, hertz, rate) for hertz in group] for group in (rows, columns))
        powers.append(min(max(low), max(high)))
        keys.append(KEYPAD.index((rows[int(np.argmax(low))], columns[int(np.argmax(high))])) if (
            rows[int(np.argmax(low))], columns[int(np.argmax(high))]) in KEYPAD else None)  # fmt: skip
    loud = np.array(powers) > 0.4 * max(powers)
    edges = [i for i in range(len(loud)) if loud[i] and (i == 0 or not loud[i - 1])]
    return [keys[edge + 3] for edge in edges]


def test_the_keys_dialled_are_those_of_the_caption(world):
    for split in ("train", "test"):
        for row in read_rows(world, "audio-caption", split):
            number = heard(base64.urlsafe_b64decode(row["media"]))
            assert row["caption"] in (*audio_captions(number), "&&".join(audio_captions(number)))


def test_sounds_of_training_and_test_dial_other_numbers(world):
    numbers = {
        split: {tuple(w for w in row["caption"].split("&&")[0].split() if w in DIGITS) for row in rows}
        for split in ("train", "val", "test")
        for rows in [read_rows(world, "audio-caption", split)]
    }
    assert not numbers["train"] & (numbers["val"] | numbers["test"])


def test_matching_rows_pair_a_text_with_a_right_and_a_wrong_image(world):
    for task in ("image-text-matching", "video-text-matching"):
        rows = list(read_rows(world, task, "test"))
        for right, wrong in zip(rows[::2], rows[1::2], strict=True):
            assert right["caption"] == wrong["caption"]
            assert (right["answers"], wrong["answers"]) == ("1.0|!+yes", "1.0|!+no")
            assert right["media"] != wrong["media"]
            assert set(right["objects"].split("&&")) != set(wrong["objects"].split("&&"))
            assert "card" not in right["caption"]


# Sheets, commands


def test_captions_cannot_be_had_by_repeating_one(world):
    assert audit(world, "caption").text_only < 0.2
    with pytest.raises(StudyError, match="backbone"):
        audit(world, "backbone")


def test_the_commands_make_and_show_a_world(tmp_path):
    run = CliRunner().invoke
    folder, sheet = tmp_path / "w", tmp_path / "sheet.png"
    assert run(app, ["world", "make", str(folder), "--size", "micro", "--seed", "1"]).exit_code == 0
    shown = run(app, ["world", "show", str(folder), "-o", str(sheet), "--task", "video-qa"])
    assert shown.exit_code == 0
    assert "entailment                  12     33.3%" in shown.output
    with Image.open(sheet) as image:
        assert image.width == 1248
    again = run(app, ["world", "show", str(folder), "-o", str(sheet)])
    assert (again.exit_code, again.stderr.count("\n")) == (2, 1)


@pytest.mark.parametrize("task", ["grounding", "entailment", "audio-caption", "backbone"])
def test_a_sheet_is_drawn_for_every_layout(world, tmp_path, task):
    file = contact_sheet(world, tmp_path / "sheet.png", task, examples=2)
    with Image.open(file) as image:
        assert np.asarray(image.convert("L")).std() > 10


def test_a_sheet_of_an_unknown_task_is_refused(world, tmp_path):
    with pytest.raises(StudyError, match="no task 'chess'"):
        contact_sheet(world, tmp_path / "sheet.png", "chess")
