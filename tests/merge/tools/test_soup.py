"""Soups, trailing averages and the path of WiSE-FT, judged by functions that can be worked out by hand."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn

import merge
from merge import MergeError
from merge.tools.soup import Point, Trial, ema, ema_weights, greedy_soup, lawa, learned_soup, uniform_soup, wise_ft
from tests.merge.made import assert_same, copied, weights


def at(*values: float) -> dict[str, dict[str, Tensor]]:
    """One-number checkpoints a, b, c, ..."""
    return {"abcdefg"[i]: {"w": torch.tensor([value])} for i, value in enumerate(values)}


def nearness_to_one(state: Mapping[str, Tensor]) -> float:
    return -abs(state["w"].item() - 1.0)


def test_uniform_soup_is_the_average() -> None:
    states = {str(seed): weights(seed) for seed in range(3)}
    for state in states.values():
        state["encoder.image.bn.num_batches_tracked"] = torch.tensor(5)
    soup = uniform_soup(states)
    assert_same(soup.state, merge.average(states))
    assert soup.shares == {"0": 1 / 3, "1": 1 / 3, "2": 1 / 3}


def test_greedy_soup_step_by_step() -> None:
    # best first: b (1.25), then a (0.5), c (3), d (-4)
    soup = greedy_soup(at(0.5, 1.25, 3.0, -4.0), nearness_to_one)
    assert soup.history == (
        Trial(("a",), -0.5, False),
        Trial(("b",), -0.25, True),
        Trial(("c",), -2.0, False),
        Trial(("d",), -5.0, False),
        Trial(("b", "a"), -0.125, True),
        Trial(("b", "a", "c"), pytest.approx(-7 / 12), False),
        Trial(("b", "a", "d"), pytest.approx(-21 / 12), False),
    )
    assert soup.shares == {"b": 0.5, "a": 0.5}
    assert soup.state["w"].item() == 0.875


def test_greedy_soup_takes_in_what_does_no_harm() -> None:
    soup = greedy_soup(at(1.0, 2.0, 3.0), lambda state: 0.5)
    assert list(soup.shares) == ["a", "b", "c"]
    assert soup.state["w"].item() == 2.0


def test_greedy_soup_of_one_is_that_one() -> None:
    states = {"only": weights(0)}
    before = copied(states["only"])
    soup = greedy_soup(states, lambda state: 1.0)
    assert_same(soup.state, states["only"])
    for value in soup.state.values():
        value.fill_(0)
    assert_same(states["only"], before)
    with pytest.raises(MergeError, match="at least one checkpoint"):
        greedy_soup({}, nearness_to_one)


def test_learned_soup_finds_the_shares() -> None:
    target = torch.tensor([0.2, 0.5, 0.3])
    states = {name: {"w": row, "n": torch.tensor(3)} for name, row in zip("abc", torch.eye(3), strict=True)}
    soup = learned_soup(states, lambda state: (state["w"] - target).square().sum(), steps=300, rate=0.1)
    torch.testing.assert_close(soup.state["w"], target, atol=1e-3, rtol=0)
    assert sum(soup.shares.values()) == pytest.approx(1)
    assert soup.state["n"].item() == 3
    assert soup.history[0].score == pytest.approx(-float((torch.full((3,), 1 / 3) - target).square().sum()))
    assert soup.history[-1].score > soup.history[0].score


def test_learned_soup_through_a_model() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1))
    good = {name: value.clone() for name, value in model.state_dict().items()}
    bad = {name: torch.randn_like(value) for name, value in good.items()}
    inputs = torch.randn(32, 3)
    wanted = model(inputs).detach()

    def loss(state: Mapping[str, Tensor]) -> Tensor:
        return nn.functional.mse_loss(torch.func.functional_call(model, dict(state), inputs), wanted)

    soup = learned_soup({"bad": bad, "good": good}, loss, steps=150, rate=0.2)
    assert soup.shares["good"] > 0.95
    assert all(parameter.grad is None for parameter in model.parameters())


def test_ema_is_the_recursion() -> None:
    states = [weights(seed) for seed in range(5)]
    for state in states:
        state["encoder.image.bn.num_batches_tracked"] = torch.tensor(5)
    running = states[0]
    for state in states[1:]:
        running = merge.interpolate(running, state, 0.1)
    for name, value in ema(states, 0.9).items():
        torch.testing.assert_close(value, running[name], rtol=1e-5, atol=1e-6)
    assert sum(ema_weights(7, 0.9)) == pytest.approx(1)
    assert ema_weights(1, 0.9) == [1.0]
    assert ema_weights(3, 0.0) == [0.0, 0.0, 1.0]
    for count, decay in ((0, 0.5), (3, 1.0), (3, -0.1)):
        with pytest.raises(MergeError, match=r"needs checkpoints and a decay in \[0, 1\)"):
            ema_weights(count, decay)


def test_lawa_averages_the_latest() -> None:
    states = list(at(9.0, 1.0, 2.0, 6.0).values())
    assert lawa(states, 3)["w"].item() == 3.0
    for window in (1, 5):
        with pytest.raises(MergeError, match=f"a window of {window} checkpoints needs 2 to 4"):
            lawa(states, window)


def test_wise_ft_walks_the_line() -> None:
    states = at(0.0, 4.0)
    best, points = wise_ft(states["a"], states["b"], nearness_to_one, merge.ratios(5))
    assert points == [Point(0.0, -1.0), Point(0.25, 0.0), Point(0.5, -1.0), Point(0.75, -2.0), Point(1.0, -3.0)]
    assert best == Point(0.25, 0.0)
    assert wise_ft(states["a"], states["b"], lambda state: 1.0, [0.5, 0.0])[0] == Point(0.5, 1.0)
    with pytest.raises(MergeError, match="at least one ratio"):
        wise_ft(states["a"], states["b"], nearness_to_one, [])


def test_half_precision_soups_are_rounded_once() -> None:
    states = [{"w": torch.randn(1000, generator=torch.Generator().manual_seed(i)).bfloat16()} for i in range(6)]
    exact = sum(w * state["w"].double() for w, state in zip(ema_weights(6, 0.8), states, strict=True))
    assert isinstance(exact, Tensor)
    assert (ema(states, 0.8)["w"] != exact.bfloat16()).float().mean() < 0.01
