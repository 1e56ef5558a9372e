"""Intervals of scores: closed forms, and resampling as it is written down."""

import math

import numpy as np
import pytest

from unival_core.errors import UnivalError
from unival_core.metrics import METRICS, Scores, bootstrap_interval, score_interval, wilson_interval


def test_wilson_by_hand():
    # 81 of 263: the worked example of Newcombe (1998), 0.2553 to 0.3662.
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson_interval(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert wilson_interval(20, 20) == pytest.approx((1 - 0.1611, 1.0), abs=5e-5)


def test_wilson_solves_its_equation():
    lo, hi = wilson_interval(30, 100, level=0.9)
    for bound in (lo, hi):
        assert abs(0.3 - bound) / math.sqrt(bound * (1 - bound) / 100) == pytest.approx(1.6448536, abs=1e-6)


def test_bootstrap_is_seeded_and_near_the_normal_interval():
    values = np.random.default_rng(0).normal(3, 2, size=2000)
    lo, hi = bootstrap_interval(values, seed=1)
    assert (lo, hi) == bootstrap_interval(values, seed=1)
    assert (lo, hi) != bootstrap_interval(values, seed=2)
    error = 1.96 * values.std() / math.sqrt(2000)
    assert lo == pytest.approx(values.mean() - error, abs=0.1 * error)
    assert hi == pytest.approx(values.mean() + error, abs=0.1 * error)


def test_bootstrap_of_a_corpus_score_equals_resampling_and_scoring_again():
    predictions = ["a b c d e", "a b x y z", "k l m n o", "a c b d e"]
    references = [["a b c d e f"], ["a b c y z"], ["k l m n p"], ["a b c d e"]]
    scores = METRICS["BLEU@2"](predictions, references)
    means = []
    rng = np.random.default_rng(5)
    for _ in range(300):
        drawn = rng.integers(4, size=4)
        means.append(METRICS["BLEU@2"]([predictions[i] for i in drawn], [references[i] for i in drawn]).value)
    lo, hi = score_interval(scores, seed=3)
    assert (lo, hi) == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=0.05)
    assert lo < scores.value < hi


def test_score_intervals_by_kind():
    binary = Scores(0.3, np.repeat([1.0, 0.0], [30, 70]), 100)
    assert score_interval(binary) == wilson_interval(30, 100)
    weighted = Scores(0.5, np.array([0.3, 0.6, 0.6]), 3)
    assert score_interval(weighted) == bootstrap_interval([0.3, 0.6, 0.6])
    shifted = Scores(0.7, np.array([0.3, 0.6, 0.6]), 3)  # a corpus score that is not the mean
    assert score_interval(shifted) == pytest.approx(np.add(bootstrap_interval([0.3, 0.6, 0.6]), 0.2))
    assert np.isnan(score_interval(Scores(math.nan, np.empty(0), 5, "not computed"))).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: wilson_interval(3, 2), "3 successes of 2"),
        (lambda: bootstrap_interval([]), "nothing to resample"),
    ],
)
def test_errors_name_the_mistake(call, message):
    with pytest.raises(UnivalError, match=message):
        call()
