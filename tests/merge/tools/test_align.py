"""Aligning: a permuted copy computes the same and is put back bit by bit; specifications that cannot be are refused."""

from __future__ import annotations

import doctest
import sys
from collections.abc import Callable, Mapping
from itertools import permutations

import pytest
import torch
from torch import Tensor, nn

import merge
from merge import MergeError, recalibrate_batchnorm
from merge.tools.align import (
    PermutationSpec,
    activation_matching,
    apply_permutation,
    patterns,
    permutation_spec,
    random_permutation,
    spec,
    weight_matching,
)
from merge.tools.align.assignment import assign, assign_blocks
from merge.tools.align.patterns import attention, bottleneck, chain, linear, norm

StateDict = Mapping[str, Tensor]


def noise(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def perceptron(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3)).eval()


class Block(nn.Module):
    """A bottleneck with grouped convolutions behind a stem."""

    def __init__(self, entering: int, leaving: int):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(entering, 12, 1, bias=False), nn.BatchNorm2d(12)
        self.conv2, self.bn2 = nn.Conv2d(12, 12, 3, padding=1, groups=3, bias=False), nn.BatchNorm2d(12)
        self.conv3, self.bn3 = nn.Conv2d(12, leaving, 1, bias=False), nn.BatchNorm2d(leaving)
        self.downsample = None
        if entering != leaving:
            self.downsample = nn.Sequential(nn.Conv2d(entering, leaving, 1, bias=False), nn.BatchNorm2d(leaving))

    def forward(self, x: Tensor) -> Tensor:
        part = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu())).relu()
        return (self.bn3(self.conv3(part)) + (x if self.downsample is None else self.downsample(x))).relu()


class Residual(nn.Module):
    def __init__(self, seed: int = 0):
        super().__init__()
        torch.manual_seed(seed)
        self.stem = nn.Conv2d(3, 6, 3)
        self.blocks = nn.Sequential(Block(6, 10), Block(10, 10))
        self.head = nn.Linear(10, 4)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 0.5, 2)
                nn.init.normal_(module.bias)
        recalibrate_batchnorm(self, [noise(8, 6, 3, 9, 9)])

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


class Transformer(nn.Module):
    """One layer with position biases that its heads share, over the columns of a token matrix that is tied."""

    def __init__(self, seed: int = 0):
        super().__init__()
        torch.manual_seed(seed)
        self.embed, self.table, self.heads = nn.Embedding(11, 12), nn.Embedding(9, 3), 3
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(12, 12) for _ in range(4))
        self.before, self.after = nn.LayerNorm(12), nn.LayerNorm(12)
        self.fc1, self.fc2 = nn.Linear(12, 20), nn.Linear(20, 12)
        self.out = nn.Linear(12, 11, bias=False)
        self.out.weight = self.embed.weight
        for layer in (self.before, self.after):
            nn.init.normal_(layer.weight)
            nn.init.normal_(layer.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        seen = self.before(x)
        q, k, v = (part(seen).unflatten(-1, (3, 4)).transpose(1, 2) for part in (self.q_proj, self.k_proj, self.v_proj))
        place = torch.arange(tokens.shape[1])
        bias = self.table(place[:, None] - place + 4).movedim(-1, 0)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, bias)
        x = x + self.out_proj(mixed.transpose(1, 2).flatten(2))
        return self.out(x + self.fc2(self.fc1(self.after(x)).relu()))


RESIDUAL = (
    linear("stem", "stem", "_", kernel=2)
    | bottleneck("blocks.0", "stem", "stream", dims=2, grouped=True, downsample=True)
    | bottleneck("blocks.1", "stream", "stream", dims=2, grouped=True, downsample=False)
    | linear("head", "_", "stream")
)
TRANSFORMER = (
    {"embed.weight": "_ width", "out.weight": "_ width", "table.weight": "_ heads"}
    | {name.removeprefix("x."): value for name, value in attention("x", "heads", "width", "width").items()}
    | norm("before", "width")
    | norm("after", "width")
    | chain(["fc1", "fc2"], "width", "width")
)
CASES: list[tuple[Callable[[int], nn.Module], dict[str, str], Tensor]] = [
    (perceptron, chain(["0", "2", "4"]), noise(9, 64, 5)),
    (Residual, RESIDUAL, noise(9, 6, 3, 9, 9)),
    (Transformer, TRANSFORMER, torch.randint(0, 11, (6, 5), generator=torch.Generator().manual_seed(9))),
]
cases = pytest.mark.parametrize(("make", "written", "batch"), CASES, ids=["perceptron", "resnet", "transformer"])
Make = Callable[[int], nn.Module]


def copied(make: Make, state: StateDict) -> nn.Module:
    model = make(1).eval()
    model.load_state_dict(state)
    return model


@cases
def test_a_permuted_copy_computes_the_same_and_is_put_back(make: Make, written: dict[str, str], batch: Tensor) -> None:
    model = make(0).eval()
    own = permutation_spec(written, model.state_dict())
    moved: set[str] = set()
    for seed in range(3):
        permuted = copied(make, apply_permutation(own, random_permutation(own, seed), model.state_dict()))
        with torch.no_grad():
            torch.testing.assert_close(permuted(batch), model(batch), rtol=1e-4, atol=1e-5)
        moved |= {k for k, v in permuted.state_dict().items() if not torch.equal(v, model.state_dict()[k])}
        found = weight_matching(own, model.state_dict(), permuted.state_dict())
        aligned = apply_permutation(own, found, permuted.state_dict())
        assert merge.digest(aligned) == merge.digest(model.state_dict())
    assert moved == {name for name, axes in own.axes.items() if any(axes)}


@cases
def test_a_noisy_copy_is_put_back(make: Make, written: dict[str, str], batch: Tensor) -> None:
    state = make(0).state_dict()
    own = permutation_spec(written, state)
    rough = {
        name: value + 0.1 * value.std() * noise(3, *value.shape) if value.is_floating_point() else value
        for name, value in state.items()
    }
    permuted = apply_permutation(own, random_permutation(own, 5), rough)
    aligned = apply_permutation(own, weight_matching(own, state, permuted), permuted)
    assert merge.digest(aligned) == merge.digest(rough)


def test_activations_find_the_order_too() -> None:
    for make, written, batch in CASES[:2]:
        model = make(0).eval()
        own = permutation_spec(written, model.state_dict())
        permuted = copied(make, apply_permutation(own, random_permutation(own, 1), model.state_dict()))
        found = activation_matching(own, model, permuted, [batch, batch + 1])
        aligned = apply_permutation(own, found, permuted.state_dict())
        assert merge.digest(aligned) == merge.digest(model.state_dict())


def test_activations_do_not_show_everything() -> None:
    model, batch = Transformer(0), CASES[2][2]
    own = permutation_spec(TRANSFORMER, model.state_dict())
    order = activation_matching(own, model, model, [batch])
    assert all(torch.equal(value, spec.identity(own)[group]) for group, value in order.items())
    with pytest.raises(MergeError, match=r"no module that ran shows the units of \['width', "):
        activation_matching(own, model, model, [batch], lambda net, x: net.embed(x))
    with pytest.raises(MergeError, match="no module that ran shows"):
        activation_matching(own, model, model, [])


# -- laws --------------------------------------------------------------------------------------------------------------


def inner(first: StateDict, second: StateDict) -> float:
    return sum(float((first[name].double() * second[name].double()).sum()) for name in first)


@cases
def test_the_inner_product_never_falls(make: Make, written: dict[str, str], batch: Tensor) -> None:
    first, second = make(0).state_dict(), make(7).state_dict()
    first, second = ({k: v for k, v in side.items() if k in written} for side in (first, second))
    own = permutation_spec(written, first)
    aligned = apply_permutation(own, weight_matching(own, first, second), second)
    assert inner(first, aligned) > inner(first, second)


def test_one_group_is_solved_to_the_best_order() -> None:
    own = permutation_spec(chain(["a", "b"]), {**tiny(0)})
    first, second = tiny(0), tiny(1)
    found = inner(first, apply_permutation(own, weight_matching(own, first, second), second))
    tried = [
        inner(first, apply_permutation(own, {"a": torch.tensor(order)}, second)) for order in permutations(range(4))
    ]
    assert found == pytest.approx(max(tried))


def tiny(seed: int) -> dict[str, Tensor]:
    shapes = {"a.weight": (4, 2), "a.bias": (4,), "b.weight": (2, 4), "b.bias": (2,)}
    return {name: noise(10 * seed + index, *shape) for index, (name, shape) in enumerate(shapes.items())}


def test_relatives_stay_as_they_are() -> None:
    model = Transformer(0).state_dict()
    own = permutation_spec(TRANSFORMER, model)
    tuned = {name: value + 0.05 * noise(1, *value.shape) for name, value in model.items()}
    found = weight_matching(own, model, tuned)
    assert all(torch.equal(found[group], order) for group, order in spec.identity(own).items())


def test_networks_trained_apart_average_better_once_aligned() -> None:
    """The midpoint of two regressions of one curve, as in the paper's figure 1 (there on images)."""
    x = torch.linspace(-3, 3, 200)[:, None]

    def network(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(1, 64), nn.Tanh(), nn.Linear(64, 1))

    def error(model: nn.Module) -> Tensor:
        return (model(x) - x.sin()).square().mean()

    states: list[dict[str, Tensor]] = []
    for seed in (0, 1):
        model = network(seed)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
        for _ in range(150):
            optimizer.zero_grad()
            error(model).backward()
            optimizer.step()
        assert error(model) < 0.01
        states.append({name: value.detach() for name, value in model.state_dict().items()})
    own = permutation_spec(chain(["0", "2"]), states[0])
    aligned = apply_permutation(own, weight_matching(own, *states), states[1])
    middle = network(2)
    errors: list[float] = []
    for second in (states[1], aligned):
        middle.load_state_dict(merge.interpolate(states[0], second, 0.5))
        errors.append(error(middle).item())
    assert errors[1] < 0.5 * errors[0]


# -- moving tensors ----------------------------------------------------------------------------------------------------


def test_blocks_move_as_wholes() -> None:
    """By hand: two heads of two channels; the heads change places, then the second new head its channels."""
    own = permutation_spec({"w": "(h c) _", "s": "h"}, {"w": torch.zeros(4, 1), "s": torch.zeros(2)})
    order = {"h": torch.tensor([1, 0]), "c": torch.tensor([[0, 1], [1, 0]])}
    moved = apply_permutation(own, order, {"w": torch.arange(4)[:, None], "s": torch.tensor([5, 6])})
    assert moved["w"].flatten().tolist() == [2, 3, 1, 0]
    assert moved["s"].tolist() == [6, 5]


def test_bits_ties_and_strangers_are_kept() -> None:
    shared = noise(0, 6, 4).bfloat16()
    shared[0, 0] = float("nan")
    state = {"a": shared, "b": shared, "count": torch.tensor(3)}
    own = permutation_spec({"a": "_ w", "b": "_ w"}, state)
    moved = apply_permutation(own, {"w": torch.tensor([3, 2, 1, 0])}, state)
    assert moved["a"] is moved["b"]
    assert moved["count"] is state["count"]
    assert torch.equal(moved["a"].view(torch.int16), shared.flip(1).view(torch.int16))
    assert shared[0, 0].isnan()


def test_assignments_by_hand() -> None:
    assert assign(torch.tensor([[1.0, 5.0], [4.0, 7.0]])).tolist() == [1, 0]  # 5 + 4 > 1 + 7
    own = PermutationSpec({}, {"h": 2, "c": 2}, {"c": "h"})
    common = torch.zeros(2, 2, 2, 2)
    common[0, :, 1] = torch.tensor([[0.0, 3.0], [3.0, 0.0]])  # head 0 is the other's 1, with channels exchanged
    common[0, :, 0] = common[1, :, 1] = torch.eye(2)
    found = assign_blocks(own, "h", torch.zeros(2, 2), {"c": common})
    assert found["h"].tolist() == [1, 0]
    assert found["c"].tolist() == [[1, 0], [0, 1]]
    alone = assign_blocks(own, "h", 9 * torch.eye(2), {"c": common})
    assert alone["h"].tolist() == [0, 1]


# -- errors ------------------------------------------------------------------------------------------------------------

WEIGHT = torch.zeros(6, 4)


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ({"x": "a"}, r"tensors \['x'\] are not among those given \(2 names\)"),
        ({"w": "a"}, r"w has shape \[6, 4\], pattern 'a': give one word or \(outer inner\) an axis"),
        ({"w": "(a b c) _"}, "give one word or"),
        ({"w": "a a"}, r"w has an axis of 4, but it should be a \(6\)"),
        ({"w": "(h c) _", "v": "h"}, r"w has an axis of 6, but it should be h \(4\) x c \(1\)"),
        ({"w": "(h c) _"}, r"no axis tells the size of \['h', 'c'\]"),
        ({"w": "(h c) _", "v": "c"}, "v has an axis of 'c' but none of 'h', in which it lies"),
        ({"w": "(h c) (g c)"}, "group 'c' lies in 'g', elsewhere in 'h'"),
        ({"w": "(h c) (c d)"}, "group 'd' lies in 'c', which lies in 'h'"),
    ],
)
def test_patterns_that_cannot_be(written: dict[str, str], message: str) -> None:
    with pytest.raises(MergeError, match=message):
        permutation_spec(written, {"w": WEIGHT, "v": torch.zeros(4)})


def test_permutations_and_tensors_that_do_not_fit() -> None:
    own = permutation_spec({"w": "a _"}, {"w": WEIGHT})
    for order, message in (({}, "no order of 'a'"), ({"a": torch.zeros(6).long()}, r"not one of \[6\] units")):
        with pytest.raises(MergeError, match=message):
            apply_permutation(own, order, {"w": WEIGHT})
    for tensors in ({}, {"w": WEIGHT.T}):
        with pytest.raises(MergeError, match=r"\['w'\] are missing or have other shapes"):
            weight_matching(own, {"w": WEIGHT}, tensors)


def test_weights_that_are_no_numbers_are_refused() -> None:
    broken = tiny(0) | {"a.bias": torch.tensor([1.0, float("nan"), 2.0, 3.0])}
    own = permutation_spec(chain(["a", "b"]), broken)
    with pytest.raises(MergeError, match="infinite or NaN weights or activations cannot be matched"):
        weight_matching(own, tiny(0), broken)


def test_sizes_are_found_in_any_order() -> None:
    """Composite axes take the size they lack from tensors that come later."""
    shapes = {"a": (12,), "b": (6,), "c": (3, 2)}
    tensors = {name: torch.zeros(shape) for name, shape in shapes.items()}
    own = permutation_spec({"a": "(g out)", "b": "(g in)", "c": "g in"}, tensors)
    assert own.sizes == {"g": 3, "out": 4, "in": 2}


def test_scipy_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    with pytest.raises(MergeError, match=r"needs SciPy: pip install 'unival-merge\[align\]'"):
        assign(torch.eye(2))


@pytest.mark.parametrize("module", [spec, patterns], ids=lambda module: module.__name__)
def test_examples(module: object) -> None:
    failed, tried = doctest.testmod(module)  # type: ignore[arg-type]
    assert tried > 0
    assert failed == 0
