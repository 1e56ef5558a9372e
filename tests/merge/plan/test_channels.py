"""Models with more input channels than others: inpainting, depth and edit variants of an image model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

import merge
from merge import MergeError, Policy
from tests.merge.handmade import assert_equal
from tests.merge.shell import command
from tests.merge.ways import merged_every_way, recipe_of

# Stable Diffusion's first convolution (4 channels; 9 with a mask and its image), FLUX's first layer (64; 384).
CONVOLUTION, LINEAR = "model.diffusion_model.input_blocks.0.0.weight", "img_in.weight"


def saved(tensors: dict[str, Tensor], path: Path) -> Path:
    merge.save_checkpoint(tensors, path)
    return path


def model(value: float, name: str, channels: int) -> dict[str, Tensor]:
    shape = (8, channels, 3, 3) if name == CONVOLUTION else (8, channels)
    steps = torch.arange(channels, dtype=torch.float32).reshape(1, channels, *[1] * (len(shape) - 2))
    return {name: (value + steps).expand(shape).contiguous(), "middle.bias": torch.full((8,), value)}


@pytest.mark.parametrize(("name", "few", "many"), [(CONVOLUTION, 4, 9), (LINEAR, 3, 16)])
def test_a_base_stands_for_channels_that_only_one_expert_has(tmp_path: Path, name: str, few: int, many: int) -> None:
    base, wide, tuned = model(1.0, name, few), model(9.0, name, many), model(1.5, name, few)
    files = {"base": base, "inpaint": wide, "custom": tuned}
    paths = {label: saved(tensors, tmp_path / f"{label}.safetensors") for label, tensors in files.items()}
    recipe = recipe_of("task-arithmetic", paths, {"scale": 0.5}, Policy(vocab_rows="zero-delta"))
    made = merged_every_way(recipe, tmp_path / "out.safetensors")
    assert made[name].shape == wide[name].shape
    wanted = base[name] + 0.5 * ((wide[name][:, :few] - base[name]) + (tuned[name] - base[name]))
    assert_equal({"w": made[name][:, :few]}, {"w": wanted})
    assert torch.equal(made[name][:, few:], wide[name][:, few:])


@pytest.mark.parametrize("name", [CONVOLUTION, LINEAR])
def test_common_channels_are_merged_and_others_kept(tmp_path: Path, name: str) -> None:
    pair = {"image": model(1.0, name, 4), "depth": model(3.0, name, 5)}
    paths = {label: saved(tensors, tmp_path / f"{label}.safetensors") for label, tensors in pair.items()}
    recipe = recipe_of("interpolate", paths, {"ratio": 0.25}, Policy(vocab_rows="keep-first"))
    made = merged_every_way(recipe, tmp_path / "out.safetensors")
    common = torch.lerp(pair["image"][name], pair["depth"][name][:, :4], 0.25)
    assert torch.equal(made[name], torch.cat([common, pair["depth"][name][:, 4:]], 1))


def test_channels_are_only_matched_when_asked(tmp_path: Path) -> None:
    states = [model(1.0, CONVOLUTION, 4), model(2.0, CONVOLUTION, 9)]
    paths = [saved(tensors, tmp_path / f"{number}.safetensors") for number, tensors in enumerate(states)]
    outcome = command("average", *paths, "-o", tmp_path / "out.safetensors")
    assert f"{CONVOLUTION} has shape [8, 4, 3, 3] in 0 and [8, 9, 3, 3] in 1: pass --keep" in outcome.err
    assert "or merge those channels that all have with --vocab-rows keep-first" in outcome.err
    followed = command("average", *paths, "--vocab-rows", "keep-first", "-o", tmp_path / "out.safetensors")
    assert followed.code == 0, followed.err


def test_models_of_other_widths_are_no_models_of_more_channels() -> None:
    narrow = {"a.weight": torch.ones(8, 4), "b.weight": torch.ones(2, 8)}
    wide = {"a.weight": torch.ones(8, 6), "b.weight": torch.ones(2, 16)}
    with pytest.raises(MergeError, match=r"channels differ otherwise: a.weight has 4, 6, b.weight has 8, 16; keep or"):
        merge.average([narrow, wide], policy=Policy(vocab_rows="keep-first"))
    heads = [{"head.weight": torch.ones(classes, 4)} for classes in (2, 3)]
    with pytest.raises(MergeError, match=r"head.weight has shape \[2, 4\] in 0 and \[3, 4\] in 1"):
        merge.average(heads, policy=Policy(vocab_rows="keep-first"))
