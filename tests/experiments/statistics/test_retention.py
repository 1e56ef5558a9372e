"""Retention in its three forms, and which form fits which scores."""

import math

import numpy as np
import pytest

from experiments.statistics.retention import GAIN, INVERSE, NONE, RATIO, form_of, retention


def test_each_form_is_1_at_the_expert_and_falls_with_the_skill():
    assert retention(0.8, [0.8, 0.4, 0.0]).tolist() == [1, 0.5, 0]
    assert retention(0.5, [0.5, 1.0, 2.0], higher_is_better=False).tolist() == [1, 0.5, 0.25]
    assert retention(-1.0, [-1.0, -2.0, -3.0, -4.0], -3.0).tolist() == [1, 0.5, 0, -0.5]
    assert retention(-1.0, [-1.0, 0.0], 1.0, higher_is_better=False).tolist() == [1, 0.5]


@pytest.mark.parametrize(
    ("expert", "merged", "has_start", "higher", "form"),
    [
        ([0.8], [0.0, 0.9], True, True, RATIO),
        ([0.8], [-0.1], True, True, GAIN),
        ([0.8], [-0.1], False, True, RATIO),
        ([-1.0], [-2.0], True, True, GAIN),
        ([-1.0], [-2.0], False, True, NONE),
        ([0.0], [0.5], True, True, GAIN),
        ([1.0], [2.0], True, False, INVERSE),
        ([0.0], [2.0], True, False, GAIN),
        ([1.0], [0.0], False, False, NONE),
        ([1.0, 0.0], [0.5], True, True, GAIN),
    ],
)
def test_the_form_follows_from_all_scores_of_a_task(expert, merged, has_start, higher, form):
    assert form_of(expert, merged, has_start=has_start, higher_is_better=higher) == form


def test_where_nothing_can_be_measured_there_is_no_number():
    assert math.isnan(retention(-1.0, -2.0))
    assert np.isnan(retention([-1.0, -1.0], [-2.0, -3.0], [-1.0, 0.0])).all()  # the expert gained nothing
    assert retention(np.ones((3, 1)), np.ones(2)).shape == (3, 2)


def test_a_form_that_is_given_is_used():
    assert retention(0.8, 0.4, 0.2, form=GAIN) == pytest.approx(1 / 3)
