"""The best ratio: picked on val, reported on test, from rows alone."""

import pytest

from experiments.errors import StudyError
from experiments.statistics.selection import best_points

EXPERTS = {"vqa": "a", "caption": "b"}  # whose own each task is
ALL = ([("a", "b")], ("vanilla", "fusing"))


def row(shares, task, split, value, **more):
    merged = {"study": "own", "shares": shares, "experts": "vanilla", "batchnorm": "average", "task": task}
    method = "single" if len(shares) == 1 else "interpolate"
    interval = {"value": value, "lo": value - 0.1, "hi": value + 0.1}
    return merged | {"method": method, "split": split, "metric": f"{task} score"} | interval | more


def sweep(split, table, **more):
    """Rows from scores by share of b: (vqa, caption)."""
    found = []
    for share, scores in table.items():
        shares = {name: value for name, value in (("a", 1 - share), ("b", share)) if value}
        method = {"batchnorm": "average"} if share in (0.0, 1.0) else {}
        found += [
            row(shares, task, split, v, **more | method) for task, v in zip(("vqa", "caption"), scores, strict=True)
        ]
    return found


VAL = {0.0: (0.8, 0.1), 0.25: (0.8, 0.3), 0.5: (0.6, 0.5), 1.0: (0.2, 0.5)}  # joint .6 .8 .875 .625
TEST = {0.0: (0.8, 0.1), 0.25: (0.8, 0.5), 0.5: (0.4, 0.4), 1.0: (0.2, 0.5)}  # joint .6 1. .65 .625
ROWS = sweep("val", VAL) + sweep("test", TEST)


def test_the_best_point_of_val_is_reported_on_test():
    (best,) = best_points(ROWS, EXPERTS, *ALL)
    assert repr(best) == f"<Best: {best}>"
    assert best.shares == {"a": 0.5, "b": 0.5}
    assert best.selected == pytest.approx(0.875)
    assert best.reported == pytest.approx(0.65)  # not the best of test
    assert best.tasks["vqa", "vqa score"] == pytest.approx((0.4, 0.3, 0.5))
    assert str(best) == (
        "a+b, vanilla: 0.50 a + 0.50 b; joint 0.8750 on val, 0.6500 on test; "
        "vqa vqa score 40.00 [30.00, 50.00], caption caption score 40.00 [30.00, 50.00]"
    )


def test_kinds_and_policies_have_their_own_best():
    other = sweep("val", {0.25: (0.8, 0.5)}, batchnorm="recalibrate:task")
    other += sweep("test", {0.25: (0.8, 0.2)}, batchnorm="recalibrate:task")
    fusing = sweep("val", VAL, experts="fusing") + sweep("test", TEST, experts="fusing")
    best = best_points(ROWS + other + fusing, EXPERTS, *ALL)
    assert [(one.kind, one.batchnorm, one.shares["b"]) for one in best] == [
        ("vanilla", "average", 0.5),
        ("vanilla", "recalibrate:task", 0.25),
        ("fusing", "average", 0.5),
    ]


def test_seeds_are_averaged_before_the_choice():
    second = sweep("val", {0.0: (0.8, 0.1), 0.25: (0.8, 0.5), 0.5: (0.2, 0.1), 1.0: (0.2, 0.5)}, seed=1)
    (best,) = best_points(ROWS + second, EXPERTS, *ALL, report=False)
    assert (best.shares["b"], [*best.inputs]) == (0.25, [0, 1])
    assert best.selected == pytest.approx((0.8 + 1) / 2)


def test_ensembles_do_not_count():
    strong = [row({"a": 0.25, "b": 0.75}, t, s, 1.0) for t in ("vqa", "caption") for s in ("val", "test")]
    ensembles = [one | {"method": "ensemble"} for one in strong]
    (best,) = best_points(ROWS + ensembles, EXPERTS, *ALL)
    assert best.shares["b"] == 0.5


def test_nothing_is_selected_on_test():
    with pytest.raises(StudyError, match="no merged points on val: evaluate split val first"):
        best_points(sweep("test", TEST), EXPERTS, *ALL)
    with pytest.raises(StudyError, match="has no score on test: evaluate split test"):
        best_points(sweep("val", VAL), EXPERTS, *ALL)
    (best,) = best_points(sweep("val", VAL), EXPERTS, *ALL, report=False)
    assert (best.shares["b"], best.tasks) == (0.5, {})
    assert str(best).endswith("joint 0.8750 on val")


def test_experts_without_skill_measure_nothing():
    """What is lacking is said: there are rows, and no more of them would help."""
    with pytest.raises(StudyError, match=r"a\+b: retention cannot be reckoned"):
        best_points(sweep("val", dict.fromkeys((0.0, 0.5, 1.0), (0.0, 0.0))), EXPERTS, *ALL)


def test_experts_of_one_task_are_told_by_their_metrics():
    rows = []
    for split in ("val", "test"):
        for share, scores in {0.0: (0.8, 0.1), 0.5: (0.8, 0.4), 1.0: (0.2, 0.5)}.items():
            shares = {name: value for name, value in (("a", 1 - share), ("b", share)) if value}
            for metric, value in zip(("Acc a", "Acc b"), scores, strict=True):
                rows.append(row(shares, "grounding", split, value) | {"metric": metric})
    (best,) = best_points(rows, {}, *ALL)
    assert best.selected == pytest.approx(0.9)
    assert list(best.tasks) == [("grounding", "Acc a"), ("grounding", "Acc b")]
