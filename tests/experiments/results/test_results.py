"""What results say: summaries, best points, figures, pages and saved weights, by hand or by plain PyTorch."""

import dataclasses
import math
import shutil
import warnings

import numpy as np
import pytest
import torch

import experiments
import merge
from experiments import StudyError, Task
from experiments.grid.notes import write_notes
from experiments.grid.rows import Row, append_row
from experiments.statistics.bootstrap import resampled_means
from experiments.study.points import PRETRAINED
from tests.experiments.made_study import make_model, score_both, score_down, score_up, study, weights
from tests.experiments.study_rows import write_study


@pytest.fixture(scope="module")
def signs(tmp_path_factory):
    """The results of a pair by two methods, with a base; one task has another name than its expert."""
    tasks = {"up": score_up, "below": Task(score_down, expert="down")}
    methods = ("interpolate", ("ties", {"density": [0.1, 0.3]}))
    given = study(pretrained=weights(0), tasks=tasks, methods=methods, batchnorm=("average", "from:up"))
    return experiments.run(given, tmp_path_factory.mktemp("signs"), progress=False)


def value(results, task, split, method="interpolate", batchnorm="average", **shares):
    rows = results.rows
    rows = rows[(rows["task"] == task) & (rows["split"] == split) & (rows["method"] == method)]
    rows = rows[(rows["batchnorm"] == batchnorm) & (rows["shares"] == shares)]
    (found,) = rows["value"]
    return found


def test_the_summary_is_retention_of_what_val_chose(signs):
    summary = signs.summary()
    own = summary[(summary["method"] == "interpolate") & (summary["split"] == "test")].set_index("task")
    joint = {
        share: np.mean(
            [
                value(signs, task, "val", up=1 - share, down=share)
                / value(signs, task, "val", "single", **{expert: 1.0})
                for task, expert in (("up", "up"), ("below", "down"))
            ]
        )
        for share in (0.25, 0.5, 0.75)
    }
    share = max(joint, key=lambda one: joint[one])
    assert set(own["point"]) == {merge.share_label({"up": 1 - share, "down": share})}
    for task, expert in (("up", "up"), ("below", "down")):
        got = value(signs, task, "test", up=1 - share, down=share)
        assert own.loc[task, "value"] == got
        assert own.loc[task, "retention"] == got / value(signs, task, "test", "single", **{expert: 1.0})
        assert own.loc[task, "lo"] < own.loc[task, "retention"] < own.loc[task, "hi"]
        assert own.loc[task, "interval"] == "1 seed, 40 examples: evaluation noise only"
    assert own.loc["mean over tasks", "retention"] == own["retention"].iloc[:2].mean()
    assert set(summary["split"]) == {"test", "noisy"}
    assert set(summary[summary["is_shifted"]]["split"]) == {"noisy"}
    assert list(dict.fromkeys(summary["method"])) == [
        "expert alone",
        "interpolate",
        "interpolate, BatchNorm from:up",
        "ties, density 0.1",
        "ties, density 0.1, BatchNorm from:up",
        "ties, density 0.3",
        "ties, density 0.3, BatchNorm from:up",
    ]
    assert list(summary.columns) == [one.name for one in dataclasses.fields(experiments.statistics.summary.Kept)]


def test_intervals_of_the_summary_pair_examples_with_the_expert(signs):
    (row,) = signs.summary().query("task == 'up' and method == 'interpolate' and split == 'test'").to_dict("records")
    rows = signs.rows
    (expert,) = rows.query("task == 'up' and method == 'single' and split == 'test' and point == '1.00 up'")["key"]
    scores = np.stack([signs.scores(row["key"]), signs.scores(expert)])
    means = resampled_means(scores, samples=20_000, seed=5)
    wanted = np.quantile(means[:, 0] / means[:, 1], [0.025, 0.975])
    assert (row["lo"], row["hi"]) == pytest.approx(wanted, abs=0.05)


def test_the_best_of_all_methods_or_of_one(signs):
    best = signs.best("down+up")
    summary = signs.summary()
    (marked,) = summary[
        summary["is_best"] & (summary["split"] == "test") & (summary["task"] == "mean over tasks")
    ].to_dict("records")
    assert best.reported == marked["retention"]
    assert (best.interval.lo, best.interval.hi) == (marked["lo"], marked["hi"])
    assert f"{best.reported:.4f} [{marked['lo']:.4f}, {marked['hi']:.4f}] on test" in str(best)
    (alone,) = signs.best()
    assert (alone.names, alone.shares) == (best.names, best.shares)
    ties = signs.best(("up", "down"), method="ties", batchnorm="average")
    assert (ties.method, ties.batchnorm) == ("ties", "average")
    assert ties.parameters["density"] in (0.1, 0.3)
    assert ties.selected <= best.selected
    assert "<table>" in ties._repr_html_()


def test_nothing_is_chosen_on_test(signs):
    for on in ("test", "noisy", "train"):
        with pytest.raises(
            StudyError, match=f"^points chosen on split '{on}' look too good there: choose them on 'val'$"
        ):
            signs.best(on=on)


def test_wrong_names_are_one_line_with_those_there_are(signs):
    for call, words in (
        (lambda: signs.best("up+downn"), "signs has no rows of the mixture 'up.downn': choose of up.down"),
        (lambda: signs.curves(("up", "b")), "no rows of the mixture 'up.b': choose of up.down"),
        (
            lambda: signs.best("up+down", method="tie"),
            "up.down has no points of method 'tie': choose of single, interp",
        ),
        (lambda: signs.best("up+down", batchnorm="from:x"), "no points of batchnorm 'from:x': choose of average, from"),
        (lambda: signs.best("up+down", kind="vanilla"), "no experts of kind 'vanilla': choose of expert"),
        (lambda: signs.save_best("x.pt", "up+down", seed=3), "has no seed 3: choose of 0"),
    ):
        with pytest.raises(StudyError, match=words) as error:
            call()
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "which",
    [
        {"method": "interpolate", "batchnorm": "average"},
        {"method": "interpolate", "batchnorm": "from:up"},
        {"method": "ties", "batchnorm": "average"},
        {"method": "single"},
    ],
    ids=["interpolate", "from", "ties", "single"],
)
def test_saved_weights_are_those_that_were_evaluated(signs, tmp_path, which):
    best = signs.best("up+down", **which)
    path = signs.save_best(tmp_path / "best.safetensors", "up+down", **which)
    assert path == tmp_path / "best.safetensors"
    assert (tmp_path / "best.safetensors.recipe.json").is_file()
    saved = merge.load_checkpoint(path)
    model = make_model().eval()
    model.load_state_dict(saved)
    with torch.no_grad():
        wanted = float(score_up(model, "test").double().mean())
    assert best.tasks["up", "score"][0] == wanted
    if which["method"] == "ties":
        experts = {"up": weights(1), "down": weights(2)}
        state = merge.merge_with("ties", experts, weights(0), **best.parameters)
        assert all(torch.equal(saved[name], state[name]) for name in saved)
    with pytest.raises(merge.MergeError, match="overwrite=True"):
        signs.save_best(path, "up+down", **which)
    signs.save_best(path, "up+down", **which, overwrite=True)


def test_saved_weights_of_any_method_are_those_that_were_evaluated(tmp_path):
    methods = ("interpolate", "karcher", ("dare-linear", {"density": 0.5}), "model-stock", "arcee-fusion")
    experts = {"up": weights(1), "down": weights(2), "other": weights(3)}
    given = study(
        experts=experts, pretrained=weights(0), methods=methods, splits=("val", "test"), mixtures=[[*experts]]
    )
    results = experiments.run(given, tmp_path, progress=False)
    assert results.mixtures == ["up+down+other"]
    for method in results.rows["method"].drop_duplicates():
        best = results.best("up+down+other", method=method)
        model = make_model().eval()
        model.load_state_dict(merge.load_checkpoint(results.save_best(tmp_path / f"{method}.pt", method=method)))
        with torch.no_grad():
            wanted = [float(score(model, "test").double().mean()) for score in (score_up, score_down)]
        assert [value for value, _, _ in best.tasks.values()] == wanted, method
    assert results.best("up+down+other", method="interpolate").method == "average"


def test_what_lies_on_no_line_has_no_curve(tmp_path):
    rows = [row(dict.fromkeys("abc", 1 / 3), task, "test", 0.5, method="average") for task in "abc"]
    rows += [row({name: 1.0}, task, "test", 0.8 if name == task else 0.1) for name in "abc" for task in "abc"]
    results = made(tmp_path, rows)
    assert results.curves() == []
    with pytest.raises(StudyError, match=r"made: no figure of 'c\+a\+b': nothing that follows shares lies between two"):
        results.curves("c+a+b")


def test_weights_that_changed_since_are_not_merged(tmp_path):
    for name, seed in (("up", 1), ("down", 2)):
        torch.save(weights(seed), tmp_path / f"{name}.pt")
    files = {name: tmp_path / f"{name}.pt" for name in ("up", "down")}
    results = experiments.run(study(experts=files, points=3, splits="val"), tmp_path / "run", progress=False)
    torch.save(weights(7), tmp_path / "up.pt")
    with pytest.raises(StudyError, match=r"up.pt has changed since up was evaluated: run the study again"):
        results.save_best(tmp_path / "x.pt", method="interpolate")


def test_measured_statistics_and_ensembles_are_no_weights_to_save(tmp_path):
    tasks = {"up": Task(score_up, inputs=[torch.zeros(4, 3)])}
    given = study(tasks=tasks, batchnorm="recalibrate:task", ensembles=True, splits="val", points=3)
    results = experiments.run(given, tmp_path, progress=False)
    with pytest.raises(StudyError, match="recalibrate:task is measured, not merged: save a point of average or from"):
        results.save_best(tmp_path / "x.pt", "up+down", method="interpolate")
    with pytest.raises(StudyError, match="an ensemble answers with several models"):
        results.save_best(tmp_path / "x.pt", "up+down", method="ensemble")


def test_a_folder_is_all_that_is_needed(signs, tmp_path):
    shutil.copytree(signs.folder, tmp_path / "moved")
    moved = experiments.open_results(tmp_path / "moved")
    assert moved.summary().equals(signs.summary())
    assert str(moved.best()) == str(signs.best())


def test_figures_pages_and_what_a_notebook_shows(tmp_path):
    for one in both([(0.8, 0.1), (0.1, 0.8), (0.6, 0.7), (0.2, 0.2)]):
        scores = (np.arange(50) < 50 * one.value).astype(float)
        append_row(tmp_path / "rows.jsonl", dataclasses.replace(one, n=50, lo=0.0, hi=1.0), scores)
    results = experiments.open_results(tmp_path)
    assert results.curves("b+a").axes
    assert [len(figure.axes) > 0 for figure in results.front()] == [True]
    files = results.figures(tmp_path / "figures")
    assert {path.suffix for path in files} == {".png", ".svg", ".pdf"}
    assert all(path.stat().st_size for path in files)
    page = results.report(tmp_path / "page.html")
    assert page == tmp_path / "page.html"
    assert "made" in page.read_text()
    shown = results._repr_html_()
    assert shown.count("<table>") == shown.count("<svg") == 1
    assert "1 seed, 50 examples: evaluation noise only" in shown
    assert f"summary() has all {len(results.summary())} rows" in shown
    assert repr(results) == (
        f"<Results of made in {tmp_path}: 16 rows; mixtures a+b; tasks a, b; splits val, test; seeds 0>"
    )
    assert all(isinstance(text, str) and text for text in results.findings())


def test_one_number_a_task_losses_and_two_metrics(tmp_path):
    nll = Task(score_both, metric="nll", unit={"nll": "nats"}, higher_is_better={"nll": False})
    given = study(tasks={"up": nll, "down": lambda model, split: 0.25}, splits=("val", "test"), points=3)
    summary = experiments.run(given, tmp_path, progress=False).summary()
    own = summary[(summary["method"] == "interpolate") & (summary["split"] == "test")].set_index("task")
    assert own.loc["up", "form"] == "expert / merged"
    assert (own.loc["up", "metric"], own.loc["up", "unit"]) == ("nll", "nats")
    assert own.loc["up", "lo"] < own.loc["up", "retention"] < own.loc["up", "hi"]
    assert own.loc["down", "retention"] == 1
    assert math.isnan(own.loc["down", "lo"])
    assert own.loc["down", "interval"] == "none: 1 seed, no scores of examples"
    assert math.isnan(own.loc["mean over tasks", "lo"])
    assert own.loc["mean over tasks", "form"] == "expert / merged; merged / expert"


def row(shares, task, split, value, *, seed=0, **more):
    kind = PRETRAINED if PRETRAINED in shares else "expert"
    given = {"study": "made", "shares": shares, "experts": kind, "batchnorm": "average", "task": task, "split": split}
    given |= {"method": "single" if len(shares) == 1 else "interpolate", "metric": "score", "value": value}
    given |= {"lo": math.nan, "hi": math.nan, "n": 0, "seconds": 1.0, "seed": seed, "versions": {}, "inputs": {}}
    return Row(**{**given, "data": "", "key": f"{shares} {task} {split} {seed}", **more})


def made(folder, rows):
    folder.mkdir(exist_ok=True)
    for one in rows:
        append_row(folder / "rows.jsonl", one, np.empty(0))
    return experiments.open_results(folder)


def both(values, **more):
    """Rows of two experts and the middle on their own task each, val and test, and the pretrained model's."""
    models = ({"a": 1.0}, {"b": 1.0}, {"a": 0.5, "b": 0.5}, {PRETRAINED: 1.0})
    return [
        row(shares, task, split, own, **more)
        for shares, scores in zip(models, values, strict=True)
        for task, own in zip("ab", scores, strict=True)
        for split in ("val", "test")
    ]


def test_negative_scores_are_told_by_the_gain(tmp_path):
    results = made(tmp_path, both([(-1, -4), (-4, -1), (-2, -3), (-5, -5)]))
    own = results.summary().query("method == 'interpolate'").set_index("task")
    assert own["retention"].to_dict() == {"a": 0.75, "b": 0.5, "mean over tasks": 0.625}
    assert set(own["form"]) == {"share of the expert's gain over the pretrained model"}


def test_negative_scores_without_a_pretrained_model_are_said_to_have_no_retention(tmp_path):
    results = made(tmp_path, [one for one in both([(-1, -4), (-4, -1), (-2, -3), (-5, -5)]) if one.experts == "expert"])
    with pytest.raises(StudyError, match=r"retention cannot be reckoned .none: scores of 0 or less, and no pretrained"):
        results.best("a+b")
    assert results.summary()["retention"].isna().all()


def test_seeds_give_an_interval_where_examples_have_no_scores(tmp_path):
    rows = []
    for seed, (first, second) in enumerate(((0.4, 0.6), (0.5, 0.5), (0.6, 0.4))):
        rows += both([(0.8, 0.1), (0.1, 0.8), (first, second), (0.1, 0.1)], seed=seed)
    results = made(tmp_path, rows)
    own = results.summary().query("method == 'interpolate' and split == 'test'").set_index("task")
    assert own.loc["a", "retention"] == pytest.approx(0.625)
    half = 4.30265 * 0.125 / math.sqrt(3)
    assert (own.loc["a", "lo"], own.loc["a", "hi"]) == pytest.approx((0.625 - half, 0.625 + half), abs=1e-4)
    assert own.loc["a", "interval"] == "3 seeds, no scores of examples"
    assert own.loc["mean over tasks", "hi"] == pytest.approx(0.625)  # what one task gains the other loses
    assert results.best("a+b").inputs.keys() == {0, 1, 2}
    with pytest.raises(StudyError, match="made has 3 seeds: choose seed= of 0, 1, 2"):
        results.save_best(tmp_path / "x.pt")


def test_without_val_equal_shares_are_reported_and_nothing_is_best(tmp_path):
    rows = [one for one in both([(0.8, 0.1), (0.1, 0.8), (0.4, 0.6), (0.1, 0.1)]) if one.split == "test"]
    rows += [row({"a": 0.25, "b": 0.75}, task, "test", 0.8) for task in "ab"]
    results = made(tmp_path, rows)
    own = results.summary().query("method == 'interpolate'")
    assert set(own["point"]) == {"0.50 a + 0.50 b"}
    assert set(own["chosen"]) == {"equal shares"}
    assert not results.summary()["is_best"].any()
    with pytest.raises(StudyError, match=r"a\+b: no model has scores of all tasks on val: evaluate split val first"):
        results.best("a+b")


def test_tasks_that_are_nobodys_have_no_retention(tmp_path):
    folder = tmp_path / "own"
    folder.mkdir()
    write_notes(folder, "made", experiments.grid.notes.Notes(tasks={"a": "a", "b": ""}))
    results = made(folder, both([(0.8, 0.1), (0.1, 0.8), (0.4, 0.6), (0.1, 0.1)]))
    assert set(results.summary()["task"]) == {"a"}


def test_scores_that_failed_leave_a_summary_of_the_others(tmp_path):
    rows = both([(0.8, 0.1), (0.1, 0.8), (0.4, math.nan), (0.1, 0.1)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        results = made(tmp_path, rows)
        own = results.summary().query("method == 'interpolate'")
        assert own["task"].tolist() == ["a"]
        assert results.best("a+b").method == "single"
        assert "<table>" in results._repr_html_()


def test_an_expert_that_changed_is_not_measured_by_its_old_rows(tmp_path):
    """Rows of weights that are no more stay in the file; points are set beside the expert that they were made of."""
    first = study(points=5, splits="val")
    experiments.run(first, tmp_path, progress=False)
    changed = study(experts={"up": weights(1), "down": weights(9)}, points=3, splits="val")
    results = experiments.run(changed, tmp_path, progress=False)
    own = results.summary().query("method == 'interpolate'")
    fresh = experiments.run(changed, tmp_path / "fresh", progress=False).summary().query("method == 'interpolate'")
    assert set(own["point"]) == set(fresh["point"]) == {"0.50 up + 0.50 down"}
    assert own["retention"].tolist() == fresh["retention"].tolist()


def test_draws_of_a_corpus_metric_lie_around_its_value(tmp_path):
    rng = np.random.default_rng(0)
    rows = both([(0.8, 0.1), (0.1, 0.8), (0.6, 0.6), (0.1, 0.1)])
    for one in rows:
        append_row(tmp_path / "rows.jsonl", dataclasses.replace(one, n=50), rng.uniform(size=50))
    own = experiments.open_results(tmp_path).summary().query("method == 'interpolate' and split == 'test'")
    assert own["retention"].tolist() == pytest.approx([0.75, 0.75, 0.75])
    assert (own["lo"] < 0.75).all()
    assert (own["hi"] > 0.75).all()


def test_kinds_of_experts_do_not_compete(tmp_path):
    """What an expert of one kind keeps is no measure of what one of another does."""
    for split in ("val", "test"):
        write_study(tmp_path, "interpolation", split=split, only="vqa+caption", kinds=("vanilla", "ratatouille"))
    results = experiments.open_results(tmp_path)
    with pytest.raises(StudyError, match=r"vqa\+caption is mixed of experts of several kinds: choose kind= of vanilla"):
        results.best("vqa+caption")
    assert [one.kind for one in results.best()] == ["vanilla", "ratatouille"]
    best = results.best("caption+vqa", kind="ratatouille")
    assert (best.shares, best.inputs.keys()) == ({"vqa": 0.5, "caption": 0.5}, {0})
    assert str(best).startswith("vqa+caption, ratatouille: 0.50 vqa + 0.50 caption; joint ")
    assert set(results.summary()["experts"]) == {"vanilla", "ratatouille"}
    assert "interpolate" in set(results.summary()["method"])
    assert "ensemble" in set(results.summary()["method"])
    assert "ensemble" not in {one.method for one in results.best()}


def test_rewards_are_own_tasks_of_the_experts_that_they_are_named_after(tmp_path):
    for split in ("val", "test"):
        write_study(tmp_path, "rewarded-soups", split=split)
    results = experiments.open_results(tmp_path)
    own = results.summary().query("mixture == 'small+medium+large' and method == 'average'")
    assert own["metric"].tolist() == ["Acc@0.5 small", "Acc@0.5 medium", "Acc@0.5 large", ""]
    assert len(results.best("large+medium+small").tasks) == 3


def test_names_that_rows_hold_do_no_harm(tmp_path):
    rows = both([(0.8, 0.1), (0.1, 0.8), (0.6, 0.6), (0.1, 0.1)])
    bad = {"a": "<b>a\n", "b": "b\x1b[31m"}
    for one in rows:
        shares = {bad.get(name, name): share for name, share in one.shares.items()}
        append_row(tmp_path / "rows.jsonl", dataclasses.replace(one, shares=shares, task=bad[one.task]), np.empty(0))
    results = experiments.open_results(tmp_path)
    for text in (repr(results), repr(results.best()[0])):
        assert text.isprintable()
    assert "<b>" not in results._repr_html_()
    assert "<b>" not in results.best()[0]._repr_html_()
