"""Studies of any model: rows are what a plain loop gives, every cell is evaluated once, mistakes are one line."""

import math
import subprocess
import sys
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch

import experiments
import merge
from experiments import StudyError, Task
from experiments.study.methods import left_out
from tests import ROOT
from tests.experiments import made_study
from tests.experiments.made_study import CALLS, make_model, score_both, score_up, study, weights


@pytest.fixture(scope="module")
def three():
    """Three experts with a base, in memory."""
    return {
        "experts": {"up": weights(1), "down": weights(2), "other": weights(3)},
        "pretrained": weights(0),
    }


def run(given, folder, **options):
    CALLS.clear()
    return experiments.run(given, folder, progress=False, **options)


def plain(state, score, split):
    """The score of weights without any of the study's code."""
    model = make_model().eval()
    model.load_state_dict(state)
    with torch.no_grad():
        return np.asarray(score(model, split), dtype=np.float64)


def contents(results):
    """Rows without what differs from run to run."""
    return results.rows.drop(columns=["seconds"]).sort_values("key").reset_index(drop=True).to_dict("records")


def test_rows_are_those_of_a_plain_loop(tmp_path):
    results = run(study(), tmp_path)
    first, second = weights(1), weights(2)
    rows = results.rows[results.rows["method"] == "interpolate"]
    assert len(rows) == 3 * 2 * 3
    for row in rows.to_dict("records"):
        ratio = row["shares"]["down"]
        state = {
            name: torch.lerp(first[name], second[name], ratio) if first[name].is_floating_point() else first[name]
            for name in first
        }
        wanted = plain(state, made_study.score_up if row["task"] == "up" else made_study.score_down, row["split"])
        assert row["value"] == wanted.mean()
        assert np.array_equal(results.scores(row), wanted)
        assert row["lo"] <= row["value"] <= row["hi"]


def test_a_second_run_evaluates_nothing_and_changes_redo_their_own(tmp_path):
    given = study()
    first = run(given, tmp_path)
    assert len(CALLS) == len(first.rows) == 5 * 2 * 3
    assert contents(run(given, tmp_path)) == contents(first)
    assert not CALLS
    assert contents(run(study(points=3), tmp_path)) == contents(first)
    assert not CALLS
    run(replace(given, version="2"), tmp_path)
    assert len(CALLS) == 5 * 2 * 3
    changed = run(study(experts={"up": weights(1), "down": weights(9)}), tmp_path)
    assert len(CALLS) == 4 * 2 * 3  # all but the expert that is the same
    assert len(changed.rows) == len(first.rows) < len(experiments.read_rows(tmp_path / "rows.jsonl"))
    assert changed.rows["inputs"].iloc[-1] != contents(first)[-1]["inputs"]  # what is old is not shown any more


def test_points_and_their_tasks(tmp_path, three):
    results = run(study(**three, splits="test"), tmp_path)
    asked = {}
    for row in results.rows.to_dict("records"):
        asked.setdefault((row["point"], row["method"]), []).append(row["task"])
    assert len(results.rows) == sum(map(len, asked.values()))
    assert asked["1.00 pretrained", "single"] == asked["1.00 other", "single"] == ["up", "down"]
    assert asked["0.75 up + 0.25 other", "interpolate"] == ["up"]
    assert asked["0.50 up + 0.50 other", "interpolate"] == ["up", "down"]
    assert len([point for point, method in asked if method == "average"]) == 1


def test_any_method_with_its_parameters(tmp_path, three):
    methods = ("slerp", ("ties", {"density": [0.1, 0.3]}), ("dare-linear", {"density": 0.5}), "model-stock", "karcher")
    results = run(study(**three, methods=methods, points=3, splits=("test",), mixtures=["up+down"]), tmp_path)
    named = {"up": three["experts"]["up"], "down": three["experts"]["down"]}
    merged = results.rows[results.rows["method"] != "single"]
    assert merged["method"].value_counts().to_dict() == {
        "ties": 4, "slerp": 2, "dare-linear": 2, "model-stock": 2, "karcher": 2,
    }  # fmt: skip
    for row in merged.to_dict("records"):
        method = row["method"]
        base = three["pretrained"] if merge.METHODS[method].takes_base else None
        given = {"ratio": 0.5} if method == "slerp" else row["parameters"]
        state = merge.merge_with(method, named, base, **given)
        assert row["value"] == plain(state, getattr(made_study, f"score_{row['task']}"), "test").mean(), row
        assert ("pretrained" in row["inputs"]) == merge.METHODS[method].takes_base


def test_a_parameter_without_default_has_its_usual_value(three):
    assert study(**three, methods=("ties", "slerp")).all_methods == [("ties", {"density": (0.2,)}), ("slerp", {})]
    for methods in (("sce", {"density": 0.4}), [("sce", {"density": [0.4]})]):
        assert study(**three, methods=methods).all_methods == [("sce", {"density": (0.4,)})]


def test_what_is_best_on_val_is_alone_evaluated_elsewhere(tmp_path, three):
    methods = ("slerp", ("task-arithmetic", {"scale": [0.2, 0.6, 1.0, 3.0]}))
    given = study(**three, methods=methods, points=5, mixtures=["up+down"], choose=True)
    results = run(given, tmp_path)
    for method, count in (("slerp", 3), ("task-arithmetic", 4)):
        best = results.best("up+down", method=method)
        own = results.rows[results.rows["method"] == method]
        assert len(own[own["split"] == "val"]) == 2 * count
        chosen = own[own["split"] != "val"]
        assert set(chosen["split"]) == {"test", "noisy"}
        assert [dict(row) for row in chosen["parameters"]] == [best.parameters] * len(chosen)
        assert {point["up"] for point in chosen["shares"]} == {best.shares["up"]}
    singles = results.rows[results.rows["method"] == "single"]
    assert singles["split"].value_counts().to_dict() == {"val": 6, "test": 6, "noisy": 6}
    run(given, tmp_path)
    assert CALLS == []


def test_all_methods_are_those_that_merge_weights_alone_at_the_values_of_their_entries(three):
    found = dict(study(**three, methods="all").all_methods)
    assert found["ties"] == {name: tuple(own) for name, own in merge.METHODS["ties"].grid.items()}
    assert set(merge.METHODS) - set(found) == set(left_out(found, 2, has_base=True))
    assert {"fisher", "arcee-fusion"} <= set(merge.METHODS) - set(found)
    assert "ties" not in dict(study(methods=("all",)).all_methods)  # without a base


def test_several_metrics_float_scores_and_units(tmp_path):
    task = Task(score_both, metric="nll", unit={"nll": "nats"}, higher_is_better={"nll": False})
    given = study(tasks={"up": task, "down": lambda model, split: 0.25}, splits=("test",), points=3)
    results = run(given, tmp_path)
    up = results.rows[results.rows["task"] == "up"]
    assert up["metric"].tolist() == ["nll", "accuracy"] * 3
    assert up["unit"].tolist() == ["nats", ""] * 3
    assert up["higher_is_better"].tolist() == [False, True] * 3
    nll = up.iloc[0]
    wanted = plain(weights(1), lambda model, split: score_both(model, split)["nll"], "test")
    assert nll["value"] == wanted.mean()
    assert np.array_equal(results.scores(nll), wanted)
    down = results.rows[results.rows["task"] == "down"].iloc[0]
    assert down["value"] == 0.25
    assert math.isnan(down["lo"])
    assert down["n"] == 0
    assert len(run(given, tmp_path).rows) == 9


def test_a_run_stopped_between_two_metrics_of_a_cell_evaluates_it_again(tmp_path):
    given = study(tasks={"up": Task(score_both, metric="accuracy")}, splits=("test",), points=3)
    whole = contents(run(given, tmp_path))
    lines = (tmp_path / "rows.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "rows.jsonl").write_text("".join(lines[:-1]))
    again = run(given, tmp_path)
    assert again.ran.evaluated == 1
    assert contents(again) == whole


def test_seeds_of_experts(tmp_path):
    given = study(experts={"up": {0: weights(1), 1: weights(3)}, "down": {1: weights(4), 0: weights(2)}}, points=3)
    assert run(given, tmp_path, split="test").rows["seed"].value_counts().to_dict() == {0: 6, 1: 6}
    assert set(run(given, tmp_path / "one", split="test", seeds=1).rows["seed"]) == {1}


def test_batchnorm_policies_and_ensembles(tmp_path):
    tasks = {name: Task(score, inputs=lambda: [made_study.inputs()]) for name, score in (("up", score_up),)}
    given = study(tasks=tasks, batchnorm="all", ensembles=True, splits="test", points=3)
    results = run(given, tmp_path)
    merged = results.rows[results.rows["method"] == "interpolate"]
    assert merged["batchnorm"].tolist() == [
        "average",
        "from:up",
        "from:down",
        "recalibrate:mixture",
        "recalibrate:task",
    ]
    state = merge.interpolate(weights(1), weights(2), 0.5)
    model = make_model()
    model.load_state_dict(state)
    merge.recalibrate_batchnorm(model, [made_study.inputs()])
    assert merged["value"].iloc[4] == plain(model.state_dict(), score_up, "test").mean()
    (ensemble,) = results.rows[results.rows["method"] == "ensemble"].to_dict("records")
    ends = []
    for seed in (1, 2):
        own = make_model().eval()
        own.load_state_dict(weights(seed))
        ends.append(own(made_study.inputs("test")))
    answers = (0.5 * ends[0] + 0.5 * ends[1]).argmax(1) == (made_study.inputs("test")[:, 0] > 0)
    assert ensemble["value"] == answers.double().mean()


def test_a_score_that_fails_is_a_row_with_a_note(tmp_path):
    def broken(model, split):
        if split == "val":
            raise ValueError("no such\nsplit")
        return [1.0, math.nan]

    with pytest.warns(UserWarning, match="6 cells could not be scored: ValueError: no such split"):
        rows = run(study(tasks={"up": broken}, splits=("val", "test"), points=3), tmp_path).rows
    assert rows["value"].isna().all()
    assert set(rows["note"]) == {"ValueError: no such split", "1 of 2 scores are not finite"}


@pytest.mark.parametrize("value", ["good", None, object(), [[1.0]], torch.zeros(2, 2), {}, {1: 2.0}, {"a": "b"}])
def test_a_wrong_type_is_one_line(value, tmp_path):
    with pytest.raises(StudyError, match=r"^task up: its score returned .*: give ") as error:
        run(study(tasks={"up": lambda model, split: value}), tmp_path)
    assert "\n" not in str(error.value)


def test_two_processes_give_the_same_rows(tmp_path):
    wanted = contents(run(study(), tmp_path / "one"))
    assert contents(run(study(), tmp_path / "two", processes=2)) == wanted


def test_what_cannot_be_imported_runs_here(tmp_path):
    given = study(tasks={"up": lambda model, split: score_up(model, split)}, points=3, splits="test")
    with pytest.warns(UserWarning, match="everything runs in this one"):
        assert len(run(given, tmp_path, processes=2).rows) == 3
    assert len(CALLS) == 3


def test_experts_in_files_of_other_layouts(tmp_path):
    for name, seed in (("up", 1), ("down", 2)):
        torch.save({"state": {"net": weights(seed)}, "epoch": 3}, tmp_path / f"{name}.pth.tar")
    files = {name: tmp_path / f"{name}.pth.tar" for name in ("up", "down")}
    given = study(experts=files, points=3, splits="test")
    rows = contents(run(given, tmp_path / "files"))
    assert rows == contents(run(study(points=3, splits="test"), tmp_path / "memory"))
    notes = experiments.open_results(tmp_path / "files").notes
    assert notes.files["up"] == {"0": [str(files["up"]), "auto"]}
    assert notes.tasks == {"up": "up", "down": "down"}


def test_a_killed_run_goes_on(tmp_path):
    script = f"""
import os, sys
sys.path.insert(0, {str(ROOT)!r})
import experiments
from tests.experiments import made_study
def score(model, split, calls=[]):
    calls.append(split)
    if len(calls) == 8:
        os.kill(os.getpid(), 9)
    return made_study.score_up(model, split)
experiments.run(made_study.study(tasks={{"up": score}}), sys.argv[1], progress=False)
"""
    killed = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True)
    assert killed.returncode == -9, killed.stderr
    given = study(tasks={"up": score_up})
    results = run(given, tmp_path)
    assert len(CALLS) == 15 - 7
    assert contents(results) == contents(run(given, tmp_path / "whole"))


MISTAKES = {
    "experts={}": ({"experts": {}}, "give at least one by name"),
    "a plus": ({"experts": {"a+b": "x.pt"}}, "cannot be called 'a\\+b'"),
    "an expert of a task": ({"tasks": {"up": Task(score_up, expert="upp")}}, "no|'upp': choose of up, down"),
    "a mixture": ({"mixtures": ["up+upp"]}, "no expert 'upp': choose of up, down"),
    "a mixture of one": ({"mixtures": ["up"]}, "name two experts or more"),
    "shares": ({"mixtures": [{"up": 0.5, "down": 0.6}]}, "of sum 1"),
    "a method": ({"methods": ("tiess",)}, "no method 'tiess': choose of interpolate"),
    "no base": ({"methods": ("ties",)}, "ties starts from a base: give pretrained="),
    "a parameter": ({"methods": (("slerp", {"density": [1]}),)}, "slerp has no parameter to sweep 'density'"),
    "statistics": ({"methods": ("fisher",)}, "fisher needs statistics"),
    "points": ({"points": 1}, "points=1: give 2 or more"),
    "splits": ({"splits": ("val", "val")}, "each once"),
    "batchnorm": ({"batchnorm": "recalibrate:task"}, "up has none: give Task"),
    "a policy": ({"batchnorm": "from:upp"}, "no BatchNorm policy 'from:upp': choose of average"),
    "seeds": ({"experts": {"up": {0: "a.pt"}, "down": {1: "b.pt"}}}, "no seed that all experts have"),
    "a seed": (
        {"experts": {"up": {0: "a.pt"}, "down": {0: "b.pt"}}, "seeds": (2,)},
        "no experts of seed 2: choose of 0",
    ),
    "a score": ({"tasks": {"up": 3}}, "score is a int: give a function"),
    "a model": ({"model": 3}, "give a function that returns the module"),
    "choosing": ({"choose": True, "splits": ("test",)}, "points are chosen on a split val"),
    "a version": ({"version": 2}, "version=2: must be text"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_what_does_not_fit_is_named_before_anything_is_opened(name):
    changes, words = MISTAKES[name]
    with pytest.raises(StudyError, match=words) as error:
        study(**changes)
    assert "\n" not in str(error.value)


def test_experts_that_do_not_fit_the_model_are_named_before_anything_is_evaluated(tmp_path):
    odd = {**weights(2), "extra": torch.zeros(1)}
    with pytest.raises(StudyError, match=r"the model lacks extra$"):
        run(study(experts={"up": weights(1), "down": odd}), tmp_path)
    odd = {**weights(2), "0.bias": torch.zeros(7)}
    with pytest.raises(StudyError, match=r"0.bias has shape \[7\] there and \[4\] in the study's model"):
        run(study(experts={"up": weights(1), "down": odd}), tmp_path)
    odd = {name: value for name, value in weights(2).items() if name != "3.bias"}
    with pytest.raises(StudyError, match=r"it lacks 3\.bias$"):
        run(study(experts={"up": weights(1), "down": odd}), tmp_path)
    assert not CALLS
    for given, words in (
        ({"only": "up+downn"}, "no mixture 'up\\+downn': choose of up\\+down"),
        ({"split": "tests"}, "no split 'tests'"),
        ({"device": "cuda:7"}, "cuda:7"),
        ({"precision": "int4"}, "precision='int4': choose one of fp32"),
        ({"engine": "rays"}, "no engine 'rays'"),
    ):
        with pytest.raises(StudyError, match=words):
            run(study(), tmp_path, **given)


def test_a_study_changes_by_replacing_fields():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        more = replace(study(), experts={name: f"{name}.pt" for name in ("up", "down", "left")})
    assert [*map("+".join, more.all_mixtures)] == ["up+down", "up+left", "down+left", "up+down+left"]
    assert replace(more, methods="slerp").all_methods == [("slerp", {})]
    with pytest.raises(AttributeError):
        more.points = 3
