"""Intervals over seeds and examples: closed forms, pairing, and how often they cover the truth."""

import math

import numpy as np
import pytest

from experiments.errors import StudyError
from experiments.statistics.bootstrap import interval, kind_of_interval, over_seeds, resampled_means
from experiments.statistics.retention import retention
from experiments.statistics.student import quantile_of_t
from unival_core.metrics import bootstrap_interval


@pytest.mark.parametrize(
    ("freedom", "wanted"), [(1, 12.7062), (2, 4.30265), (4, 2.77645), (10, 2.22814), (1e3, 1.96234), (1e9, 1.95996)]
)
def test_quantiles_of_student(freedom, wanted):
    assert quantile_of_t(freedom) == pytest.approx(wanted, rel=1e-4)


def test_means_of_resampled_examples():
    table = np.random.default_rng(0).normal(size=(3, 50))
    means = resampled_means(table, samples=4000)
    assert means.shape == (4000, 3)
    assert means.mean(axis=0) == pytest.approx(table.mean(axis=1), abs=0.01)
    assert np.cov(means.T) == pytest.approx(np.cov(table, ddof=0) / 50, rel=0.15, abs=1e-3)
    assert np.array_equal(means, resampled_means(table, samples=4000))
    assert np.array_equal(resampled_means(table[1:], samples=4000), means[:, 1:])  # examples do not depend on models
    with pytest.raises(StudyError, match=r"scores of shape \(2, 0\) cannot be resampled"):
        resampled_means(np.empty((2, 0)))


def test_a_chunk_at_a_time_is_enough(monkeypatch):
    table = np.arange(7.0)[None]
    monkeypatch.setattr("experiments.statistics.bootstrap._CHUNK", 70)
    assert resampled_means(table, samples=25).shape == (25, 1)


def test_with_one_seed_it_is_the_plain_bootstrap_of_examples():
    values = np.random.default_rng(1).normal(size=200)
    got = interval([values.mean()], resampled_means(values[None]))
    assert got == pytest.approx(bootstrap_interval(values), abs=0.02)
    half = quantile_of_t(math.inf) * values.std() / math.sqrt(200)
    assert got == pytest.approx((values.mean() - half, values.mean() + half), abs=0.02)


def test_without_scores_of_examples_seeds_alone_speak():
    assert interval([1.0, 2.0, 3.0]) == pytest.approx((-0.484138, 4.484138), abs=1e-5)
    assert np.isnan(interval([1.0])).all()


def test_a_constant_has_no_width_and_draws_that_are_no_numbers_have_no_interval():
    assert interval([1.0, 1.0], np.ones((100, 2))) == (1, 1)
    assert interval([1.0], np.ones((100, 1))) == (1, 1)
    draws = np.ones((100, 1))
    draws[:3] = math.nan
    assert np.isnan(interval([1.0], draws)).all()
    assert interval([1.0], draws[1:]) == (1, 1)


def test_seeds_that_are_equal_are_worth_one():
    """Several seeds with the same answers know no more of the examples than one."""
    scores = np.random.default_rng(2).normal(size=(1, 80))
    draws = resampled_means(scores)
    one, five = interval(scores.mean(axis=1), draws), interval([scores.mean()] * 5, np.repeat(draws, 5, axis=1))
    assert tuple(five) == pytest.approx(tuple(one), abs=0.01)


@pytest.mark.parametrize(
    ("seeds", "of_seeds", "of_clusters", "of_both"),
    [(3, 0.1, 0, 1), (3, 0.3, 1, 0.3), (5, 0.1, 1, 0.3), (5, 0.3, 0, 0.1)],
)
def test_intervals_cover_the_truth(seeds, of_seeds, of_clusters, of_both):
    """Scores made of the effects of seeds, of images with three examples each, and of examples, alone and with seeds
    (standard deviations)."""
    rng, covered, trials = np.random.default_rng(3), 0, 300
    images = np.repeat(np.arange(25), 3)
    for trial in range(trials):
        scores = 1 + rng.normal(0, 1, 75) + rng.normal(0, of_seeds, (seeds, 1))
        scores = scores + rng.normal(0, of_clusters, 25)[images] + rng.normal(0, of_both, (seeds, 75))
        draws = resampled_means(scores, clusters=images, samples=100, seed=trial)
        lo, hi = interval(scores.mean(axis=1), draws)
        covered += lo <= 1 <= hi
    assert 0.91 <= covered / trials <= 0.985  # 93 to 97 %, and what 300 trials leave open


def test_examples_of_an_image_are_drawn_together():
    """Copies of an example say no more than one."""
    once = np.random.default_rng(5).normal(size=(2, 60))
    images = np.repeat(np.arange(60), 4)
    thrice = resampled_means(once[:, images], clusters=images[::-1].copy()[::-1] * 7)
    assert thrice == pytest.approx(resampled_means(once))
    uneven = resampled_means(np.array([[1.0, 1, 1, 0]]), clusters=[0, 0, 0, 1], samples=4000)
    assert sorted(set(uneven.ravel().round(6))) == [0, 0.75, 1]
    with pytest.raises(StudyError, match="3 numbers of clusters for 4 examples"):
        resampled_means(np.zeros((1, 4)), clusters=[0, 0, 1])


def test_seeds_alone_beside_it():
    assert over_seeds([1.0, 2.0, 3.0]) == interval([1.0, 2.0, 3.0])
    assert np.isnan(over_seeds([1.0])).all()


def test_intervals_of_retention_cover_the_truth():
    """Right or wrong answers of an expert and a merged model to the same examples, three seeds."""
    rng, covered, trials, n, seeds = np.random.default_rng(4), 0, 200, 100, 3
    for trial in range(trials):
        hard = rng.uniform(size=n)
        skill = rng.normal(0, 0.03, (seeds, 1))
        expert, merged = (hard + rng.normal(0, 0.2, (seeds, n)) < own + skill for own in (0.8, 0.6))
        means = resampled_means(np.concatenate([expert, merged]), samples=100, seed=trial)
        draws = retention(means[:, :seeds], means[:, seeds:])
        lo, hi = interval(retention(expert.mean(axis=1), merged.mean(axis=1)), draws)
        covered += lo <= 0.7639 <= hi
    assert 0.92 <= covered / trials <= 0.98


def test_what_an_interval_is_is_said():
    assert kind_of_interval(1, 400) == "1 seed, 400 examples: evaluation noise only"
    assert kind_of_interval(3, 1) == "3 seeds, 1 example each"
    assert kind_of_interval(3, 0) == "3 seeds, no scores of examples"
    assert kind_of_interval(1, 0) == "none: 1 seed, no scores of examples"
