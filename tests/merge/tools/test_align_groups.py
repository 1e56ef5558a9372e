"""Groups from a file and from names and shapes: an aligned permuted copy is the original, doubts are named."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

import merge
from merge import MergeError, read_groups
from merge.commands import app
from merge.tools.align import derive_groups
from tests.merge.made import assert_same

MLP = {
    "first": {"0.weight": 0, "0.bias": 0, "2.weight": 1},
    "second": {"2.weight": 0, "2.bias": 0, "4.weight": 1},
}


def perceptron(*widths: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for entering, leaving in pairwise(widths):
        layers += [nn.Linear(entering, leaving), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def convolutional() -> nn.Sequential:
    """Convolutions and norms whose alphabetical order, as in safetensors, is not that of the layers."""
    parts = {"conv1": nn.Conv2d(3, 6, 3, bias=False), "bn1": nn.BatchNorm2d(6), "act": nn.ReLU()}
    parts |= {"conv2": nn.Conv2d(6, 8, 3), "pool": nn.AdaptiveAvgPool2d(1), "flat": nn.Flatten()}
    parts |= {"a_head": nn.Linear(8, 2)}
    model = nn.Sequential()
    for name, part in parts.items():
        model.add_module(name, part)
    nn.init.normal_(model.get_submodule("bn1").get_parameter("weight"))
    return model.eval()


def written(folder: Path, groups: Any) -> Path:
    path = folder / "groups.json"
    path.write_text(json.dumps(groups))
    return path


def shuffled(state: dict[str, Tensor], spec: merge.PermutationSpec) -> dict[str, Tensor]:
    return merge.apply_permutation(spec, merge.random_permutation(spec, 1), state)


@pytest.mark.parametrize("given", [True, False], ids=["groups", "derived"])
def test_an_aligned_permuted_copy_is_the_original(tmp_path: Path, given: bool) -> None:
    torch.manual_seed(0)
    state = perceptron(5, 16, 8, 3).state_dict()
    groups = written(tmp_path, MLP) if given else None
    spec = read_groups(groups, state) if groups else derive_groups(state)
    a = merge.save_checkpoint(state, tmp_path / "a.safetensors")
    b = merge.save_checkpoint(shuffled(state, spec), tmp_path / "b.safetensors")
    assert merge.digest(merge.open_checkpoint(a)) != merge.digest(merge.open_checkpoint(b))
    done = merge.align_checkpoint(a, b, tmp_path / "c.safetensors", groups=groups)
    assert_same(merge.load_checkpoint(tmp_path / "c.safetensors"), merge.load_checkpoint(a))
    assert done.units == 24
    assert 0 < done.moved <= 24
    assert done.before < 0.9
    assert done.after == pytest.approx(1)
    with pytest.raises(MergeError, match="exists"):
        merge.align_checkpoint(a, b, tmp_path / "c.safetensors", groups=groups)


def test_derived_groups_do_not_change_what_is_computed(tmp_path: Path) -> None:
    model, batch = convolutional(), torch.randn(4, 3, 7, 7, generator=torch.Generator().manual_seed(0))
    path = merge.save_checkpoint(dict(sorted(model.state_dict().items())), tmp_path / "a.safetensors")
    spec = derive_groups(merge.open_checkpoint(path))
    assert spec.sizes == {"conv1": 6, "conv2": 8}
    permuted = convolutional()
    permuted.load_state_dict(shuffled(model.state_dict(), spec))
    assert not torch.equal(permuted.get_parameter("bn1.weight"), model.get_parameter("bn1.weight"))
    torch.testing.assert_close(permuted(batch), model(batch))


@pytest.mark.parametrize(
    ("shapes", "doubt"),
    [
        ({"0.weight": (4, 4), "1.weight": (4, 4)}, "0.weight and 1.weight both take 4 units"),
        ({"up.weight": (8, 4), "down.weight": (4, 8)}, "0 of 2 layers take units that no other gives"),
        ({"a.weight": (5, 4), "b.weight": (7, 6)}, "2 of 2 layers take units that no other gives"),
        ({"a.weight": (5, 4), "b.weight": (7, 6), "c.weight": (6, 7)}, "no layer takes the 5 units of a.weight"),
        ({"a.weight": (5, 4), "b.weight": (6, 5), "scale": (9,)}, "scale has 9 values"),
        ({"a.weight": (5, 4)}, "there is no width between two layers"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_doubts_ask_for_groups(shapes: dict[str, tuple[int, ...]], doubt: str) -> None:
    with pytest.raises(MergeError, match="do not tell which units move together") as told:
        derive_groups({name: torch.zeros(shape) for name, shape in shapes.items()})
    assert doubt in str(told.value)
    assert '{"hidden": {"fc1.weight": 0, "fc1.bias": 0, "fc2.weight": 1}}' in str(told.value)


def test_numbers_and_globs_make_groups_by_layer(tmp_path: Path) -> None:
    layer = {"fc1.weight": (6, 4), "fc1.bias": (6,), "fc2.weight": (4, 6), "fc2.bias": (4,), "norm.weight": (4,)}
    names = {f"layers.{i}.{name}": torch.zeros(shape) for i in (0, 11) for name, shape in layer.items()}
    groups = {
        "mlp{}": {"layers.{}.fc1.*": 0, "layers.{}.fc2.weight": 1},
        "width": {"*.fc1.weight": 1, "*.fc2.weight": -2, "*.fc2.bias": [0], "*.norm.*": 0},
    }
    spec = read_groups(written(tmp_path, groups), names)
    assert spec.sizes == {"mlp0": 6, "mlp11": 6, "width": 4}
    assert spec.axes["layers.11.fc1.weight"] == (("mlp11",), ("width",))
    assert spec.axes["layers.0.fc2.weight"] == (("width",), ("mlp0",))


@pytest.mark.parametrize(
    ("groups", "told"),
    [
        ([MLP], "must hold groups and the axes of their tensors"),
        ({"h": {"0.wait": 0}}, "group 'h': no tensor is called '0.wait'; there are 0.weight, 0.bias"),
        ({"h": {"0.weight": 2}}, r"group 'h': 0.weight has shape \[16, 5\] and no axis 2"),
        ({"h": {"0.weight": "0"}}, "no axis '0'"),
        ({"h": {"0.weight": 0, "2.weight": 1}}, "group 'h' has 0.weight and lacks 0.bias, which moves with it"),
        ({"h": {"0.bias": 0}, "g": {"0.bias": 0}}, "0.bias: its axis 0 lies in 'h' and in 'g'"),
        ({"h": {"0.bias": 0, "2.bias": 0}}, "0.bias has an axis of 16|2.bias has an axis of 8"),
        ({"a b": {"0.bias": 0}}, "group 'a b': a name is one word"),
    ],
)
def test_files_that_do_not_fit_are_told(tmp_path: Path, groups: Any, told: str) -> None:
    state = perceptron(5, 16, 8, 3).state_dict()
    with pytest.raises(MergeError, match=told):
        read_groups(written(tmp_path, groups), state)


def test_a_file_that_is_no_json_and_models_of_other_parts(tmp_path: Path) -> None:
    (tmp_path / "groups.json").write_text("{")
    with pytest.raises(MergeError, match=r"groups.json: not a JSON file of groups"):
        read_groups(tmp_path / "groups.json", {})
    a = merge.save_checkpoint(perceptron(5, 16, 3).state_dict(), tmp_path / "a.safetensors")
    b = merge.save_checkpoint(perceptron(5, 8, 3).state_dict(), tmp_path / "b.safetensors")
    with pytest.raises(MergeError, match=r"differ in 3 tensors \(0.bias, 0.weight, 2.weight"):
        merge.align_checkpoint(a, b, tmp_path / "c.safetensors")


def test_an_aligned_folder_says_what_it_is(tmp_path: Path) -> None:
    torch.manual_seed(0)
    state = perceptron(5, 8, 3).state_dict()
    for name, tensors in (("a", state), ("b", shuffled(state, derive_groups(state)))):
        (tmp_path / name).mkdir()
        merge.save_checkpoint(tensors, tmp_path / name / "model.safetensors")
        (tmp_path / name / "README.md").write_text(f"# the card of {name}")
        (tmp_path / name / "config.json").write_text("{}")
    out = tmp_path / "out"
    for overwrite in (False, True):
        merge.align_checkpoint(tmp_path / "a", tmp_path / "b", out, overwrite=overwrite)
        assert sorted(path.name for path in out.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    card, noted = (out / "README.md").read_text(), json.loads((tmp_path / "out.recipe.json").read_text())
    assert "align: the units of b in the order of a." in card
    assert "the card of" not in card
    assert noted["output"]["digest"] == merge.digest(out) == merge.digest(tmp_path / "a")
    assert [item["digest"] for item in noted["inputs"]] == [merge.digest(tmp_path / name) for name in "ab"]


def test_groups_that_are_no_path_are_an_error_and_the_command_names_its_option(tmp_path: Path) -> None:
    files = [merge.save_checkpoint({"w": torch.ones(4)}, tmp_path / f"{name}.safetensors") for name in "ab"]
    with pytest.raises(MergeError, match="groups must be a path, not a dict"):
        merge.align_checkpoint(*files, tmp_path / "c.safetensors", groups={})  # type: ignore[arg-type]
    done = CliRunner().invoke(app, ["align", *map(str, files), "-o", str(tmp_path / "c.safetensors")])
    assert done.exit_code == 2
    assert "give --groups, a JSON file such as {" in done.stderr
