"""8-bit floats with scales beside them are merged as the weights that they stand for, every way to the same bits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

import merge
from merge.checkpoint.scaled import dequantized
from merge.plan.policy import Policy
from tests.merge.made import Carrier

F8 = torch.float8_e4m3fn
POLICY = Policy(dequantize=True)


def codes(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(F8)


def factor(seed: int, *shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) + 0.1


def expanded(scales: Tensor, block: tuple[int, int], shape: tuple[int, int]) -> Tensor:
    """Every element's scale, by indices written out."""
    rows, columns = torch.arange(shape[0]) // block[0], torch.arange(shape[1]) // block[1]
    return scales[rows][:, columns]


LAYOUTS = {
    "one number": ("l.weight_scale", (), lambda s: s),
    "one of one": ("l.weight_scale_inv", (1, 1), lambda s: s[0, 0]),
    "rows": ("l.weight_scale", (6, 1), lambda s: s),
    "rows without a column": ("l.weight_scale", (6,), lambda s: s[:, None]),
    "blocks": ("l.weight_scale_inv", (3, 2), lambda s: expanded(s, (2, 5), (6, 10))),
    "ComfyUI": ("l.scale_weight", (1,), lambda s: s[0]),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_codes_times_scales_merged_every_way(tmp_path: Path, layout: str) -> None:
    scale, shape, spread = LAYOUTS[layout]
    states = [
        {"l.weight": codes(seed, 6, 10), scale: factor(seed, *shape), "norm.weight": factor(seed, 10)}
        for seed in (0, 1)
    ]
    first, second = (state["l.weight"].float() * spread(state[scale]) for state in states)
    wanted = torch.lerp(first, second, 0.25).bfloat16()  # rounded once
    made = merge.interpolate(*states, 0.25, policy=POLICY)
    assert list(made) == ["l.weight", "norm.weight"]
    assert torch.equal(made["l.weight"], wanted)
    assert made["norm.weight"].dtype == torch.float32
    paths = [merge.save_checkpoint(state, tmp_path / f"{i}.safetensors") for i, state in enumerate(states)]
    inputs = tuple(merge.Input(f"in{i}", path) for i, path in enumerate(paths))
    recipe = merge.Recipe("interpolate", inputs, {"ratio": 0.25}, policy=POLICY)
    for suffix in (".safetensors", ".pt", ""):
        loaded = merge.load_checkpoint(merge.run(recipe, tmp_path / f"out{suffix}"))
        assert set(loaded) == {"l.weight", "norm.weight"}
        assert torch.equal(loaded["l.weight"], wanted)
    live = Carrier({name: torch.zeros(value.shape) for name, value in made.items()})
    path = merge.LinearPath(live, *paths, policy=POLICY)
    path.set(0.25)
    assert torch.equal(live.now()["l.weight"], wanted.float())
    again = merge.run(tmp_path / "out.safetensors.recipe.json", tmp_path / "again.safetensors")
    assert merge.digest(again) == merge.digest(tmp_path / "out.safetensors")


def test_an_endpoint_is_rounded_once_and_kept_ones_too() -> None:
    states = [{"l.weight": codes(s, 4, 4), "l.weight_scale": factor(s, 4, 1), "w": factor(s, 2)} for s in (0, 1)]
    wanted = (states[0]["l.weight"].float() * states[0]["l.weight_scale"]).bfloat16()
    assert torch.equal(merge.interpolate(*states, 0.0, policy=POLICY)["l.weight"], wanted)
    kept = Policy(dequantize=True, keep=("l.weight",))
    assert torch.equal(merge.interpolate(*states, 0.5, policy=kept)["l.weight"], wanted)


def test_beside_a_plain_model_and_in_another_dtype() -> None:
    plain = {"l.weight": torch.randn(4, 4).bfloat16()}
    scaled = {"l.weight": codes(1, 4, 4), "l.weight_scale": factor(1)}
    product = scaled["l.weight"].float() * scaled["l.weight_scale"]
    made = merge.interpolate(plain, scaled, 0.5, policy=POLICY)["l.weight"]
    assert torch.equal(made, torch.lerp(plain["l.weight"].float(), product, 0.5).bfloat16())
    wide = Policy(dequantize=True, dtype=torch.float32)
    assert torch.equal(
        merge.interpolate(plain, scaled, 0.5, policy=wide)["l.weight"],
        torch.lerp(plain["l.weight"].float(), product, 0.5),
    )


def test_blocks_at_ragged_ends_and_of_experts(tmp_path: Path) -> None:
    state = {"l.weight": codes(0, 200, 130), "l.weight_scale_inv": factor(0, 2, 2)}
    wanted = state["l.weight"].float() * expanded(state["l.weight_scale_inv"], (128, 128), (200, 130))
    assert torch.equal(dequantized(state)["l.weight"], wanted)
    experts = {"e.up": codes(0, 2, 4, 6), "e.up_scale": factor(0, 2, 2, 3)}
    made = dequantized(experts)["e.up"]
    assert torch.equal(made[1], experts["e.up"][1].float() * expanded(experts["e.up_scale"][1], (2, 2), (4, 6)))
    said = {"l.weight": codes(0, 6, 6), "l.weight_scale_inv": factor(0, 2, 2)}
    merge.save_checkpoint(said, tmp_path / "model.safetensors")
    config = {"quantization_config": {"quant_method": "fp8", "weight_block_size": [4, 5]}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    wanted = said["l.weight"].float() * expanded(said["l.weight_scale_inv"], (4, 5), (6, 6))
    assert torch.equal(dequantized(merge.open_checkpoint(tmp_path))["l.weight"], wanted)
    odd = {"l.weight": codes(0, 7, 7), "l.weight_scale_inv": factor(0, 6, 6)}
    with pytest.raises(merge.MergeError, match="7 rows or columns and 6 scales fit no size of blocks"):
        dequantized(odd)


def test_scales_that_are_exponents_and_other_codes() -> None:
    state = {
        "l.weight": codes(0, 4, 4).float().to(torch.float8_e5m2),
        "l.weight_scale": torch.ones(1).mul(4).to(torch.float8_e8m0fnu),
    }
    assert torch.equal(dequantized(state)["l.weight"], state["l.weight"].float() * 4)


def test_what_belongs_to_the_codes_goes_with_them() -> None:
    state = {
        "scaled_fp8": torch.zeros(2).to(F8),
        "attn.k_proj.weight": codes(0, 4, 4),
        "attn.k_proj.weight_scale": factor(0),
        "attn.k_proj.input_scale": factor(0),
        "attn.k_scale": factor(0),
        "attn.k_proj.bias": factor(0, 4),
        "logit_scale": factor(0),
    }
    assert set(dequantized(state)) == {"attn.k_proj.weight", "attn.k_proj.bias", "logit_scale"}
    plain = {"w": factor(0, 2)}
    assert dequantized(plain) is plain


def test_task_vectors_of_scaled_weights() -> None:
    base, expert = ({"w": codes(s, 2, 2), "w_scale": factor(s)} for s in (0, 1))
    vector = merge.TaskVector.between(base, expert, policy=POLICY)
    wanted = expert["w"].double() * expert["w_scale"].double() - base["w"].double() * base["w_scale"].double()
    assert torch.allclose(vector.tensors["w"].double(), wanted, atol=1e-6)
