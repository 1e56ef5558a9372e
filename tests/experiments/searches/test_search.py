"""Searches of coefficients: one cache, one budget, known answers on made fronts."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.errors import StudyError
from experiments.searches.driver import History, search
from experiments.searches.methods import SEARCHES, onto_simplex
from experiments.searches.space import OBJECTIVES, Space

PAIR = Space({"vqa": "vqa", "caption": "caption"})
TRIPLE = Space({"vqa": "vqa", "caption": "caption", "grounding": "refcoco"}, steps=20)
Evaluate = Callable[[Mapping[str, float]], dict[str, float]]


def cliff(at: float, width: float = 0.01, curve: float = 1.0, mirrored: bool = False) -> Evaluate:
    """One score falls off a cliff at a share of the second expert, the other rises steadily."""

    def scores(point: Mapping[str, float]) -> dict[str, float]:
        share = point["caption"]
        held, gained = 1 / (1 + math.exp((share - at) / width)), share**curve
        if mirrored:
            held, gained = (1 - share) ** curve, 1 - held
        return {"vqa": 0.2 + 0.6 * held, "caption": 0.1 + 0.8 * gained}

    return scores


def bump(point: Mapping[str, float]) -> dict[str, float]:
    """Joint score best at 0.5 vqa + 0.3 caption + 0.2 grounding, smooth everywhere."""
    centre = {"vqa": 0.5, "caption": 0.3, "grounding": 0.2}
    far = sum((point[name] - share) ** 2 for name, share in centre.items())
    return {"vqa": 1 - far, "caption": 1 - far, "refcoco": 1 - far}


class Counting:
    """Remembers what was evaluated, in order."""

    def __init__(self, evaluate: Evaluate):
        self.evaluate, self.points = evaluate, list[dict[str, float]]()

    def __call__(self, point: Mapping[str, float]) -> dict[str, float]:
        self.points.append(dict(point))
        return self.evaluate(point)


@pytest.mark.parametrize("method", SEARCHES)
@pytest.mark.parametrize(("space", "evaluate"), [(PAIR, cliff(0.4, 0.1)), (TRIPLE, bump)])
def test_every_method_stays_within_its_budget_and_evaluates_no_point_twice(
    method: str, space: Space, evaluate: Evaluate
) -> None:
    counting = Counting(evaluate)
    history = search(space, method, counting, 12, seed=3)
    asked = [tuple(point.values()) for point in counting.points]
    assert len(asked) == len(set(asked)) == history.evaluations <= 12
    assert asked == [tuple(trial.shares.values()) for trial in history.trials]
    assert all(list(point) == space.names and math.isclose(sum(point.values()), 1) for point in counting.points)
    assert all(0 <= share <= 1 for point in asked for share in point)
    assert history.ended in ("budget", "method")
    count = len(space.names)
    assert [max(point) for point in asked[:count]] == [1.0] * count


@pytest.mark.parametrize("method", SEARCHES)
def test_known_points_cost_nothing_and_leave_the_budget_to_others(method: str) -> None:
    first = search(TRIPLE, method, bump, 30, seed=1)
    known = [(trial.shares, trial.scores) for trial in first.trials[::2]]
    counting = Counting(bump)
    again = search(TRIPLE, method, counting, 30, seed=1, known=known)
    assert [trial.shares for trial in again.trials][: len(first.trials)] == [trial.shares for trial in first.trials]
    assert again.cached + again.evaluations == len(again.trials)
    assert again.cached == sum(trial.cached for trial in again.trials) > 0
    assert len(counting.points) == again.evaluations
    assert not [point for point, _ in known if point in counting.points]


@pytest.mark.parametrize("method", SEARCHES)
def test_one_seed_is_one_search(method: str) -> None:
    def shares(seed: int) -> list[Mapping[str, float]]:
        return [trial.shares for trial in search(TRIPLE, method, bump, 15, seed=seed).trials]

    before = np.random.get_state()[1].copy()  # noqa: NPY002
    assert shares(5) == shares(5)
    assert (shares(5) != shares(6)) == (method in ("random", "cma"))
    assert (np.random.get_state()[1] == before).all()  # noqa: NPY002


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("width", [0.003, 0.03])
@pytest.mark.parametrize("at", [0.12, 0.26, 0.33, 0.47, 0.5, 0.61, 0.74, 0.88])
def test_adaptive_needs_at_most_three_fifths_of_a_sweep_where_there_is_a_cliff(
    at: float, width: float, mirrored: bool
) -> None:
    for curve in (0.7, 1.0, 1.5):
        evaluate = cliff(at + 0.003, width, curve, mirrored)
        sweep = search(PAIR, "grid", evaluate, 21)
        found = search(PAIR, "adaptive", evaluate, int(0.6 * 21))
        assert (sweep.evaluations, found.evaluations) == (21, 12)
        assert found.trials[-1].hypervolume >= sweep.trials[-1].hypervolume


def test_a_grid_is_even_and_its_ratios_join_on_those_of_a_sweep() -> None:
    history = search(PAIR, "grid", cliff(0.5), 11)
    assert sorted(trial.shares["caption"] for trial in history.trials) == [i / 10 for i in range(11)]
    thirds = search(TRIPLE, "grid", bump, 10)
    assert {tuple(round(3 * share) for share in trial.shares.values()) for trial in thirds.trials} == {
        (a, b, 3 - a - b) for a in range(4) for b in range(4 - a)
    }


@pytest.mark.parametrize(("method", "budget", "near"), [("coordinate", 60, 0.051), ("cma", 80, 0.051)])
def test_a_smooth_bump_is_found(method: str, budget: int, near: float) -> None:
    best = search(TRIPLE, method, bump, budget).best
    assert best is not None
    assert max(abs(best.shares[n] - s) for n, s in {"vqa": 0.5, "caption": 0.3, "grounding": 0.2}.items()) <= near


def test_a_greedy_soup_keeps_what_helps() -> None:
    """grounding spoils every average; vqa and caption help each other."""

    def scores(point: Mapping[str, float]) -> dict[str, float]:
        both = 0.6 + 0.3 * (point["vqa"] > 0 and point["caption"] > 0) - 0.5 * (0 < point["grounding"] < 1)
        return {"vqa": both, "caption": both + 0.1 * point["caption"], "refcoco": 0.5}

    counting = Counting(scores)
    history = search(TRIPLE, "greedy-soup", counting, 20)
    assert history.best is not None
    assert history.best.shares == {"vqa": 0.5, "caption": 0.5, "grounding": 0.0}
    assert (history.evaluations, history.ended) == (5, "method")
    assert counting.points[-1] == dict.fromkeys(TRIPLE.names, 1 / 3)


def test_values_bests_and_hypervolumes_by_hand() -> None:
    table = {0.0: (0.8, 0.2), 1.0: (0.4, 1.0), 0.5: (0.6, 0.6), 0.25: (0.8, 0.6)}

    def scores(point: Mapping[str, float]) -> dict[str, float]:
        return dict(zip(("vqa", "caption"), table[point["caption"]], strict=True))

    known = [(PAIR.point([1, 1]), scores({"caption": 0.5}))]
    history = search(PAIR, "adaptive", scores, 3, known=known)
    values = [trial.value for trial in history.trials]
    assert values == pytest.approx([(1 + 0.2) / 2, (0.5 + 1) / 2, (0.75 + 0.6) / 2, (1 + 0.6) / 2])
    assert [trial.best for trial in history.trials] == pytest.approx([0.6, 0.75, 0.75, 0.8])
    assert [trial.hypervolume for trial in history.trials] == pytest.approx([0, 0, 0.25, 0.5])
    assert (history.evaluations, history.cached, history.ended) == (3, 1, "budget")
    alone = search(PAIR, "grid", scores, 3, objective="hypervolume")
    assert [trial.value for trial in alone.trials] == pytest.approx([0, 0, 0.25])


def test_where_a_specialist_is_beaten_only_the_joint_score_has_a_meaning() -> None:
    def scores(point: Mapping[str, float]) -> dict[str, float]:
        return {"vqa": 0.5, "caption": 0.5}

    assert all(math.isnan(trial.hypervolume) for trial in search(PAIR, "grid", scores, 4).trials)
    with pytest.raises(StudyError, match="do not beat the other experts"):
        search(PAIR, "grid", scores, 4, objective="hypervolume")


@pytest.mark.parametrize("after", [1, 2, 5])
def test_an_interrupt_keeps_what_was_evaluated(after: int) -> None:
    done: list[Mapping[str, float]] = []

    def scores(point: Mapping[str, float]) -> dict[str, float]:
        if len(done) == after:
            raise KeyboardInterrupt
        done.append(point)
        return cliff(0.5)(point)

    history = search(PAIR, "adaptive", scores, 9)
    assert (history.ended, history.evaluations) == ("interrupted", after)
    assert [trial.shares for trial in history.trials] == done
    assert (history.best is None) == (after < 2)


def test_an_exhausted_space_ends_a_random_search() -> None:
    history = search(Space({"a": "s", "b": "t"}, steps=4), "random", lambda p: {"s": p["a"] + 1, "t": p["b"] + 1}, 99)
    assert (history.evaluations, history.ended) == (5, "method")


def test_mistakes_are_told() -> None:
    def one(**changes: object) -> History:
        given = {"space": PAIR, "method": "grid", "evaluate": cliff(0.5), "budget": 5, **changes}
        return search(**given)  # pyright: ignore[reportArgumentType]

    for split in ("test", "novel", "train"):
        with pytest.raises(StudyError, match=f"points chosen on split '{split}' look too good there"):
            Space({"a": "a", "b": "b"}, split=split)
    with pytest.raises(StudyError, match="each for a task of its own"):
        Space({"a": "vqa", "b": "vqa"})
    with pytest.raises(StudyError, match="steps 1: give 2 or more"):
        Space({"a": "a", "b": "b"}, steps=1)
    with pytest.raises(StudyError, match="unknown 'gird': known are grid, random"):
        one(method="gird")
    with pytest.raises(StudyError, match="unknown 'mean': known are joint, hypervolume"):
        one(objective="mean")
    with pytest.raises(StudyError, match="budget 0: give 1 or more"):
        one(budget=0)
    with pytest.raises(StudyError, match="no score of caption on val"):
        one(evaluate=lambda point: {"vqa": 0.5, "caption": math.nan})
    with pytest.raises(StudyError, match="shares of vqa, other: the experts are vqa, caption"):
        one(known=[({"vqa": 0.5, "other": 0.5}, {})])
    assert list(OBJECTIVES) == ["joint", "hypervolume"]


@given(st.lists(st.floats(0, 1), min_size=3, max_size=3).filter(lambda shares: sum(shares) > 0.01))
def test_the_nearest_counts_are_whole_and_less_than_one_step_away(shares: list[float]) -> None:
    counts = TRIPLE.nearest(shares)
    assert sum(counts) == TRIPLE.steps
    assert min(counts) >= 0
    exact = np.array(shares) / sum(shares) * TRIPLE.steps
    assert np.abs(np.array(counts) - exact).max() < 1 + 1e-6


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=5))
def test_a_projection_lies_on_the_simplex_and_moves_no_point_of_it(values: list[float]) -> None:
    point = onto_simplex(np.array(values))
    assert math.isclose(point.sum(), 1, abs_tol=1e-9)
    assert point.min() >= 0
    assert onto_simplex(point) == pytest.approx(point)


def losses(point: Mapping[str, float]) -> dict[str, float]:
    """Two tasks of the first expert, one of them a loss, and a loss of the second; best at 0.5."""
    far = abs(point["b"] - 0.5)
    return {"s": 1 - point["b"] / 2, "t": 1 + point["b"] + far, "u": 2 - point["b"] + far}


def test_an_expert_may_have_several_tasks_and_scores_may_be_better_lower() -> None:
    space = Space({"a": ("s", "t"), "b": "u"}, lower_is_better={"t", "u"})
    history = search(space, "grid", losses, 5)
    assert [trial.shares["b"] for trial in history.trials] == [0, 1, 0.75, 0.5, 0.25]
    kept = {0: 2.6, 1: 2.1, 0.75: 2.375, 0.5: 2.75, 0.25: 2.625}  # sums over the three tasks, by hand
    assert [trial.value for trial in history.trials] == pytest.approx([own / 3 for own in kept.values()])
    assert history.best is not None
    assert history.best.shares == {"a": 0.5, "b": 0.5}
    assert repr(history).startswith("<History of grid: best 0.50 a + 0.50 b (joint 0.91")
    volumes = search(space, "adaptive", losses, 5, objective="hypervolume")
    assert volumes.best is not None
    assert volumes.trials[2].shares == {"a": 0.5, "b": 0.5}
    alone = (0.75 - 0.5) / 0.5 * (2.5 - 1.5) / (2.5 - 1.5) * (2.5 - 1.5) / (2.5 - 1.5)
    assert volumes.trials[2].value == pytest.approx(alone)


def test_an_expert_without_tasks_takes_part() -> None:
    space = Space({"a": "s", "b": "t", "c": ()})
    counting = Counting(lambda point: {"s": 0.5 + point["a"] / 2 + point["c"], "t": 0.5 + point["b"] / 2 + point["c"]})
    best = search(space, "grid", counting, 10).best
    assert best is not None
    assert best.shares["c"] == 1


def test_where_ratios_mean_nothing_worth_is_the_share_of_the_gain() -> None:
    def scores(point: Mapping[str, float]) -> dict[str, float]:
        return {"vqa": -1 - 2 * point["caption"], "caption": -3 + 2 * point["caption"]}

    space = Space({"vqa": "vqa", "caption": "caption"}, pretrained={"vqa": -5.0, "caption": -5.0})
    middle = search(space, "grid", scores, 3).trials[2]
    assert middle.value == pytest.approx(0.75)
    with pytest.raises(StudyError, match=r"retention of vqa cannot be reckoned \(none: scores of 0 or less"):
        search(PAIR, "grid", scores, 3)
    poor = Space({"vqa": "vqa", "caption": "caption"}, pretrained={"vqa": 0.0, "caption": -5.0})
    with pytest.raises(StudyError, match=r"retention of vqa .* \(its expert scores -1, the pretrained model 0\)"):
        search(poor, "grid", scores, 3)
