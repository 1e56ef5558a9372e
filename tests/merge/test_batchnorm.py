"""Recalibration and REPAIR: statistics by hand, and everything else left as it was."""

from __future__ import annotations

import doctest
import random
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

import merge
from merge import MergeError, batchnorm, recalibrate_batchnorm


def noise(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class Net(nn.Module):
    """Two networks behind batch norms, one of which may be left out, dropout, and a norm without statistics."""

    def __init__(self, seed: int = 0):
        super().__init__()
        torch.manual_seed(seed)
        self.conv = nn.Conv2d(2, 3, 3)
        self.norm = nn.BatchNorm2d(3, momentum=0.3)
        self.dropout = nn.Dropout(0.5)
        self.plain = nn.BatchNorm2d(3, track_running_stats=False)
        self.other = nn.BatchNorm2d(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.plain(self.dropout(self.norm(self.conv(x)).relu()))


def test_statistics_are_those_of_the_batches() -> None:
    model = Net().eval()
    batches = [noise(seed, 4, 2, 6, 6) for seed in (1, 2, 3)]
    recalibrate_batchnorm(model, batches)
    with torch.no_grad():
        outputs = [model.conv(batch).transpose(0, 1).flatten(1) for batch in batches]
    mean = torch.stack([output.mean(1) for output in outputs]).mean(0)
    variance = torch.stack([output.var(1) for output in outputs]).mean(0)
    torch.testing.assert_close(model.norm.running_mean, mean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(model.norm.running_var, variance, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("training", [False, True])
def test_all_else_is_left_as_it_was(training: bool) -> None:
    model = Net().train(training)
    model.norm.eval()
    model.norm.num_batches_tracked.fill_(7)
    model.other.running_mean.fill_(5.0)  # type: ignore[union-attr]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = {name: module.training for name, module in model.named_modules()}
    torch.manual_seed(3)
    random.seed(3)
    expected = torch.rand(2), random.random()
    torch.manual_seed(3)
    random.seed(3)

    def batches() -> Iterator[Tensor]:
        for _ in range(2):
            random.random()
            yield torch.rand(4, 2, 6, 6)

    recalibrate_batchnorm(model, batches())
    assert torch.equal(torch.rand(2), expected[0])
    assert random.random() == expected[1]
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"norm.running_mean", "norm.running_var"}
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert model.norm.momentum == 0.3
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_forward_of_ones_own() -> None:
    model = Net().eval()
    recalibrate_batchnorm(model, [{"x": noise(1, 4, 2, 6, 6)}], lambda net, batch: net.other(batch["x"]))
    torch.testing.assert_close(model.other.running_mean, noise(1, 4, 2, 6, 6).mean((0, 2, 3)))
    assert model.norm.running_mean is not None
    assert model.norm.running_mean.tolist() == [0, 0, 0]


def test_errors_are_told_and_change_nothing() -> None:
    model = Net().eval()
    model.norm.running_mean.fill_(5.0)  # type: ignore[union-attr]
    before = merge.digest(model.state_dict())
    with pytest.raises(MergeError, match="recalibration needs batches"):
        recalibrate_batchnorm(model, [])
    with pytest.raises(MergeError, match="none of 1 batches passed through a BatchNorm layer"):
        recalibrate_batchnorm(model, [noise(1, 4, 2, 6, 6)], lambda net, batch: batch)
    with pytest.raises(RuntimeError):
        recalibrate_batchnorm(model, [noise(1, 4, 2, 6, 6), noise(1, 4, 9)])
    assert merge.digest(model.state_dict()) == before
    assert not any(module.training for module in model.modules())
    with pytest.raises(MergeError, match="no BatchNorm layer with running statistics"):
        recalibrate_batchnorm(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2, track_running_stats=False)), [])


def test_examples() -> None:
    failed, tried = doctest.testmod(batchnorm)
    assert tried > 0
    assert failed == 0
