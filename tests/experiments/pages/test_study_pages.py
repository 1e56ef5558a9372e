"""`study plot`, `study table` and the samples: from rows alone, and from a real model on a real world."""

import csv
import io
import shutil

import pytest
from typer.testing import CliRunner

from experiments.commands import app
from experiments.errors import StudyError
from experiments.pages.figures.choice import figures
from experiments.pages.tables.choice import study_tables
from experiments.pages.views import main_metrics, one_policy, open_study, pairs_of, shifted_splits
from tests.experiments.study_rows import in_memory, write_study

RECALIBRATED = ("average", "recalibrate:mixture")


def stems(rows, study):
    drawn, missing = figures(study, rows)
    return [one.stem for one in drawn], missing


@pytest.fixture(scope="module")
def pair():
    """Rows of one pair under two policies."""
    return in_memory("interpolation", only="vqa+caption", points=5, batchnorm=RECALIBRATED)[0]


def test_every_figure_of_a_pair(pair):
    names, missing = stems(pair, "interpolation")
    own = ["curves_vqa_caption", "plane_vqa_caption", "batchnorm_vqa_caption"]
    assert names == [*own, "ood_vqa", "ood_caption", "ood_grounding", "ood_entailment"]
    assert missing == []


def test_figures_show_one_policy_and_all_models(pair):
    drawn, _ = figures("interpolation", pair)
    curves, plane, policies = (one.figure for one in drawn[:3])
    labels = [text.get_text().split(",")[0] for text in curves.axes[0].get_legend().get_texts()]
    assert labels == ["vanilla", "vanilla", "ratatouille", "pretrained", "joint"]  # the second one is the ensemble
    assert len(plane.legends[0].get_texts()) == 5
    assert [axis.get_title() for axis in policies.axes[:2]] == [f"BatchNorm {name}" for name in RECALIBRATED]


@pytest.mark.parametrize("study", ["averaging", "ood", "rewarded-soups"])
def test_figures_of_the_other_studies(study):
    options = {"points": 3} if study == "rewarded-soups" else {}
    names, missing = stems(in_memory(study, **options)[0], study)
    expected = {
        "averaging": ["radar"],
        "ood": [f"ood_{task}" for task in ("vqa", "caption", "grounding", "entailment")],
        "rewarded-soups": ["ternary_small_medium_large", "curves_small_medium", "plane_small_medium"],
    }
    assert names[: len(expected[study])] == expected[study]
    assert missing == []


def test_radar_has_charts_that_can_be_read():
    figure = figures("averaging", in_memory("averaging")[0])[0][0].figure
    titles = [axis.get_title() for axis in figure.axes if axis.name == "polar"]
    inside, outside = "in distribution", "out of distribution: "
    assert titles == [inside, f"{outside}novel", f"{outside}lowquality", f"{outside}printed, knowledge"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "pretrained",
        "vanilla",
        "ratatouille",
        "fusing",
    ]


def test_what_lacks_rows_is_named_and_the_rest_drawn(pair):
    rows = [row for row in pair if (row["task"], row["point"]) != ("vqa", "1.00 vqa")]
    drawn, missing = figures("interpolation", rows)
    assert "curves_vqa_caption" in [one.stem for one in drawn]
    assert missing == [
        "plane_vqa_caption: vanilla: caption and vqa are not scored at the same shares: evaluate the missing cells"
    ]


def test_rows_seen_side_by_side(pair):
    rows = main_metrics(pair)
    assert pairs_of(rows) == [("vqa", "caption")]
    assert shifted_splits(rows, "vqa") == ["novel", "lowquality", "printed", "knowledge"]
    one = one_policy(rows, "recalibrate:mixture")
    assert {row["batchnorm"] for row in one if len(row["shares"]) == 2} == {"recalibrate:mixture"}
    assert {row["point"] for row in one if len(row["shares"]) == 1} == {
        "1.00 pretrained",
        "1.00 joint",
        "1.00 vqa",
        "1.00 caption",
    }


def test_rewards_become_tasks_of_their_own():
    rows = main_metrics(in_memory("rewarded-soups", points=3)[0])
    assert {(row["task"], row["metric"]) for row in rows} == {
        (task, "Acc@0.5") for task in ("grounding", "small", "medium", "large")
    }


def test_a_table_a_pair():
    sides = [in_memory("interpolation", only=only, points=3)[0] for only in ("vqa+caption", "caption+grounding")]
    tables = study_tables("interpolation", [*sides[0], *sides[1]], {})
    assert list(tables) == ["vqa → caption", "caption → grounding"]
    points = {label[-1] for label in tables["caption → grounding"].rows}
    assert points == {
        "1.00 pretrained",
        "1.00 joint",
        "1.00 caption",
        "0.50 caption + 0.50 grounding",
        "1.00 grounding",
    }


def test_commands_need_nothing_but_the_rows_file(tmp_path):
    copied = tmp_path / "elsewhere"
    choice = {"only": "vqa+caption", "points": 3, "kinds": ("vanilla",)}
    write_study(tmp_path, "interpolation", split="val", **choice)  # no shifted splits: two figures
    copied.mkdir()
    shutil.copy(tmp_path / "rows.jsonl", copied)
    run = CliRunner().invoke(app, ["study", "plot", "interpolation", str(copied), "-o", str(tmp_path / "figures")])
    assert run.exit_code == 0, run.output
    written = {path.name for path in (tmp_path / "figures").iterdir()}
    names = ("curves_vqa_caption", "plane_vqa_caption")
    assert written == {f"{name}.{suffix}" for name in names for suffix in ("png", "svg", "pdf")}
    table = ["study", "table", "interpolation", str(copied), "--format"]
    markdown = CliRunner().invoke(app, [*table, "markdown"]).output
    assert markdown.startswith("## vqa → caption\n\n| experts | method | batchnorm | point | vqa val, VQA accuracy (n")
    latex = CliRunner().invoke(app, [*table, "latex"]).output
    assert latex.startswith("% vqa → caption\n")
    lines = list(csv.reader(io.StringIO(CliRunner().invoke(app, [*table, "csv"]).output)))
    assert lines[0][:5] == ["experts", "method", "batchnorm", "point", "vqa val VQA accuracy value"]
    assert lines[1][:5] == ["pretrained", "single", "average", "1.00 pretrained", "0.55"]


def test_errors_say_what_there_is(tmp_path):
    write_study(tmp_path, "rewarded-soups", points=2)
    with pytest.raises(StudyError, match="holds rows of rewarded-soups, none of averaging: run the study first"):
        open_study(tmp_path, "averaging")
    with pytest.raises(StudyError, match="study pretraining has no figures"):
        figures("pretraining", [])
