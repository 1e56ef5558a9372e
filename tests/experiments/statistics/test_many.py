"""Many tests: Holm by hand, and the best of a line, which chance alone makes look good."""

import math

import numpy as np
import pytest

from experiments.statistics.bootstrap import p_of_no_effect, resampled_means
from experiments.statistics.student import tails_of_mixed
from experiments.statistics.tests import holm, max_t


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]).tolist() == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]).tolist() == [1.0, 1.0]


def test_holm_holds_where_seeds_vary_most_and_three_say_how_much():
    """Nine tests of nothing in a study; degrees of freedom that fit the middle of t call one in 7 % of such studies."""
    rng = np.random.default_rng(4)
    values = rng.normal(size=(300, 9, 3)) + 0.5 * rng.normal(size=(300, 9, 1))
    means, guessed = values.mean(axis=2), values.var(axis=2, ddof=1) / 3
    p = [[tails_of_mixed(*one, 0.25, 2) for one in zip(*own, strict=True)] for own in zip(means, guessed, strict=True)]
    assert sum(holm(own).min() < 0.05 for own in p) <= 0.05 * 300
    assert np.mean(np.array(p) < 0.05) == pytest.approx(0.03, abs=0.015)


def made(rng, seeds, points, *, of_seeds=0.3, shift=0.0):
    """Values (points, seeds) and draws of statistics on 50 examples in common, truth 0 but for the first point's."""
    shape = (points, seeds, 50)
    scores = rng.normal(0, 1, (points, 1, 50)) + rng.normal(0, of_seeds, (points, seeds, 1)) + rng.normal(0, 1, shape)
    scores[0] += shift
    means = resampled_means(scores.reshape(points * seeds, 50), samples=100, seed=int(rng.integers(1e9)))
    return scores.mean(axis=2), means.reshape(100, points, seeds).transpose(1, 0, 2)


@pytest.mark.parametrize("seeds", [1, 3])
def test_the_best_of_a_line_is_rarely_called_better_by_chance(seeds):
    """In 5 of 100 studies, and what 100 trials and three seeds leave open; the best alone far more often."""
    rng, corrected, held, alone = np.random.default_rng(1), 0, 0, 0
    for trial in range(100):
        values, draws = made(rng, seeds, 6, of_seeds=0 if seeds == 1 else 0.1)
        found = max_t(values, draws, samples=500, seed=trial)
        corrected += found.p.min() < 0.05
        held += bool(((found.lo <= 0) & (found.hi >= 0)).all())
        alone += min(p_of_no_effect(one, own) for one, own in zip(values, draws, strict=True)) < 0.05
    assert corrected <= 11
    assert held == pytest.approx(100 - corrected, abs=2)
    assert alone > corrected + 2


def test_a_point_that_is_better_is_found():
    values, draws = made(np.random.default_rng(2), 5, 6, of_seeds=0.1, shift=1.2)
    found = max_t(values, draws)
    assert (found.p < 0.05).tolist() == [True] + [False] * 5
    assert found.lo[0] > 0
    one_sided = max_t(values, draws, above=True)
    assert one_sided.p[0] <= found.p[0]
    assert np.isposinf(one_sided.hi).all()
    assert max_t(-values, -draws, above=True).p[0] > 0.9


def test_of_one_statistic_nothing_is_corrected():
    values, draws = made(np.random.default_rng(3), 3, 1, shift=0.3)
    assert max_t(values, draws).p[0] == pytest.approx(p_of_no_effect(values[0], draws[0]), abs=0.1)


def test_what_is_certain_and_what_nothing_tells():
    zeros = np.zeros((2, 3))
    assert max_t(zeros, np.zeros((2, 50, 3))).p.tolist() == [1, 1]
    assert math.isnan(max_t(np.ones((2, 1))).p[0])
    assert max_t(np.array([[5.0, 5.1, 5.2], [0.1, -0.1, 0.05]])).p[0] < 0.02  # by seeds alone
