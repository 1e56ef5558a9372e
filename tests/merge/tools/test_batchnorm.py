"""Recalibration and REPAIR: statistics by hand, and everything else left as it was."""

from __future__ import annotations

import doctest
import random
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

import merge
from merge import MergeError, recalibrate_batchnorm
from merge.tools import batchnorm
from merge.tools.batchnorm import activation_statistics


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
    with pytest.raises(MergeError, match="has to see batches, and there were none"):
        recalibrate_batchnorm(model, [])
    with pytest.raises(MergeError, match="no batch passed through norm or another BatchNorm layer"):
        recalibrate_batchnorm(model, [noise(1, 4, 2, 6, 6)], lambda net, batch: batch)
    with pytest.raises(RuntimeError):
        recalibrate_batchnorm(model, [noise(1, 4, 2, 6, 6), noise(1, 4, 9)])
    assert merge.digest(model.state_dict()) == before
    assert not any(module.training for module in model.modules())
    with pytest.raises(MergeError, match="no BatchNorm layer with running statistics"):
        recalibrate_batchnorm(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2, track_running_stats=False)), [])


def test_dropout_stays_off() -> None:
    model = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(2))
    recalibrate_batchnorm(model.train(), [torch.ones(8, 2)])
    norm = model[1]
    assert norm.running_mean.tolist() == [1, 1]
    assert norm.running_var.tolist() == [0, 0]


# -- REPAIR ------------------------------------------------------------------------------------------------------------


def perceptron(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    layers = [nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3)]
    return nn.Sequential(*layers).eval()


class Residual(nn.Module):
    """A stem, one block with a shortcut, a convolution with a bias of its own, and a head."""

    def __init__(self, seed: int):
        super().__init__()
        torch.manual_seed(seed)
        self.conv1, self.bn1 = nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.conv2, self.bn2 = nn.Conv2d(6, 6, 3, padding=1, groups=2, bias=False), nn.BatchNorm2d(6)
        self.conv3 = nn.Conv2d(6, 6, 1)
        self.head = nn.Linear(6, 4)
        self.free = nn.Linear(4, 4, bias=False)
        for norm in (self.bn1, self.bn2):
            nn.init.uniform_(norm.weight, 0.5, 2)
            nn.init.normal_(norm.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn1(self.conv1(x)).relu_()
        x = (x + self.bn2(self.conv2(x))).relu_()
        return self.free(self.head(self.conv3(x).relu_().mean((2, 3))))


def merged(make: Callable[[int], nn.Module], ratio: float, batch: Tensor) -> tuple[nn.Module, nn.Module, nn.Module]:
    """Two models and the point between them; BatchNorm statistics are those of the batch."""
    first, second, middle = make(1).eval(), make(2).eval(), make(3).eval()
    for model in (first, second) if make is Residual else ():
        recalibrate_batchnorm(model, [batch])
    middle.load_state_dict(merge.interpolate(first.state_dict(), second.state_dict(), ratio))
    return first, second, middle


def one_batch(make: Callable[[int], nn.Module]) -> Tensor:
    return noise(9, 64, 5) if make is perceptron else noise(9, 16, 3, 8, 8)


@pytest.mark.parametrize(("make", "tolerance"), [(perceptron, 1e-5), (Residual, 2e-3)])
def test_repaired_moments_are_between_those_of_the_ends(make: Callable[[int], nn.Module], tolerance: float) -> None:
    batch = one_batch(make)
    first, second, middle = merged(make, 0.3, batch)
    a, b, lost = (activation_statistics(model, [batch]) for model in (first, second, middle))
    merge.repair(middle, (first, second), 0.3, [batch])
    seen = activation_statistics(middle, [batch])
    assert list(seen) == (["0", "2", "4"] if make is perceptron else ["bn1", "bn2", "conv3", "head"])
    worst = 0.0
    for name, moments in seen.items():
        for index, value in enumerate(moments):
            target = torch.lerp(a[name][index], b[name][index], 0.3)
            torch.testing.assert_close(value, target, rtol=tolerance, atol=tolerance)
            worst = max(worst, float((lost[name][index] - target).abs().max()))
    assert worst > 0.1


def test_several_batches_come_close() -> None:
    batch = noise(9, 400, 5)
    first, second, middle = merged(perceptron, 0.5, batch)
    merge.repair(middle, (first, second), 0.5, batch.split(100))
    a, b, seen = (activation_statistics(model, [batch]) for model in (first, second, middle))
    for name in seen:
        torch.testing.assert_close(seen[name].deviation, (a[name].deviation + b[name].deviation) / 2, rtol=0.1, atol=0)


def test_recorded_statistics_serve_as_ends() -> None:
    batch = noise(9, 64, 5)
    first, second, middle = merged(perceptron, 0.5, batch)
    recorded = activation_statistics(first, [batch]), activation_statistics(second, iter([batch]))
    other = perceptron(3)
    other.load_state_dict(middle.state_dict())
    merge.repair(middle, (first, second), 0.5, iter([batch]))
    merge.repair(other, recorded, 0.5, iter([batch]))
    assert merge.digest(middle.state_dict()) == merge.digest(other.state_dict())


@pytest.mark.parametrize("make", [perceptron, Residual])
@pytest.mark.parametrize("ratio", [0, 1.0])
def test_ends_are_left_bit_by_bit(make: Callable[[int], nn.Module], ratio: float) -> None:
    batch = one_batch(make)
    first, second, middle = merged(make, ratio, batch)
    ends = [merge.digest(model.state_dict()) for model in (first, second)]
    merge.repair(middle, (first, second), ratio, [batch])
    assert merge.digest(middle.state_dict()) == ends[int(ratio)]
    assert [merge.digest(model.state_dict()) for model in (first, second)] == ends


def test_repair_between_a_model_and_itself_changes_next_to_nothing() -> None:
    batch = noise(9, 64, 5)
    model, middle = perceptron(1), perceptron(1)
    merge.repair(middle, (model, model), 0.5, [batch])
    torch.testing.assert_close(dict(middle.state_dict()), dict(model.state_dict()))


def test_channels_without_variance_are_shifted() -> None:
    ends = [nn.Sequential(nn.Linear(1, 2)) for _ in range(3)]
    for model, weight, bias in zip(ends, ((2.0, 2.0), (4.0, 0.0), (0.0, 1.0)), (0.0, 2.0, 7.0), strict=True):
        model.load_state_dict({"0.weight": torch.tensor(weight)[:, None], "0.bias": torch.full((2,), bias)})
    merge.repair(ends[2], (ends[0], ends[1]), 0.5, [torch.tensor([[-1.0], [1.0]])])
    assert ends[2].state_dict()["0.weight"].tolist() == [[0.0], [1.0]]
    assert ends[2].state_dict()["0.bias"].tolist() == [1.0, 1.0]


def test_tied_weights_are_not_corrected() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.out, self.hidden = nn.Embedding(7, 4), nn.Linear(4, 7), nn.Linear(4, 4)
            self.out.weight = self.table.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.hidden(self.table(x)))

    assert list(activation_statistics(Tied(), [torch.arange(7)])) == ["hidden"]


def test_layers_in_front_of_a_norm_are_told_from_those_before_an_activation() -> None:
    direct = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4))
    activated = nn.Sequential(nn.Linear(5, 4), nn.ReLU(inplace=True), nn.BatchNorm1d(4))
    assert list(activation_statistics(direct, [noise(9, 8, 5)])) == ["1"]
    assert list(activation_statistics(activated, [noise(9, 8, 5)])) == ["0", "2"]


def test_repair_tells_what_does_not_fit() -> None:
    batch = noise(9, 64, 5)
    ends = perceptron(1), nn.Sequential(nn.Linear(5, 16))
    before = merge.digest(ends[0].state_dict())
    with pytest.raises(MergeError, match=r"same layers in both ends and the model; not in all: \['2', '4'\]"):
        merge.repair(ends[0], ends, 0.5, [batch])
    with pytest.raises(MergeError, match="no linear, convolutional or BatchNorm layer was called"):
        merge.repair(ends[0], (ends[0], ends[0]), 0.5, [])
    recorded = activation_statistics(ends[0], [batch])
    with pytest.raises(MergeError, match="there were none"):
        merge.repair(ends[0], (recorded, recorded), 0.5, [])
    assert merge.digest(ends[0].state_dict()) == before


def test_examples() -> None:
    failed, tried = doctest.testmod(batchnorm)
    assert tried > 0
    assert failed == 0
