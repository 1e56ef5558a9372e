"""Merges from files to files: equal to memory and live models, and to themselves under every condition."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import merge
from merge import Input, MergeError, Options, Policy, Recipe
from merge.engine import stream
from merge.engine.live import LivePath
from merge.methods import METHODS
from merge.methods.blocks import dot
from merge.plan.units import Unit
from merge.recipe.parameters import parameters_for
from tests import ROOT
from tests.merge.made import (
    Carrier,
    assert_same,
    bits,
    copied,
    count_of,
    in_memory,
    ordered_as,
    parameters_of,
    recipe_of,
    weights,
)

QUICK = Options(sync=False)
BLOCK = stream.BLOCK // 4  # elements of float32
METHOD_NAMES = sorted(METHODS)


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    """Set torch's own number of threads for one test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture
def workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many worker threads as asked for, also where there is little to do."""
    for name in ("WORTH_A_THREAD", "WHOLE"):
        monkeypatch.setattr(f"merge.engine.workers.{name}", 1)


def save_inputs(
    folder: Path, method: str, suffix: str, make: Callable[[int], dict[str, Tensor]] = weights
) -> tuple[dict[str, dict[str, Tensor]], dict[str, Tensor] | None]:
    """The files that `recipe_of` names, and the same in memory."""
    inputs = {f"in{index}": make(index) for index in range(count_of(method))}
    base = make(9) if METHODS[method].takes_base else None
    for index, state in enumerate(inputs.values()):
        merge.save_checkpoint(state, folder / f"{index}{suffix}")
    if base:
        merge.save_checkpoint(base, folder / f"base{suffix}")
    return inputs, base


def large(seed: int) -> dict[str, Tensor]:
    """Tensors around the length of one block and of several, and more than torch's grain of work for one thread."""
    generator = torch.Generator().manual_seed(seed)
    sizes = [BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK + 77, 1, 15, 33]
    return {f"layer{i}.weight": torch.randn(size, generator=generator) for i, size in enumerate(sizes)}


def square(seed: int) -> dict[str, Tensor]:
    """One matrix of more than torch's grain of work for one thread, for methods that take tensors whole."""
    return {"layer.weight": torch.randn(200, 200, generator=torch.Generator().manual_seed(seed))}


def untied(seed: int, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """What safetensors keep of `weights`."""
    return {name: value.clone() for name, value in weights(seed, dtype).items()}


# -- 9. file, stream, memory and live model --------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
@pytest.mark.parametrize("method", METHOD_NAMES)
def test_9_files_memory_and_live_models_are_equal_to_the_bit(
    tmp_path: Path, method: str, suffix: str, dtype: torch.dtype
) -> None:
    make = untied if suffix == ".safetensors" else weights
    inputs, base = save_inputs(tmp_path, method, suffix, lambda seed: make(seed, dtype))
    for share in (0.0, 0.3, 0.7, 1.0):
        parameters = parameters_of(method, share)
        wanted = in_memory(method, inputs, parameters, base=base)
        out = tmp_path / f"out{share}{suffix}"
        merge.run(recipe_of(method, tmp_path, suffix, **parameters), out, QUICK)
        got = merge.load_checkpoint(out)
        assert_same(ordered_as(got, wanted), wanted)
        opened = {name: merge.open_checkpoint(tmp_path / f"{name[2:]}{suffix}") for name in inputs}
        opened_base = merge.open_checkpoint(tmp_path / f"base{suffix}") if base else None
        lazily = in_memory(method, opened, parameters, base=opened_base)
        assert_same(ordered_as(lazily, wanted), wanted)
        for resident in (True, False):
            model = Carrier(make(5, dtype))
            LivePath(model, method, opened, opened_base, resident=resident).set_parameters(**parameters)
            assert_same(ordered_as(model.now(), wanted), wanted)


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_9_tensors_of_many_blocks_and_torch_threads(
    tmp_path: Path, method: str, threads: Callable[[int], None], workers: None
) -> None:
    elementwise = METHODS[method].elementwise
    make = large if elementwise else square
    inputs, base = save_inputs(tmp_path, method, ".safetensors", make)
    recipe = recipe_of(method, tmp_path)
    threads(1)
    wanted = in_memory(method, inputs, recipe.parameters, base=base)
    for number in (1, 2, 3, 4) if elementwise else (4,):
        threads(number)
        assert_same(in_memory(method, inputs, recipe.parameters, base=base), wanted)
        model = Carrier(make(5))
        LivePath(model, method, inputs, base).set_parameters(**recipe.parameters)
        assert_same(model.now(), wanted)
        out = merge.run(recipe, tmp_path / f"{number}.out.safetensors", Options(sync=False, threads=number))
        assert_same(merge.load_checkpoint(out), wanted)


def test_9_sweeps_give_what_single_merges_give(tmp_path: Path) -> None:
    inputs, _ = save_inputs(tmp_path, "interpolate", ".pt")
    recipe = recipe_of("interpolate", tmp_path, ".pt")
    folder = merge.sweep_to_files(recipe, [{"ratio": ratio} for ratio in merge.ratios(4)], tmp_path / "points", QUICK)
    rows = json.loads((folder / "sweep.json").read_text())["points"]
    for row, (ratio, wanted) in zip(rows, merge.sweep(*inputs.values(), merge.ratios(4)), strict=True):
        assert row["parameters"] == {"ratio": ratio}
        assert row["digest"] == merge.digest(wanted)
        single = merge.run(recipe.with_parameters(ratio=ratio), tmp_path / f"{ratio}.pt", QUICK)
        assert_same(merge.load_checkpoint(folder / row["file"]), merge.load_checkpoint(single))


# -- 8. determinism --------------------------------------------------------------------------------------------------


def output_bytes(out: Path) -> dict[str, bytes]:
    """All bytes of an output and what its recipe says of the result."""
    record = json.loads(out.with_name(out.name + ".recipe.json").read_text())
    return {"file": out.read_bytes(), "output": json.dumps({**record["output"], "file": ""}).encode()}


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
@pytest.mark.parametrize("method", METHOD_NAMES)
def test_8_the_bytes_do_not_depend_on_threads(tmp_path: Path, method: str, suffix: str, workers: None) -> None:
    save_inputs(tmp_path, method, suffix)
    recipe = recipe_of(method, tmp_path, suffix)
    outputs: list[dict[str, bytes]] = []
    for count in (1, 2, 3, 4, 0):
        (tmp_path / f"{count}t").mkdir()  # torch files hold their own name
        out = merge.run(recipe, tmp_path / f"{count}t" / f"out{suffix}", Options(sync=False, threads=count))
        outputs.append(output_bytes(out))
    assert all(output == outputs[0] for output in outputs)


def test_8_sums_do_not_depend_on_torch_threads(threads: Callable[[int], None]) -> None:
    first, second = torch.randn(2, 300_000, generator=torch.Generator().manual_seed(0)).unbind()
    products, sums = set[float](), set[float]()
    for number in (1, 2, 3, 4):
        threads(number)
        products.add(float((first.double() * second.double()).sum()))
        sums.add(dot(first, second))
    assert len(sums) == 1
    assert len(products) > 1  # what they are protected from


@pytest.mark.parametrize("ratio", [0.5, 3e38])
def test_torch_keeps_its_number_of_threads(tmp_path: Path, threads: Callable[[int], None], ratio: float) -> None:
    recipe = replace(pair(tmp_path, weights(0), weights(1)), policy=Policy(extrapolate=True))
    recipe = recipe.with_parameters(ratio=ratio)
    threads(3)
    if ratio == 0.5:
        merge.run(recipe, tmp_path / "m.safetensors", QUICK)
    else:
        with pytest.raises(MergeError, match="infinite or NaN"):
            merge.run(recipe, tmp_path / "m.safetensors", QUICK)
    assert torch.get_num_threads() == 3


@pytest.mark.parametrize("block", [1, 2, 7, 64, 1000])
@pytest.mark.parametrize("method", METHOD_NAMES)
def test_8_the_bytes_do_not_depend_on_the_block(
    tmp_path: Path, method: str, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_inputs(tmp_path, method, ".safetensors")
    recipe = recipe_of(method, tmp_path)
    wanted = output_bytes(merge.run(recipe, tmp_path / "a.safetensors", QUICK))
    monkeypatch.setattr(stream, "BLOCK", 4 * block)
    assert output_bytes(merge.run(recipe, tmp_path / "b.safetensors", QUICK)) == wanted


SEEDED = """
import sys
from pathlib import Path
sys.path[:0] = ["."]
import torch
torch.set_num_threads(1)
from tests.merge.made import recipe_of
import merge
from merge.methods import METHODS
from merge.methods.blocks import dot
folder = Path(sys.argv[1])
for method in sorted(METHODS):
    out = folder / f"{method}.there.safetensors"
    merge.run(recipe_of(method, folder), out, merge.Options(sync=False))
"""


def test_8_the_bytes_do_not_depend_on_string_hashing(tmp_path: Path) -> None:
    for index in range(4):
        merge.save_checkpoint(weights(index), tmp_path / f"{index}.safetensors")
    merge.save_checkpoint(weights(9), tmp_path / "base.safetensors")
    seed = "1" if os.environ.get("PYTHONHASHSEED") == "2" else "2"
    environment = {**os.environ, "PYTHONHASHSEED": seed}
    subprocess.run([sys.executable, "-c", SEEDED, str(tmp_path)], cwd=ROOT, env=environment, check=True)
    for method in METHOD_NAMES:
        here = merge.run(recipe_of(method, tmp_path), tmp_path / f"{method}.here.safetensors", QUICK)
        assert output_bytes(here) == output_bytes(tmp_path / f"{method}.there.safetensors"), method


def test_8_the_bytes_do_not_depend_on_where_the_inputs_lie(tmp_path: Path) -> None:
    outputs: list[bytes] = []
    for name in ("here", "elsewhere"):
        (tmp_path / name).mkdir()
        save_inputs(tmp_path / name, "interpolate", ".safetensors")
        out = merge.run(recipe_of("interpolate", tmp_path / name), tmp_path / name / "m.safetensors", QUICK)
        outputs.append(out.read_bytes())
    assert outputs[0] == outputs[1]


# -- elementwise arithmetic does not depend on where it is cut -------------------------------------------------------

ELEMENTWISE = [name for name in METHOD_NAMES if METHODS[name].elementwise]
MORE = [
    ("interpolate", {"ratio": 0.5}),
    ("interpolate", {"ratio": 0.7}),
    ("average", {"weights": (0.2, 0.5, 0.3)}),
    ("average", {"weights": (1.5, -0.2, -0.3)}),
    ("average", {"weights": (0.2, 0.2, 0.2)}),
    ("task-arithmetic", {"scale": 0.3, "weights": (1.0, -0.7, 0.2)}),
]
CASES = [(name, {}) for name in ELEMENTWISE] + MORE


def piecewise(method: str, changes: dict[str, Any], dtype: torch.dtype) -> tuple[list[Tensor], Callable[..., Tensor]]:
    """420 values of very different sizes for each input, and the method's function at these parameters."""
    generator = torch.Generator().manual_seed(0)
    count = count_of(method) + METHODS[method].takes_base
    sizes = 10 ** torch.randn(count, 420, generator=generator)
    tensors = list((torch.randn(count, 420, generator=generator) * sizes).to(dtype).unbind())
    recipe = replace(recipe_of(method, Path(), **changes), policy=Policy(extrapolate=True))
    parameters = parameters_for(recipe, [Unit(("w",), "merge", tuple(range(count)), dtype, (420,))])["w"]
    return tensors, functools.partial(METHODS[method].function, name="w", **parameters)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("method", "changes"), CASES)
def test_elementwise_arithmetic_does_not_depend_on_where_it_is_cut(
    method: str, changes: dict[str, Any], dtype: torch.dtype
) -> None:
    tensors, function = piecewise(method, changes, dtype)
    whole = function(tensors)
    for cut in range(1, 100):
        for part in (slice(cut, None), slice(None, cut), slice(cut, cut + 33)):
            piece = function([tensor[part] for tensor in tensors])
            assert torch.equal(piece, whole[part]), f"{part} of {method}"


@pytest.mark.parametrize(("method", "changes"), CASES)
def test_elementwise_arithmetic_does_not_depend_on_the_layout(method: str, changes: dict[str, Any]) -> None:
    """Strided views take other inner loops of torch than contiguous tensors; live models are written through `out`."""
    tensors, function = piecewise(method, changes, torch.float32)
    whole = function(tensors)
    every_other = [torch.stack([tensor, tensor], 1)[:, 0] for tensor in tensors]
    assert torch.equal(function(every_other), whole)
    turned = [tensor.view(42, 10).t().contiguous().t() for tensor in tensors]
    assert torch.equal(function(turned).reshape(-1), whole)
    mixed = [turned[0], *(tensor.view(42, 10) for tensor in tensors[1:])]
    assert torch.equal(function(mixed).reshape(-1), whole)
    for out in (torch.empty(10, 42).t(), torch.empty(42, 10)):
        function(mixed, out=out)
        assert torch.equal(out.reshape(-1), whole.to(out.dtype))  # some compute in float64


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_strided_tensors_in_memory_give_the_bits_of_files(tmp_path: Path, method: str) -> None:
    inputs, base = save_inputs(tmp_path, method, ".safetensors")
    wanted = in_memory(method, inputs, parameters_of(method), base=base)
    name = "encoder.layers.0.fc.weight"
    for state in [*inputs.values(), *([base] if base else [])]:
        state[name] = state[name].t().contiguous().t()
    assert_same(in_memory(method, inputs, parameters_of(method), base=base), wanted)


# -- policies from file to file --------------------------------------------------------------------------------------


def pair(folder: Path, first: dict[str, Tensor], second: dict[str, Tensor], suffix: str = ".safetensors") -> Recipe:
    for name, state in (("a", first), ("b", second)):
        merge.save_checkpoint(state, folder / f"{name}{suffix}")
    inputs = (Input("a", folder / f"a{suffix}"), Input("b", folder / f"b{suffix}"))
    return Recipe("interpolate", inputs, {"ratio": 0.25})


POLICIES = {
    "keep": Policy(keep=("encoder.image.*", "decoder.s*")),
    "drop": Policy(drop=("decoder.*",)),
    "dtype": Policy(dtype=torch.bfloat16),
    "float64": Policy(compute_dtype=torch.float64),
    "batchnorm": Policy(batchnorm="from:b"),
}


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
def test_policies_hold_in_files_as_in_memory(tmp_path: Path, policy: Policy) -> None:
    states = {"a": weights(0), "b": weights(1)}
    recipe = pair(tmp_path, states["a"], states["b"])
    recipe = Recipe(recipe.method, recipe.inputs, recipe.parameters, policy=policy)
    wanted = in_memory("interpolate", states, {"ratio": 0.25}, policy)
    got = merge.load_checkpoint(merge.run(recipe, tmp_path / "m.safetensors", QUICK))
    assert_same(ordered_as(got, wanted), wanted)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_missing_names_are_kept_from_the_first_that_has_them(tmp_path: Path, suffix: str) -> None:
    first, second = weights(0), weights(1)
    del first["encoder.layers.0.fc.bias"], second["decoder.scale"]
    recipe = pair(tmp_path, first, second, suffix)
    policy = Policy(missing="keep-first")
    with pytest.raises(
        MergeError, match=r"a lacks 1 tensor: encoder\.layers\.0\.fc\.bias; b lacks 1 tensor: decoder\.scale"
    ):
        merge.run(recipe, tmp_path / f"m{suffix}", QUICK)
    recipe = Recipe(recipe.method, recipe.inputs, recipe.parameters, policy=policy)
    got = merge.load_checkpoint(merge.run(recipe, tmp_path / f"m{suffix}", QUICK))
    wanted = merge.interpolate(first, second, 0.25, policy=policy)
    assert_same(ordered_as(got, wanted), wanted)
    assert torch.equal(got["decoder.scale"], first["decoder.scale"])
    assert torch.equal(got["encoder.layers.0.fc.bias"], second["encoder.layers.0.fc.bias"])


def test_ties_stay_ties_in_torch_files(tmp_path: Path) -> None:
    recipe = pair(tmp_path, weights(0), weights(1), ".pt")
    out = merge.run(recipe, tmp_path / "m.pt", QUICK)
    state = torch.load(out, weights_only=True)
    assert state["encoder.embed.weight"].data_ptr() == state["decoder.output.weight"].data_ptr()
    assert list(state) == list(weights(0))


def test_untied_values_in_the_second_file_untie_the_result(tmp_path: Path) -> None:
    first, second = weights(0), weights(1)
    second["decoder.output.weight"] = second["decoder.output.weight"] + 1
    out = merge.run(pair(tmp_path, first, second, ".pt"), tmp_path / "m.pt", QUICK)
    got = merge.load_checkpoint(out)
    for name in ("encoder.embed.weight", "decoder.output.weight"):
        assert torch.equal(got[name], torch.lerp(first[name], second[name], 0.25))


def test_rules_by_module_hold_in_files_as_in_memory(tmp_path: Path) -> None:
    states = [weights(0), weights(1)]
    rules = {"encoder.image.*": 0.0, "encoder.layers.*": 0.2, "*": 0.9}
    recipe = pair(tmp_path, *states).with_parameters(ratio=rules)
    got = merge.load_checkpoint(merge.run(recipe, tmp_path / "m.safetensors", QUICK))
    wanted = merge.interpolate(*states, rules)
    assert_same(ordered_as(got, wanted), wanted)
    assert torch.equal(got["encoder.image.bn.weight"], states[0]["encoder.image.bn.weight"])
    assert torch.equal(got["decoder.scale"], torch.lerp(states[0]["decoder.scale"], states[1]["decoder.scale"], 0.9))


# -- values that are not finite --------------------------------------------------------------------------------------


def broken(seed: int) -> dict[str, Tensor]:
    state = large(seed)
    state["layer3.weight"][BLOCK - 1 : BLOCK + 2] = float("nan")  # on both sides of a block's end
    state["layer1.weight"][0] = float("inf")
    return state


def test_values_that_are_not_finite_are_counted_per_tensor_and_refused(tmp_path: Path) -> None:
    recipe = pair(tmp_path, large(0), broken(1))
    before = sorted(tmp_path.iterdir())
    with pytest.raises(MergeError) as caught:
        merge.run(recipe, tmp_path / "m.safetensors", QUICK)
    assert str(caught.value) == (
        "interpolate: 0.75 a + 0.25 b: infinite or NaN values in 2 tensors (3 in layer3.weight, 1 in layer1.weight); "
        "pass allow_nonfinite=True to write them"
    )
    assert sorted(tmp_path.iterdir()) == before
    accepted = Recipe(recipe.method, recipe.inputs, recipe.parameters, policy=Policy(allow_nonfinite=True))
    out = merge.run(accepted, tmp_path / "m.safetensors", QUICK)
    record = json.loads((tmp_path / "m.safetensors.recipe.json").read_text())
    assert record["output"]["nonfinite"] == {"layer1.weight": 1, "layer3.weight": 3}
    wanted = merge.interpolate(large(0), broken(1), 0.25, policy=Policy(allow_nonfinite=True))
    assert_same(merge.load_checkpoint(out), wanted)


def test_a_sweep_with_one_bad_point_writes_nothing(tmp_path: Path) -> None:
    recipe = pair(tmp_path, large(0), broken(1))
    before = sorted(tmp_path.iterdir())
    with pytest.raises(MergeError, match="infinite or NaN values in 2 tensors"):
        merge.sweep_to_files(recipe, [{"ratio": 0.0}, {"ratio": 0.5}], tmp_path / "points", QUICK)
    assert sorted(tmp_path.iterdir()) == before


# -- what is checked first -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"ratio": 1.5}, r"ratio 1\.5 is outside \[0, 1\]; pass extrapolate=True"),
        ({"ratio": float("nan")}, "ratio must be a finite number, not nan"),
        ({"ratio": "0.5"}, "ratio must be a finite number, not '0.5'"),
        ({"ratio": True}, "ratio must be a finite number, not True"),
        ({"ratoi": 0.5}, r"interpolate has no parameter 'ratoi'; did you mean 'ratio'\?"),
        ({}, "interpolate needs the parameter 'ratio': share of the second checkpoint"),
    ],
)
def test_parameters_are_checked_before_a_tensor_is_read(
    tmp_path: Path, parameters: dict[str, object], message: str
) -> None:
    recipe = pair(tmp_path, weights(0), weights(1))
    (tmp_path / "b.safetensors").touch()
    read: list[int] = []
    with pytest.raises(MergeError, match=message):
        merge.run(
            Recipe("interpolate", recipe.inputs, parameters),
            tmp_path / "m.safetensors",
            Options(sync=False, progress=read.append),
        )
    assert read == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.safetensors", "b.safetensors"]


def test_every_input_byte_is_reported_once(tmp_path: Path) -> None:
    recipe = pair(tmp_path, large(0), large(1))
    read: list[int] = []
    merge.run(recipe, tmp_path / "m.safetensors", Options(sync=False, progress=read.append))
    assert sum(read) == sum(merge.open_checkpoint(item.path).nbytes for item in recipe.inputs)


def test_inputs_are_not_changed_by_a_merge(tmp_path: Path) -> None:
    recipe = pair(tmp_path, weights(0), weights(1), ".pt")
    before = {item.path: item.path.read_bytes() for item in recipe.inputs}
    merge.run(recipe, tmp_path / "m.pt", QUICK)
    assert {path: path.read_bytes() for path in before} == before


def test_the_output_may_not_be_an_input(tmp_path: Path) -> None:
    recipe = pair(tmp_path, weights(0), weights(1))
    before = (tmp_path / "a.safetensors").read_bytes()
    (tmp_path / "link.safetensors").symlink_to(tmp_path / "a.safetensors")
    for name in ("a.safetensors", "link.safetensors"):
        with pytest.raises(MergeError, match=r"input.*choose another"):
            merge.run(recipe, tmp_path / name, Options(overwrite=True))
    assert (tmp_path / "a.safetensors").read_bytes() == before


def test_a_sweep_may_not_replace_the_folder_of_its_inputs(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    recipe = pair(tmp_path / "in", weights(0), weights(1))
    for folder in (tmp_path / "in", tmp_path):
        with pytest.raises(MergeError, match=r"input.*choose another"):
            merge.sweep_to_files(recipe, [{"ratio": 0.0}, {"ratio": 1.0}], folder, Options(overwrite=True))
    assert sorted(path.name for path in (tmp_path / "in").iterdir()) == ["a.safetensors", "b.safetensors"]


# -- the streamed engine on odd shapes and stored layouts ------------------------------------------------------------


def test_strided_tensors_of_torch_files_are_merged_by_value(tmp_path: Path) -> None:
    table = torch.arange(24.0).view(4, 6)
    first = {"turned": table.t(), "column": table[:, 2], "expanded": torch.ones(3, 1).expand(3, 4)}
    second = {name: torch.randn(value.shape) for name, value in first.items()}
    torch.save(first, tmp_path / "a.pt")
    torch.save(second, tmp_path / "b.pt")
    recipe = Recipe("interpolate", (Input("a", tmp_path / "a.pt"), Input("b", tmp_path / "b.pt")), {"ratio": 0.5})
    got = merge.load_checkpoint(merge.run(recipe, tmp_path / "m.pt", QUICK))
    assert_same(got, {name: torch.lerp(first[name], second[name], 0.5) for name in first})


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float16, torch.float64, torch.complex64])
@pytest.mark.parametrize("shape", [(), (0,), (1,), (3, 0, 2), (5, 7)])
def test_every_dtype_and_shape_goes_through_files(tmp_path: Path, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(1)
    wide = torch.complex64 if dtype.is_complex else torch.float32
    first, second = ({"w": torch.randn(shape, generator=generator, dtype=wide).to(dtype)} for _ in range(2))
    got = merge.load_checkpoint(merge.run(pair(tmp_path, first, second), tmp_path / "m.safetensors", QUICK))
    assert_same(got, merge.interpolate(first, second, 0.25))


def test_a_checkpoint_merged_with_itself_is_unchanged_in_files(tmp_path: Path) -> None:
    recipe = pair(tmp_path, weights(0), copied(weights(0)))
    out = merge.run(recipe, tmp_path / "m.safetensors", QUICK)
    assert merge.digest(merge.load_checkpoint(out)) == merge.digest(weights(0))


def test_results_of_another_dtype_are_as_large_as_planned(tmp_path: Path) -> None:
    recipe = pair(tmp_path, large(0), large(1))
    narrow = Recipe(recipe.method, recipe.inputs, recipe.parameters, policy=Policy(dtype=torch.float16))
    got = merge.load_checkpoint(merge.run(narrow, tmp_path / "m.safetensors", QUICK))
    for name, value in large(0).items():
        assert torch.equal(bits(got[name]), bits(torch.lerp(value, large(1)[name], 0.25).half()))
