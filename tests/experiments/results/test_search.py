"""Searches of a study, of a function, and by results: rows are the cache, and the retention is that of results."""

import pytest
import torch

import experiments
from experiments import StudyError, Task
from tests.experiments import made_study
from tests.experiments.made_study import CALLS, score_both, study, weights


def bump(shares):
    return {"a": 1 - shares["b"] ** 2, "b": 1 - shares["a"] ** 2}


def test_a_function_of_shares():
    asked = []

    def counted(shares):
        asked.append(dict(shares))
        return bump(shares)

    history = experiments.search(counted, "a+b", method="grid", budget=5)
    assert history.best.shares == {"a": 0.5, "b": 0.5}
    assert history.best.value == pytest.approx(0.75)
    assert len(asked) == history.evaluations == 5
    named = experiments.search(lambda shares: {"x": 3 - shares["a"], "y": 3 - shares["b"]},
        {"a": "x", "b": ["y"]}, lower_is_better=["x", "y"], budget=3)  # fmt: skip
    assert named.trials[2].value == pytest.approx(2 / 2.5)
    assert named.best.value == pytest.approx((1 + 2 / 3) / 2)
    again = experiments.search(
        counted, ("a", "b"), method="grid", budget=3, known=[(one.shares, one.scores) for one in history.trials]
    )
    assert (again.evaluations, again.cached, len(asked)) == (0, 3, 5)


def test_a_study_is_searched_on_val_and_its_rows_are_taken_over(tmp_path):
    given = study()
    results = experiments.run(given, tmp_path, split="val", points=3, progress=False)
    CALLS.clear()
    history = results.search("down+up", "grid", budget=3)
    assert (history.evaluations, history.cached) == (0, 3)
    assert not CALLS
    history = results.search(method="grid", budget=5)
    assert (history.evaluations, history.cached) == (2, 3)
    assert set(CALLS) == {("up", "val"), ("down", "val")}
    assert len(CALLS) == 4
    assert len(results.rows) == 10
    assert history.best.value == pytest.approx(results.best("up+down").selected)
    CALLS.clear()
    assert len(experiments.run(given, tmp_path, split="val", progress=False).rows) == 10
    assert not CALLS


def test_a_loss_that_a_function_names_is_searched_for_its_lowest(tmp_path):
    nll = {"unit": {"nll": "nats"}, "higher_is_better": {"nll": False}}
    own = Task(lambda model, split: score_both(model, split)["nll"], metric="nll", **nll)
    both = Task(lambda model, split: dict(reversed(score_both(model, split).items())), expert="down", **nll)
    given = study(tasks={"up": own, "two": both})
    history = experiments.search(given, "up+down", tmp_path, method="grid", budget=5)
    results = experiments.open_results(tmp_path)
    assert set(results.rows[results.rows["task"] == "two"]["metric"]) == {"nll", "accuracy"}
    assert history.best.value == pytest.approx(results.best("up+down").selected)
    for trial in history.trials:
        kept = [
            history.trials[0].scores["up"] / trial.scores["up"],
            history.trials[1].scores["two"] / trial.scores["two"],
        ]
        assert trial.value == pytest.approx(sum(kept) / 2)


def test_negative_scores_are_measured_from_the_pretrained_model(tmp_path):
    def near(seed):
        wanted = weights(seed)["0.weight"]
        return lambda model, split: -1 - float((model[0].weight - wanted).abs().sum())

    given = study(pretrained=weights(0), tasks={"up": near(1), "down": near(2)})
    history = experiments.search(given, None, tmp_path, method="grid", budget=3)
    start, first, second = (weights(seed)["0.weight"] for seed in (0, 1, 2))
    gains = [float((start - own).abs().sum()) for own in (first, second)]
    kept = [1 - float((first - second).abs().sum()) / 2 / gain for gain in gains]
    assert history.trials[2].value == pytest.approx(sum(kept) / 2)
    rows = experiments.open_results(tmp_path).rows
    assert "1.00 pretrained" in set(rows["point"])


def test_seeds_and_notes_of_the_folder_stay(tmp_path):
    experts = {"up": {0: weights(1), 1: weights(3)}, "down": {0: weights(2), 1: weights(4)}}
    given = study(experts=experts, splits="val", points=3)
    experiments.run(given, tmp_path, progress=False)
    experiments.search(given, "up+down", tmp_path, method="grid", budget=5, training_seed=1)
    results = experiments.open_results(tmp_path)
    assert set(results.notes.files["up"]) == {"0", "1"}
    assert results.rows["seed"].value_counts().to_dict() == {0: 6, 1: 10}


def test_what_cannot_be_searched_is_one_line(tmp_path):
    three = study(experts={"up": weights(1), "down": weights(2), "other": weights(3)})
    for call, words in (
        (lambda: experiments.search(three, None, tmp_path), r"has 4 mixtures: choose one of up\+down, up\+other"),
        (lambda: experiments.search(three, "up+b", tmp_path), r"no mixture 'up\+b': choose of up\+down"),
        (lambda: experiments.search(three, "up+down"), r"signs: say in which folder rows are kept: folder="),
        (lambda: experiments.search(three, "up+down", tmp_path, split="noisy"), "'noisy' look too good there"),
        (lambda: experiments.search(three, "up+down", tmp_path, method="gird"), "unknown 'gird': known are grid"),
        (lambda: experiments.search(three, "up+down", tmp_path, batchnorm="from:x"), "no BatchNorm policy 'from:x'"),
        (lambda: experiments.search(study(splits="test"), None, tmp_path), "no split 'val': choose of test"),
        (lambda: experiments.search(bump), "a function with mixture=None: give a study, or a function of shares and"),
        (lambda: experiments.search(3, "a+b"), "a int with mixture='a.b': give a study"),
    ):
        with pytest.raises(StudyError, match=words) as error:
            call()
        assert "\n" not in str(error.value)
    opened = experiments.run(study(points=3, splits="val"), tmp_path / "run", progress=False)
    with pytest.raises(StudyError, match=r"a search evaluates models: give experiments.search the study of"):
        experiments.open_results(opened.folder).search()


def test_batchnorm_policies_are_those_of_a_run(tmp_path):
    tasks = {name: Task(getattr(made_study, f"score_{name}"), inputs=[torch.zeros(4, 3)]) for name in ("up", "down")}
    given = study(tasks=tasks, batchnorm="recalibrate:task", splits="val", points=3)
    experiments.run(given, tmp_path, progress=False)
    CALLS.clear()
    history = experiments.search(given, None, tmp_path, method="grid", budget=3, batchnorm="recalibrate:task")
    assert (history.evaluations, len(CALLS)) == (0, 0)
