"""Tests of differences: exact and enumerated p values, and errors of differences by hand."""

import itertools
import math

import numpy as np
import pytest

from experiments.errors import StudyError
from experiments.statistics.tests import Gap, gap, holm, mean_gap, paired_test


@pytest.mark.parametrize(("gained", "lost", "p"), [(5, 5, 1.0), (0, 5, 2 / 32), (1, 6, 2 * 8 / 128), (0, 0, 1.0)])
def test_mcnemar_by_hand(gained, lost, p):
    first = np.repeat([0.0, 1.0, 1.0, 0.0], [gained, lost, 3, 2])
    second = np.repeat([1.0, 0.0, 1.0, 0.0], [gained, lost, 3, 2])
    result = paired_test(first, second)
    assert result.p == pytest.approx(p)
    assert result.difference == pytest.approx((gained - lost) / len(first))


def test_mcnemar_survives_thousands_of_pairs():
    result = paired_test(np.repeat([0.0, 1.0], [2600, 2400]), np.repeat([1.0, 0.0], [2600, 2400]))
    z = (200 - 1) / math.sqrt(5000)  # normal approximation with continuity correction
    assert result.p == pytest.approx(math.erfc(z / math.sqrt(2)), rel=0.01)


def test_permutation_test_near_full_enumeration():
    first, second = np.array([0.3, 1, 0, 0.6, 0.9, 0, 1, 0.3]), np.array([0.6, 1, 0.3, 1, 0.6, 0.9, 1, 1])
    difference = second - first
    signs = np.array(list(itertools.product([-1, 1], repeat=8)))
    exact = (np.abs(signs @ difference) >= abs(difference.sum()) - 1e-12).mean()
    result = paired_test(first, second)
    assert result.p == pytest.approx(exact, abs=0.015)
    assert paired_test(second, first).difference == pytest.approx(-result.difference)


def test_paired_test_finds_nothing_between_a_point_and_itself():
    values = np.array([0.3, 0.6, 1.0])
    assert paired_test(values, values).p == 1.0


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]).tolist() == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]).tolist() == [1.0, 1.0]


def test_only_scores_of_the_same_examples_pair_up():
    with pytest.raises(StudyError, match=r"shapes \(2,\) and \(1,\) do not pair up"):
        paired_test([1, 0], [1])


def test_seeds_are_averaged_example_by_example():
    first = [{"key": "a", "value": 0.5}, {"key": "b", "value": 1.0}]
    scores = {"a": np.array([0.0, 1, 0, 1]), "b": np.ones(4), "c": np.array([0.0, 0, 0, 1])}
    found = gap(first, [{"key": "c", "value": 0.25}], scores)
    differences = np.array([0.5, 1, 0.5, 0])
    assert found.value == pytest.approx(0.5)
    assert found.error == pytest.approx(differences.std(ddof=1) / 2)
    assert np.isnan(gap(first, [{"key": "d", "value": 0.25}], scores).error)


def test_a_gap_claims_a_sign_only_outside_its_interval():
    assert [Gap(0.1, 0.06).sign, Gap(0.1, 0.05).sign, Gap(-0.1, 0.05).sign] == [0, 1, -1]
    assert str(Gap(0.1, 0.05)) == "+10.0 [+0.2, +19.8]"


def test_without_scores_of_examples_the_sign_is_that_of_the_number():
    assert [Gap(value, math.nan).sign for value in (0.1, -0.1, 0.0)] == [1, -1, 0]
    assert str(Gap(0.1, math.nan)) == "+10.0"


def test_gaps_are_averaged_over_the_places_that_both_models_have():
    def row(key, split, value):
        return {"key": key, "task": "a", "split": split, "value": value}

    first = [row("a", "test", 0.5), row("b", "new", 1.0), row("c", "new", 0.8), row("d", "other", 9.0)]
    second = [row("e", "test", 0.25), row("f", "new", 0.5)]
    scores = {key: np.array([1.0, 0, 1, 0]) for key in "abcd"} | {key: np.zeros(4) for key in "ef"}
    found = mean_gap(first, second, ["test", "new"], scores)
    assert found.value == pytest.approx((0.25 + 0.4) / 2)
    one = gap(first[:1], second[:1], scores).error
    assert found.error == pytest.approx(one * math.sqrt(2) / 2)
    assert mean_gap(first, second, ["other"], scores) is None
