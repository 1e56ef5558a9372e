"""Statistics of experts: worked out by hand for tiny models, and what merging by them does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import merge
from merge import MergeError
from merge.tools.statistics import fisher_information, inner_products
from tests.merge.made import assert_same
from tests.merge.shell import command, done
from tests.merge.ways import merged_every_way, recipe_of

Batch = tuple[Tensor, Tensor]


def negative_log_likelihood(model: nn.Module, batch: Batch) -> Tensor:
    inputs, targets = batch
    return nn.functional.cross_entropy(model(inputs), targets, reduction="none")


def run(model: nn.Module, batch: Batch) -> object:
    return model(batch[0])


def batches(count: int, seed: int, size: int = 4, features: int = 3) -> list[Batch]:
    generator = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(size, features, generator=generator), torch.randint(0, 2, (size,), generator=generator))
        for _ in range(count)
    ]


class Net(nn.Module):
    """Linear layers, one never called, a norm with statistics, an unused parameter, a tie and a square table."""

    def __init__(self, seed: int = 0):
        super().__init__()
        torch.manual_seed(seed)
        self.first = nn.Linear(3, 5)
        self.norm = nn.BatchNorm1d(5)
        self.last = nn.Linear(5, 2)
        self.again = nn.Linear(5, 2, bias=False)
        self.again.weight = self.last.weight
        self.idle = nn.Linear(4, 4)
        self.table = nn.Embedding(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.norm(self.first(x)).relu()
        return self.last(hidden) + self.again(hidden)


# -- collecting ------------------------------------------------------------------------------------------------------


def test_fisher_of_logistic_regression_by_hand() -> None:
    model = nn.Linear(2, 2)
    data = batches(3, 0, features=2)
    found = fisher_information(model, data, negative_log_likelihood)
    squares = torch.zeros(2, 2)
    for inputs, targets in data:
        for x, y in zip(inputs, targets, strict=True):
            error = model(x).softmax(0) - nn.functional.one_hot(y, 2)
            squares += torch.outer(error, x).square().detach()
    torch.testing.assert_close(found["weight"], squares / 12)
    assert found["weight"].dtype == torch.float32


def test_fisher_does_not_depend_on_the_batch_size() -> None:
    model = Net()
    data = batches(4, 0)
    single = [(x[None], y[None]) for inputs, targets in data for x, y in zip(inputs, targets, strict=True)]
    large, small = (fisher_information(model, item, negative_log_likelihood) for item in (data, single))
    for name, value in large.items():
        torch.testing.assert_close(value, small[name])


def test_fisher_has_the_names_ties_and_shapes_of_the_model() -> None:
    model = Net()
    found = fisher_information(model, batches(2, 0), negative_log_likelihood)
    state = model.state_dict()
    assert list(found) == list(state)
    assert {name: value.shape for name, value in found.items()} == {name: value.shape for name, value in state.items()}
    assert found["last.weight"] is found["again.weight"]
    assert not found["idle.weight"].any()
    assert torch.equal(found["norm.running_mean"], torch.ones(5))
    assert torch.equal(found["norm.num_batches_tracked"], state["norm.num_batches_tracked"])
    assert (found["first.weight"] > 0).any()


def test_products_of_inputs_by_hand() -> None:
    model = Net()
    data = batches(3, 0)
    found = inner_products(model, data, run)
    inputs = torch.cat([x for x, _ in data])
    torch.testing.assert_close(found["first.weight"], inputs.T @ inputs / 12)
    model.eval()
    hidden = model.norm(model.first(inputs)).relu().detach()
    torch.testing.assert_close(found["last.weight"], hidden.T @ hidden / 12)  # counted twice, divided twice
    assert torch.equal(found["idle.weight"], torch.eye(4))
    assert torch.equal(found["table.weight"], torch.eye(3))
    assert torch.equal(found["first.bias"], torch.ones(5))


@pytest.mark.parametrize("collect", [fisher_information, inner_products])
def test_collecting_leaves_the_model_as_it_was(collect: Any) -> None:
    model = Net()
    model.norm.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    collect(model, batches(2, 0), negative_log_likelihood)
    assert model.training
    assert not model.norm.training
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not model.first._forward_pre_hooks


def test_nothing_to_collect_from_is_told() -> None:
    with pytest.raises(MergeError, match="needs examples; there were none"):
        fisher_information(Net(), [], negative_log_likelihood)
    with pytest.raises(MergeError, match="no linear layer was called"):
        inner_products(Net(), [], run)


# -- merging ---------------------------------------------------------------------------------------------------------


def experts() -> tuple[dict[str, dict[str, Tensor]], dict[str, dict[str, Tensor]], dict[str, dict[str, Tensor]]]:
    models = {"vqa": Net(1), "caption": Net(2)}
    states = {name: {key: value.clone() for key, value in model.state_dict().items()} for name, model in models.items()}
    for state in states.values():
        state["again.weight"] = state["last.weight"]
    data = {"vqa": batches(8, 1), "caption": batches(8, 2)}
    fishers = {n: fisher_information(model, data[n], negative_log_likelihood) for n, model in models.items()}
    products = {n: inner_products(model, data[n], run) for n, model in models.items()}
    return states, fishers, products


def test_fisher_weighted_average_of_two_networks() -> None:
    states, fishers, _ = experts()
    merged = merge.merge_with("fisher", states, statistics=fishers)
    weights = [value["first.weight"].clamp(min=1e-6) for value in fishers.values()]
    values = [value["first.weight"] for value in states.values()]
    wanted = (weights[0] * values[0] + weights[1] * values[1]) / (weights[0] + weights[1])
    torch.testing.assert_close(merged["first.weight"], wanted)
    torch.testing.assert_close(merged["idle.weight"], merge.average(states)["idle.weight"])
    assert merged["last.weight"].data_ptr() == merged["again.weight"].data_ptr()


def test_fisher_from_files_is_the_same(tmp_path: Path) -> None:
    states, fishers, _ = experts()
    paths: list[Path] = []
    for kind, group in (("expert", states), ("fisher", fishers)):
        for name, state in group.items():
            paths.append(tmp_path / f"{kind}-{name}.safetensors")
            save_file({key: value.clone() for key, value in state.items()}, paths[-1])
    recipe = merge.Recipe("fisher", tuple(merge.Input(path.stem, path) for path in paths))
    merge.run(recipe, tmp_path / "out.safetensors", merge.Options(sync=False))
    wanted = merge.merge_with("fisher", states, statistics=fishers)
    for name, value in load_file(tmp_path / "out.safetensors").items():
        assert torch.equal(value, wanted[name]), name


def test_regmean_keeps_outputs_better_than_the_average() -> None:
    states, _, products = experts()
    merged = merge.merge_with("regmean", states, statistics=products, shrink=1.0)
    mean = merge.average(states)

    def error(weight: Tensor) -> float:
        """How far the first layer's outputs are from both experts' on their own data, without biases."""
        losses = []
        for name, seed in (("vqa", 1), ("caption", 2)):
            inputs = torch.cat([x for x, _ in batches(8, seed)])
            losses.append((inputs @ (weight - states[name]["first.weight"]).T).square().sum())
        return float(sum(losses))

    assert error(merged["first.weight"]) < error(mean["first.weight"])
    torch.testing.assert_close(merged["table.weight"], mean["table.weight"])
    torch.testing.assert_close(merged["first.bias"], mean["first.bias"])
    assert merged["first.weight"].dtype == torch.float32
    shrunk = merge.merge_with("regmean", states, statistics=products, shrink={"first.*": 0.5, "*": 0.9})
    assert error(merged["first.weight"]) < error(shrunk["first.weight"])
    other = merge.merge_with("regmean", states, statistics=products)
    assert torch.equal(other["last.weight"], shrunk["last.weight"])


def test_statistics_may_lie_in_files(tmp_path: Path) -> None:
    states, _, products = experts()
    opened = {}
    for name, state in products.items():
        save_file({key: value.clone() for key, value in state.items()}, tmp_path / f"{name}.safetensors")
        opened[name] = merge.open_checkpoint(tmp_path / f"{name}.safetensors")
    wanted = merge.merge_with("regmean", states, statistics=products)
    for name, value in merge.merge_with("regmean", states, statistics=opened).items():
        assert torch.equal(value, wanted[name])


def test_what_is_missing_is_named() -> None:
    states, fishers, products = experts()
    with pytest.raises(MergeError, match="no statistics for caption; there are some for vqa"):
        merge.merge_with("fisher", states, statistics={"vqa": fishers["vqa"]})
    lacking = {**fishers, "vqa": {key: value for key, value in fishers["vqa"].items() if key != "norm.bias"}}
    with pytest.raises(MergeError, match=r"the statistics of vqa lack norm\.bias"):
        merge.merge_with("fisher", states, statistics=lacking)
    broken = {**fishers, "vqa": {**fishers["vqa"], "norm.bias": torch.full((5,), torch.nan)}}
    with pytest.raises(MergeError, match=r"norm\.bias: 5 infinite or NaN values"):
        merge.merge_with("fisher", states, statistics=broken)
    with pytest.raises(MergeError, match="the inputs are vqa, caption; there are some for vqa, caption, other"):
        merge.merge_with("fisher", states, statistics={**fishers, "other": fishers["vqa"]})
    with pytest.raises(MergeError, match="average takes no statistics; fisher and regmean do"):
        merge.merge_with("average", states, statistics=fishers)
    with pytest.raises(
        MergeError, match=r"first.weight has shape \[5, 3\]: the statistics of vqa cannot have shape \[3, 3\]"
    ):
        merge.merge_with("fisher", states, statistics=products)


# -- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["regmean", "fisher"])
def test_from_a_model_to_statistics_to_a_merged_file(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    models = {"vqa": Net(1), "caption": Net(2)}
    for seed, (name, model) in enumerate(models.items()):
        merge.save_checkpoint(model, f"{name}.pt")
        call = run if method == "regmean" else negative_log_likelihood
        merge.statistics(method, model, batches(4, seed), call, f"{name}-statistics.safetensors")
    paths = {name: Path(f"{name}.pt") for name in models}
    collected = {f"statistics of {name}": Path(f"{name}-statistics.safetensors") for name in models}
    made = merged_every_way(recipe_of(method, {**paths, **collected}, {}, merge.Policy()), tmp_path / "m.safetensors")
    options = [
        word for name in ("caption", "vqa") for word in ("--statistics", f"{name}={name}-statistics.safetensors")
    ]
    told = done("merge", method, "vqa.pt", "caption.pt", *options, "-o", "again.safetensors")
    assert f"{method}: vqa, caption by statistics vqa, caption" in told.out
    assert_same(merge.load_checkpoint("again.safetensors"), made)
    with pytest.raises(MergeError, match="exists"):
        merge.statistics("regmean", models["vqa"], batches(1, 0), run, "vqa-statistics.safetensors")


def refused(*words: Any) -> str:
    outcome = command(*words)
    assert outcome.code == 2
    return outcome.err.removeprefix("error: ").strip()


def test_statistics_on_the_command_line_are_of_the_inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("vqa", "caption"):
        merge.save_checkpoint(Net(), f"{name}.pt")
    words = ("merge", "regmean", "vqa.pt", "caption.pt", "-o", "m.pt")
    wrong = refused(*words, "--statistics", "vqa.pt")
    assert wrong == "--statistics 'vqa.pt': give NAME=FILE; the inputs are vqa, caption"
    assert refused(*words, "--statistics", "vqa=vqa.pt") == "--statistics: none are given for caption"
    other = refused("merge", "average", "vqa.pt", "caption.pt", "-o", "m.pt", "--statistics", "vqa=vqa.pt")
    assert other == "--statistics: average takes none; fisher and regmean do"


def test_a_batch_is_the_models_arguments() -> None:
    batch = torch.eye(3)
    wanted = merge.statistics("regmean", Net(), [(batch,), [batch], {"x": batch}, batch])
    assert torch.equal(wanted["first.weight"], merge.statistics("regmean", Net(), [batch])["first.weight"])
    with pytest.raises(MergeError, match="average takes no statistics"):
        merge.statistics("average", Net(), [batch])
    with pytest.raises(MergeError, match=r"fisher needs call\(model, batch\)"):
        merge.statistics("fisher", Net(), [batch])
