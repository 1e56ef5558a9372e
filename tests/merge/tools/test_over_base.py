"""Adapters over bases that a merge would ask about: scaled 8-bit floats, packed weights, ties."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import merge
from tests.merge.adapters import SHAPES, base_of, change, lora
from tests.merge.shell import command, done

Q = "encoder.layers.0.q.weight"
V = "decoder.layers.0.v.weight"


def scaled(state: dict[str, Tensor], *names: str) -> dict[str, Tensor]:
    """The same with these weights as codes in float8_e4m3fn, a hundred times as large, and their scale beside them."""
    codes = {name: (state[name] * 100).to(torch.float8_e4m3fn) for name in names}
    scales = {f"{name}_scale_inv": torch.tensor(0.01) for name in names}
    return {**state, **codes, **scales}


def test_codes_that_are_changed_are_refused_or_multiplied_by_their_scales(tmp_path: Path) -> None:
    adapter = merge.open_adapter(lora(tmp_path / "vqa", 0))
    state = scaled(base_of(torch.bfloat16), Q)
    with pytest.raises(
        merge.MergeError, match=r"base has quantised weights .*dequantize=True.*accept='scaled-weights'"
    ):
        merge.apply_adapters(state, [adapter], weights=[1.0])
    result = merge.apply_adapters(state, [adapter], weights=[1.0], dequantize=True)
    whole = state[Q].float() * 0.01 + change(adapter.modules["encoder.layers.0.q"]).float()
    assert list(result) == list(base_of())
    assert torch.equal(result[Q], whole.to(torch.bfloat16))
    assert torch.equal(result[V], merge.apply_adapters(base_of(torch.bfloat16), [adapter], weights=[1.0])[V])
    accepted = merge.apply_adapters(state, [adapter], weights=[1.0], accept="scaled-weights")
    assert accepted[Q].dtype == torch.float8_e4m3fn


def test_codes_that_no_adapter_changes_stay_with_their_scales(tmp_path: Path) -> None:
    state = scaled({**base_of(), "lm_head.weight": torch.ones(3, 3)}, "lm_head.weight")
    result = merge.apply_adapters(state, [lora(tmp_path / "vqa", 0)])
    assert torch.equal(result["lm_head.weight"].float(), state["lm_head.weight"].float())
    assert result["lm_head.weight_scale_inv"] == state["lm_head.weight_scale_inv"]


def test_the_command_asks_the_same_and_its_advice_works(tmp_path: Path) -> None:
    folder = lora(tmp_path / "vqa", 0)
    model = tmp_path / "model"
    model.mkdir()
    merge.save_checkpoint(scaled(base_of(torch.bfloat16), Q, V), model / "model.safetensors")
    (model / "config.json").write_text(json.dumps({"quantization_config": {"quant_method": "fp8"}, "hidden_size": 5}))
    shown = command("adapters", folder, "--base", model, "-w", 1, "-o", tmp_path / "out")
    assert (shown.code, (tmp_path / "out").exists()) == (2, False)
    assert "with --dequantize" in shown.err
    assert "--accept scaled-weights" in shown.err
    done("adapters", folder, "--base", model, "-w", 1, "--dequantize", "-o", tmp_path / "out")
    wanted = merge.apply_adapters(model, [folder], weights=[1.0], dequantize=True)
    result = load_file(tmp_path / "out" / "model.safetensors")
    assert {name: value.dtype for name, value in result.items()} == dict.fromkeys(base_of(), torch.bfloat16)
    assert all(torch.equal(result[name], wanted[name]) for name in wanted)
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == {"hidden_size": 5}


def test_a_folder_gets_a_card_of_its_own_and_is_replaced_as_a_whole(tmp_path: Path) -> None:
    folder, model, out = lora(tmp_path / "vqa", 0), tmp_path / "model", tmp_path / "out"
    model.mkdir()
    merge.save_checkpoint(scaled(base_of(torch.bfloat16), Q), model / "model.safetensors")
    (model / "config.json").write_text(json.dumps({"quantization_config": {"quant_method": "fp8"}}))
    (model / "README.md").write_text("# the card of the base")
    words = ["adapters", folder, "--base", model, "-w", 1, "--dequantize", "-o", out]
    shown = done(*words)
    assert "note: left out of model: model cards (README.md)" in shown.err
    card, noted = (out / "README.md").read_text(), json.loads((tmp_path / "out.recipe.json").read_text())
    assert "Made by unival-merge" in card
    assert "adapters: model + 1.00 vqa." in card
    assert "the card of the base" not in card
    assert merge.digest(folder / "adapter_model.safetensors") in card
    assert noted["output"]["digest"] == merge.digest(out)
    assert noted["policy"] == {"accept": [], "dequantize": True, "allow_nonfinite": False}
    assert "made by adapters: model + 1.00 vqa" in done("inspect", out).out
    assert command(*words).code == 2
    done(*words, "--overwrite")
    (out / "thesis.tex").write_text("")
    assert "holds thesis.tex" in command(*words, "--overwrite").err


def test_merged_adapters_have_a_card_too(tmp_path: Path) -> None:
    pair, out = [lora(tmp_path / name, seed) for seed, name in enumerate("ab")], tmp_path / "out"
    for more in ([], ["--overwrite"]):
        done("adapters", *pair, *more, "-o", out)
        card = (out / "README.md").read_text()
        assert "library_name: peft" in card
        assert "adapters: 0.50 a + 0.50 b." in card
        assert merge.digest(out / "adapter_model.safetensors") in card


def test_the_record_of_another_merge_does_not_stay(tmp_path: Path) -> None:
    folder, out = lora(tmp_path / "vqa", 0), tmp_path / "out.safetensors"
    base = merge.save_checkpoint(base_of(), tmp_path / "base.safetensors")
    done("average", base, base, "--name", "a", "--name", "b", "-o", out)
    done("adapters", folder, "--base", base, "--overwrite", "-o", out)
    noted = json.loads((tmp_path / "out.safetensors.recipe.json").read_text())
    assert (noted["method"], noted["output"]["made"]) == ("adapters", "base.safetensors + 1.00 vqa")
    shown = command("run", tmp_path / "out.safetensors.recipe.json", "-o", tmp_path / "again.safetensors")
    assert (shown.code, shown.err.count("\n"), "adapters" in shown.err) == (2, 1, True)


def test_weights_packed_by_other_tools_are_named_for_what_they_are(tmp_path: Path) -> None:
    packed = {name: value for name, value in base_of().items() if name != Q}
    packed |= {
        "encoder.layers.0.q.qweight": torch.zeros(1, 6, dtype=torch.int32),
        "encoder.layers.0.q.qzeros": torch.zeros(1, 1, dtype=torch.int32),
        "encoder.layers.0.q.scales": torch.ones(1, 6),
    }
    with pytest.raises(merge.MergeError, match=r"base has quantised weights .*encoder\.layers\.0\.q\.qweight"):
        merge.apply_adapters(packed, [lora(tmp_path / "gptq", 0)])


def test_a_code_without_a_base_is_refused(tmp_path: Path) -> None:
    folder = lora(tmp_path / "vqa", 0)
    for option in (["--dequantize"], ["--accept", "scaled-weights"]):
        shown = command("adapters", folder, *option, "-o", tmp_path / "out")
        assert (shown.code, f"{option[0]}" in shown.err, "--base" in shown.err) == (2, True, True)


def test_a_tie_is_told_alike_in_memory_and_the_advice_works(tmp_path: Path) -> None:
    state = base_of()
    state["decoder.tied.weight"] = state[V]
    folder = lora(tmp_path / "vqa", 0)
    with pytest.raises(merge.MergeError, match=r"is one tensor with .*state\['decoder"):
        merge.apply_adapters(state, [folder], weights=[1.0])
    state[V] = state[V].clone()
    result = merge.apply_adapters(state, [folder], weights=[1.0])
    assert torch.equal(result["decoder.tied.weight"], state["decoder.tied.weight"])
    assert torch.equal(result[V], merge.apply_adapters(base_of(), [folder], weights=[1.0])[V])
    assert SHAPES.keys() == merge.open_adapter(folder).modules.keys()
