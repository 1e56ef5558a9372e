"""Methods that look at the whole model first: recordings of the papers' programs, laws, every way of merging."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import merge
from merge import METHODS, MergeError, Options, Recipe
from merge.methods.method import Survey
from merge.methods.survey import Model, Surveyed, order_statistics
from tests import DATA
from tests.merge.made import assert_same, in_memory, weights
from tests.merge.ways import merged_every_way, recipe_of

FOLDER = DATA / "fusionbench"
# The recordings of each method, in our words.
OURS = {
    "ties": lambda p: {
        "density": p["k"] / 100,
        "threshold": "published",
        "normalize": p["merge"] == "mean",
        "largest": p["merge"] == "max",
        "scale": p.get("scale", 1.0),
    },
    "lines": lambda p: {"beta": p["beta"], "alpha": p.get("alpha", "auto"), "block": "lowest"},
    "lines_ties": lambda p: {
        "beta": p["beta"],
        "change": "ties",
        "density": p["k"] / 100,
        "threshold": "published",
        "block": "lowest",
    },
    "pcb": lambda p: {"density": p["pcb_ratio"]},
    "pcbn": lambda p: {"density": p["pcb_ratio"], "version": "nlp"},
    "pcbv": lambda p: {"density": p["att_ratio"], "version": "vision"},
}
NAMES = {"ties": "ties", "lines": "lines", "pcb": "pcb", "lines_ties": "lines", "pcbn": "pcb", "pcbv": "pcb"}


@cache
def recordings() -> dict[str, dict[str, Any]]:
    entries: dict[str, dict[str, Any]] = json.loads((FOLDER / "recipes.json").read_text())
    return {name: entry for name, entry in entries.items() if entry["method"] in OURS}


@cache
def loaded(file: str) -> dict[str, Tensor]:
    return merge.load_checkpoint(FOLDER / file)


@pytest.mark.parametrize("name", list(recordings()))
def test_as_the_papers_program(name: str) -> None:
    entry = recordings()[name]
    method, given = entry["method"], entry["parameters"]
    base, experts = loaded(entry["base"]), [loaded(file) for file in entry["experts"]]
    experts = [experts[given["single"]]] if "single" in given else experts
    made = in_memory(NAMES[method], dict(zip("abc", experts, strict=False)), OURS[method](given), base=base)
    wanted = loaded(entry["files"]["merged"])
    assert set(made) == set(wanted)
    for tensor, value in wanted.items():
        torch.testing.assert_close(made[tensor], value, rtol=0, atol=entry["atol"])


@pytest.mark.parametrize("name", ["dare_p0.5", "dare_p0.9", "dare_p0.5_norescale"])
def test_dare_by_the_recorded_masks(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    entry: dict[str, Any] = json.loads((FOLDER / "recipes.json").read_text())[name]
    given, base = entry["parameters"], loaded(entry["base"])
    experts = [loaded(file) for file in entry["experts"]]
    kept = [loaded(entry["files"][f"kept{index}"]) for index in range(len(experts))]
    wanted = loaded(entry["files"]["merged"])
    for tensor, start in base.items():
        masks = iter([mask[tensor].to(start.dtype).reshape(-1) for mask in kept])
        monkeypatch.setattr(torch, "bernoulli", lambda like, *_, masks=masks, **__: next(masks).view(like.shape))
        density, rescale = 1 - given["p"], given.get("rescale", True)
        states = {
            "x": {tensor: experts[0][tensor]},
            "y": {tensor: experts[1][tensor]},
            "z": {tensor: experts[2][tensor]},
        }
        parameters = {"density": density, "scale": given["scale"], "rescale": rescale}
        made = in_memory("dare-linear", states, parameters, base={tensor: start})[tensor]
        torch.testing.assert_close(made, wanted[tensor], rtol=0, atol=entry["atol"])


# -- selection -------------------------------------------------------------------------------------------------------


class Made:
    """A model of given tensors, counting the passes."""

    def __init__(self, tensors: Sequence[Sequence[Tensor]]):
        self.tensors, self.passes = tensors, 0
        self.parameters: dict[str, Any] = {}

    def each(self, look: Any, names: Any = None) -> Iterator[Any]:
        self.passes += 1
        return (look(str(index), item) for index, item in enumerate(self.tensors))


NUMBERS = st.floats(-(2.0**99), 2.0**99, width=32, allow_subnormal=False) | st.sampled_from([0.0, -0.0, 1.0, -1.0])


@settings(max_examples=20)
@given(st.lists(st.lists(NUMBERS, max_size=4), min_size=1, max_size=4), st.sampled_from([torch.float32, torch.float64]))
def test_order_statistics_are_those_of_a_sort(values: list[list[float]], last: torch.dtype) -> None:
    tensors = [[torch.tensor(item, dtype=torch.float32)] for item in values]
    tensors[-1] = [tensors[-1][0].to(last) / 3]
    model = Made(tensors)
    found = order_statistics(
        model, lambda block: [block[0], -block[0]], lambda n: [list(range(n)), [0, n - 1][: 2 * n]]
    )
    ordered = torch.cat([item[0].double() for item in tensors]).sort().values.tolist()
    assert found == [ordered, [-ordered[-1], -ordered[0]] if ordered else []]
    assert model.passes == (1 if not ordered else 2 if last == torch.float32 or not values[-1] else 5)


# -- TIES ------------------------------------------------------------------------------------------------------------


def test_a_whole_threshold_keeps_the_largest_of_the_model() -> None:
    base = {"a": torch.zeros(4), "b": torch.zeros(2, 3)}
    expert = {"a": torch.tensor([1.0, -9.0, 2.0, 3.0]), "b": torch.tensor([[8.0, 3.0, 0.5], [-7.0, 3.0, 0.1]])}
    whole = in_memory("ties", {"x": expert}, {"density": 0.3, "threshold": "whole"}, base=base)
    assert whole["a"].tolist() == [0.0, -9.0, 0.0, 0.0]
    assert whole["b"].tolist() == [[8.0, 0.0, 0.0], [-7.0, 0.0, 0.0]]
    more = in_memory("ties", {"x": expert}, {"density": 0.4, "threshold": "whole"}, base=base)  # of equal ones all
    assert more["a"].tolist() == [0.0, -9.0, 0.0, 3.0]
    assert more["b"].tolist() == [[8.0, 3.0, 0.0], [-7.0, 3.0, 0.0]]
    published = in_memory("ties", {"x": expert}, {"density": 0.2, "threshold": "published"}, base=base)
    assert_same(published, whole)  # one more than 20 %
    apart = in_memory("ties", {"x": expert}, {"density": 0.5, "threshold": {"b": "tensor", "*": "whole"}}, base=base)
    assert apart["a"].tolist() == [0.0, -9.0, 0.0, 3.0]
    assert apart["b"].tolist() == [[8.0, 3.0, 0.0], [-7.0, 0.0, 0.0]]


@pytest.mark.parametrize("threshold", ["whole", "published"])
def test_whole_densities_of_none_and_all(threshold: str) -> None:
    base, experts = weights(0), {"x": weights(1), "y": weights(2)}
    every, none = (in_memory("ties", experts, {"density": d, "threshold": threshold}, base=base) for d in (1, 0))
    per_tensor = in_memory("ties", experts, {"density": 1}, base=base)
    assert_same(none, base)
    for name, value in per_tensor.items():
        torch.testing.assert_close(every[name], value)
    half = in_memory("ties", experts, {"density": [1, 0], "threshold": threshold}, base=base)
    assert_same(half, in_memory("ties", experts, {"density": [1, 0]}, base=base))


def test_a_threshold_has_one_density() -> None:
    base = {"a": torch.zeros(2), "b": torch.zeros(2)}
    rules = {"density": {"a": 0.5, "*": 0.2}, "threshold": "whole"}
    with pytest.raises(
        MergeError, match=r"a has density \(0.5,\) and b \(0.2,\): what looks at the whole model has one"
    ):
        in_memory("ties", {"x": {name: value + 1 for name, value in base.items()}}, rules, base=base)
    with pytest.raises(MergeError, match="threshold must be one of tensor, whole, published, not 'whol'; did you mean"):
        in_memory("ties", {"x": base}, {"density": 0.5, "threshold": "whol"}, base=base)


# -- LiNeS -----------------------------------------------------------------------------------------------------------


def test_the_factor_grows_with_the_first_number_of_a_name() -> None:
    names = ["embed", "h.0.w", "h.1.w", "h.2.experts.0.w", "h.4.w", "norm"]
    base, expert = ({name: torch.full((1,), value) for name in names} for value in (0.0, 1.0))
    made = in_memory("lines", {"x": expert}, {"alpha": 0.2, "beta": 0.4}, base=base)
    assert [made[name].item() for name in names] == pytest.approx([0.2, 0.2, 0.3, 0.4, 0.6, 0.2])
    published = in_memory("lines", {"x": expert}, {"alpha": 0.2, "beta": 0.4, "block": "lowest"}, base=base)
    assert published["h.2.experts.0.w"].item() == pytest.approx(0.2)
    edited = in_memory("lines", {"x": expert}, {"alpha": 0.2}, base=base)  # beta is 1 - alpha
    assert [edited[name].item() for name in ("embed", "h.4.w")] == [pytest.approx(0.2), 1.0]
    more = in_memory("lines", {"x": expert}, {"alpha": 0.2, "beta": 0.4, "blocks": 9}, base=base)
    assert more["h.4.w"].item() == pytest.approx(0.4)
    with pytest.raises(MergeError, match=r"blocks 3: h.4.w lies in block 4, beyond the last; leave blocks out"):
        in_memory("lines", {"x": expert}, {"blocks": 3}, base=base)


def test_one_block_has_alpha_and_nothing_changed_is_the_base() -> None:
    base, expert = {"h.0.w": torch.zeros(2)}, {"h.0.w": torch.ones(2)}
    assert in_memory("lines", {"x": expert}, {"alpha": 0.3, "beta": 0.5}, base=base)["h.0.w"].tolist() == pytest.approx(
        [0.3, 0.3]
    )
    same = in_memory("lines", {"x": base, "y": base}, {"change": "ties"}, base=base)
    assert_same(same, base)


def test_depth_is_told(tmp_path: Path) -> None:
    for name, value in (("base", 0.0), ("x", 1.0)):
        state = {key: torch.full((2,), value) for key in ("embed", "h.0.w", "h.1.w")}
        merge.save_checkpoint(state, tmp_path / f"{name}.safetensors")
    paths = {name: tmp_path / f"{name}.safetensors" for name in ("x", "base")}
    merge.run(recipe_of("lines", paths, {}, merge.Policy()), tmp_path / "m.safetensors", Options(sync=False))
    note = json.loads((tmp_path / "m.safetensors.recipe.json").read_text())["output"]["summary"]
    assert note[1:] == ["depth is by numbers in names: 2 blocks (h with 2), 1 tensors in none", "alpha is 1"]


# -- PCB -------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_pcb_of_very_many_experts_is_finite() -> None:
    base = {"w": torch.zeros(5)}
    experts = {str(i): {"w": torch.arange(5.0) * (-1) ** i + i / 100} for i in range(100)}
    made = in_memory("pcb", experts, {"density": 0.5}, base=base)["w"]
    assert made.isfinite().all()
    assert made.abs().sum() > 0
    idle = experts | {"idle": base}
    torch.testing.assert_close(in_memory("pcb", idle, {"density": 0.5}, base=base)["w"], made, rtol=0.1, atol=0)


# -- every way of merging --------------------------------------------------------------------------------------------


@pytest.fixture
def paths(tmp_path: Path) -> dict[str, Path]:
    dtypes = {"x": torch.bfloat16, "y": torch.bfloat16, "base": torch.bfloat16}
    files = {name: tmp_path / f"{name}.safetensors" for name in dtypes}
    for seed, (name, path) in enumerate(files.items()):
        merge.save_checkpoint(weights(seed, dtypes[name]), path)
    return files


SURVEYED: dict[str, dict[str, Any]] = {
    "ties": {"density": 0.3, "threshold": "published"},
    "lines": {"change": "ties", "density": 0.3},
    "pcb": {"density": 0.2, "version": "vision"},
}


@pytest.mark.parametrize("method", SURVEYED)
def test_files_memory_and_live_agree(method: str, paths: dict[str, Path], tmp_path: Path) -> None:
    recipe = recipe_of(method, paths, SURVEYED[method], merge.Policy())
    made = merged_every_way(recipe, tmp_path / "out.safetensors")
    again = merge.run(recipe, tmp_path / "threads.safetensors", Options(threads=3, sync=False))
    assert_same(merge.load_checkpoint(again), made)


def test_a_sweep_surveys_once_for_all_that_agree(
    paths: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    surveys: list[Surveyed] = []
    entry = METHODS["ties"].survey
    assert entry is not None

    def counted(model: Model) -> Surveyed:
        surveys.append(entry.function(model))
        return surveys[-1]

    monkeypatch.setitem(METHODS, "ties", replace(METHODS["ties"], survey=Survey(counted, entry.of)))
    recipe = recipe_of("ties", paths, {"density": 0.3, "threshold": "whole"}, merge.Policy())
    points = [{"scale": 0.5}, {"scale": 1.0}, {"density": 0.4}]
    told: list[str] = []
    options = Options(sync=False, stage=lambda label, size: told.append(f"{label}: {size}"))
    folder = merge.sweep_to_files(recipe, points, tmp_path / "points", options)
    assert len(surveys) == 2
    size = sum(merge.open_checkpoint(path).nbytes for path in paths.values())
    passes = [f"ties, survey {number}: {size}" for number in (1, 2)]
    assert told == [*passes, *passes, f"ties: {size}"]
    index = json.loads((folder / "sweep.json").read_text())
    for point, row in zip(points, index["points"], strict=True):
        alone = Recipe(recipe.method, recipe.inputs, {**recipe.parameters, **point}, recipe.base)
        assert_same(
            merge.load_checkpoint(folder / row["file"]),
            merge.load_checkpoint(
                merge.run(alone, tmp_path / "alone.safetensors", Options(sync=False, overwrite=True))
            ),
        )
        note = json.loads((folder / f"{row['file']}.recipe.json").read_text())["output"]["summary"][-1]
        assert note.startswith("of the whole model, changes of ")


@pytest.mark.parametrize("method", SURVEYED)
def test_whole_tensors_and_surveys_are_on_the_device(
    method: str, paths: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second name of the CPU stands for a device: what is computed went there, and the result is the same."""
    recipe = recipe_of(method, paths, SURVEYED[method], merge.Policy())
    wanted = merge.load_checkpoint(merge.run(recipe, tmp_path / "cpu.safetensors", Options(sync=False)))
    moved: list[object] = []
    to = Tensor.to

    def noted(value: Tensor, *given: Any, **more: Any) -> Tensor:
        moved.extend(item for item in given if item == "cpu:0")
        return to(value, *given, **more)

    monkeypatch.setattr(Tensor, "to", noted)
    made = merge.run(recipe, tmp_path / "device.safetensors", Options(device="cpu:0", sync=False))
    assert_same(merge.load_checkpoint(made), wanted)
    merged = [value for value in wanted.values() if value.is_floating_point() and value.numel()]
    assert len(moved) >= 2 * 3 * (len(merged) - 1)  # by the survey and the merge, of three files; two names are one
