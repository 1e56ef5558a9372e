"""What is told apart: seeds and examples decide, and many comparisons need clearer ones."""

import math

import numpy as np
import pytest

from experiments.errors import StudyError
from experiments.grid.rows import mean_of
from experiments.grid.units import SHARES, Unit
from experiments.statistics.bootstrap import p_of_no_effect
from experiments.statistics.contrasts import Contrast, Part, averaged, difference, measured, signs
from experiments.statistics.student import tails_of_mixed


def model(values, scores, key, seeds=(0,)):
    """A model's rows by seed, with the scores of their examples added to those known."""
    rows = {}
    for seed, own in zip(seeds, values, strict=True):
        name = f"{key} {seed}"
        scores[name] = np.asarray(own, dtype=float)
        rows[seed] = {"key": name, "value": scores[name].mean(), "task": "t", "split": "test"}
    return rows


@pytest.mark.parametrize(("t", "freedom", "p"), [(12.706, 1, 0.05), (2.571, 5, 0.05), (4.604, 4, 0.01), (0, 3, 1)])
def test_tails_are_those_of_tables(t, freedom, p):
    assert tails_of_mixed(t, 1.0, 0.0, freedom) == pytest.approx(p, abs=2e-4)
    assert tails_of_mixed(2 * t, 4.0, 0.0, freedom) == pytest.approx(p, abs=2e-4)


def test_one_seed_is_tested_by_its_examples():
    scores = {}
    first, second = model([[1] * 90 + [0] * 10], scores, "a"), model([[1] * 60 + [0] * 40], scores, "b")
    better = difference(first, second, scores)
    assert better.value == pytest.approx(0.3)
    assert better.lo > 0.2
    assert better.p < 1e-6
    assert difference(first, second, scores, rises=False).value == pytest.approx(-0.3)
    assert difference(first, first, scores) == Contrast(0, 0, 0, 1, (0.0,), 1)
    assert better.p == better.p_here  # of one seed all is said of other examples


def test_seeds_that_disagree_say_little_whatever_the_examples_say():
    scores = {}
    first = model([[1] * 95 + [0] * 5, [1] * 55 + [0] * 45], scores, "a", (0, 1))
    second = model([[1] * 50 + [0] * 50] * 2, scores, "b", (0, 1))
    assert difference(first, second, scores).p > 0.3


def test_without_scores_of_examples_seeds_alone_tell():
    first = {seed: {"key": f"a{seed}", "value": 0.8 + 0.01 * seed, "task": "t", "split": "s"} for seed in range(3)}
    second = {0: {"key": "b", "value": 0.5, "task": "t", "split": "s"}}  # one row serves every seed
    assert difference(first, second, {}).p < 0.01
    assert math.isnan(difference({0: first[0]}, second, {}).p)
    assert measured([first, {5: second[0], 6: second[0]}], {}).seeds == ()


def test_draws_of_a_corpus_metric_lie_around_its_value():
    scores = {}
    rows = model([[0.2] * 10 + [0.4] * 10], scores, "a")
    rows[0]["value"] = 5.0
    assert measured([rows], scores).draws.mean() == pytest.approx(5, abs=0.01)


def test_of_many_comparisons_only_clear_ones_count():
    one = Contrast(1, 0.1, 1.9, 0.03)
    assert signs([one]) == [1]
    assert signs([one] * 3) == [0, 0, 0]
    assert signs([one._replace(value=-1, p=0.001), one, one._replace(p=math.nan)]) == [-1, 1, 0]
    assert math.isnan(p_of_no_effect([0.5]))


def test_scores_of_different_units_have_no_mean():
    accuracy = Part(SHARES, (0, 1, 2), np.array([0.1, 0.2, 0.3]), None)
    caption = Part(Unit(100.0, "CIDEr-D × 100"), (0, 1, 2), np.array([1.0, 2.0, 3.0]), None)
    assert averaged([accuracy, accuracy._replace(seeds=(2, 1, 0))]).seeds == pytest.approx((0.2, 0.2, 0.2))
    with pytest.raises(StudyError, match="scores in %, CIDEr-D × 100 have no mean: average retention, or the tasks of"):
        averaged([accuracy, caption])
    with pytest.raises(StudyError, match="scores of CIDEr-D, accuracy have no mean"):
        mean_of([{"metric": "accuracy", "value": 0.5}, {"metric": "CIDEr-D", "value": 2.0}], "value")


def test_means_are_of_the_seeds_that_all_have():
    parts = [Part(SHARES, seeds, np.arange(len(seeds)) / 10, None) for seeds in ((0, 1, 2), (1, 2, 3))]
    assert averaged(parts).seeds == pytest.approx((0.05, 0.15))
    assert averaged([parts[0], parts[1]._replace(seeds=(5, 6, 7))]) is None


def test_examples_of_one_image_count_as_one():
    scores = {}
    first, second = model([[1] * 60 + [0] * 40], scores, "a"), model([[1] * 40 + [0] * 60], scores, "b")
    alone = difference(first, second, scores)
    images = {"clusters": np.arange(100) // 10}
    for rows in (first, second):
        rows[0].update(images)
    together = difference(first, second, scores)
    assert together.hi - together.lo > 2 * (alone.hi - alone.lo)
