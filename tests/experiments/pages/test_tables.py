"""Tables: the rows' numbers, and marks for the best and what is not told apart from it."""

import csv
import io
import math

import numpy as np
import pandas as pd
import pytest

from experiments.errors import StudyError
from experiments.grid.rows import records
from experiments.pages import tables

N = 400


def row(point, task, value, seed=0, **fields):
    shares = {"vqa": 1 - point, "caption": point}
    base = {"experts": "vanilla", "shares": shares, "task": task, "split": "test", "metric": "accuracy", "note": ""}
    numbers = {"value": value, "lo": value - 0.01, "hi": value + 0.02, "n": N, "seed": seed}
    return {**base, **numbers, "key": f"{point}{task}{seed}", **fields}


def answers(right):
    return np.repeat([1.0, 0.0], [right, N - right])


ROWS = [row(0.0, "vqa", 0.9), row(0.5, "vqa", 0.8), row(0.0, "caption", 0.5), row(0.5, "caption", 0.505)]
SCORES = {"0.0vqa0": answers(360), "0.5vqa0": answers(320), "0.0caption0": answers(200), "0.5caption0": answers(202)}


def marked(table):
    return {(label[-1], column[0]) for (label, column), cell in table.cells.items() if cell.marked}


def test_the_best_is_marked_with_all_that_is_not_told_apart_from_it():
    table = tables.pivot(pd.DataFrame(ROWS), SCORES)
    assert table.rows == [("vanilla", "1.00 vqa"), ("vanilla", "0.50 vqa + 0.50 caption")]
    both = {("1.00 vqa", "caption"), ("0.50 vqa + 0.50 caption", "caption")}
    assert marked(table) == {("1.00 vqa", "vqa"), *both}  # 40 answers of 400 are evidence, 2 are not
    assert marked(tables.pivot(ROWS)) == set()
    assert marked(tables.pivot(ROWS, {"0.0vqa0": answers(360)})) == set()  # of one seed examples have to tell


def test_the_mark_is_corrected_for_the_number_of_rows():
    best, others = answers(108), answers(100)  # 8 against 0: p = 0.004
    for count, alone in ((2, True), (150, False)):
        rows = [row(0.0, "vqa", 0.27), *(row(i / 1000, "vqa", 0.25) for i in range(1, count))]
        scores = {line["key"]: others for line in rows} | {"0.0vqa0": best}
        assert (len(marked(tables.pivot(rows, scores))) == 1) is alone


def test_seeds_and_their_examples_are_tested_together():
    """Both seeds agree with each other, or one of them is better by luck."""
    for second, alone in ((0.55, True), (0.75, False)):
        values = ((0.0, 0.8, 0), (0.0, second + 0.25, 1), (0.5, 0.55, 0), (0.5, 0.55, 1))
        rows = [row(p, "vqa", v, seed) for p, v, seed in values]
        scores = {line["key"]: answers(round(N * line["value"])) for line in rows}
        table = tables.pivot(rows, scores)
        assert table.cells[table.rows[0], table.columns[0]].value == pytest.approx((0.8 + second + 0.25) / 2)
        assert marked(table) == {("1.00 vqa", "vqa")} | ({("0.50 vqa + 0.50 caption", "vqa")} if not alone else set())


def test_markdown():
    missing = row(0.5, "caption", math.nan, lo=math.nan, hi=math.nan, note="not computed: no Java")
    text = tables.to_markdown(tables.pivot([*ROWS[:3], missing], SCORES))
    assert text.splitlines() == [
        "| experts | point | vqa test, accuracy (%, n = 400) | caption test, accuracy (%, n = 400) |",
        "| --- | --- | ---: | ---: |",
        "| vanilla | 1.00 vqa | **90.0** [89.0, 92.0] | 50.0 [49.0, 52.0] |",
        "| vanilla | 0.50 vqa + 0.50 caption | 80.0 [79.0, 82.0] | not computed |",
        "",
        "Scores with 95 % intervals. Bold: the best of a column, and every row that is not told apart from it "
        "(differences over seeds and examples, Holm-corrected, p < 0.05). not computed: no Java",
    ]


def test_latex():
    rows = [row(0.0, "vqa", 0.9, experts="a_b & c"), row(0.5, "vqa", 0.8, experts="a_b & c")]
    text = tables.to_latex(tables.pivot(rows, SCORES))
    assert r"a\_b \& c & 1.00 vqa & \textbf{90.0} {\scriptsize [89.0, 92.0]} \\" in text
    assert text.count(r"\\") == 3
    assert r"\begin{tabular}{llr}" in text


def test_csv_keeps_the_unit_and_leaves_holes_empty():
    out = list(csv.DictReader(io.StringIO(tables.to_csv(tables.pivot(ROWS[:3], index=("point",))))))
    assert out[0]["vqa test accuracy value"] == "0.9"
    assert out[0]["vqa test accuracy n"] == "400"
    assert out[1]["point"] == "0.50 vqa + 0.50 caption"
    assert out[1]["caption test accuracy value"] == ""


def test_losses_are_in_their_unit_and_the_lowest_is_best():
    loss = {"metric": "nll", "unit": "nats", "higher_is_better": False}
    rows = [row(0.0, "vqa", 1.25, **loss), row(0.5, "vqa", 0.75, **loss)]
    scores = {"0.0vqa0": 1 + answers(100), "0.5vqa0": 0.5 + answers(100)}
    table = tables.pivot(rows, scores)
    text = tables.to_markdown(table)
    assert "| vqa test, nll (nats, lower is better, n = 400) |" in text
    assert "| vanilla | 0.50 vqa + 0.50 caption | **0.750** [0.740, 0.770] |" in text
    assert "| vanilla | 1.00 vqa | 1.250 [1.240, 1.270] |" in text


def test_scores_without_examples_and_methods_with_parameters():
    bare = {"lo": math.nan, "hi": math.nan, "n": 0, "method": "ties"}
    rows = [row(0.5, "vqa", value, parameters={"density": value}, **bare) for value in (0.25, 0.5)]
    assert tables.to_markdown(tables.pivot(rows, index=("method",))).splitlines() == [
        "| method | vqa test, accuracy (%) |",
        "| --- | ---: |",
        "| ties, density 0.25 | 25.0 |",
        "| ties, density 0.5 | 50.0 |",
        "",
        "Scores.",
    ]


def test_what_guessing_scores_is_a_row_and_scores_that_reach_it_are_marked():
    rows = [{**one, "chance": 0.495} if one["task"] == "caption" else one for one in ROWS]
    lines = tables.to_markdown(tables.pivot(rows)).splitlines()
    assert lines[2] == "| vanilla | 1.00 vqa | 90.0 [89.0, 92.0] | 50.0° [49.0, 52.0] |"
    assert lines[3] == "| vanilla | 0.50 vqa + 0.50 caption | 80.0 [79.0, 82.0] | 50.5° [49.5, 52.5] |"
    assert lines[4] == "|  | chance |  | 49.5 |"
    assert lines[-1] == "Scores with 95 % intervals. Chance: what guessing scores; °: the interval reaches it."
    assert "#row-" not in tables.to_html(tables.pivot(rows)).partition("chance</td>")[2]


def test_nothing_to_tabulate():
    with pytest.raises(StudyError, match="no rows to tabulate"):
        tables.pivot([])


def test_tables_of_the_notes_compare_what_they_name():
    singles = [row(0.0, "vqa", 0.9), row(0.0, "caption", 0.5), row(1.0, "vqa", 0.8), row(1.0, "caption", 0.6)]
    rows = [{"method": "single", "batchnorm": "average", **one} for one in records(singles)]
    made = tables.study_tables(rows, {}, {"who": {"caption": ["vqa"], "vqa": ["vqa"]}, "none": {"joint": ["vqa"]}})
    assert list(made) == ["who"]
    assert made["who"].rows == [("1.00 caption",), ("1.00 vqa",)]
    assert made["who"].columns == [("vqa", "test", "accuracy")]
    assert tables.written(rows, {}, "markdown", {"who": {"vqa": ["vqa"]}}).startswith("## who\n\n| point | vqa test")


def test_a_table_shows_itself():
    table = tables.pivot(ROWS)
    assert repr(table) == "<Table: 2 x 2 scores by experts, point>"
    assert table._repr_html_() == tables.to_html(table)
