"""Tensors that lie side by side are worked on as one, and nothing of the result tells."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

import merge
from merge import Input, MergeError, Options, Policy, Recipe
from merge.checkpoint.formats.elements import ELEMENTS
from merge.checkpoint.save import Writer
from merge.engine import stream, stretches
from merge.engine.files import plan_run
from merge.plan.units import Unit

QUICK = Options(sync=False)


def small(seed: int, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Twenty small tensors, one of them empty, one of no axes, with a whole number among them."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(3,), (), (0, 2), *((size, 2) for size in range(1, 17))]
    state = {f"layer{i:02}.w": torch.randn(shape, generator=generator).to(dtype) for i, shape in enumerate(shapes)}
    state["layer09.steps"] = torch.tensor(7)
    return state


def recipe_in(folder: Path, ratio: object = 0.3, policy: Policy | None = None) -> Recipe:
    inputs = tuple(Input(name, folder / f"{name}.safetensors") for name in "ab")
    return Recipe("interpolate", inputs, {"ratio": ratio}, policy=policy or Policy())


def saved(folder: Path, first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    for name, state in (("a", first), ("b", second)):
        merge.save_checkpoint(dict(sorted(state.items())), folder / f"{name}.safetensors")


def found(folder: Path, recipe: Recipe) -> list[list[str]]:
    """The names that are worked on together."""
    plan = plan_run(recipe, folder / "out.safetensors", QUICK)
    (folder / "draft").touch()
    writer = Writer(plan.targets[0].layout, folder / "draft")
    try:
        return [[unit.name for unit in units] for units in stretches.stretches(plan, [writer])]
    finally:
        writer.release()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("block", [1, 24, 1 << 20])
def test_the_result_is_that_of_tensors_merged_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, block: int
) -> None:
    saved(tmp_path, small(0, dtype), small(1, dtype))
    assert max(map(len, found(tmp_path, recipe_in(tmp_path)))) > 8
    monkeypatch.setattr(stream, "BLOCK", block)
    together = merge.run(recipe_in(tmp_path), tmp_path / "together.safetensors", QUICK)
    monkeypatch.setattr(stretches, "LONGEST", 0)
    assert {len(names) for names in found(tmp_path, recipe_in(tmp_path))} == {1}
    alone = merge.run(recipe_in(tmp_path), tmp_path / "alone.safetensors", QUICK)
    assert together.read_bytes() == alone.read_bytes()  # the digests of the inputs, in the header, are equal too
    wanted = {name: merge.digest(tmp_path / f"{name}.safetensors") for name in "ab"}
    recorded = merge.read_recipe(f"{together}.recipe.json")
    assert {item.name: item.digest for item in recorded.inputs} == wanted


def test_what_is_merged_otherwise_or_lies_elsewhere_stays_apart(tmp_path: Path) -> None:
    saved(tmp_path, small(0), small(1))
    names = sorted(small(0))
    by_rule = found(tmp_path, recipe_in(tmp_path, {"layer12.w": 0.5, "*": 0.3}))
    assert ["layer12.w"] in by_rule
    kept = found(tmp_path, recipe_in(tmp_path, policy=Policy(keep=("layer12.w",))))
    assert ["layer12.w"] in kept
    assert all(["layer09.steps"] in groups for groups in (by_rule, kept))
    assert sorted(name for group in kept for name in group) == names
    backwards = dict(sorted(small(1).items(), reverse=True))
    merge.save_checkpoint(backwards, tmp_path / "b.safetensors", overwrite=True)
    assert {len(group) for group in found(tmp_path, recipe_in(tmp_path))} <= {1, 2}  # 2: an empty one lies anywhere


def test_a_value_that_is_not_finite_is_told_of_its_own_tensor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = small(1)
    broken["layer07.w"][1, 1] = torch.nan
    broken["layer08.w"][:2, 0] = torch.inf
    saved(tmp_path, small(0), broken)
    for block in (1 << 20, 8):
        monkeypatch.setattr(stream, "BLOCK", block)
        with pytest.raises(MergeError, match=r"2 tensors \(2 in layer08\.w, 1 in layer07\.w\)"):
            merge.run(recipe_in(tmp_path), tmp_path / "out.safetensors", QUICK)


def test_the_parts_of_a_block_cover_it_once() -> None:
    units = [Unit((str(n),), "merge", (0, 1), ELEMENTS["float32"], (n,)) for n in (3, 0, 5, 2)]
    for start, stop in ((0, 10), (2, 4), (3, 8), (9, 10)):
        numbers = torch.arange(start, stop)
        pieces = [numbers[part].tolist() for _, part in stretches.parts(units, start, stop)]
        assert [number for piece in pieces for number in piece] == numbers.tolist()
