"""Every study loads, at both setups: what it asks for exists, each point and cell once."""

import re
from dataclasses import replace
from itertools import pairwise

import pytest
from typer.testing import CliRunner

from experiments.commands import app
from experiments.errors import StudyError
from experiments.pages.figures import draw
from experiments.pages.views import open_study
from experiments.study.points import Cell, Expert, Point, lattice, single
from experiments.unival.pocket import kinds
from experiments.unival.pocket.codec import ROWS
from experiments.unival.pocket.kinds import KINDS, step_of, with_parents
from experiments.unival.pocket.pipeline import Pocket
from experiments.unival.published import BaseSetup
from experiments.unival.setups import PocketSetup
from experiments.unival.studies import FAMILIES, STUDIES, Choice, MixtureStudy, study_named
from experiments.unival.subject import UnivalSubject
from experiments.unival.world.tasks import TASKS as FILES_OF
from tests import ROOT
from tests.experiments.made_pocket import TINY, copied, moved, write
from unival_core import load_model
from unival_core.metrics import METRICS
from unival_core.tasks import TASKS


def cells(name, **choice):
    return STUDIES[name].cells(Choice(**choice))


def points(name, **choice):
    return {cell.point.id: cell.point for cell in cells(name, **choice)}


def lacking(name, study):
    """What an entry of STUDIES still needs, in words."""
    wanted = {
        "the name of its key": study.name == name,
        "a question that ends with ?": study.question.endswith("?"),
        "a source": bool(study.source),
        "notes for its pages": (study.notes.question, study.notes.source) == (study.question, study.source),
        "cells": bool(study.cells(Choice(study.setups[0]))),
    }
    return [f"{name} lacks {what}" for what, there in wanted.items() if not there]


def test_every_entry_is_whole():
    assert [line for name, study in STUDIES.items() for line in lacking(name, study)] == []
    own = MixtureStudy(name="own", question="No", source="", experts={"a": "vqa"}, mixtures=(("a",),))
    assert lacking("mine", own) == [
        "mine lacks the name of its key",
        "mine lacks a question that ends with ?",
        "mine lacks a source",
    ]


@pytest.mark.parametrize("setup", ["pocket", "base"])
@pytest.mark.parametrize("name", STUDIES)
def test_every_study_asks_for_what_there_is(name, setup, tmp_path):
    if setup not in STUDIES[name].setups:
        with pytest.raises(StudyError, match=f"setup {STUDIES[name].setups[0]}"):
            cells(name, setup=setup)
        return
    found = cells(name, setup=setup, batchnorm=("all",))
    assert found
    for cell in found:
        assert cell.task in TASKS
        if setup == "base":
            assert cell.split in TASKS[cell.task].published.files
        else:
            assert cell.split in (ROWS if TASKS[cell.task].writes == "codes" else FILES_OF[cell.task].splits)
        assert set(cell.metrics) <= set(METRICS)
        assert sum(cell.point.shares.values()) == pytest.approx(1)
    experts = {expert.id: expert for cell in found for expert in cell.point.experts.values()}.values()
    if setup == "pocket":
        assert with_parents(step_of(Pocket(tmp_path, "full"), expert) for expert in experts)
    else:
        assert all(TASKS[expert.task].published.checkpoint for expert in experts if expert.kind == "vanilla")
        assert "joint" not in {expert.kind for expert in experts}


@pytest.mark.parametrize("name", STUDIES)
def test_every_cell_comes_once_and_points_come_together(name):
    found = cells(name, setup=STUDIES[name].setups[0])
    assert len({(cell.point.id, cell.task, cell.split) for cell in found}) == len(found)
    order = [cell.point.id for cell in found]
    assert sum(a != b for a, b in pairwise(order)) == len(set(order)) - 1


def test_ends_are_one_point_whatever_pair_asks():
    ends = [point for point in points("interpolation").values() if point.method == "single"]
    kinds = [point.kind for point in ends]
    assert kinds.count("vanilla") == kinds.count("ratatouille") == 6
    assert kinds.count("pretrained") == 1
    assert kinds.count("joint") == 2  # of images and of videos
    assert {point.batchnorm for point in ends} == {"average"}


def test_ratios_are_made_as_whole_parts():
    line = [p for p in points("interpolation", only="vqa+caption", kinds=("vanilla",)).values() if len(p.shares) == 2]
    merged = [point for point in line if point.method == "interpolate"]
    assert [point.shares["caption"] for point in merged] == [i / 10 for i in range(1, 10)]
    assert [point.shares for point in line if point.method == "ensemble"] == [point.shares for point in merged]


def test_ends_and_middle_see_other_tasks_and_shifted_data():
    seen = {}
    for cell in STUDIES["interpolation"].cells(Choice(only="vqa+caption", kinds=("vanilla",), points=5)):
        seen.setdefault(cell.point.label, set()).add((cell.task, cell.split))
    assert seen["0.75 vqa + 0.25 caption (vanilla, interpolate)"] == {
        ("vqa", "test"),
        ("caption", "test"),
    }
    wide = seen["0.50 vqa + 0.50 caption (vanilla, interpolate)"]
    assert wide == seen["1.00 vqa (vanilla, single)"] == seen["1.00 pretrained (pretrained, single)"]
    assert {task for task, _ in wide} == set(FAMILIES["image"])
    assert ("vqa", "knowledge") in wide


def test_selection_has_no_shifted_data():
    assert {cell.split for cell in cells("interpolation", split="val")} == {"val"}


def test_averages_of_all_experts():
    found = points("averaging")
    merged = [point for point in found.values() if point.method == "average"]
    assert [point.kind for point in merged] == ["vanilla", "longer", "soup", "ratatouille", "fusing", "fusing-with-own"]
    assert {tuple(point.shares.values()) for point in merged} == {(0.25,) * 4}
    assert sum(point.method == "ensemble" for point in found.values()) == 3


def test_rewarded_soups_are_a_whole_simplex():
    found = points("rewarded-soups", points=5)
    merged = [point for point in found.values() if point.method == "average"]
    assert len(merged) == len(lattice(3, 4)) - 3 == 12
    assert {cell.metrics for cell in cells("rewarded-soups")} == {
        ("Acc@0.5", "Acc@0.5 small", "Acc@0.5 medium", "Acc@0.5 large")
    }


def test_subsets_are_all_of_four_experts():
    held = [point.held for point in points("subsets").values() if point.kind == "vanilla"]
    assert len({frozenset(own) for own in held}) == len(held) == 15
    assert all(len(set(own.values())) == 1 and sum(own.values()) == pytest.approx(1) for own in held)


def test_experts_along_a_finetuning_are_averaged_at_equal_progress():
    merged = [point for point in points("along").values() if point.method == "average"]
    assert [point.kind for point in merged] == [f"along-{part}" for part in range(10, 100, 10)] + ["vanilla"]
    progress = STUDIES["along"].notes.progress
    assert [progress[point.kind] for point in merged] == [part / 10 for part in range(1, 11)]


def test_methods_are_chosen_on_val_and_told_where_they_are_left_out(home, tmp_path, monkeypatch):
    found = cells("methods")
    assert {cell.split for cell in found} > {"val", "test", "knowledge"}
    merged = {cell.point.method for cell in found} - {"single"}
    assert {"average", "task-arithmetic", "ties", "model-stock"} <= merged
    assert not {"slerp", "fisher", "arcee-fusion"} & merged
    tiny = replace(TINY, name="tiny", methods=("all",), shape="uniform", choose=True)
    monkeypatch.setitem(STUDIES, "tiny", tiny)
    done = CliRunner().invoke(app, ["study", "run", "tiny", str(home), "--dry-run"])
    assert "left out: fisher needs statistics of every expert" in done.output
    assert "then, on 2 other splits of tasks, the point of each mixture and method that is best on val" in done.output


def test_a_plane_holds_base_experts_and_average_as_whole_parts():
    found = points("plane")
    weights = [point.parameters["weights"] for point in found.values() if point.parameters]
    assert len(weights) == 21**2
    assert {(0, 0), (1, 0), (0, 1), (0.5, 0.5), (-0.5, 1.5), (0.3, 0.7)} <= set(weights)
    assert {cell.task for cell in cells("plane")} == {"vqa", "caption"}
    assert sum(point.method == "interpolate" for point in found.values()) == 9


def test_rewarded_soups_stand_beside_where_rewards_start_from_and_all_rewards_mixed():
    beside = {point.label for point in points("rewarded-soups").values() if point.kind != "reward"}
    assert beside == {"1.00 unrewarded (vanilla, single)", "1.00 all-rewards (mixed-rewards, single)"}


def test_batchnorm_policies_are_of_merged_points():
    found = points("interpolation", only="vqa+caption", kinds=("vanilla",), points=3, batchnorm=("all",))
    merged = [point.batchnorm for point in found.values() if point.method == "interpolate"]
    assert merged == ["average", "from:vqa", "from:caption", "recalibrate:mixture", "recalibrate:task"]
    named = points("interpolation", kinds=("vanilla",), points=3, batchnorm=("from:vqa",))
    assert sum(point.batchnorm == "from:vqa" for point in named.values()) == 2  # pairs that hold it


def test_any_method_of_the_engine_can_be_compared():
    pair = {"only": "vqa+caption", "kinds": ("vanilla",), "points": 5}
    found = points("interpolation", **pair, methods=("interpolate", ("ties", {"density": [0.1, 0.3]}), "slerp"))
    own = [point for point in found.values() if point.method not in ("single", "ensemble")]
    assert [point.method for point in own] == ["interpolate"] * 3 + ["ties"] * 2 + ["slerp"] * 3
    assert [point.label for point in own if point.method == "ties"] == [
        "0.50 vqa + 0.50 caption (vanilla, ties, density 0.1)",
        "0.50 vqa + 0.50 caption (vanilla, ties, density 0.3)",
    ]
    assert {None if point.base is None else point.base.id for point in own} == {None, "pretrained"}
    wide = {cell.task for cell in cells("interpolation", **pair, methods=("model-stock",)) if cell.point.base}
    assert wide == set(FAMILIES["image"])
    (alone,) = [p for p in points("ood", only="vqa", kinds=("vanilla",), methods=("arcee-fusion",)).values() if p.base]
    assert (alone.shares, alone.method) == ({"vqa": 1.0}, "arcee-fusion")


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"setup": "large"}, "no setup 'large': choose one of pocket, base"),
        ({"split": "novel"}, "no split 'novel'"),
        ({"points": 1}, "give 2 or more"),
        ({"kinds": ("fusing",)}, "has no experts 'fusing': choose of vanilla, ratatouille, joint"),
        ({"only": "vqa+audio"}, r"choose one of vqa\+caption, caption\+grounding"),
        ({"batchnorm": ("mean",)}, "no BatchNorm policy 'mean'"),
        ({"methods": ("mean",)}, "study interpolation: no method 'mean': choose of interpolate, average"),
    ],
)
def test_what_there_is_not_is_told(choice, message):
    with pytest.raises(StudyError, match=message):
        cells("interpolation", **choice)


def test_points_and_experts_are_checked():
    with pytest.raises(StudyError, match="no study 'ratios': choose one of interpolation"):
        study_named("ratios")
    with pytest.raises(StudyError, match="study own: no kind 'plain': choose of vanilla, ratatouille"):
        MixtureStudy(name="own", question="?", source="", experts={"a": "vqa"}, mixtures=(("a",),), kinds=("plain",))
    with pytest.raises(StudyError, match="study own: no expert 'b': choose of a"):
        MixtureStudy(name="own", question="?", source="", experts={"a": "vqa"}, mixtures=(("a", "b"),))
    with pytest.raises(StudyError, match="study own: no method 'sum'"):
        MixtureStudy(name="own", question="?", source="", experts={"a": "vqa"}, mixtures=(("a",),), methods=("sum",))
    with pytest.raises(StudyError, match="no method 'sum'"):
        Point({"vqa": Expert("vqa", "vqa", "vanilla")}, {"vqa": 1.0}, "sum")
    with pytest.raises(StudyError, match="with shares of"):
        Point({"vqa": Expert("vqa", "vqa", "vanilla")}, {"caption": 1.0}, "single")
    with pytest.raises(StudyError, match="no metric 'F1'"):
        UnivalSubject(None).metrics(Cell(single(Expert("vqa", "vqa", "vanilla")), "vqa", "test", ("F1",)))


def test_a_kind_can_be_left_out():
    kinds = {point.kind for point in points("averaging", kinds=("fusing",)).values()}
    assert kinds == {"pretrained", "fusing"}
    assert single(Expert("pretrained", "", "pretrained")).id in points("averaging", kinds=("fusing",))


def test_a_study_is_data():
    own = MixtureStudy(
        name="own", question="?", source="", experts={"a": "vqa", "b": "caption"}, mixtures=(("a", "b"),), points=3
    )
    labels = {cell.point.label for cell in own.cells(Choice(split="val"))}
    assert "0.50 a + 0.50 b (vanilla, interpolate)" in labels


def documented(number, **names):
    """Run an example of docs/studies.md with some names."""
    text = (ROOT / "docs" / "studies.md").read_text(encoding="utf-8")
    exec(re.findall(r"```python\n(.*?)```", text, re.DOTALL)[number], names)


def call(*arguments):
    done = CliRunner().invoke(app, ["study", *map(str, arguments)])
    assert done.exit_code == 0, done.output
    return done.stdout


def test_the_documented_study_runs_as_written(home, tmp_path, monkeypatch):
    studies = dict(STUDIES)
    documented(1, STUDIES=studies, MixtureStudy=MixtureStudy)
    (name,) = set(studies) - set(STUDIES)
    monkeypatch.setitem(STUDIES, name, studies[name])
    folder = copied(home, tmp_path / "home")
    assert studies[name].question in call("list")
    assert "18 cells evaluated" in call("run", name, folder, "--limit", "2", "--processes", "1")
    call("plot", name, folder, "-o", tmp_path / "figures")
    assert (tmp_path / "figures" / "curves_vqa_entailment.png").stat().st_size > 500
    call("report", name, folder, "-o", tmp_path / "report.html")
    assert studies[name].question in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_the_documented_kind_of_expert_is_seen_everywhere(home, tmp_path, monkeypatch):
    monkeypatch.setitem(KINDS, "patient", None)  # which the example fills, and is taken out again
    documented(2, KINDS=KINDS, Kind=kinds.Kind, vanilla=kinds.vanilla, replace=replace)
    study = replace(TINY, name="patience", kinds=("vanilla", "patient"))
    monkeypatch.setitem(STUDIES, "patience", study)
    folder = copied(home, tmp_path / "home")
    for number, task in enumerate(study.experts):
        expert = Expert(task, task, "patient")
        step = step_of(PocketSetup(folder).pocket(0), expert)
        assert step.file == f"patient/{task}/last.safetensors"
        write(folder, 0, expert, moved(load_model(home / "experts" / "vanilla" / task / "last.safetensors"), number))
    assert BaseSetup(tmp_path, tmp_path, tmp_path).source(expert).path == tmp_path / "patient" / "entailment.pt"
    assert "14 cells evaluated" in call("run", "patience", folder, "--limit", "2", "--processes", "1")
    drawn, missing = draw(open_study(folder, "patience")[0])
    assert all(line.startswith("retention: no task has") for line in missing)  # all scores of two examples may be 0
    curves = next(one.figure for one in drawn if one.stem == "curves_vqa_entailment")
    shown = [text.get_text() for axis in curves.axes for text in axis.get_legend().get_texts()]
    assert {text.partition(",")[0] for text in shown} == {"vanilla", "patient", "pretrained"}
    assert "| patient | interpolate |" in call("table", "patience", folder)
