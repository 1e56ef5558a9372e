"""Fronts: closed forms, brute force, and those read off the paper's figures (tests/data/paper)."""

import itertools

import numpy as np
import pandas as pd
import pytest

from experiments.errors import StudyError
from experiments.statistics.fronts import hypervolume, pareto_front, relative_hypervolume, scaled
from tests import DATA

PAPER = pd.read_csv(DATA / "paper" / "tradeoff.csv")


def published(x_task, y_task, experts):
    """Points from the y task's expert to the x task's, and the experts' scores on (x, y)."""
    rows = PAPER[(PAPER.x_task == x_task) & (PAPER.y_task == y_task) & (PAPER.experts == experts)]
    points = rows[["x", "y"]].to_numpy()
    return points, points[[-1, 0]]


def test_pareto_front_by_hand():
    points = [[1, 5], [2, 4], [2, 3], [3, 3], [0, 5], [3, 3]]
    assert pareto_front(points).tolist() == [True, True, False, True, False, True]


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
        assert hypervolume(points, reference) == pytest.approx(dominated_volume(points, reference))


def test_hypervolume_ignores_what_lies_below_the_reference():
    assert hypervolume([[2, 3], [5, -1]], [0, 0]) == 6
    assert hypervolume([[-1, -1]], [0, 0]) == 0


@pytest.mark.parametrize("count", [2, 3, 6, 11])
def test_relative_hypervolume_of_a_chord(count):
    share = np.linspace(0, 1, count)[:, None]
    points = share * [50, 2] + (1 - share) * [10, 9]
    experts = [[50, 2], [10, 9]]
    assert relative_hypervolume(points, experts) == pytest.approx((count - 2) / (2 * count - 2))
    assert relative_hypervolume([[50, 9]], experts) == 1


@pytest.mark.parametrize(("x", "y"), [("vqa", "caption"), ("caption", "grounding"), ("entailment", "grounding")])
def test_published_fronts_are_convex_and_ratatouille_lies_outside(x, y):
    vanilla, experts = published(x, y, "vanilla")
    ratatouille, _ = published(x, y, "ratatouille")
    assert relative_hypervolume(vanilla, experts) > 0.6  # the whole chord: 0.5
    assert relative_hypervolume(ratatouille, experts) > relative_hypervolume(vanilla, experts)
    for points in (vanilla, ratatouille):
        bent = scaled(points, points[[-1, 0]]).sum(axis=1)
        assert (bent[1:-1] > 1).all()  # every interior point above the chord


def test_published_vqa_and_caption_in_numbers():
    vanilla, experts = published("vqa", "caption", "vanilla")
    assert experts.tolist() == [[82.3, 47.5], [18.5, 136]]
    # The caption expert is dominated by 0.2 vqa + 0.8 caption, the VQA expert by 0.8 vqa + 0.2 caption.
    assert pareto_front(vanilla).tolist() == [False, True, True, True, True, False]
    # By hand: columns of the staircase above (18.5, 47.5).
    area = 53.2 * 91 + 7.3 * 82.5 + 2.5 * 62 + 0.9 * 30.5
    assert hypervolume(vanilla, [18.5, 47.5]) == pytest.approx(area)
    assert relative_hypervolume(vanilla, experts) == pytest.approx(area / (63.8 * 88.5))


def test_errors_name_the_mistake():
    with pytest.raises(StudyError, match=r"shape \(2,\)"):
        pareto_front([1, 2])
    with pytest.raises(StudyError, match="do not beat the other experts"):
        scaled([[1, 1]], [[1, 1], [0, 1]])
