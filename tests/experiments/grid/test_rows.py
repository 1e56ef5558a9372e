"""Rows: written once, read back equal, never lost but the one in flight."""

import doctest
import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace

import numpy as np
import pytest

from experiments.errors import StudyError
from experiments.grid import rows as results
from experiments.grid.rows import Row, append_row, append_rows, content_key, read_rows, read_scores
from merge import share_label
from tests import ROOT

ROW = Row(
    study="interpolation",
    shares={"vqa": 0.2, "caption": 0.8},
    experts="vanilla",
    method="linear",
    batchnorm="average",
    task="vqa",
    split="test",
    metric="VQA accuracy",
    value=0.5,
    lo=0.4,
    hi=0.6,
    n=4,
    seconds=1.5,
    seed=0,
    versions={"torch": "2.13.0"},
    inputs={"vqa": "aa", "caption": "bb"},
    data="cc",
    key="k0",
)


def numbered(index):
    return replace(ROW, key=f"k{index}", value=index / 100)


def test_rows_of_a_cell_wait_for_the_disk_together(tmp_path, monkeypatch):
    """All of them or none, and scores first, whenever the power goes."""
    path, waited = tmp_path / "rows.jsonl", []
    monkeypatch.setattr("os.fsync", lambda file: waited.append(os.readlink(f"/proc/self/fd/{file}")))
    several = [(numbered(index), np.zeros(3)) for index in range(4)]
    append_rows(path, several)
    assert waited == [f"{tmp_path / 'rows.scores.jsonl'}", f"{tmp_path}", f"{path}", f"{tmp_path}"]
    waited.clear()
    append_rows(path, [(numbered(4), np.zeros(3))], durable=False)
    assert waited == [f"{tmp_path / 'rows.scores.jsonl'}"]
    with pytest.raises(StudyError, match="row k6 cannot be written"):
        append_rows(path, [(numbered(5), None), (replace(ROW, key="k6", parameters={"x": math.inf}), None)])
    assert read_rows(path)["key"].tolist() == [f"k{index}" for index in range(5)]
    assert set(read_scores(path)) == {f"k{index}" for index in range(5)}


def test_rows_come_back_as_they_were(tmp_path):
    path = tmp_path / "rows.jsonl"
    append_row(path, ROW, np.array([0.0, 1.0, 1.0, 0.3]))
    append_row(path, replace(ROW, key="k1", value=math.nan, lo=math.nan, hi=math.nan, note="not computed: no Java é"))
    frame = read_rows(path)
    assert frame.columns.tolist() == [*ROW.__dataclass_fields__, "point"]
    assert Row(**{name: frame.iloc[0][name] for name in ROW.__dataclass_fields__}) == ROW
    assert frame.point.tolist() == ["0.20 vqa + 0.80 caption"] * 2
    assert frame.value.isna().tolist() == [False, True]
    assert frame.note[1] == "not computed: no Java é"
    np.testing.assert_allclose(read_scores(path)["k0"], [0, 1, 1, 0.3], atol=1e-7)
    with pytest.raises(StudyError, match=r"rows\.scores\.jsonl: no scores of row k1 \(1 missing\)"):
        read_scores(path, ["k0", "k1"])


def test_the_last_row_of_a_key_counts(tmp_path):
    path = tmp_path / "rows.jsonl"
    for row, scores in ((numbered(1), [0.0]), (numbered(2), [0.0]), (replace(numbered(1), value=0.9), [1.0])):
        append_row(path, row, np.array(scores))
    frame = read_rows(path)
    assert frame.key.tolist() == ["k2", "k1"]
    assert frame.value.tolist() == [0.02, 0.9]
    assert read_scores(path, ["k1"])["k1"].tolist() == [1]


def test_an_empty_file_has_the_columns(tmp_path):
    (tmp_path / "rows.jsonl").touch()
    assert read_rows(tmp_path / "rows.jsonl").columns.tolist() == [*ROW.__dataclass_fields__, "point"]


def test_a_tear_anywhere_costs_only_the_last_row(tmp_path):
    path = tmp_path / "rows.jsonl"
    append_row(path, numbered(0))
    whole = path.stat().st_size
    append_row(path, numbered(1))
    both = path.read_bytes()
    for cut in (*range(whole + 1, len(both), 29), len(both) - 1):
        path.write_bytes(both[:cut])
        with pytest.warns(UserWarning, match=f"ignored a torn last line of {cut - whole} bytes"):
            assert read_rows(path).key.tolist() == ["k0"]
        assert path.read_bytes() == both[:cut]  # reading never writes
        with pytest.warns(UserWarning, match=f"cut off a torn last line of {cut - whole} bytes"):
            append_row(path, numbered(2))
        assert read_rows(path).key.tolist() == ["k0", "k2"]


def test_a_killed_writer_leaves_every_finished_row(tmp_path):
    path = tmp_path / "rows.jsonl"
    script = (
        "import sys, numpy as np; sys.path.insert(0, sys.argv[2]); from tests.experiments.grid.test_rows import *\n"
        "for i in range(100000):\n"
        "    append_row(sys.argv[1], numbered(i), np.zeros(1000)); print(i, flush=True)\n"
    )
    command = [sys.executable, "-c", script, str(path), str(ROOT)]
    writer = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    while not path.exists() or path.stat().st_size < 20_000:
        assert writer.poll() is None
        time.sleep(0.01)
    writer.send_signal(signal.SIGKILL)
    printed = [int(line) for line in writer.communicate()[0].split()]
    keys = read_rows(path).key.tolist()
    assert keys == [f"k{i}" for i in range(len(keys))]
    assert len(keys) - len(printed) in (0, 1)
    assert set(keys) <= set(read_scores(path))


def test_broken_lines_are_named(tmp_path):
    path = tmp_path / "rows.jsonl"
    with pytest.raises(StudyError, match="no such file"):
        read_rows(path)
    append_row(path, ROW)
    good = path.read_text()
    path.write_text(good + "{broken\n" + good)
    with pytest.raises(StudyError, match=r"rows\.jsonl:2: not JSON"):
        read_rows(path)
    path.write_text("[1]\n")
    with pytest.raises(StudyError, match=r"rows\.jsonl:1: not an object"):
        read_rows(path)
    path.write_text('{"study": "x", "lambda": 0.2}\n')
    with pytest.raises(StudyError, match=r"missing \['shares', .*unknown \['lambda'\]"):
        read_rows(path)


@pytest.mark.parametrize(
    ("field", "wrong"),
    [
        ("value", '"0.5"'),
        ("value", "true"),
        ("value", "1e400"),
        ("value", "1" + 400 * "0"),
        ("lo", "[]"),
        ("n", "4.5"),
        ("n", "null"),
        ("seed", '"0"'),
        ("seconds", "null"),
        ("shares", "[0.5]"),
        ("shares", '{"vqa": "1"}'),
        ("shares", "{}"),
        ("shares", '{"vqa": 0}'),
        ("task", "3"),
        ("task", '"\\ud800"'),
        ("versions", '{"torch": 2}'),
        ("inputs", "null"),
        ("key", "{}"),
    ],
)
def test_values_of_a_wrong_kind_are_named(tmp_path, field, wrong):
    path = tmp_path / "rows.jsonl"
    line = json.dumps({**asdict(ROW), field: "HERE"}).replace('"HERE"', wrong)
    path.write_text(f"{line}\n")
    with pytest.raises(StudyError, match=rf"rows\.jsonl:1: {field}.*: remove the line to go on$") as told:
        read_rows(path)
    assert len(str(told.value)) < len(str(path)) + 120


@pytest.mark.parametrize("line", ["NaN", '{"a": Infinity}', "[" * 100_000, "\xff", '{"a": -Infinity}'])
def test_what_is_not_json_is_named(tmp_path, line):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(line.encode("latin-1") + b"\n")
    with pytest.raises(StudyError, match=r"rows\.jsonl:1: not JSON"):
        read_rows(path)


@pytest.mark.parametrize(
    "entry", [{"key": "k0"}, {"key": 1, "scores": ""}, {"key": "k0", "scores": "?"}, {"key": "k0", "scores": "AAAA"}]
)
def test_what_are_no_scores_is_named(tmp_path, entry):
    path = tmp_path / "rows.scores.jsonl"
    path.write_text(json.dumps(entry) + "\n")
    with pytest.raises(StudyError, match=r"rows\.scores\.jsonl.*: remove the (line|file)"):
        read_scores(tmp_path / "rows.jsonl")


def test_rows_that_json_cannot_hold_are_refused_and_nothing_is_written(tmp_path):
    path = tmp_path / "rows.jsonl"
    for bad in (replace(ROW, seconds=math.inf), replace(ROW, n=np.int64(4))):
        with pytest.raises(StudyError, match="row k0 cannot be written as JSON"):
            append_row(path, bad, np.zeros(4))
    with pytest.raises(StudyError, match=r"shape \(2, 2\)"):
        append_row(path, ROW, np.zeros((2, 2)))
    assert list(tmp_path.iterdir()) == []


def point(share, value, **fields):
    return (
        {"shares": {"vqa": 1 - share, "caption": share}, "value": value, "lo": value - 1, "hi": value + 1}
        | {
            "task": "vqa",
            "split": "test",
            "metric": "accuracy",
            "experts": "vanilla",
            "method": "linear",
        }
        | fields
    )


def test_scored_rows_are_of_one_split_and_metric():
    rows = results.records([point(0, 2), point(1, math.nan), point(0, 3, split="val")])
    assert [row["value"] for row in results.scored(rows, "vqa", "val")] == [3]
    with pytest.raises(StudyError, match="rows of vqa mix split test, val"):
        results.scored(rows, "vqa")
    with pytest.raises(StudyError, match="no scores of caption on split val: run the study first"):
        results.scored(rows, "caption", "val")


@pytest.mark.parametrize(
    ("shares", "label"),
    [
        ({"caption": 1 / 3, "vqa": 2 / 3}, "0.3333 caption + 0.6667 vqa"),
        ({"vqa": 1 / 8, "caption": 7 / 8}, "0.125 vqa + 0.875 caption"),
        ({"vqa": 3 / 10, "caption": 7 / 10}, "0.30 vqa + 0.70 caption"),
        ({"vqa": 1.5, "caption": -0.5}, "1.50 vqa - 0.50 caption"),
        ({"vqa": 0, "pretrained": 1}, "1.00 pretrained"),
        ({"vqa": 0}, "nothing"),
    ],
)
def test_points_in_words(shares, label):
    assert share_label(shares) == label


def test_content_keys_depend_on_content_alone():
    key = content_key(shares={"vqa": 0.2, "caption": 0.8}, task="vqa", seed=0)
    assert content_key(seed=0, task="vqa", shares={"caption": 0.8, "vqa": 0.2}) == key
    assert content_key(seed=1, task="vqa", shares={"caption": 0.8, "vqa": 0.2}) != key
    assert len(key) == 16


def test_examples_in_docstrings():
    assert doctest.testmod(results).failed == 0


def test_a_row_is_one_readable_line():
    row = replace(ROW, shares={"a": 0.5, "b": 0.5}, task="reading", split="test", metric="accuracy", value=0.25)
    assert "\n" not in repr(row)
    assert repr(row).startswith("<0.50 a + 0.50 b (")
    assert "on reading test: accuracy 0.2500 [" in repr(row)
