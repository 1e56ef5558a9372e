"""Analysis: closed forms, brute force, and the fronts read off the paper's figures (tests/data/paper)."""

import itertools
import math

import numpy as np
import pandas as pd
import pytest

from experiments.errors import StudyError
from experiments.statistics import curves
from tests import DATA
from unival_core.errors import UnivalError
from unival_core.metrics import METRICS, Scores

PAPER = pd.read_csv(DATA / "paper" / "tradeoff.csv")
EXPERTS = np.array([[1.0, 0.0], [0.0, 1.0]])


def published(x_task, y_task, experts):
    """Points from the y task's expert to the x task's, and the experts' scores on (x, y)."""
    rows = PAPER[(PAPER.x_task == x_task) & (PAPER.y_task == y_task) & (PAPER.experts == experts)]
    points = rows[["x", "y"]].to_numpy()
    return points, points[[-1, 0]]


def binomial_examples(share, n, seed):
    return (np.random.default_rng(seed).random(n) < share).astype(float)


# intervals


def test_wilson_by_hand():
    # 81 of 263: the worked example of Newcombe (1998), 0.2553 to 0.3662.
    assert curves.wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert curves.wilson_interval(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert curves.wilson_interval(20, 20) == pytest.approx((1 - 0.1611, 1.0), abs=5e-5)


def test_wilson_solves_its_equation():
    lo, hi = curves.wilson_interval(30, 100, level=0.9)
    for bound in (lo, hi):
        assert abs(0.3 - bound) / math.sqrt(bound * (1 - bound) / 100) == pytest.approx(1.6448536, abs=1e-6)


def test_bootstrap_is_seeded_and_near_the_normal_interval():
    values = np.random.default_rng(0).normal(3, 2, size=2000)
    lo, hi = curves.bootstrap_interval(values, seed=1)
    assert (lo, hi) == curves.bootstrap_interval(values, seed=1)
    assert (lo, hi) != curves.bootstrap_interval(values, seed=2)
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
    lo, hi = curves.score_interval(scores, seed=3)
    assert (lo, hi) == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=0.05)
    assert lo < scores.value < hi


def test_score_intervals_by_kind():
    binary = Scores(0.3, np.repeat([1.0, 0.0], [30, 70]), 100)
    assert curves.score_interval(binary) == curves.wilson_interval(30, 100)
    weighted = Scores(0.5, np.array([0.3, 0.6, 0.6]), 3)
    assert curves.score_interval(weighted) == curves.bootstrap_interval([0.3, 0.6, 0.6])
    shifted = Scores(0.7, np.array([0.3, 0.6, 0.6]), 3)  # a corpus score that is not the mean
    assert curves.score_interval(shifted) == pytest.approx(np.add(curves.bootstrap_interval([0.3, 0.6, 0.6]), 0.2))
    assert np.isnan(curves.score_interval(Scores(math.nan, np.empty(0), 5, "not computed"))).all()


# paired tests


@pytest.mark.parametrize(("gained", "lost", "p"), [(5, 5, 1.0), (0, 5, 2 / 32), (1, 6, 2 * 8 / 128), (0, 0, 1.0)])
def test_mcnemar_by_hand(gained, lost, p):
    first = np.repeat([0.0, 1.0, 1.0, 0.0], [gained, lost, 3, 2])
    second = np.repeat([1.0, 0.0, 1.0, 0.0], [gained, lost, 3, 2])
    result = curves.paired_test(first, second)
    assert result.test == "McNemar exact"
    assert result.p == pytest.approx(p)
    assert result.difference == pytest.approx((gained - lost) / len(first))


def test_mcnemar_survives_thousands_of_pairs():
    result = curves.paired_test(np.repeat([0.0, 1.0], [2600, 2400]), np.repeat([1.0, 0.0], [2600, 2400]))
    z = (200 - 1) / math.sqrt(5000)  # normal approximation with continuity correction
    assert result.p == pytest.approx(math.erfc(z / math.sqrt(2)), rel=0.01)


def test_permutation_test_near_full_enumeration():
    first, second = np.array([0.3, 1, 0, 0.6, 0.9, 0, 1, 0.3]), np.array([0.6, 1, 0.3, 1, 0.6, 0.9, 1, 1])
    difference = second - first
    signs = np.array(list(itertools.product([-1, 1], repeat=8)))
    exact = (np.abs(signs @ difference) >= abs(difference.sum()) - 1e-12).mean()
    result = curves.paired_test(first, second)
    assert result.test == "sign permutation"
    assert result.p == pytest.approx(exact, abs=0.015)
    assert curves.paired_test(second, first).difference == pytest.approx(-result.difference)
    assert result.interval.lo < result.difference < result.interval.hi


def test_paired_test_finds_nothing_between_a_point_and_itself():
    values = np.array([0.3, 0.6, 1.0])
    assert curves.paired_test(values, values).p == 1.0
    assert curves.paired_test(values, values).interval == (0.0, 0.0)


def test_holm_by_hand():
    assert curves.holm([0.01, 0.04, 0.03, 0.005]).tolist() == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert curves.holm([0.9, 0.8]).tolist() == [1.0, 1.0]


def test_best_of_many_corrects_for_picking():
    """Eleven points no better than the reference: an uncorrected one-sided 5 % test of the best rejects often."""
    rejected = naive = 0
    for trial in range(60):
        rng = np.random.default_rng(trial)
        reference = (rng.random(300) < 0.7).astype(float)
        points = (rng.random((11, 300)) < 0.7).astype(float)
        best = curves.best_of_many(points, reference, samples=300, seed=trial)
        difference = points[best.index] - reference
        rejected += best.p <= 0.05
        naive += difference.mean() / (difference.std() / math.sqrt(300)) > 1.645
    assert naive >= 10
    assert rejected <= 7


def test_best_of_many_sees_a_real_gain():
    reference = binomial_examples(0.6, 1000, 0)
    points = np.stack([reference, np.maximum(reference, binomial_examples(0.2, 1000, 1)), reference])
    best = curves.best_of_many(points, reference)
    assert best.index == 1
    assert best.gain == pytest.approx((points[1] - reference).mean())
    assert 0 < best.lo < best.gain
    assert best.p < 0.01
    same = curves.best_of_many(np.stack([reference, reference]), reference)
    assert (same.gain, same.lo, same.p) == (0, 0, 1)


# curves between two ends


def test_barriers_by_hand():
    ratios = [0, 0.25, 0.5, 0.75, 1]
    scores = np.array([[8, 6, 5, 7, 4], [0, 2, 3, 3.5, 4]])
    assert curves.chord(ratios, scores)[0] == pytest.approx([8, 7, 6, 5, 4])
    assert curves.barrier(ratios, scores) == pytest.approx([1, 0])
    assert curves.midpoint_barrier(ratios, scores) == pytest.approx([1, -1])


def test_barrier_of_a_parabola_is_a_quarter():
    ratios = np.arange(101) / 100
    assert curves.barrier(ratios, ratios**2) == pytest.approx(0.25)
    assert curves.midpoint_barrier(ratios, ratios**2) == pytest.approx(0.25)
    assert curves.barrier(ratios, np.sqrt(ratios)) == 0


def test_joint_barrier_weighs_tasks_by_their_experts():
    experts = np.array([[10.0, 1.0], [5.0, 2.0]])
    scores = np.array([[10, 6, 5], [1, 1.2, 2]])
    joint = curves.joint_score(scores, experts)
    assert joint == pytest.approx([0.75, 0.6, 0.75])
    assert curves.barrier([0, 0.5, 1], joint) == pytest.approx(0.15)
    assert curves.normalised([5.0], 10.0) == pytest.approx([0.5])
    assert curves.gain_over_ends(scores) == pytest.approx(np.array([[0, -4, -5], [-1, -0.8, 0]]))


# fronts


def test_pareto_front_by_hand():
    points = [[1, 5], [2, 4], [2, 3], [3, 3], [0, 5], [3, 3]]
    assert curves.pareto_front(points).tolist() == [True, True, False, True, False, True]


def dominated_volume(points, reference):
    """By inclusion and exclusion over all subsets."""
    total = 0.0
    for size in range(1, len(points) + 1):
        for chosen in itertools.combinations(range(len(points)), size):
            sides = np.maximum(0, points[list(chosen)].min(axis=0) - reference)
            total -= (-1) ** size * sides.prod()
    return total


@pytest.mark.parametrize("tasks", [1, 2, 3, 4])
def test_hypervolume_equals_brute_force(tasks):
    rng = np.random.default_rng(tasks)
    for points in (rng.random((7, tasks)), rng.integers(0, 4, size=(8, tasks)).astype(float)):
        reference = np.full(tasks, 0.2)
        assert curves.hypervolume(points, reference) == pytest.approx(dominated_volume(points, reference))


def test_hypervolume_ignores_what_lies_below_the_reference():
    assert curves.hypervolume([[2, 3], [5, -1]], [0, 0]) == 6
    assert curves.hypervolume([[-1, -1]], [0, 0]) == 0


@pytest.mark.parametrize("count", [2, 3, 6, 11])
def test_relative_hypervolume_of_a_chord(count):
    share = np.linspace(0, 1, count)[:, None]
    points = share * [50, 2] + (1 - share) * [10, 9]
    experts = [[50, 2], [10, 9]]
    assert curves.relative_hypervolume(points, experts) == pytest.approx((count - 2) / (2 * count - 2))
    assert curves.relative_hypervolume([[50, 9]], experts) == 1


def test_distances_to_the_corner():
    points = [[1, 0], [1, 1], [2, 1], [0.4, 0.2]]
    assert curves.corner_distance(points, EXPERTS) == pytest.approx([1, 0, 0, 1])
    assert curves.corner_distance([[30, 5.5]], [[50, 2], [10, 9]]) == pytest.approx([math.sqrt(0.5)])


def test_knee_and_preferences():
    points = np.array([[0, 1], [0.5, 0.8], [0.8, 0.6], [1, 0]])
    assert curves.knee(points, EXPERTS) == 2
    assert [curves.best_for(points, weights, EXPERTS) for weights in ([0, 1], [0.3, 0.7], [0.5, 0.5], [1, 0])] == [
        0,
        1,
        2,
        3,
    ]


def test_select_on_validation_and_report_on_test():
    scores = {"val": [0.1, 0.9, 0.3], "test": [0.5, 0.6, 0.8]}
    assert curves.select(scores) == curves.Selection(1, 0.9, 0.6)
    for on, report in (("test", "val"), ("test", "test"), ("val", "val"), ("testA", "test"), ("ood-novel", "test")):
        with pytest.raises(StudyError, match=r"select on a val split"):
            curves.select({**scores, "testA": [1], "ood-novel": [1]}, on=on, report=report)
    with pytest.raises(StudyError, match=r"no scores on split 'val': there are test"):
        curves.select({"test": [1.0]})


# the published fronts


@pytest.mark.parametrize(("x", "y"), [("vqa", "caption"), ("caption", "grounding"), ("entailment", "grounding")])
def test_published_fronts_are_convex_and_ratatouille_lies_outside(x, y):
    vanilla, experts = published(x, y, "vanilla")
    ratatouille, _ = published(x, y, "ratatouille")
    assert curves.relative_hypervolume(vanilla, experts) > 0.6  # the whole chord: 0.5
    assert curves.relative_hypervolume(ratatouille, experts) > curves.relative_hypervolume(vanilla, experts)
    for points in (vanilla, ratatouille):
        bent = curves.scaled(points, points[[-1, 0]]).sum(axis=1)
        assert (bent[1:-1] > 1).all()  # every interior point above the chord
        assert (curves.corner_distance(points, points[[-1, 0]])[1:-1] < 1).all()


def test_published_vqa_and_caption_in_numbers():
    vanilla, experts = published("vqa", "caption", "vanilla")
    assert experts.tolist() == [[82.3, 47.5], [18.5, 136]]
    # The caption expert is dominated by 0.2 vqa + 0.8 caption, the VQA expert by 0.8 vqa + 0.2 caption.
    assert curves.pareto_front(vanilla).tolist() == [False, True, True, True, True, False]
    shares = np.arange(6) / 5
    assert curves.barrier(shares, vanilla.T) == pytest.approx([0, 0])
    gains = curves.gain_over_ends(vanilla.T)
    assert gains[1, 1] == pytest.approx(2.5)  # the text says 138.26 against 136.10: figures are read to half a point
    assert gains[0, 4] == pytest.approx(0.1)
    assert curves.knee(vanilla, experts) == 2  # 0.4 vqa + 0.6 caption
    assert curves.corner_distance(vanilla, experts).argmin() == 2
    # By hand: columns of the staircase above (18.5, 47.5).
    area = 53.2 * 91 + 7.3 * 82.5 + 2.5 * 62 + 0.9 * 30.5
    assert curves.hypervolume(vanilla, [18.5, 47.5]) == pytest.approx(area)
    assert curves.relative_hypervolume(vanilla, experts) == pytest.approx(area / (63.8 * 88.5))


# errors


def test_errors_name_the_mistake():
    calls = [
        (lambda: curves.paired_test([1, 0], [1]), r"shapes \(2,\) and \(1,\) do not pair up"),
        (lambda: curves.best_of_many([[1, 0]], [1]), r"points \(1, 2\) against a reference \(1,\)"),
        (lambda: curves.chord([0, 0], [1, 1]), "rising ratios"),
        (lambda: curves.midpoint_barrier([0, 0.3, 1], [1, 1, 1]), "no point at the middle ratio 0.5"),
        (lambda: curves.pareto_front([1, 2]), r"shape \(2,\)"),
        (lambda: curves.normalised([1.0], 0.0), "an expert scores 0"),
        (lambda: curves.scaled([[1, 1]], [[1, 1], [0, 1]]), "do not beat the other experts"),
        (lambda: curves.best_for([[1, 1]], [0, 0], EXPERTS), "not all 0"),
    ]
    for call, message in calls:
        with pytest.raises(StudyError, match=message):
            call()
    for call, message in [
        (lambda: curves.wilson_interval(3, 2), "3 successes of 2"),
        (lambda: curves.bootstrap_interval([]), "nothing to resample"),
    ]:
        with pytest.raises(UnivalError, match=message):
            call()
