"""Every recorded recipe of mergekit: our result beside theirs, at the distance that the documentation states."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor

import merge
from merge import MergeError, Options
from merge.methods import METHODS
from merge.recipe.mergekit import read_mergekit
from tests.merge import goldens
from tests.merge.goldens import GOLDENS, input_state, output_state, recipes, sources, steps_between, ulps_between


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("mergekit")
    goldens.write_inputs(path)
    return path


def from_files(recipe: str, folder: Path) -> dict[str, Tensor]:
    """The recipe as YAML, run from file to file."""
    entry = {key: value for key, value in recipes()[recipe].items() if key not in ("error", "seed")}
    if GOLDENS[recipe].dtype:
        entry["dtype"] = GOLDENS[recipe].dtype
    path = folder / f"{recipe}.yml"
    path.write_text(yaml.safe_dump(entry))
    output = merge.run(read_mergekit(path), folder / f"{recipe}.safetensors", Options(overwrite=True, sync=False))
    return load_file(output)


def in_stored_dtype(recipe: str) -> dict[str, Tensor]:
    """The method's function on tensors as they are stored, with mergekit's weights and random numbers."""
    states = [input_state(name) for name in sources(recipe)]
    dtype = next(iter(states[0].values())).dtype
    weights = tuple(float(torch.tensor(weight, dtype=dtype)) for weight in (0.6, 0.4))
    common: dict[str, Any] = {"weights": weights, "density": (0.5, 0.5), "scale": 1.0}
    calls: dict[str, Callable[[str], dict[str, Any]]] = {
        "ties": lambda name: {"normalize": True, "rescale_l1": False},
        "dare_linear": lambda name: {"rescale": False, "rescale_l1": "norescale" not in recipe, "seed": 0},
        "della": lambda name: {"normalize": True, "rescale_l1": True, "epsilon": (0.15, 0.15), "rescale": False},
        "della_linear": lambda name: {"rescale_l1": True, "epsilon": (0.15, 0.15), "rescale": False},
    }
    method = recipes()[recipe]["merge_method"]
    results: dict[str, Tensor] = {}
    for name in states[0]:
        extra = calls[method](name)
        if method != "ties":
            extra |= {"generator": torch.Generator().manual_seed(42), "seed": 0}
        function = METHODS[method.replace("_", "-")].function
        results[name] = function([state[name] for state in states], name=name, **common, **extra)
    return results


def ours(recipe: str, folder: Path) -> dict[str, Tensor]:
    return in_stored_dtype(recipe) if GOLDENS[recipe].inner else from_files(recipe, folder)


def test_every_recording_has_its_row() -> None:
    assert set(GOLDENS) == set(recipes())


def compared() -> list[str]:
    return [recipe for recipe, golden in GOLDENS.items() if "" not in golden.but]


@pytest.mark.parametrize("recipe", compared())
def test_near_mergekit(recipe: str, folder: Path) -> None:
    golden, got, theirs = GOLDENS[recipe], ours(recipe, folder), output_state(recipe)
    states = [input_state(name) for name in sources(recipe)]
    assert set(theirs) <= set(got)
    for name, wanted in theirs.items():
        inputs = [state[name] for state in states]
        if name in golden.but:
            REASON_CHECKS[golden.but[name]](got[name], wanted, inputs, recipe)
            continue
        assert got[name].dtype == wanted.dtype, name
        if golden.steps == 0:
            assert torch.equal(got[name], wanted), name
        else:
            assert steps_between(got[name], wanted, inputs) <= golden.steps, name


@pytest.mark.parametrize("recipe", [recipe for recipe in compared() if recipe.startswith("linear")])
def test_linear_is_within_two_ulp(recipe: str, folder: Path) -> None:
    if recipe == "linear_fp32_dtype_bf16":
        pytest.skip("mergekit rounds the inputs before it adds; in steps above")
    got, theirs = ours(recipe, folder), output_state(recipe)
    assert max(ulps_between(got[name], theirs[name]) for name in theirs) <= 2


# -- what holds where we differ ----------------------------------------------------------------------------------------


def check_zero(got: Tensor, theirs: Tensor, inputs: list[Tensor], recipe: str) -> None:
    ratio = float(recipe.split("_t")[1].split("_")[0]) if recipe.startswith("slerp") else 0.3
    assert any(not value.any() for value in inputs)
    assert torch.equal(got, torch.lerp(inputs[0].float(), inputs[1].float(), ratio).to(got.dtype))
    assert not torch.equal(got, theirs)


def check_clamped(got: Tensor, theirs: Tensor, inputs: list[Tensor], recipe: str) -> None:
    base, *experts = (value.double() for value in inputs)
    rows = base.shape[0] if "filterwise" in recipe and base.dim() > 1 else 1
    first, second = ((expert - base).reshape(rows, -1) for expert in experts)
    apart = (first * second).sum(1) <= 0
    assert apart.any()
    table = [value.reshape(rows, -1) for value in (got, inputs[0], theirs)]
    assert torch.equal(table[0][apart], table[1][apart])
    assert not torch.equal(table[2][apart], table[1][apart])
    if not apart.all():
        assert steps_between(table[0][~apart], table[2][~apart], inputs) <= 1


def check_cut(got: Tensor, theirs: Tensor, inputs: list[Tensor], recipe: str) -> None:
    base, *experts = inputs
    tied = torch.zeros(got.shape, dtype=torch.bool)
    for expert in experts:
        magnitudes = (expert - base).abs()
        values, counts = magnitudes.unique(return_counts=True)
        tied |= torch.isin(magnitudes, values[counts > 1])
    assert not torch.equal(got, theirs)
    assert torch.equal(got[~tied], theirs[~tied])


def check_row(got: Tensor, theirs: Tensor, inputs: list[Tensor], recipe: str) -> None:
    assert got.dim() > 2
    assert not torch.equal(got, theirs)


def check_opposite(got: Tensor, theirs: Tensor, inputs: list[Tensor], recipe: str) -> None:
    assert torch.equal(inputs[0], -inputs[1])
    assert 2 < steps_between(got, theirs, inputs) <= 9


def check_dtype(got: Tensor, theirs: Tensor, inputs: list[Tensor], recipe: str) -> None:
    assert got.dtype == inputs[0].dtype != theirs.dtype
    assert torch.equal(got, theirs.to(got.dtype))


REASON_CHECKS = {
    "zero": check_zero,
    "clamped": check_clamped,
    "cut": check_cut,
    "row": check_row,
    "opposite": check_opposite,
    "dtype": check_dtype,
}


@pytest.mark.parametrize("recipe", ["linear_sum0_norm", "nuslerp_sum0"])
def test_weights_of_sum_zero_are_refused(recipe: str, folder: Path) -> None:
    with pytest.raises(MergeError, match="sum to 0"):
        from_files(recipe, folder)


def test_nuslerp_of_sum_zero_is_the_middle_in_mergekit() -> None:
    states = [input_state(name) for name in ("a_fp32", "b_fp32")]
    for name, wanted in output_state("nuslerp_sum0").items():
        if name not in ("zero_a", "zero_b"):
            inputs = [state[name] for state in states]
            got = METHODS["nuslerp"].function(inputs, weights=(1.0, 1.0), flatten=True, row_wise=False)
            assert steps_between(got, wanted, inputs) <= 2, name


def test_bf16_into_float32_is_not_rounded_on_the_way(folder: Path) -> None:
    got, theirs = from_files("linear_bf16_outdtype_fp32", folder), output_state("linear_bf16_outdtype_fp32")
    for name, wanted in theirs.items():
        assert torch.equal(got[name].bfloat16(), wanted.bfloat16()), name
    assert any(not torch.equal(got[name], theirs[name]) for name in theirs)


def test_mixed_dtypes_are_refused_without_dtype(folder: Path) -> None:
    entry = recipes()["linear_mixed_bf16_fp32"]
    path = folder / "mixed.yml"
    path.write_text(yaml.safe_dump(entry))
    with pytest.raises(MergeError, match="bfloat16 in a_bf16 and float32 in b_fp32: choose the result's"):
        merge.run(read_mergekit(path), folder / "mixed.safetensors")


@pytest.mark.parametrize("recipe", ["multislerp", "multislerp_base"])
def test_where_mergekit_fails_we_merge(recipe: str, folder: Path) -> None:
    assert "weighted sum of the input tensors is zero" in recipes()[recipe]["error"]
    got = from_files(recipe, folder)
    assert not got["both_zero"].any()
    assert torch.equal(got["ident"], input_state("a_fp32")["ident"])


@pytest.mark.parametrize("names", ["ab", "abc"])
def test_karcher_of_a_small_tolerance_is_rounded_once(names: str) -> None:
    """Also where directions nearly balance out (signtie), so that large shares cancel."""
    method, shares = METHODS["karcher"].function, [1 / len(names)] * len(names)
    states = [input_state(f"{name}_fp32") for name in names]
    for name in states[0]:
        inputs = [state[name] for state in states]
        got = method(inputs, weights=shares, iterations=100, tolerance=1e-9)
        exact = method([value.double() for value in inputs], weights=shares, iterations=100, tolerance=1e-9)
        assert steps_between(got, exact.float(), inputs) <= 0.5, name
