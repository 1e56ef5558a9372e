"""AdaMerging on tiny models: known optima, losses that fall, and the same weights by the coefficients that it gives."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import merge
from merge import MergeError
from tests.merge.made import assert_same, ordered_as


class Net(nn.Module):
    """Two layers, one of them frozen, a norm with buffers, and a tied weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 4)
        self.norm = nn.BatchNorm1d(4)
        self.last = nn.Linear(4, 4)
        self.again = nn.Linear(4, 4, bias=False)
        self.again.weight = self.last.weight
        self.first.bias.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.again(self.last(self.norm(self.first(x)).relu()))


def state(seed: int) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    return {name: value.clone() for name, value in Net().state_dict().items()}


def tied(values: dict[str, Tensor]) -> dict[str, Tensor]:
    values["again.weight"] = values["last.weight"]
    return values


BASE, EXPERTS = tied(state(0)), {"vqa": tied(state(1)), "caption": tied(state(2))}
INPUTS = torch.randn(2, 8, 3, generator=torch.Generator().manual_seed(5))


def mixed(coefficients: dict[str, float]) -> dict[str, Tensor]:
    return merge.task_arithmetic(BASE, EXPERTS, 1.0, weights=coefficients)


def test_the_optimum_is_found_where_it_is_known() -> None:
    wanted = {"vqa": 0.7, "caption": 0.2}
    target = mixed(wanted)

    def distance(model: nn.Module, batch: Any) -> Tensor:
        return sum(((value - target[name]) ** 2).sum() for name, value in model.named_parameters())  # type: ignore[return-value]

    found = merge.adamerge(Net(), EXPERTS, BASE, [None], distance, by="task", steps=80, rate=0.05)
    assert found.coefficients["first.weight"] == pytest.approx(wanted, abs=0.01)
    assert found.losses[-1] < 1e-3 < found.losses[0]
    each = merge.adamerge(Net(), EXPERTS, BASE, [None], distance, steps=80, rate=0.05)
    for name in ("first.weight", "first.bias", "last.weight", "again.weight"):
        assert each.coefficients[name] == pytest.approx(wanted, abs=0.02), name
    assert each.coefficients["norm.running_mean"] == {"vqa": 0.3, "caption": 0.3}


def test_entropy_falls_and_the_coefficients_make_the_weights() -> None:
    model = Net()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    told: list[int] = []
    found = merge.adamerge(
        model,
        EXPERTS,
        BASE,
        {"one": INPUTS[:1], "two": [INPUTS[1]]},
        steps=30,
        rate=0.05,
        progress=lambda n, _: told.append(n),
    )
    assert found.losses[-1] < found.losses[0] - 0.05
    assert told == list(range(30))
    assert all(0 <= value <= 1 for mine in found.coefficients.values() for value in mine.values())
    assert len({mine["vqa"] for mine in found.coefficients.values()}) > 2
    again = merge.merge_with("task-arithmetic", EXPERTS, BASE, **found.parameters)
    assert_same(ordered_as(found.weights, again), again)
    assert found.weights["last.weight"] is found.weights["again.weight"]
    path = merge.LivePath(model, "task-arithmetic", EXPERTS, BASE)
    path.set_parameters(**found.parameters)
    assert_same(ordered_as(model.state_dict(), again), again)
    for name, value in before.items():
        model.state_dict()[name].copy_(value)


def test_the_model_is_left_as_it_was() -> None:
    model = Net()
    model.norm.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    merge.adamerge(model, EXPERTS, BASE, [INPUTS[0]], steps=2)
    assert_same(model.state_dict(), before)
    assert model.training
    assert not model.norm.training
    assert not model.first.bias.requires_grad
    assert all(item.grad is None for item in model.parameters())


def test_what_cannot_be_learned_from_is_told() -> None:
    def once() -> Iterator[Tensor]:
        yield INPUTS[0]

    with pytest.raises(MergeError, match="the batches ended: give a list or a loader that begins again"):
        merge.adamerge(Net(), EXPERTS, BASE, once(), steps=2)
    with pytest.raises(MergeError, match="by='layer': must be 'tensor' or 'task'"):
        merge.adamerge(Net(), EXPERTS, BASE, [INPUTS[0]], by="layer")
    with pytest.raises(MergeError, match="the loss of step 0 is nan"):
        merge.adamerge(Net(), EXPERTS, BASE, [INPUTS[0] * torch.nan], steps=1)
