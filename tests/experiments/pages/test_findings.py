"""Findings say what the rows say, also when it is not what one hopes for."""

import pytest

from experiments.pages.findings import averages, findings, fronts, tension
from experiments.pages.views import main_metrics, one_policy, weights_only
from tests.experiments.study_rows import KIND, in_memory, straight


def made(study, **options):
    rows, scores = in_memory(study, **options)
    return weights_only(one_policy(main_metrics(rows))), scores


def test_experts_in_tension_with_their_numbers():
    rows, scores = made("interpolation", only="vqa+caption", points=3)
    text = tension(rows, scores)
    assert text.startswith(
        "The experts are in tension: 2 of 2 beat the pretrained model on their own task (caption +30.0 [+25.5, +34.5], "
    )
    assert "on other tasks 6 of 6 scores are lower (-30.0 points on average); paired tests, Holm" in text


def test_experts_that_forget_nothing_are_not_in_tension():
    rows, scores = made("interpolation", curve=lambda share: 0.55 + 0.3 * share, only="vqa+caption", points=3)
    text = tension(rows, scores)
    assert text.startswith("The experts are not in tension: 2 of 2 beat the pretrained model")
    assert "on other tasks 0 of 6 scores are lower (+0.0 points on average)" in text


def test_an_expert_that_learnt_nothing_is_not_said_to_win():
    rows, scores = made("interpolation", curve=lambda share: 0.552 - 0.3 * (share == 0), only="vqa+caption", points=3)
    text = tension(rows, scores)
    assert text.startswith("The experts are not in tension: 0 of 2 beat the pretrained model")
    assert "on other tasks 6 of 6 scores are lower" in text
    rows, scores = made("interpolation", curve=lambda share: 0.4, only="vqa+caption", points=3)
    assert tension(rows, scores).startswith("The experts are not in tension: 0 of 2 beat")


def test_without_per_example_scores_numbers_stand_alone():
    rows, _ = made("interpolation", only="vqa+caption", points=3)
    text = tension(rows, {})
    assert "(caption +30.0, vqa +30.0)" in text
    assert text.endswith("by the means alone: single examples have no scores.")


def test_singles_alone_tell_nothing_of_other_tasks():
    rows, scores = made("ood")
    text = tension(rows, scores)
    assert text.startswith("Experts against the pretrained model: 4 of 4 beat the pretrained model on their own task")
    assert "other tasks" not in text


def test_a_front_above_the_line():
    rows, scores = made("interpolation", only="vqa+caption", kinds=("vanilla",), points=5)
    first, *lines = fronts(rows, scores).split("\n")
    assert first == "Weights between two experts keep more of both skills than the straight line between their scores."
    # at equal shares 25 + 60 * 7/8 = 77.5 of 85 on both, and the line gives 55: 22.5 / 85 above
    start = (
        "vqa and caption, vanilla: 0.50 vqa + 0.50 caption (chosen on test itself, so its scores are likely too high)"
    )
    assert lines[0].startswith(f"{start} keeps 91 % of vqa and 91 % of caption, mean retention +26.5 [")
    # five even points of the line: 3/8 of the rectangle
    assert lines[0].endswith("of the rectangle between the experts' scores, that under points of the line 38 %")
    assert len(lines) == 1


@pytest.mark.parametrize(
    ("curve", "words"),
    [
        (straight, "Weights between two experts cannot be told apart from the straight line"),
        (lambda share: 0.25 + 0.6 * share**3, "Weights between two experts lie below the straight line between their"),
    ],
)
def test_a_front_that_does_not_bulge_is_not_said_to(curve, words):
    rows, scores = made("interpolation", curve=curve, only="vqa+caption", kinds=("vanilla",), points=5)
    assert fronts(rows, scores).startswith(words)


def test_the_ratio_is_chosen_on_val_where_there_is_one():
    def peak(at):
        return lambda share: straight(share) + 0.2 * (abs(share - at) < 0.01)

    options = {"only": "vqa+caption", "kinds": ("vanilla",), "points": 5}
    rows, scores = made("interpolation", curve=peak(0.5), **options)
    val, more = made("interpolation", curve=lambda s: straight(s) + 0.3 * (s == 0.75), split="val", **options)
    text = fronts([*rows, *val], scores | more)
    assert "0.75 vqa + 0.25 caption (chosen on val) keeps 82 % of vqa" in text


def test_no_front_without_both_ends():
    rows, scores = made("interpolation", only="vqa+caption", kinds=("vanilla",), points=5)
    assert fronts([row for row in rows if row["point"] != "1.00 vqa"], scores) == ""


def test_averages_that_win():
    rows, scores = made("averaging", curve=lambda share: 0.25 + 1.4 * share, start=0.5)
    text = averages(rows, scores, "ratatouille")
    assert text.startswith("Averages of all experts beat the pretrained model, on shifted data too (mean over tasks: ")
    assert text.startswith(averages(rows, scores))  # without a contender there is no more to say
    assert "vanilla +10.0 [+8.5, +11.5], vanilla +10.0 [" in text
    assert "On shifted data the average of ratatouille experts is better than vanilla (+4.0 [" in text
    assert "better than fusing (+2.0 [" in text


def test_averages_that_lose_and_a_ratatouille_that_is_no_better():
    kind = KIND | {"ratatouille": -0.03, "fusing": -0.03}
    rows, scores = made("averaging", kind=kind, curve=lambda share: 0.25 + 1.0 * share)
    text = averages(rows, scores, "ratatouille")
    assert text.startswith("Averages of all experts are worse than the pretrained model (mean over tasks: vanilla -5.0")
    assert "is worse than vanilla (-3.0 [-3.5, -2.5]), not told apart from fusing (+0.0 [+0.0, +0.0])." in text


def test_averages_of_which_some_win():
    kind = KIND | {"ratatouille": -0.05}
    rows, scores = made("averaging", kind=kind, curve=lambda share: 0.25 + 1.2 * share)
    verdict = "Averages of all experts against the pretrained model: better in 2, worse in 2 and not told apart in"
    assert averages(rows, scores).startswith(f"{verdict} 2 of 6 comparisons (")


def test_findings_are_those_that_rows_tell_of():
    told = findings(*in_memory("rewarded-soups", points=3))
    assert [text.split(" ")[0] for text in told] == ["The", "Weights"]
    assert "small +30.0" in told[0]
    assert findings([]) == []
